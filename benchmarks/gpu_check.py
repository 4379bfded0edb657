"""Check a GPU machine with one command: `make gpu-check`, or `python -m benchmarks.gpu_check`.

Needs the working tree and a Python that has torch, nothing from a network. What else is
missing is taken from wheels in the folder .whl (`make gpu-wheels` fills it), which are
installed into a temporary folder. The check itself is `benchmarks.device_check`.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("proto", "server", "client", "examples", ".")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="hotclip-wheels-") as packages:
        wheels = sorted((ROOT / ".whl").glob("*.whl"))
        if wheels:
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
