"""Check a GPU machine with one command: `make gpu-check`, or `python -m benchmarks.gpu_check`.

Needs the working tree and a Python that has torch, nothing from a network. What else is
missing is taken from wheels in the folder .whl (`make gpu-wheels` fills it), which are
installed into a temporary folder. The check itself is `benchmarks.device_check`.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("proto", "server", "client", "examples", ".")
NEEDED: tuple[str, ...] = ("grpc_status", "grpc_health", "grpc_reflection", "open_clip")
NEEDED += (
    "sqlalchemy",
    "alembic",
    "qdrant_edge",
    "psutil",
    "pytest",
    "pytest_asyncio",
    "pytest_timeout",
)


def main() -> int:
    if not importlib.util.find_spec("torch"):
        print(f"{sys.executable} has no torch; give another: make gpu-check PYTHON=...")
        return 2
    with tempfile.TemporaryDirectory(prefix="hotclip-wheels-") as packages:
        missing = [name for name in NEEDED if not importlib.util.find_spec(name)]
        wheels = sorted((ROOT / ".whl").glob("*.whl"))
        if missing and not wheels:
            print(f"missing: {', '.join(missing)}; `make gpu-wheels` downloads them into .whl")
            return 2
        if missing:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
            subprocess.run([*install, "--target", packages, *map(str, wheels)], check=True)
        paths = [packages, *(str(ROOT / source) for source in SOURCES)]
        if inherited := os.environ.get("PYTHONPATH"):
            paths.append(inherited)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "benchmarks.device_check", *sys.argv[1:]]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
