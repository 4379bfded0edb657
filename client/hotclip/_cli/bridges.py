"""`hotclip bridge`: search a collection with a version before it is reindexed for it."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from hotclip import Bridge, Client
from hotclip._cli.arguments import add_command, add_options
from hotclip._cli.output import print_fields, print_json


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `bridge` and what is below it."""
    about = "Let a collection be searched approximately with another version"
    group = commands.add_parser("bridge", help=about, description=f"{about}.")
    under = group.add_subparsers(metavar="COMMAND", required=True)

    add = partial(add_command, under, shared=shared)
    fit = add("fit", _fit, "Fit the map from its stored vectors to the space of a version")
    show = add("show", _show, "Show how much a search over the bridge finds")
    delete = add("delete", _delete, "Remove the bridge")
    for parser in (fit, show, delete):
        parser.add_argument("collection", help="Its name")
    fit.add_argument("version", help="Version whose space is bridged to")
    fit.set_defaults(names=add_options(fit, Client.fit_bridge, without=("collection", "version")))


def _fit(client: Client, options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in options.names if hasattr(options, name)}
    run = client.fit_bridge(options.collection, options.version, **given)
    run.wait(progress=not options.json)
    return _tell(client.get_bridge(options.collection), options)


def _show(client: Client, options: argparse.Namespace) -> int:
    return _tell(client.get_bridge(options.collection), options)


def _delete(client: Client, options: argparse.Namespace) -> int:
    client.delete_bridge(options.collection)
    return 0


def _tell(found: Bridge, options: argparse.Namespace) -> int:
    if options.json:
        print_json(found)
        return 0
    print_fields(
        [
            ("collection", found.collection),
            ("stored by", found.bound_version),
            ("searched by", found.version),
            ("state", "" if found.current else "outdated: fit another"),
            ("method", found.method),
            ("fitted on", found.fitted_points),
            ("measured among", f"{found.measured_points} of {found.collection_points}"),
            ("cosine", found.cosine_mean),
            (f"recall@{found.k}", found.recall),
            ("without bridge", found.recall_of_bound),
            (f"texts, recall@{found.k}", found.query_recall),
            ("texts, without", found.query_recall_of_bound),
        ]
    )
    return 0
