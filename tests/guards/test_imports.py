"""What an import may bring along, and that it reads nothing of the environment."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .sources import PACKAGES, ROOT, dotted, place, python_files, tree

TORCH_FREE = ("batching", "storage", "services", "search", "jobs", "report", "feedback", "drift")
HEAVY = ("torch", "open_clip", "transformers", "onnxruntime", "PIL")


def modules_after_import(*names: str) -> set[str]:
    """Top-level names in `sys.modules` of a new interpreter that imported `names`."""
    code = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def module_name(path: Path, root: str) -> str:
    return ".".join(path.relative_to((ROOT / root).parent).with_suffix("").parts)


def test_the_client_is_light() -> None:
    loaded = modules_after_import("hotclip", "hotclip_proto.v1")
    assert not loaded & {*HEAVY, "hotclip_server", "sqlalchemy"}


def test_every_client_module_is_light() -> None:
    names = [module_name(path, "client/hotclip") for path in python_files("client/hotclip")]
    names = [name.removesuffix(".__init__") for name in names]
    assert not modules_after_import(*names) & {*HEAVY, "hotclip_server", "sqlalchemy"}


@pytest.mark.parametrize("package", TORCH_FREE)
def test_policy_imports_no_torch(package: str) -> None:
    files = python_files(f"server/hotclip_server/{package}")
    names = [
        module_name(path, "server/hotclip_server").removesuffix(".__init__")
        for path in files
        if "migrations" not in path.parts
    ]
    assert "torch" not in modules_after_import(*names)


def evaluated_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and what runs when its module is imported: all but the bodies of functions."""
    yield node
    if isinstance(node, ast.Lambda):
        children: list[ast.AST] = [*node.args.defaults]
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        children = [*node.decorator_list, *node.args.defaults]
        children += [default for default in node.args.kw_defaults if default is not None]
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from evaluated_at_import(child)


def test_nothing_reads_the_environment_at_import() -> None:
    found = [
        place(path, node)
        for path in python_files(*PACKAGES)
        for node in evaluated_at_import(tree(path))
        if dotted(node) in {"os.environ", "os.getenv", "environ", "getenv"}
    ]
    assert not found


def test_grpc_knows_the_options_that_it_is_given() -> None:
    """It ignores an unknown channel option in silence."""
    from grpc._cython import cygrpc

    library = Path(cygrpc.__file__).read_bytes()
    options = {
        node.value
        for path in python_files("server/hotclip_server", "client/hotclip")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"grpc\.(?!health\.|reflection\.)[a-z0-9_.]+", node.value)
    }
    assert options
    assert {option for option in options if option.encode() not in library} == set()
