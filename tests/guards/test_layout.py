"""The shape of the repository: folders, file sizes, names, and what a file may not contain."""

import ast
import re

import pytest

from .sources import GENERATED, ROOT, dotted, place, python_files, repository_files, tree

LINES = 400
FOREIGN_PATH = re.compile(r"(?<![\w./~-])/(?:work|root|home|Users|mnt)/\w")


@pytest.mark.parametrize(
    ("folder", "package"),
    [("proto", "hotclip_proto"), ("server", "hotclip_server"), ("client", "hotclip")],
)
def test_a_folder_holds_one_import_package(folder: str, package: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()
    packages = [path.parent.name for path in (ROOT / folder).glob("*/__init__.py")]
    assert packages == [package]


def test_files_are_a_page_or_two() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in repository_files()
        if path.suffix in {".py", ".proto"} and not path.name.endswith(GENERATED)
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LINES
    }
    assert not long, f"longer than {LINES} lines: {long}"


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
    assert not [path for path in repository_files() if path.name in drawers]


def test_no_path_of_one_machine() -> None:
    found = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # an image or weights
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in FOREIGN_PATH.finditer(text)]
    assert not found


def test_nothing_unpickles() -> None:
    """Weights and states are safetensors and JSON: pickle runs code that it reads."""
    found = []
    for path in python_files():
        for node in ast.walk(tree(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call):
                names = [dotted(node.func)]
            if {"pickle", "cPickle", "dill", "joblib", "torch.load", "torch.save"} & set(names):
                found.append(place(path, node))
    assert not found


def test_errors_are_not_swallowed() -> None:
    found = [
        place(path, node)
        for path in python_files("server/hotclip_server", "client/hotclip")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or dotted(node.type) in {"Exception", "BaseException"})
        and all(isinstance(statement, ast.Pass) for statement in node.body)
    ]
    assert not found
