"""`hotclip search`, `hotclip points`, `hotclip count` and `hotclip collections`."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping
from typing import Any

from hotclip import Client, Combined
from hotclip._cli.arguments import add_command
from hotclip._cli.inputs import item
from hotclip._cli.output import note, print_json, print_table
from hotclip._queries import QueryLike
from hotclip.errors import InvalidArgument


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds the commands of collections."""
    about = "Search a collection with a text or an image"
    parser = add_command(commands, "search", _search, about, shared=shared)
    parser.add_argument("collection", help="Its name")
    parser.add_argument("query", help="A text, or the file of an image; see encode")
    for flag, what in (("--plus", "Like this as well"), ("--minus", "But unlike this")):
        parser.add_argument(
            flag,
            action="append",
            default=[],
            metavar="QUERY",
            help=f"{what}: a text or the file of an image. May be repeated.",
        )
    parser.add_argument(
        "-k", "--limit", type=int, default=10, metavar="N", help="Hits [default: 10]"
    )
    _add_filter(parser)
    parser.add_argument(
        "--score-threshold", type=float, metavar="COSINE", help="Only hits of at least this cosine"
    )
    parser.add_argument("--exact", action="store_true", help="Compare with every vector")
    parser.add_argument(
        "--bridge", action="store_true", help="Search approximately by its bridge; see bridge"
    )
    about = "Show points of a collection by id, or list them"
    parser = add_command(commands, "points", _points, about, shared=shared)
    parser.add_argument("collection", help="Its name")
    parser.add_argument("ids", nargs="*", metavar="id", help="Points to show; none: list all")
    _add_filter(parser)
    parser.add_argument(
        "-n", "--limit", type=int, default=100, metavar="N", help="Most to list [default: 100]"
    )
    about = "Count the points of a collection"
    parser = add_command(commands, "count", _count, about, shared=shared)
    parser.add_argument("collection", help="Its name")
    _add_filter(parser)
    add_command(commands, "collections", _collections, "List collections", shared=shared)


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--filter",
        metavar="JSON",
        help='Only points whose payload has these values, e.g. \'{"kind": "fox", "n": 3}\'',
    )


def _search(client: Client, options: argparse.Namespace) -> int:
    wanted = item(options.query)
    query: QueryLike = wanted
    if options.plus or options.minus:
        more = [(item(word), 1.0) for word in options.plus]
        less = [(item(word), -1.0) for word in options.minus]
        query = Combined([wanted, *more, *less])
    hits = client.search(
        options.collection,
        query,
        limit=options.limit,
        filter=_filter(options),
        score_threshold=options.score_threshold,
        exact=options.exact,
        bridge=options.bridge,
    )
    if options.json:
        print_json({"version": hits.version, "space_id": hits.space_id, "hits": list(hits)})
        return 0
    rows = [(rank, hit.score, hit.id, _json(hit.payload)) for rank, hit in enumerate(hits, 1)]
    print_table(("RANK", "COSINE", "ID", "PAYLOAD"), rows)
    note(f"version {hits.version}")
    if hits.bridge is not None:
        note(f"approximate: recall@{hits.bridge.k} {hits.bridge.recall:.3f}")
    return 0


def _points(client: Client, options: argparse.Namespace) -> int:
    if options.limit < 1:
        raise InvalidArgument.field("limit", f"{options.limit} is less than 1")
    if options.ids and options.filter:
        raise InvalidArgument.field("filter", "goes without ids")
    if options.ids:
        found = client.get_points(options.collection, options.ids)
        for missing in sorted(set(options.ids) - {point.id for point in found}):
            note(f"no point {missing!r}")
    else:
        listed = client.list_points(options.collection, filter=_filter(options))
        found = list(itertools.islice(listed, options.limit))
    if options.json:
        print_json([{"id": point.id, "payload": point.payload} for point in found])
    else:
        print_table(("ID", "PAYLOAD"), [(point.id, _json(point.payload)) for point in found])
    return 0


def _count(client: Client, options: argparse.Namespace) -> int:
    points = client.count_points(options.collection, filter=_filter(options))
    if options.json:
        print_json({"points": points})
    else:
        print(points)
    return 0


def _collections(client: Client, options: argparse.Namespace) -> int:
    found = client.list_collections()
    if options.json:
        print_json(found)
    else:
        rows = [(c.name, c.points, c.version, c.create_time) for c in found]
        print_table(("NAME", "POINTS", "VERSION", "CREATED"), rows)
    return 0


def _filter(options: argparse.Namespace) -> dict[str, Any] | None:
    if options.filter is None:
        return None
    try:
        told = json.loads(options.filter)
    except ValueError as error:
        raise InvalidArgument.field("filter", f"not JSON: {error}") from error
    if not isinstance(told, dict):
        raise InvalidArgument.field("filter", "not a JSON object")
    return told


def _json(payload: Mapping[str, Any]) -> str:
    return json.dumps(dict(payload), ensure_ascii=False)
