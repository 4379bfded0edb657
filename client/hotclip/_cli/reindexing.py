"""`hotclip reindex` and `hotclip drop-shadow`: a collection's vectors by another version."""

from __future__ import annotations

import argparse
from typing import Any

from hotclip import Client
from hotclip._cli.arguments import add_command, add_options
from hotclip._cli.jobs import follow
from hotclip._cli.output import print_fields, print_json


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds both."""
    about = "Make the vectors of a collection anew with a version, beside the old ones"
    reindex = add_command(commands, "reindex", _reindex, about, shared=shared)
    about = "Give up what reindex made for a version that is not to go live after all"
    drop = add_command(commands, "drop-shadow", _drop, about, shared=shared)
    for parser in (reindex, drop):
        parser.add_argument("collection", help="Its name")
        parser.add_argument("version", help="Version that the vectors are, or were, made by")
    reindex.add_argument(
        "-d", "--detach", action="store_true", help="Start the job and print its name only"
    )
    names = add_options(reindex, Client.reindex, without=("collection", "version"))
    reindex.set_defaults(names=names)


def _reindex(client: Client, options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in options.names if hasattr(options, name)}
    run = client.reindex(options.collection, options.version, **given)
    if not options.detach:
        return follow(run, options)
    if options.json:
        print_json(run.job())
    else:
        print(run.name)
    return 0


def _drop(client: Client, options: argparse.Namespace) -> int:
    found = client.drop_shadow(options.collection, options.version)
    if options.json:
        print_json(found)
    else:
        print_fields([("collection", found.name), ("version", found.version)])
    return 0
