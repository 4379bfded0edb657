"""Options of a command from the signature and the docstring of the method that it calls, so that
the command has every option of the method and says the same of each."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

_ARGUMENT = re.compile(r"^ {4}(\w+): (.*)$")
_CONTINUED = re.compile(r"^ {8,}(\S.*)$")


def add_command(
    commands: Any,
    name: str,
    run: Callable[..., int],
    about: str,
    *,
    shared: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """Adds a command with the shared options; `run` is called with a client and the options.

    Args:
        commands: What `ArgumentParser.add_subparsers` gave.
        about: One sentence without its full stop.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=f"{about}.", parents=[shared]
    )
    parser.set_defaults(run=run)
    return parser


def add_options(
    parser: argparse._ActionsContainer, method: Callable[..., Any], *, without: Sequence[str]
) -> list[str]:
    """Adds an option for each keyword of a method of `Client`; gives their names.

    Args:
        without: Parameters that are no options of the command, or are others.
    """
    docs = argument_docs(method)
    names = []
    for name, parameter in inspect.signature(method).parameters.items():
        if name in ("self", "timeout", "request_id", *without):
            continue
        kind = _kind(_hint(parameter.annotation, method), parameter.default)
        more = " May be repeated." if kind.get("action") == "append" else ""
        text = docs[name].replace("%", "%%") + more
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=text, **kind)
        names.append(name)
    return names


def limit(options: argparse.Namespace) -> dict[str, Any]:
    """`timeout` for a method whose own default is not the client's: as `--timeout` says, else
    that default."""
    return {} if options.timeout is None else {"timeout": options.timeout}


def argument_docs(method: Callable[..., Any]) -> dict[str, str]:
    """The text of each parameter in the Args section of a docstring."""
    docs: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(method) or "").splitlines():
        if found := _ARGUMENT.match(line):
            name = found[1]
            docs[name] = found[2]
        elif name and (more := _CONTINUED.match(line)):
            docs[name] += f" {more[1]}"
        else:
            name = ""
    return docs


def _hint(annotation: str, method: Callable[..., Any]) -> Any:
    """The type behind an annotation; `object` if it has an alias that is for type checkers."""
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, vars(sys.modules[method.__module__]))["it"]
    except TypeError:
        return object


def _kind(hint: Any, default: Any = None) -> dict[str, Any]:
    """How argparse reads a type, and what it does with a flag that is off by default."""
    parts = typing.get_args(hint) if _is_union(hint) else (hint,)
    parts = tuple(part for part in parts if part is not types.NoneType)
    if len(parts) == 1:
        (kind,) = parts
        if kind is bool:
            off = default is False
            return {"action": "store_true" if off else argparse.BooleanOptionalAction}
        if kind in (int, float):
            return {"type": kind, "metavar": "N"}
        if kind is str:
            return {"metavar": "TEXT"}
        if typing.get_origin(kind) is Literal:
            return {"choices": typing.get_args(kind)}
        if typing.get_origin(kind) is not None and issubclass(typing.get_origin(kind), Sequence):
            return {"action": "append", **_item(*typing.get_args(kind))}
    return {"type": value_of, "metavar": "JSON"}


def _item(kind: Any) -> dict[str, Any]:
    found = _kind(kind)
    return found if "action" not in found else {"metavar": "TEXT"}


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def value_of(text: str) -> Any:
    """`true`, `2`, `{"rank": 4}` as they are meant, in JSON or as Python writes them; anything
    else is a text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text
