"""The command line as a whole: every option of the API, help of everything, output for programs."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hotclip import Client, JobState, LogLine, Pair
from hotclip._cli.arguments import argument_docs
from hotclip._cli.main import make_parser
from hotclip._cli.output import plain, print_table


def parsers(
    parser: argparse.ArgumentParser, name: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """A parser and those below it."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from parsers(below, f"{name} {word}")


ALL = dict(parsers(make_parser(), "hotclip"))


@pytest.mark.parametrize("name", sorted(ALL))
def test_everything_has_help(name: str) -> None:
    text = ALL[name].format_help()
    assert f"usage: {name}" in text
    for action in ALL[name]._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), action


@pytest.mark.parametrize(
    ("name", "method"), [("finetune", Client.finetune), ("evaluate", Client.evaluate)]
)
def test_every_parameter_is_an_option_and_documented(name: str, method: object) -> None:
    parameters = set(inspect.signature(method).parameters) - {
        "self",
        "timeout",
        "request_id",
        "upload_progress",
    }
    options = {action.dest for action in ALL[f"hotclip {name}"]._actions}
    assert parameters - {"train_data"} <= options
    assert set(argument_docs(method)) >= parameters


def test_options_are_read_as_they_are_meant() -> None:
    command = [
        "finetune",
        "pairs",
        "--lora",
        '{"rank": 4}',
        "--wise-ft",
        "0.5",
        "--freeze",
        "image",
    ]
    command += ["--no-augment", "--prompts", "a {label}", "--prompts", "the {label}", "--soup", "3"]
    command += [
        "--preserve",
        "1",
        "--early-stopping",
        "True",
        "--lock-text",
        "--learning-rate",
        "1e-4",
        "--method",
        "lora",
    ]
    options = make_parser().parse_args([*command, "-s", "here:1"])
    given = {name: getattr(options, name) for name in options.names if hasattr(options, name)}
    assert given == {
        "lora": {"rank": 4},
        "wise_ft": 0.5,
        "freeze": "image",
        "augment": False,
        "prompts": ["a {label}", "the {label}"],
        "soup": 3,
        "preserve": 1.0,
        "early_stopping": True,
        "lock_text": True,
        "learning_rate": 1e-4,
        "method": "lora",
    }
    assert options.server == "here:1"


def test_data_of_every_kind_is_handed_on(capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, object] = {}

    class Taker:
        def finetune(self, *data: object, **others: object) -> SimpleNamespace:
            given.update(others, data=data)
            return SimpleNamespace(advice="")

    command = ["finetune", "pairs", "--eval-data", "e", "--query-data", "q", "--index-data", "i"]
    command += ["--replay-data", "o", "--monitor", "validation_loss", "--validate-only"]
    options = make_parser().parse_args(command)
    assert options.run(Taker(), options) == 0
    assert given == {
        "data": ("pairs", "e"),
        "query_data": "q",
        "index_data": "i",
        "replay_data": "o",
        "monitor": "validation_loss",
        "validate_only": True,
        "upload_progress": True,
    }
    assert capsys.readouterr().out == "valid\n"


def test_common_options_stand_before_or_after_the_command() -> None:
    before = make_parser().parse_args(["-s", "a:1", "--json", "jobs", "list"])
    after = make_parser().parse_args(["jobs", "list", "-s", "a:1", "--json"])
    assert (before.server, before.json) == (after.server, after.json) == ("a:1", True)
    both = make_parser().parse_args(["-s", "a:1", "models", "-s", "b:2"])
    assert (both.server, both.json, both.timeout) == ("b:2", False, None)


def test_json_of_whatever_the_client_has() -> None:
    time = datetime(2026, 1, 2, tzinfo=UTC)
    value = {
        "line": LogLine(time, "INFO", "x"),
        "state": JobState.FAILED,
        "array": np.ones((1, 2), np.float32),
        "path": Path("a/b"),
        "error": ValueError("bad"),
        "pair": (None, 1.5, True),
    }
    assert json.loads(json.dumps(plain(value))) == {
        "line": {"time": "2026-01-02T00:00:00+00:00", "level": "INFO", "message": "x"},
        "state": "FAILED",
        "array": [[1.0, 1.0]],
        "path": "a/b",
        "error": "bad",
        "pair": [None, 1.5, True],
    }
    assert plain(Pair("a", b"x".decode()))["text"] == "a"


def test_tables_are_aligned_cut_and_free_of_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(("NAME", "N"), [("a\x1b[31m", 1), ("b" * 100, None)])
    lines = capsys.readouterr().out.splitlines()
    assert "\x1b" not in "".join(lines)
    assert len({line.find("N", 4) for line in lines[:1]} | {len(lines[1]) - 1}) == 1
    assert lines[2] == "b" * 59 + "…"
