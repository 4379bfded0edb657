"""`hotclip info`, `models`, `versions`, `activate` and `rollback`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from hotclip import Client, Model
from hotclip._cli.arguments import add_command
from hotclip._cli.output import print_fields, print_json, print_table


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds them."""

    add = partial(add_command, commands, shared=shared)
    add("info", _info, "Show what the server is and serves")
    add("models", _models, "List models with their live versions")
    versions = add("versions", _versions, "List the versions of a model, newest first")
    versions.add_argument("model", nargs="?", default="", help='[default: "default"]')
    activate = add("activate", _activate, "Make a version live")
    activate.add_argument("version", help="Its id")
    activate.add_argument(
        "--collection",
        action="append",
        default=[],
        metavar="NAME",
        help="Goes live with it; may be repeated [default: all that are complete for it]",
    )
    rollback = add("rollback", _rollback, "Make the version before live again")
    for parser in (activate, rollback):
        parser.add_argument("--model", default="", metavar="NAME", help='[default: "default"]')


def _info(client: Client, options: argparse.Namespace) -> int:
    found = client.server_info()
    if options.json:
        print_json(found)
        return 0
    print_fields(
        [
            ("hotclip", found.server_version),
            ("device", found.device),
            ("engine", found.engine),
            ("precision", found.precision),
            ("up", f"{found.uptime_s:.0f} s"),
        ]
    )
    print()
    rows = [(v.model, v.version, v.live, v.dim, v.image_size) for v in found.versions]
    print_table(("MODEL", "VERSION", "LIVE", "DIM", "IMAGE"), rows)
    return 0


def _models(client: Client, options: argparse.Namespace) -> int:
    found = client.models()
    if options.json:
        print_json(found)
        return 0
    rows = [(m.name, m.live_version, m.previous_version, m.staged_versions) for m in found]
    print_table(("MODEL", "LIVE", "PREVIOUS", "STAGED"), rows)
    return 0


def _versions(client: Client, options: argparse.Namespace) -> int:
    found = client.versions(options.model)
    if options.json:
        print_json(found)
        return 0
    rows = [
        (v.id, v.state, v.architecture, v.dim, v.source, v.metrics.get("monitor"), v.create_time)
        for v in found
    ]
    titles = ("VERSION", "STATE", "ARCHITECTURE", "DIM", "SOURCE", "MONITOR", "CREATED")
    print_table(titles, rows)
    return 0


def _activate(client: Client, options: argparse.Namespace) -> int:
    changed = client.activate(options.version, model=options.model, collections=options.collection)
    return _tell(changed, options)


def _rollback(client: Client, options: argparse.Namespace) -> int:
    return _tell(client.rollback(model=options.model), options)


def _tell(model: Model, options: argparse.Namespace) -> int:
    if options.json:
        print_json(model)
    else:
        print_fields(
            [
                ("model", model.name),
                ("live", model.live_version),
                ("previous", model.previous_version),
            ]
        )
    return 0
