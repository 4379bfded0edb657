"""`hotclip feedback`: record, list, make a dataset of, forget what people chose."""

from __future__ import annotations

import argparse
from datetime import datetime
from functools import partial
from typing import Any

from hotclip import Choice, Client
from hotclip._cli.arguments import add_command
from hotclip._cli.output import print_fields, print_json, print_table


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `feedback` and what is below it."""
    about = "Keep what people chose, and make datasets of it"
    group = commands.add_parser("feedback", help=about, description=f"{about}.")
    under = group.add_subparsers(metavar="COMMAND", required=True)

    add = partial(add_command, under, shared=shared)
    record = add("record", _record, "Keep that somebody searched with a text and took a point")
    listing = add("list", _list, "List choices, newest first")
    make = add("dataset", _dataset, "Make a dataset of choices, for finetune")
    forget = add("delete", _delete, "Forget choices")
    for parser in (record, listing, make, forget):
        parser.add_argument("collection", help="Its name")
    record.add_argument("query", help="What was searched with")
    record.add_argument("point", help="Id of the point that was taken")
    record.add_argument(
        "--request-id", default="", metavar="ID", help="Recorded once, however often it is sent"
    )
    for parser in (listing, make, forget):
        for name, meaning in (("start", "From then on"), ("end", "Before then")):
            parser.add_argument(
                f"--{name}",
                type=_time,
                metavar="TIME",
                help=f"{meaning}: ISO 8601, local unless it has a zone [default: all]",
            )
    make.add_argument("--name", default="", help="Of the dataset [default: its id]")
    make.add_argument("--description", default="", metavar="TEXT", help="Free text")
    make.add_argument(
        "--max-choices",
        type=int,
        metavar="N",
        help="The newest so many are looked at [default: 100000]",
    )
    make.add_argument(
        "--validate-only", action="store_true", help="Count what could be used, make nothing"
    )


def _record(client: Client, options: argparse.Namespace) -> int:
    choice = Choice(options.query, options.point, request_id=options.request_id)
    done = client.record_feedback(options.collection, [choice])
    if options.json:
        print_json(done)
    else:
        print("recorded" if done.recorded else "known")
    return 0


def _list(client: Client, options: argparse.Namespace) -> int:
    found = client.list_feedback(options.collection, start=options.start, end=options.end)
    if options.json:
        print_json(found)
    else:
        print_table(("TIME", "QUERY", "POINT"), [(c.time, c.query, c.point_id) for c in found])
    return 0


def _dataset(client: Client, options: argparse.Namespace) -> int:
    made = client.feedback_dataset(
        options.collection,
        name=options.name,
        description=options.description,
        start=options.start,
        end=options.end,
        max_choices=options.max_choices,
        validate_only=options.validate_only,
    )
    if options.json:
        print_json(made)
        return 0
    print_fields(
        [
            ("dataset", made.dataset.name if made.dataset else ""),
            ("pairs", made.dataset.pairs if made.dataset else None),
            ("choices", made.choices),
            ("used", made.used),
        ]
    )
    if made.unused:
        print()
        rows = [(u.reason, u.choices, u.point_ids) for u in made.unused]
        print_table(("UNUSED", "CHOICES", "POINTS"), rows)
    return 0


def _delete(client: Client, options: argparse.Namespace) -> int:
    deleted = client.delete_feedback(options.collection, start=options.start, end=options.end)
    if options.json:
        print_json({"deleted": deleted})
    else:
        print(deleted)
    return 0


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise argparse.ArgumentTypeError(f"no time as ISO 8601 has it: {text!r}") from None
