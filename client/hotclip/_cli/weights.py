"""`hotclip backbones`, `load`, `merge` and `export`: weights that come, are mixed and go."""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

from hotclip import Client, Version
from hotclip._cli.arguments import add_command, limit
from hotclip._cli.output import note, print_fields, print_json, print_table


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds them."""

    add = partial(add_command, commands, shared=shared)
    add("backbones", _backbones, "List published weights that are a good beginning")
    load = add("load", _load, "Load weights into a new version: warm, verified, not live")
    load.add_argument("source", help="As backbones lists them, hf-hub:ORG/REPO or local:NAME")
    merge = add("merge", _merge, "Make a version of the weights of others, without training")
    merge.add_argument(
        "versions", nargs="+", metavar="VERSION", help="With --alpha the base and what was trained"
    )
    merge.add_argument(
        "--alpha",
        type=float,
        metavar="N",
        help="Share of the trained weights in [0, 1], 0 is the base [default: the mean of all]",
    )
    export = add("export", _export, "Write a version as a file and download it")
    export.add_argument("version", nargs="?", default="", help="Its id [default: the live one]")
    export.add_argument(
        "--format",
        choices=("open_clip", "onnx", "delta"),
        default="open_clip",
        help="open_clip's folder as a tar, the same with ONNX files, or only what differs from "
        "the version's parent [default: open_clip]",
    )
    export.add_argument(
        "-o", "--output", type=Path, default=Path(), metavar="FOLDER", help="[default: here]"
    )
    for parser in (load, export):
        parser.add_argument("--model", default="", metavar="NAME", help='[default: "default"]')


def _backbones(client: Client, options: argparse.Namespace) -> int:
    found = client.backbones()
    if options.json:
        print_json(found)
        return 0
    rows = [
        (b.source, f"{b.parameters / 1e6:,.0f}", b.dim, b.image_size, b.languages, b.license)
        for b in found
    ]
    print_table(("SOURCE", "MILLIONS", "DIM", "IMAGE", "LANGUAGES", "LICENSE"), rows)
    return 0


def _load(client: Client, options: argparse.Namespace) -> int:
    made = client.load_version(options.source, model=options.model, **limit(options))
    return _tell(made, options)


def _merge(client: Client, options: argparse.Namespace) -> int:
    made = client.merge_versions(options.versions, alpha=options.alpha, **limit(options))
    return _tell(made, options)


def _export(client: Client, options: argparse.Namespace) -> int:
    run = client.export(options.version, format=options.format, model=options.model)
    note(f"job {run.name}")
    made = run.wait().artifacts[0]
    options.output.mkdir(parents=True, exist_ok=True)
    # A file may be large: only who asks for it gets an end to the download.
    seconds = math.inf if options.timeout is None else options.timeout
    written = client.download_artifact(made, options.output, timeout=seconds)
    if options.json:
        print_json({"path": written})
    else:
        print(written)
    return 0


def _tell(version: Version, options: argparse.Namespace) -> int:
    if options.json:
        print_json(version)
    else:
        print_fields(
            [
                ("version", version.id),
                ("model", version.model),
                ("state", version.state),
                ("source", version.source),
                ("parent", version.parent),
            ]
        )
    return 0
