"""`make gpu-check` itself, on the CPU: what it measures, writes and says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", *arguments]
    # One thread: the two processes of the check would wait for each other's.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )


@pytest.mark.slow
def test_a_whole_check_passes(tmp_path: Path) -> None:
    options = ("--models", "builtin:mini", "--steps", "2", "--output", str(tmp_path))
    options += ("--skip-bench",)
    run = gpu_check("--device", "cpu", *options)
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads((tmp_path / "gpu_check.cpu.json").read_text(encoding="utf-8"))
    assert report["passed"]
    assert report["versions"]["torch"]
    figures = report["models"]["builtin:mini"]
    assert figures["parity"]["text"]["passed"]
    assert figures["parity_tuned"]["image"]["passed"]
    assert figures["swap"]["failed"] == 0
    assert figures["speed"]["texts_per_s"] > 0


def test_says_when_there_is_no_device() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    run = gpu_check()
    assert run.returncode == 2
    assert "finds no CUDA device" in run.stderr


def test_every_test_of_a_device_is_among_those_that_are_run() -> None:
    marked = [
        path
        for path in (ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    assert marked
    assert {path.parent for path in marked} == {ROOT / "tests/gpu"}


def test_parity_is_strict() -> None:
    from benchmarks.parity import compare

    generator = np.random.default_rng(0)
    reference = generator.normal(size=(64, 32)).astype(np.float32)
    reference /= np.linalg.norm(reference, axis=1, keepdims=True)
    assert compare(reference, reference).passed
    assert not compare(reference[::-1], reference).nearest_is_own
    near = reference + generator.normal(scale=0.01, size=reference.shape).astype(np.float32)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    parity = compare(near, reference)
    assert parity.nearest_is_own
    assert not parity.passed
