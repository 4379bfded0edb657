"""The suite finetune as it is run: small, on builtin:mini."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

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
def test_the_suite_measures_and_writes(tmp_path: Path, bench: Callable[..., str]) -> None:
    arguments = ("--models", "builtin:mini", "--quick", "--seconds", "0.2", "--rounds", "1")
    arguments += ("--server-option=--precision=fp32", "--output", str(tmp_path))
    bench("finetune", *arguments)
    records = json.loads((tmp_path / "finetune.cpu.json").read_text(encoding="utf-8"))
    figures = {record["name"]: record for record in records}
    assert set(figures) >= NAMES
    for name in NAMES - {"machine"}:
        assert figures[name]["value"] > 0
        if "over_open_clip" in name:
            assert figures[name]["baseline"] > 0
            assert figures[name]["min_cosine"] > 0.999
