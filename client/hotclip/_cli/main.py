"""`hotclip`: ask a server, train on it, follow what it does, from a shell."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from hotclip import Client
from hotclip._cli import (
    bridges,
    datasets,
    drift,
    encode,
    feedback,
    jobs,
    models,
    reindexing,
    search,
    shadow,
    training,
    weights,
)
from hotclip._cli.output import note
from hotclip.errors import HotclipError, InvalidArgument, JobFailed, Unavailable

ADDRESS = "127.0.0.1:50051"
VARIABLE = "HOTCLIP_SERVER"
TIMEOUT_S = 60.0
DONE, REFUSED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

_EPILOG = f"""\
exit codes:
  {DONE}    done
  {REFUSED}    refused, or a job that failed
  {USAGE}    wrong usage
  {UNREACHABLE}    the server does not answer
  {INTERRUPTED}  interrupted; a job goes on

examples:
  hotclip encode "a red fox" fox.jpg
  hotclip finetune pairs.csv --epochs 5 --learning-rate 1e-4 --name foxes
  hotclip jobs watch foxes
  hotclip jobs report foxes -o foxes.html
  hotclip activate VERSION
"""


class _Command(Protocol):
    def __call__(self, client: Client, options: argparse.Namespace) -> int: ...


def main(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
) -> int:
    """Runs a command; gives the exit code.

    Args:
        arguments: Without the program's name; None: of the process.
        environment: None: of the process.
    """
    options = make_parser().parse_args(arguments)
    variables = os.environ if environment is None else environment
    address = options.server or variables.get(VARIABLE) or ADDRESS
    run: _Command = options.run
    try:
        with Client(address, timeout=options.timeout or TIMEOUT_S) as client:
            return run(client, options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Who read the output has enough of it; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except JobFailed as error:
        note(f"hotclip: {error}")
        return REFUSED
    except Unavailable as error:
        note(f"hotclip: {error}")
        note(f"is there a server at {address}? say where with --server or {VARIABLE}")
        return UNREACHABLE
    except InvalidArgument as error:
        note(f"hotclip: {error}")
        return USAGE
    except (HotclipError, OSError) as error:
        note(f"hotclip: {error}")
        return REFUSED


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="hotclip",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(parser, None)
    shared = argparse.ArgumentParser(add_help=False)
    _add_common(shared, argparse.SUPPRESS)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serving = (encode, search, feedback, models, drift, reindexing, bridges, shadow)
    for module in (*serving, weights, training, datasets, jobs):
        module.add_commands(commands, shared)
    return parser


def _add_common(parser: argparse.ArgumentParser, default: Any) -> None:
    """Before or after the command; what is given after it wins."""
    parser.add_argument(
        "-s",
        "--server",
        metavar="HOST:PORT",
        default=default,
        help=f"The server [default: {VARIABLE}, else {ADDRESS}]",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        default=default or False,
        help="Print JSON instead of tables; of what goes on, one object a line",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        default=default,
        help=f"Of one call [default: {TIMEOUT_S:.0f}; load, activate, merge: "
        f"{_own(Client.load_version)}; datasets upload: {_own(Client.upload_dataset)}; "
        "the download of export: none]. Not of following a job, nor of uploading the data that "
        "finetune, evaluate and drift begin with",
    )


def _own(method: Callable[..., Any]) -> str:
    """Seconds that a method takes at most unless told otherwise: some may be long."""
    return f"{inspect.signature(method).parameters['timeout'].default:.0f}"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, is {text!r}")
    return value
