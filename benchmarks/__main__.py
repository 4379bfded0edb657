"""`python -m benchmarks [suite ...]`: measures, prints a table, writes a JSON file a suite.

Exit code 0: measured, whether or not targets were met; 1: a call failed or an answer was
wrong, so there are no figures; 2: a bad option, or no such device.
"""

import argparse
import os
import sys
from collections.abc import Collection
from pathlib import Path

from benchmarks.corpus import CONTENTS
from benchmarks.machine import has_device
from benchmarks.settings import RESULTS, Settings
from benchmarks.worker import WorkerFailed


def main(arguments: list[str] | None = None) -> int:
    # Read when grpc is imported: its handlers are for children that go on without exec, and
    # none here does.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from benchmarks.suites import SUITES, run_suite

    suites, settings = parse(arguments, SUITES)
    if not has_device(settings.device):
        print(f"PyTorch finds no device {settings.device}", file=sys.stderr)
        return 2
    for suite in suites:
        try:
            path = run_suite(suite, settings)
        except WorkerFailed as error:
            print(f"{suite} FAILED, nothing is written: {error}", file=sys.stderr)
            return 1
        print(f"\n{path}\n")
    return 0


def parse(arguments: list[str] | None, known: Collection[str]) -> tuple[list[str], Settings]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = ", ".join(known)
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"{names} (default all)")
    parser.add_argument("--device", default="cpu", help="cuda, cuda:<n> or cpu (default cpu)")
    parser.add_argument("--models", nargs="+", default=(), help="sources of LoadVersion")
    parser.add_argument(
        "--contents", nargs="+", default=(), choices=CONTENTS, help="kinds of items (default all)"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of a segment of a comparison (default 10)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="segments of each side of a comparison (default 3)"
    )
    parser.add_argument(
        "--runs", type=int, default=0, help="most models of finetune-quality, which goes on later"
    )
    parser.add_argument("--quick", action="store_true", help="show that it works, measure nothing")
    parser.add_argument(
        "--server-option", action="append", default=[], help="e.g. --server-option=--engine=eager"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    told = parser.parse_args(arguments)
    if told.runs < 0:
        parser.error(f"--runs must be 0 or more, is {told.runs}")
    for suite in told.suites:
        if suite not in known:
            parser.error(f"there is no suite {suite!r}; there is: {names}")
    settings = Settings(
        device=told.device,
        models=tuple(told.models),
        contents=tuple(told.contents),
        seconds=told.seconds,
        rounds=told.rounds,
        runs=told.runs,
        quick=told.quick,
        server_options=tuple(told.server_option),
        output=told.output,
    )
    return told.suites or list(known), settings


if __name__ == "__main__":
    sys.exit(main())
