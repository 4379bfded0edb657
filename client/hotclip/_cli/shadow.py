"""`hotclip shadow`: copy requests to a version that is not live, and see what that shows."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from hotclip import Client, ShadowTraffic
from hotclip._cli.arguments import add_command
from hotclip._cli.output import print_fields, print_json, print_table


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `shadow` and what is below it."""
    about = "Copy requests to a version that is not live"
    group = commands.add_parser("shadow", help=about, description=f"{about}.")
    under = group.add_subparsers(metavar="COMMAND", required=True)

    add = partial(add_command, under, shared=shared)
    begin = add("set", _set, "Copy a share of the requests to a version from now on")
    begin.add_argument("version", help="Its id")
    begin.add_argument(
        "--share", type=float, default=0.1, metavar="N", help="Of the requests [default: 0.1]"
    )
    begin.add_argument(
        "--lifetime-s",
        type=float,
        metavar="SECONDS",
        help="Until it ends by itself [default: 3600]",
    )
    show = add("show", _show, "Show what goes on, or what was the last")
    end = add("clear", _clear, "End it, and show its last figures")
    for parser in (begin, show, end):
        parser.add_argument("--model", default="", metavar="NAME", help='[default: "default"]')


def _set(client: Client, options: argparse.Namespace) -> int:
    found = client.set_shadow_traffic(
        options.version, share=options.share, lifetime_s=options.lifetime_s, model=options.model
    )
    return _tell(found, options)


def _show(client: Client, options: argparse.Namespace) -> int:
    return _tell(client.shadow_traffic(model=options.model), options)


def _clear(client: Client, options: argparse.Namespace) -> int:
    return _tell(client.clear_shadow_traffic(model=options.model), options)


def _tell(found: ShadowTraffic, options: argparse.Namespace) -> int:
    if options.json:
        print_json(found)
        return 0
    print_fields(
        [
            ("version", found.version),
            ("beside", found.base_version),
            ("share", f"{found.share:g}"),
            ("state", found.end_reason or "goes on"),
            ("ends", found.expire_time),
            ("requests", found.requests),
            ("copied", found.copied),
            ("compared", found.compared),
            *((f"dropped {reason}", count) for reason, count in sorted(found.dropped.items())),
            *((f"failed {reason}", count) for reason, count in sorted(found.failed.items())),
        ]
    )
    print()
    print_table(
        ("TOWER", "ITEMS", "COSINE", "5% BELOW", "LEAST"),
        [
            (
                *(t.tower, t.items, t.cosine_mean),
                *(t.cosine_quantiles.get(0.05), t.cosine_quantiles.get(0.0)),
            )
            for t in found.towers.values()
        ],
    )
    print()
    print_table(
        ("DEVICE", "REQUESTS", "MEAN MS", "P50", "P95", "P99"),
        [
            (
                *(name, t.count, t.mean_us / 1e3),
                *(t.p50_us / 1e3, t.p95_us / 1e3, t.p99_us / 1e3),
            )
            for name, t in (("live", found.live), ("shadow", found.shadow))
        ],
    )
    return 0
