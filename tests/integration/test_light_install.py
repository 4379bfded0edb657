"""The wheel without extras is enough for a client: no torch, no server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.server import ServerProcess

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
import hotclip
with hotclip.Client(sys.argv[1]) as client:
    vectors = client.encode(["a red fox", "a dog"])
assert vectors.shape[0] == 2 and vectors.version, vectors
assert not {"torch", "PIL", "open_clip"} & set(sys.modules)
try:
    import torch
except ImportError:
    print("no torch,", vectors.shape)
"""


@pytest.mark.slow
def test_wheel_without_extras_encodes(server: ServerProcess, tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.log")
    for name in ("client", "proto", "server"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    env = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            list(map(str, command)), env=env, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    # A hatchling that is here already spares a download.
    built = ("--no-build-isolation",) if find_spec("hatchling") else ()
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", *built, "--no-deps", "--wheel-dir", tmp_path / "wheels", source)
    (wheel,) = (tmp_path / "wheels").glob("hotclip-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    builtin = "hotclip_server/encoding/builtin/mini/open_clip_model.safetensors"
    page = "hotclip_server/report/templates/run.html"
    assert {builtin, page, "hotclip/py.typed", "hotclip_proto/v1/encode_pb2.pyi"} <= names
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    run(*pip, "--python", python, "install", "-c", ROOT / "constraints.txt", wheel)
    assert "no torch" in run(python, "-I", "-c", SCRIPT, server.address)
    assert "a red fox" in run(
        python.with_name("hotclip"), "encode", "a red fox", "-s", server.address
    )
