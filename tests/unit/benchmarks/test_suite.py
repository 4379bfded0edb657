"""The suite as it is run: small, on builtin:mini."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OPTIONS = ("--quick", "--server-option=--precision=fp32")
ASKED = {"name", "value", "unit", "target", "passed", "baseline", "min_cosine"}
NAMES = {
    "machine",
    "served_over_raw.tensor.mini",
    "served_over_raw.jpeg.mini",
    "served_over_raw.text.mini",
    "over_open_clip.jpeg_small.mini",
    "over_open_clip.jpeg_large.mini",
    "over_open_clip.text.mini",
    "latency.p99_added_over_batch.text.mini",
    "latency.p99_ms.text.mini",
    "cold_start_s.mini",
    "frontend.calls_per_s",
    "frontend.calls_per_s.frontends_2",
    "frontend.lift.frontends_2",
    "rate.jpeg_small.1x1.mini",
    "rate.jpeg_small.stream_x4.mini",
    "rate.jpeg_small.client_2x4.mini",
}
RELATIVE = ("served_over_raw", "over_open_clip", "latency", "cold_start_s")


@pytest.mark.slow
def test_the_suite_measures_and_writes(tmp_path: Path, bench: Callable[..., str]) -> None:
    printed = bench("encode", "--models", "builtin:mini", *OPTIONS, "--output", str(tmp_path))
    records = json.loads((tmp_path / "encode.cpu.json").read_text(encoding="utf-8"))
    figures = {record["name"]: record for record in records}
    assert len(figures) == len(records)
    assert set(figures) >= NAMES
    assert all(set(record) >= ASKED for record in records)
    assert figures["machine"]["value"]["versions"]["torch"]
    assert figures["machine"]["value"]["quick"] is True
    for name, figure in figures.items():
        if name == "machine":
            continue
        assert isinstance(figure["value"], float)
        assert f"\n{name} " in printed
        if name.startswith(RELATIVE):
            assert figure["baseline"] > 0
        if name.startswith(("served_over_raw", "over_open_clip", "rate", "latency")):
            assert figure["min_cosine"] >= 0.99
        if name.startswith(("served_over_raw", "rate", "frontend.calls")):
            assert figure["generator_cpu"] > 0
            assert figure["server_cpu"] > 0


@pytest.mark.slow
def test_a_wrong_answer_fails_the_suite(tmp_path: Path) -> None:
    from benchmarks.settings import Settings
    from benchmarks.suites import run_suite
    from benchmarks.worker import WorkerFailed

    settings = Settings(
        models=("builtin:mini",),
        quick=True,
        contents=("text", "tensor"),
        server_options=("--precision", "fp32"),
        program=(sys.executable, str(Path(__file__).with_name("wrong_server.py"))),
        output=tmp_path,
    )
    with pytest.raises(WorkerFailed, match="vectors are not open_clip's"):
        run_suite("encode", settings)
    assert not list(tmp_path.iterdir())


def test_a_suite_that_is_not_there_is_an_error_that_lists_those_that_are() -> None:
    command = [sys.executable, "-m", "benchmarks", "speed"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert run.returncode == 2
    last = run.stderr.splitlines()[-1]
    known = "encode, finetune, finetune-quality, search, swap"
    assert last.endswith(f"there is no suite 'speed'; there is: {known}")
