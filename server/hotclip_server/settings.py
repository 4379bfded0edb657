"""Reads a `ServerConfig` from flags, environment and file.

Flags win over the environment (HOTCLIP_*), which wins over the TOML file (--config), which
wins over the defaults.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from hotclip_server import __doc__ as about
from hotclip_server.config import ConfigError, ServerConfig

PREFIX = "HOTCLIP_"
CLIENTS = {"HOTCLIP_SERVER"}
"""Of the client's command line: no settings of a server."""
UNITS = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def field_docs() -> dict[str, str]:
    """The docstring of every field of `ServerConfig`, on one line."""
    tree = ast.parse(inspect.getsource(ServerConfig)).body[0]
    if not isinstance(tree, ast.ClassDef):
        raise TypeError("ServerConfig is not a class; this is a bug")
    docs = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def make_parser() -> argparse.ArgumentParser:
    """The command line; every field of `ServerConfig` is an option."""
    parser = argparse.ArgumentParser(
        prog="hotclip-server",
        description=about,
        epilog=(
            "Every option is also an environment variable (HOTCLIP_ and the option's name in "
            "capitals, e.g. HOTCLIP_DATA_DIR) and a key of the TOML file (data_dir). Flags win "
            "over the environment, which wins over the file, which wins over the defaults. "
            "Sizes take KiB, MiB or GiB."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings.")
    docs = field_docs()
    for setting in fields(ServerConfig):
        text = docs[setting.name].replace("%", "%%")
        if setting.default not in (None, "", False):
            text += f" [default: {setting.default}]"
        parser.add_argument(
            "--" + setting.name.replace("_", "-"),
            metavar=_kind(setting).__name__.upper(),
            nargs="?" if _kind(setting) is bool else None,
            const="true" if _kind(setting) is bool else None,
            help=text,
        )
    return parser


def read_config(arguments: Sequence[str], environment: Mapping[str, str]) -> ServerConfig:
    """Builds the configuration.

    Args:
        arguments: Of the command line, without the program's name.
        environment: Only names that start with HOTCLIP_ count.

    Raises:
        ConfigError: names every bad or unknown setting and the reason.
        SystemExit: --help, or a flag that does not exist.
    """
    flags = {k: v for k, v in vars(make_parser().parse_args(arguments)).items() if v is not None}
    known = {setting.name: setting for setting in fields(ServerConfig)}
    env = {k.removeprefix(PREFIX).lower(): v for k, v in environment.items() if _is_ours(k)}
    path = flags.pop("config", None) or env.pop("config", None)
    problems: dict[str, str] = {}
    found: dict[str, tuple[str, Any]] = {}
    for origin, values in (("file", _read_file(path)), ("environment", env), ("flag", flags)):
        for name, value in values.items():
            if name not in known:
                problems[name] = f"no such setting (from the {origin})"
            else:
                found[name] = (origin, value)
    settings: dict[str, Any] = {}
    for name, (origin, value) in found.items():
        try:
            settings[name] = _convert(known[name], value)
        except ValueError as error:
            problems[name] = f"{error} (from the {origin})"
    try:
        config = ServerConfig(**settings)
    except ConfigError as error:
        raise ConfigError(problems | error.problems) from None
    if problems:
        raise ConfigError(problems)
    return config


def _is_ours(name: str) -> bool:
    return name.startswith(PREFIX) and name not in CLIENTS


def _read_file(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError({"config": f"can't read {path}: {error.strerror}"}) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError({"config": f"{path} is not TOML: {error}"}) from None


def _kind(setting: Field[Any]) -> type:
    hint = typing.get_type_hints(ServerConfig)[setting.name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    if not isinstance(hint, type) or setting.default is MISSING:
        raise TypeError(f"{setting.name} has no plain type or default; this is a bug")
    return hint


def _convert(setting: Field[Any], value: Any) -> Any:
    kind = _kind(setting)
    text = str(value).strip()
    if kind is bool:
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        raise ValueError(f"must be true or false, is {text!r}")
    if kind is int:
        return _whole_number(text)
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"must be a number, is {text!r}") from None
    if not text and setting.default:
        raise ValueError("must not be empty")
    return kind(text) if text else setting.default


def _whole_number(text: str) -> int:
    number, unit = text.lower(), 1
    for suffix, factor in UNITS.items():
        if number.endswith(suffix):
            number, unit = number.removesuffix(suffix).strip(), factor
    try:
        return int(number.replace("_", "")) * unit
    except ValueError:
        raise ValueError(f"must be a whole number, e.g. 64 or 16MiB, is {text!r}") from None
