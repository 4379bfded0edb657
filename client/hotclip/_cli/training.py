"""`hotclip finetune` and `hotclip evaluate`."""

from __future__ import annotations

import argparse
from typing import Any

from hotclip import Client
from hotclip._cli.arguments import add_options
from hotclip._cli.inputs import data
from hotclip._cli.jobs import follow
from hotclip._cli.output import clean, print_json
from hotclip._sync.jobs import Run

_DATA = (
    *("train_data", "eval_data", "query_data", "replay_data", "index_data", "data"),
    "upload_progress",
)
_FILE_OR_NAME = "A file or folder to upload, or the name of a dataset"


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds both."""
    for name, run, method, about in (
        ("finetune", _finetune, Client.finetune, "Train the model on pairs of text and image"),
        ("evaluate", _evaluate, Client.evaluate, "Measure how well a version retrieves"),
    ):
        parser = commands.add_parser(
            name,
            help=about,
            description=f"{about}; shows the job to its end, which goes on without this command.",
            usage="%(prog)s DATA [options]",
            parents=[shared],
        )
        parser.add_argument("data", help=_FILE_OR_NAME)
        if method is Client.finetune:
            parser.add_argument("--eval-data", metavar="DATA", help="Held-out data, likewise")
            parser.add_argument(
                "--query-data", metavar="DATA", help="Queries of the retrieval metrics, likewise"
            )
            parser.add_argument(
                "--replay-data", metavar="DATA", help="Old data that is trained on too, likewise"
            )
        parser.add_argument(
            "--index-data", metavar="DATA", help="Further images that are searched among, likewise"
        )
        parser.add_argument(
            "-d", "--detach", action="store_true", help="Start the job and print its name only"
        )
        group = parser.add_argument_group("options of the job")
        names = add_options(group, method, without=_DATA)
        parser.set_defaults(run=run, names=names)


def _finetune(client: Client, options: argparse.Namespace) -> int:
    given = _given(options)
    run = client.finetune(
        data(options.data),
        _data_of(options.eval_data),
        query_data=_data_of(options.query_data),
        replay_data=_data_of(options.replay_data),
        index_data=_data_of(options.index_data),
        upload_progress=not options.json,
        **given,
    )
    if given.get("validate_only"):
        if options.json:
            print_json({"valid": True, "advice": run.advice})
        else:
            print("valid")
            for line in run.advice.splitlines():
                print(clean(line))
        return 0
    return _started(run, options)


def _evaluate(client: Client, options: argparse.Namespace) -> int:
    run = client.evaluate(
        data(options.data),
        index_data=_data_of(options.index_data),
        upload_progress=not options.json,
        **_given(options),
    )
    return _started(run, options)


def _data_of(named: str | None) -> Any:
    return None if named is None else data(named)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The options that were given: the server knows the defaults of the others."""
    return {name: getattr(options, name) for name in options.names if hasattr(options, name)}


def _started(run: Run, options: argparse.Namespace) -> int:
    if not options.detach:
        return follow(run, options)
    if options.json:
        print_json(run.job())
    else:
        print(run.name)
    return 0
