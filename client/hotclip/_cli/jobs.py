"""`hotclip jobs`: find, follow, end and report on jobs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hotclip import Client, Job, JobKind, JobState, LogLine
from hotclip._cli.arguments import add_command
from hotclip._cli.output import clean, note, print_fields, print_json, print_table
from hotclip._progress import ProgressBar
from hotclip._sync.jobs import Run

REFUSED = 1
_LEADING = ("monitor", "loss", "validation_loss")


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `jobs` and what is below it."""
    about = "Find, follow, end and report on jobs"
    group = commands.add_parser("jobs", help=about, description=f"{about}.")
    under = group.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        parser = add_command(under, name, run, about, shared=shared)
        if name != "list":
            parser.add_argument("job", help="Name or id")
        return parser

    listing = add("list", _list, "List jobs, newest first")
    kinds = [kind.value.lower().replace("_", "-") for kind in JobKind if kind != JobKind.UNKNOWN]
    listing.add_argument("--kind", choices=kinds, help="Only this kind")
    add("show", _show, "Show where a job stands, what it was told and what it measured")
    watch = add("watch", _watch, "Follow a job to its end, over broken connections too")
    watch.add_argument(
        "--after",
        type=int,
        default=0,
        metavar="SEQ",
        help="Only events after this number [default: 0, from the beginning]",
    )
    logs = add("logs", _logs, "Print what a job has logged")
    logs.add_argument("-f", "--follow", action="store_true", help="Go on to the end of the job")
    report = add("report", _report, "Write a page on a job: curves, metrics, searches in pictures")
    report.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="The file, or an existing folder [default: <name>.html]",
    )
    add("cancel", _cancel, "Ask a job to end")
    add("resume", _resume, "Put a failed or interrupted job back into the queue")
    add("delete", _delete, "Forget an ended job and its events; versions that it made stay")


def follow(run: Run, options: argparse.Namespace, after: int = 0) -> int:
    """Shows a job to its end; 0 if it ended well."""
    try:
        if options.json:
            for event in run.events(after):
                print_json({"kind": type(event.detail).__name__, **_event(event)}, indent=None)
        else:
            _draw(run, after)
        job = run.job()
    except KeyboardInterrupt:
        note(f"the job goes on: hotclip jobs watch {run.name}")
        raise
    if options.json:
        print_json({"kind": "Job", "detail": job}, indent=None)
    else:
        print_job(job)
    return 0 if job.state is JobState.SUCCEEDED else REFUSED


def _draw(run: Run, after: int) -> None:
    bar = ProgressBar(run.name)
    try:
        for event in run.events(after):
            bar.show(event)
    finally:
        bar.close()


def print_job(job: Job) -> None:
    """For people."""
    print_fields(
        [
            ("name", job.name),
            ("id", job.id if job.id != job.name else ""),
            ("kind", job.kind),
            ("state", job.state),
            ("progress", f"{job.progress:.0%}"),
            ("model", job.model),
            ("description", job.description),
            ("created", job.create_time),
            ("started", job.start_time),
            ("ended", job.end_time),
            ("error", job.error),
            ("result", job.result_version),
            ("activated", job.activated if job.result_version else None),
            ("artifacts", list(job.artifacts)),
        ]
    )
    if job.metrics:
        print()
        first = [name for name in _LEADING if name in job.metrics]
        rest = sorted(set(job.metrics) - set(first))
        print_fields([(name, job.metrics[name]) for name in (*first, *rest)])


def _settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Names with dots, as "config.epochs", and values; every digit of a number."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:.17g}" if value.is_integer() else repr(value)
        else:
            yield f"{prefix}{name}", value


def _event(event: Any) -> dict[str, Any]:
    return {"seq": event.seq, "time": event.time, "detail": event.detail}


def _list(client: Client, options: argparse.Namespace) -> int:
    kind = JobKind(options.kind.upper().replace("-", "_")) if options.kind else None
    found = client.list_jobs(kind=kind)
    if options.json:
        print_json(found)
        return 0
    print_table(
        ("NAME", "KIND", "STATE", "PROGRESS", "MODEL", "CREATED", "RESULT"),
        [
            (j.name, j.kind, j.state, f"{j.progress:.0%}", j.model, j.create_time, j.result_version)
            for j in found
        ],
    )
    return 0


def _show(client: Client, options: argparse.Namespace) -> int:
    job = client.get_job(options.job).job()
    _tell(job, options)
    if job.config and not options.json:
        print()
        print_fields(_settings(job.config))
    return 0


def _watch(client: Client, options: argparse.Namespace) -> int:
    return follow(client.get_job(options.job), options, options.after)


def _logs(client: Client, options: argparse.Namespace) -> int:
    limit = None if options.follow else options.timeout
    for event in client.get_job(options.job).events(follow=options.follow, timeout=limit):
        if isinstance(event.detail, LogLine):
            if options.json:
                print_json(event.detail, indent=None)
            else:
                print(clean(str(event.detail)), flush=True)
    return 0


def _report(client: Client, options: argparse.Namespace) -> int:
    run = client.get_job(options.job)
    written = run.report(options.output or Path(f"{run.name}.html"))
    if options.json:
        print_json({"path": written})
    else:
        print(written)
    return 0


def _cancel(client: Client, options: argparse.Namespace) -> int:
    return _tell(client.get_job(options.job).cancel(), options)


def _resume(client: Client, options: argparse.Namespace) -> int:
    return _tell(client.get_job(options.job).resume(), options)


def _delete(client: Client, options: argparse.Namespace) -> int:
    client.get_job(options.job).delete()
    return 0


def _tell(job: Job, options: argparse.Namespace) -> int:
    if options.json:
        print_json(job)
    else:
        print_job(job)
    return 0
