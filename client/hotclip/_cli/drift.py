"""`hotclip drift`: what would change if a version went live."""

from __future__ import annotations

import argparse
from typing import Any

from hotclip import Client, CollectionNeed, DriftReport
from hotclip._cli.arguments import add_command, add_options
from hotclip._cli.inputs import data
from hotclip._cli.output import clean, note, print_fields, print_json, print_table
from hotclip._sync.jobs import Run
from hotclip.errors import InvalidArgument

_NEEDS = {
    CollectionNeed.NONE: "nothing: vectors stay valid",
    CollectionNeed.REINDEX: "reindex",
    CollectionNeed.SOURCES: "reindex, sources are missing",
    CollectionNeed.DONE: "nothing: it is ready",
    CollectionNeed.UNKNOWN: "?",
}
_SHOWN = ("monitor", "reciprocal_rank", "hit_at_1", "hit_at_10")


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds it."""
    about = "Show what would change if a version went live"
    parser = add_command(commands, "drift", _drift, about, shared=shared)
    parser.usage = "%(prog)s VERSION [options]\n       %(prog)s --job JOB"
    parser.add_argument("version", nargs="?", default="", help="The version that might go live")
    parser.add_argument("--job", default="", help="Show what this job has found instead")
    parser.add_argument(
        "--data", metavar="DATA", help="Held-out pairs: a file or folder, or the name of a dataset"
    )
    parser.add_argument(
        "-d", "--detach", action="store_true", help="Start the job and print its name only"
    )
    names = add_options(
        parser.add_argument_group("options of the job"),
        Client.compare_versions,
        without=("version", "data"),
    )
    parser.set_defaults(names=names)


def _drift(client: Client, options: argparse.Namespace) -> int:
    if bool(options.job) == bool(options.version):
        raise InvalidArgument.field("version", "give either a version or --job")
    job = options.job
    if not job:
        given = {name: getattr(options, name) for name in options.names if hasattr(options, name)}
        held_out = None if options.data is None else data(options.data)
        run = client.compare_versions(options.version, data=held_out, **given)
        if options.detach:
            return _started(run, options)
        run.wait(progress=not options.json)
        job = run.id
        if not options.json:
            note(f"as a page: hotclip jobs report {run.name}")
    found = client.drift_report(job)
    if options.json:
        print_json(found)
    else:
        print_report(found)
    return 0


def _started(run: Run, options: argparse.Namespace) -> int:
    if options.json:
        print_json(run.job())
    else:
        print(run.name)
    return 0


def print_report(found: DriftReport) -> None:
    """For people."""
    print_fields(
        [
            ("version", found.version),
            ("compared with", found.base_version),
            ("reindexing", None if found.reindex_s is None else f"{found.reindex_s:.1f} s"),
        ]
    )
    print()
    print_table(
        ("TOWER", "CHANGED", "ITEMS", "COSINE", "5% BELOW", "LEAST"),
        [
            (
                *(t.tower, not t.unchanged, t.items or None, t.cosine_mean),
                *(t.cosine_quantiles.get(0.05), t.cosine_quantiles.get(0.0)),
            )
            for t in found.towers.values()
        ],
    )
    if found.collections:
        print()
        print_table(
            ("COLLECTION", "POINTS", "NEEDS", "SECONDS", "OVERLAP@K", "TEXTS", "SAME FIRST"),
            [
                (
                    *(c.name, c.points, _NEEDS[c.need], c.reindex_s),
                    *(c.overlap, c.query_overlap, c.same_first),
                )
                for c in found.collections.values()
            ],
        )
    shown = [name for name in found.after if name.endswith(_SHOWN)]
    if shown:
        print()
        print_table(
            ("METRIC", "BEFORE", "AFTER"),
            [(name, found.before[name], found.after[name]) for name in shown],
        )
    for remark in found.remarks:
        note(clean(remark))
