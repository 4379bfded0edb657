"""`hotclip encode`: vectors of texts and images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from hotclip import Client
from hotclip._cli.inputs import items
from hotclip._cli.output import note, print_json, print_table

_SHOWN = 4


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `encode`."""
    about = "Encode texts and images"
    parser = commands.add_parser("encode", help=about, description=f"{about}.", parents=[shared])
    parser.add_argument(
        "input",
        nargs="+",
        help="A text, or the file of a JPEG, PNG or WebP image; text:… and image:… leave no "
        "doubt; - reads texts from stdin, one a line",
    )
    parser.add_argument("--model", default="", metavar="NAME", help='[default: "default"]')
    parser.add_argument(
        "--version", default="", metavar="ID", help="Answer with this version [default: live]"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE.npy", help="Write float32 [inputs, dim] there"
    )
    parser.set_defaults(run=_encode)


def _encode(client: Client, options: argparse.Namespace) -> int:
    inputs = items(options.input)
    found = client.encode(inputs, model=options.model, version=options.version)
    vectors = np.asarray(found)
    if options.output is not None:
        with options.output.open("wb") as file:
            np.save(file, vectors, allow_pickle=False)
        note(f"wrote {vectors.shape[0]} × {vectors.shape[1]} to {options.output}")
    if options.json:
        print_json(
            {
                "version": found.version,
                "space_id": found.space_id,
                "inputs": inputs,
                **({} if options.output else {"vectors": vectors}),
            },
            indent=None,
        )
    elif options.output is None:
        rows = [
            (one, " ".join(f"{x:+.4f}" for x in row[:_SHOWN]) + " …")
            for one, row in zip(inputs, vectors, strict=True)
        ]
        print_table(("INPUT", f"{vectors.shape[1]} DIMENSIONS"), rows)
        note(f"version {found.version}; --json or --output for whole vectors")
    return 0
