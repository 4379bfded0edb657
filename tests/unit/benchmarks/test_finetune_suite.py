"""The suite finetune as it is run: small, on builtin:mini."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NAMES = {
    "machine",
    "training.over_open_clip.decoded.mini",
    "training.over_open_clip.jpeg.mini",
    "training.over_open_clip.decoded.mini.2_chunks",
    "training.rate.decoded.mini",
    "training.p99_ratio.mini",
    "training.shares_sum.mini",
    "training.share.serving.mini",
    "training.share.training.mini",
}


@pytest.mark.slow
def test_the_suite_measures_and_writes(tmp_path: Path) -> None:
    run = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "finetune", "--models", "builtin:mini"),
            *("--quick", "--seconds", "0.5", "--rounds", "1", "--output", str(tmp_path)),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr
    records = json.loads((tmp_path / "finetune.cpu.json").read_text(encoding="utf-8"))
    figures = {record["name"]: record for record in records}
    assert set(figures) >= NAMES
    for name in NAMES - {"machine"}:
        assert figures[name]["value"] > 0
        if "over_open_clip" in name:
            assert figures[name]["baseline"] > 0
            assert figures[name]["min_cosine"] > 0.999
