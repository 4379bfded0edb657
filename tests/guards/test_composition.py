"""Only app.py puts the server together, and constructing starts nothing."""

import ast

from .sources import ROOT, dotted, place, python_files, tree

COMPOSERS = {"app.py", "testing.py"}
# Each kind of process has one.
SERVER = ROOT / "server/hotclip_server"
ROOTS = (SERVER, SERVER / "frontends")


def long_lived_classes() -> set[str]:
    """Names of the server's classes that are started and stopped, or opened and closed."""
    names = set()
    for path in python_files("server/hotclip_server"):
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ClassDef) or any(
                dotted(base).endswith("Protocol") for base in node.bases
            ):
                continue
            functions = ast.FunctionDef | ast.AsyncFunctionDef
            methods = {item.name for item in node.body if isinstance(item, functions)}
            if methods & {"start", "open"} and methods & {"stop", "close"}:
                names.add(node.name)
    return names


def parts_of_owners(module: ast.Module, names: set[str]) -> set[ast.Call]:
    """Calls in `__init__` of long-lived classes: a part lives and dies with its owner."""
    return {
        node
        for owner in ast.walk(module)
        if isinstance(owner, ast.ClassDef) and owner.name in names
        for function in owner.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
    }


def parts_of_blocks(module: ast.Module) -> set[ast.Call]:
    """Calls in context managers: what begins with a block and ends with it does not live long."""
    return {
        node
        for function in ast.walk(module)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        if any(dotted(d).endswith("contextmanager") for d in function.decorator_list)
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
    }


def test_only_app_constructs_long_lived_objects() -> None:
    names = long_lived_classes()
    assert {"Database", "JobRunner"} <= names
    found = []
    for path in python_files("server/hotclip_server"):
        if path.parent in ROOTS and path.name in COMPOSERS:
            continue
        module = tree(path)
        parts = parts_of_owners(module, names) | parts_of_blocks(module)
        found += [
            f"{place(path, node)} {dotted(node.func)}"
            for node in ast.walk(module)
            if isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in names
            if node not in parts
        ]
    assert not found


def test_constructors_start_nothing() -> None:
    starters = {"start", "create_task", "ensure_future", "run_in_executor", "submit", "Popen"}
    found = [
        f"{place(path, node)} {dotted(node.func)}"
        for path in python_files("server/hotclip_server")
        for function in ast.walk(tree(path))
        if isinstance(function, ast.FunctionDef) and function.name in {"__init__", "__post_init__"}
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in starters
    ]
    assert not found
