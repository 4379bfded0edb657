"""`hotclip info`, `models`, `versions`, `version`, `activate`, `rollback`, `unload` and
`delete-version`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from hotclip import Client, Model, Version
from hotclip._cli.arguments import add_command, limit
from hotclip._cli.gates import SYNTAX, gate_of
from hotclip._cli.output import print_fields, print_json, print_table


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds them."""

    add = partial(add_command, commands, shared=shared)
    add("info", _info, "Show what the server is and serves")
    add("models", _models, "List models with their live versions")
    versions = add("versions", _versions, "List the versions of a model, newest first")
    versions.add_argument("model", nargs="?", default="", help='[default: "default"]')
    version = add("version", _version, "Show a version: its parent, data, settings and metrics")
    activate = add("activate", _activate, "Make a version live")
    unload = add("unload", _unload, "Free the memory of a version that is not live")
    unload.add_argument(
        "--release-rollback",
        action="store_true",
        help="It may be the version that rollback returns to; afterwards there is none",
    )
    delete = add("delete-version", _delete, "Remove a version and its files")
    for parser in (version, activate, unload, delete):
        parser.add_argument("version", help="Its id")
    activate.add_argument(
        "--gate",
        action="append",
        default=[],
        type=gate_of,
        metavar="GATE",
        help=f"It goes live only if this holds: {SYNTAX}. May be repeated",
    )
    activate.add_argument(
        "--validate-only", action="store_true", help="Check and stage, change nothing"
    )
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
        parser.add_argument(
            "--etag", default="", metavar="TEXT", help="The model must still have it"
        )


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
    changed = client.activate(
        options.version,
        model=options.model,
        etag=options.etag,
        validate_only=options.validate_only,
        collections=options.collection,
        gates=options.gate,
        **limit(options),
    )
    return _tell(changed, options)


def _rollback(client: Client, options: argparse.Namespace) -> int:
    return _tell(client.rollback(model=options.model, etag=options.etag), options)


def _version(client: Client, options: argparse.Namespace) -> int:
    return _describe(client.get_version(options.version), options)


def _unload(client: Client, options: argparse.Namespace) -> int:
    freed = client.unload_version(options.version, release_rollback=options.release_rollback)
    return _describe(freed, options)


def _delete(client: Client, options: argparse.Namespace) -> int:
    client.delete_version(options.version)
    return 0


def _describe(version: Version, options: argparse.Namespace) -> int:
    if options.json:
        print_json(version)
        return 0
    rows: list[tuple[str, object]] = [
        ("version", version.id),
        ("model", version.model),
        ("state", version.state),
        ("architecture", version.architecture),
        ("source", version.source),
        ("parent", version.parent),
        ("created", version.create_time),
        ("space", version.space_id),
        ("text encoder", version.text_encoder_id),
        ("image encoder", version.vision_encoder_id),
    ]
    if version.lineage is not None:
        rows += [(f"{use} data", dataset) for use, dataset in version.lineage.datasets.items()]
        rows += [(name, value) for name, value in version.lineage.config.items()]
    print_fields([*rows, *sorted(version.metrics.items())])
    return 0


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
