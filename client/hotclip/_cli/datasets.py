"""`hotclip datasets`: upload, list, report, delete."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from hotclip import Client, Dataset, DatasetFile
from hotclip._cli.arguments import add_command, add_options, limit
from hotclip._cli.output import clean, print_fields, print_json, print_table


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `datasets` and what is below it."""
    about = "Upload and look at sets of pairs"
    group = commands.add_parser("datasets", help=about, description=f"{about}.")
    under = group.add_subparsers(metavar="COMMAND", required=True)

    add = partial(add_command, under, shared=shared)
    add("list", _list, "List datasets, newest first")
    upload = add("upload", _upload, "Store a CSV, JSON lines or WebDataset file under a name")
    upload.add_argument("file", type=Path, help="CSV or JSON lines with paths of images, or a tar")
    upload.add_argument("--name", default="", help="[default: name of the file]")
    names = add_options(upload, Client.upload_dataset, without=("pairs", "name", "progress"))
    upload.set_defaults(names=names)
    upload.add_argument(
        "--encoding", default="utf-8", help="Of CSV and JSON lines [default: utf-8]"
    )
    upload.add_argument("--delimiter", help="Of CSV [default: found]")
    upload.add_argument(
        "--fetch-urls", action="store_true", help="Fetch images behind http and https URLs"
    )
    for name, run, about in (
        ("report", _report, "Show what was found in a dataset when it was uploaded"),
        ("delete", _delete, "Remove a dataset"),
    ):
        add(name, run, about).add_argument("dataset", help="Name or id")


def _list(client: Client, options: argparse.Namespace) -> int:
    found = client.list_datasets()
    if options.json:
        print_json(found)
        return 0
    rows = [(d.name, d.pairs, d.images, d.texts, d.size_bytes, d.create_time) for d in found]
    print_table(("NAME", "PAIRS", "IMAGES", "TEXTS", "BYTES", "CREATED"), rows)
    return 0


def _upload(client: Client, options: argparse.Namespace) -> int:
    stored = client.upload_dataset(
        options.name or options.file.name.partition(".")[0],
        DatasetFile(
            options.file,
            encoding=options.encoding,
            delimiter=options.delimiter,
            fetch_urls=options.fetch_urls,
        ),
        progress=not options.json,
        **{name: getattr(options, name) for name in options.names if hasattr(options, name)},
        **limit(options),
    )
    return _tell(stored, options)


def _report(client: Client, options: argparse.Namespace) -> int:
    return _tell(client.get_dataset(options.dataset), options)


def _delete(client: Client, options: argparse.Namespace) -> int:
    client.delete_dataset(options.dataset)
    return 0


def _tell(dataset: Dataset, options: argparse.Namespace) -> int:
    if options.json:
        print_json(dataset)
        return 0
    print_fields(
        [
            ("name", dataset.name),
            ("id", dataset.id),
            ("description", dataset.description),
            ("created", dataset.create_time),
            ("pairs", dataset.pairs),
            ("bytes", dataset.size_bytes),
        ]
    )
    if dataset.report is not None:
        print()
        for line in str(dataset.report).splitlines():
            print(clean(line))
    return 0
