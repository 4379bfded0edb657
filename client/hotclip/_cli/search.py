"""`hotclip search` and `hotclip collections`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hotclip import Client
from hotclip._cli.inputs import item
from hotclip._cli.output import note, print_json, print_table


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `search` and `collections`."""
    about = "Search a collection with a text or an image"
    parser = commands.add_parser("search", help=about, description=f"{about}.", parents=[shared])
    parser.add_argument("collection", help="Its name")
    parser.add_argument("query", help="A text, or the file of an image; see encode")
    parser.add_argument(
        "-k", "--limit", type=int, default=10, metavar="N", help="Hits [default: 10]"
    )
    parser.add_argument("--exact", action="store_true", help="Compare with every vector")
    parser.set_defaults(run=_search)
    about = "List collections"
    parser = commands.add_parser(
        "collections", help=about, description=f"{about}.", parents=[shared]
    )
    parser.set_defaults(run=_collections)


def _search(client: Client, options: argparse.Namespace) -> int:
    hits = client.search(
        options.collection, item(options.query), limit=options.limit, exact=options.exact
    )
    if options.json:
        print_json({"version": hits.version, "space_id": hits.space_id, "hits": list(hits)})
        return 0
    rows = [
        (rank, hit.score, hit.id, json.dumps(dict(hit.payload), ensure_ascii=False))
        for rank, hit in enumerate(hits, 1)
    ]
    print_table(("RANK", "COSINE", "ID", "PAYLOAD"), rows)
    note(f"version {hits.version}")
    return 0


def _collections(client: Client, options: argparse.Namespace) -> int:
    found = client.list_collections()
    if options.json:
        print_json(found)
    else:
        rows = [(c.name, c.points, c.version, c.create_time) for c in found]
        print_table(("NAME", "POINTS", "VERSION", "CREATED"), rows)
    return 0
