"""Imports open_clip without what only some of its models need, until one of them is built.

`import open_clip` takes longer than `import torch`, and most of that is transformers, timm and
torch's compiler. Text towers of Hugging Face need the first and vision towers of timm the second;
the third comes along with one function that torchvision's detection operators call. A process
that serves calls `import_open_clip` before anything else imports it; whoever builds a model calls
`complete_open_clip` if it has such a tower. Where open_clip's code is not what this expects, all
of it is imported at once.
"""

from __future__ import annotations

import ast
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PUT_OFF = ("transformers", "timm")
"""open_clip does without them if they are not installed."""
COMPILER = "torch._dynamo.utils"
CALLED_LATER = ("is_compile_supported",)
"""Functions of the compiler that torchvision imports and calls only in an operator."""

_AT_ONCE = re.compile(rb"^(?:import|from) (?:transformers|timm)\b", re.M)
_OPTIONAL = re.compile(
    rb"^try:\n(?:(?:    .*)?\n)*?    (?:import|from) (?:transformers|timm)\b", re.M
)

_lock = threading.Lock()
_missing: dict[str, CodeType] = {}
"""Statements that have to run once more, by the module of open_clip that they are of."""


def import_open_clip() -> None:
    """Imports open_clip, as far as every model needs it; nothing if it is imported already."""
    if "open_clip" in sys.modules:
        return
    statements = _optional_imports()
    if statements is None:
        import_module("open_clip")
        return
    with _lock:
        with _absent(PUT_OFF), _called_later(COMPILER, CALLED_LATER):
            import_module("open_clip")
        _missing.update({name: s for name, s in statements.items() if name in sys.modules})


def complete_open_clip() -> None:
    """Imports what `import_open_clip` put off; any thread. Does nothing the second time."""
    with _lock:
        for name, statement in tuple(_missing.items()):
            exec(statement, vars(sys.modules[name]))
            del _missing[name]


def _optional_imports() -> Mapping[str, CodeType] | None:
    """The `try` statements that import what may be put off; None: they are not as expected."""
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        return None  # the import says what is wrong
    found = {}
    for path in Path(spec.submodule_search_locations[0]).glob("*.py"):
        source = path.read_bytes()
        if _AT_ONCE.search(source):
            return None
        if _OPTIONAL.search(source):
            body = [node for node in ast.parse(source).body if _imports_optionally(node)]
            module = ast.Module(body, type_ignores=[])
            found[f"open_clip.{path.stem}"] = compile(module, str(path), "exec")
    return found or None


def _imports_optionally(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Try):
        return False
    imports = [part for part in node.body if isinstance(part, ast.Import)]
    names = {alias.name for part in imports for alias in part.names}
    names |= {part.module or "" for part in node.body if isinstance(part, ast.ImportFrom)}
    return any(name.partition(".")[0] in PUT_OFF for name in names)


@contextmanager
def _absent(names: tuple[str, ...]) -> Iterator[None]:
    """To `import`, packages of these names that are not imported yet are not installed."""
    hidden = [name for name in names if name not in sys.modules]
    # What Python documents for sys.modules: with None, importing raises ModuleNotFoundError.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def _called_later(name: str, functions: tuple[str, ...]) -> Iterator[None]:
    """Lets functions of a module be imported without the module, unless it is there already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = stand_in = _StandIn(name, functions)
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


class _StandIn(ModuleType):
    """Takes the place of a module that is being asked for functions: the first call of one imports
    the module, and so does asking for anything else."""

    def __init__(self, name: str, functions: tuple[str, ...]) -> None:
        super().__init__(name)
        for function in functions:
            setattr(self, function, _Later(name, function))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python asks every module, e.g. whether it has a path
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


class _Later:
    """A function of a module that is imported when it is called."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(self._module), self._name)(*args, **kwargs)
