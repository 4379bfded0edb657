"""`python -m hotclip_server.search.build PARENT FOLDER KEYS`: builds the indexes of an engine
folder: of its vectors, and of the payload fields that KEYS names, JSON {key: kind} as in query.py.

A process of its own at the lowest priority: the engine holds the interpreter lock for the
whole of it.
"""

from __future__ import annotations

import json
import os
import sys

import qdrant_edge as engine

from hotclip_server.parent import end_with
from hotclip_server.search.query import index_operation


def main() -> None:
    """Builds, flushes, ends."""
    end_with(int(sys.argv[1]))  # it can't notice while the engine works
    os.nice(19)
    shard = engine.EdgeShard.load(sys.argv[2])
    for key, kind in json.loads(sys.argv[3]).items():
        shard.update(index_operation(key, kind))
    shard.optimize()
    shard.flush()
    shard.close()


if __name__ == "__main__":
    main()
