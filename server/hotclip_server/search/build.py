"""`python -m hotclip_server.search.build PARENT FOLDER KEYS`: builds the indexes of an engine
folder: of its vectors, and of the payload fields that KEYS names, JSON {key: kind} as in query.py.

A process of its own at the lowest priority: the engine holds the interpreter lock for the
whole of it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

import qdrant_edge as engine

from hotclip_server.search.query import index_operation

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Builds, flushes, ends."""
    if sys.platform == "linux":
        # It can't notice that its parent is gone while the engine works.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the vector process is gone")
    os.nice(19)
    shard = engine.EdgeShard.load(sys.argv[2])
    for key, kind in json.loads(sys.argv[3]).items():
        shard.update(index_operation(key, kind))
    shard.optimize()
    shard.flush()
    shard.close()


if __name__ == "__main__":
    main()
