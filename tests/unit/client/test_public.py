"""What the package promises as a whole: names, light import, twins."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hotclip
from hotclip import AsyncClient, AsyncRun, Client, Run, errors

PACKAGE = Path(hotclip.__file__).parent
TWINS = (
    *("artifacts", "bridges", "client", "datasets", "downloads", "drift", "encoding"),
    *("feedback", "finetuning", "jobs", "models", "search", "server", "shadow", "uploads"),
)


def test_every_name_of_all_exists_and_nothing_else_is_public() -> None:
    assert hotclip.__all__ == sorted(hotclip.__all__, key=lambda n: (n[0].islower(), n))
    public = {n for n in vars(hotclip) if not n.startswith("_")} - {"annotations"}
    assert public == set(hotclip.__all__)


def test_modules_but_errors_are_private() -> None:
    names = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__"}
    assert {n for n in names if not n.startswith("_")} == {"errors"}


def test_import_is_light() -> None:
    code = (
        "import sys, hotclip; heavy = {'torch', 'PIL', 'open_clip', 'hotclip_server'};"
        " sys.exit(sorted(heavy & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("sync", "aio"), [(Client, AsyncClient), (Run, AsyncRun)])
def test_twins_have_the_same_signatures(sync: type, aio: type) -> None:
    def shapes(cls: type) -> dict[str, list[tuple[str, object, object]]]:
        return {
            name: [
                (p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()
            ]
            for name, method in vars(cls).items()
            if inspect.isfunction(method) and not name.startswith("_")
        }

    assert shapes(sync) == shapes(aio)
    assert len(shapes(sync)) >= 9


@pytest.mark.parametrize("module", TWINS)
def test_twins_differ_only_by_await(module: str) -> None:
    blocking = (PACKAGE / "_sync" / f"{module}.py").read_text()
    awaiting = (PACKAGE / "_aio" / f"{module}.py").read_text()
    assert _code(awaiting) == _code(blocking)


def _code(source: str) -> list[str]:
    """Statements without what asyncio adds; imports sorted; layout does not count."""
    source = source.replace("Iterable[Item] | AsyncIterable[Item]", "Iterable[Item]")
    source = source.replace("AsyncIterable, ", "")
    source = re.sub(r"\b(async|await) ", "", source)
    source = re.sub(r"\bAsync(Client|Run|Iterator)\b", r"\1", source)
    source = source.replace("import Iterator, Iterable", "import Iterable, Iterator")
    source = re.sub(r"\b(__)?a(enter__|exit__|close|next)\b", r"\1\2", source)
    tree = ast.parse(source.replace("_aio", "_sync"))
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    rest = [n for n in tree.body[1:] if n not in imports]  # [0] says which twin it is
    return sorted(map(ast.unparse, imports)) + list(map(_without_doc, rest))


def _without_doc(node: ast.stmt) -> str:
    # The classes' own docstrings say what differs: threads here, event loops there.
    if isinstance(node, ast.ClassDef):
        node.body = node.body[1:]
    return ast.unparse(node)


def test_errors_form_one_tree() -> None:
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert all(issubclass(c, errors.HotclipError) for c in found)
    assert {c.__name__ for c in found} == set(re.findall(r"── (\w+)", errors.__doc__ or "")) | {
        "HotclipError"
    }


@pytest.mark.parametrize("name", sorted(n for n in vars(Client) if not n.startswith("_")))
def test_every_method_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(Client, name))
