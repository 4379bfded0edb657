"""The hand-written sources of the repository, as the guard tests see them."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("server/hotclip_server", "client/hotclip", "examples/hotclip_examples", "benchmarks")
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def repository_files() -> list[Path]:
    """Files that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [ROOT / name for name in listing.split("\0") if name]
    return [path for path in files if path.is_file()]


def python_files(*folders: str) -> list[Path]:
    """Hand-written Python files beneath `folders` (all packages and tests when none is given)."""
    roots = [ROOT / folder for folder in folders or (*PACKAGES, "tests")]
    return sorted(
        path
        for root in roots
        for path in root.rglob("*.py")
        if not path.name.endswith(GENERATED) and "node_modules" not in path.parts
    )


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or attribute chain, "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""
