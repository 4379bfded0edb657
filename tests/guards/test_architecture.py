"""ARCHITECTURE.md names files, functions and tests that exist."""

import ast
import re

from .sources import ROOT, tree

TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
LINKS = re.findall(r"\[`?([\w./ ]+)`?\]\(([\w./-]+)\)", TEXT)


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 150


def test_links_name_what_their_file_defines() -> None:
    assert len(LINKS) > 50
    wrong = []
    for name, target in LINKS:
        path = ROOT / target
        if not path.exists():
            wrong.append(f"{target} does not exist")
        elif path.suffix == ".py" and not name.endswith(".py"):
            kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            defined = {node.name for node in ast.walk(tree(path)) if isinstance(node, kinds)}
            wrong += [f"{target}: {part}" for part in name.split(".") if part not in defined]
    assert not wrong
