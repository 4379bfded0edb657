"""The suite swap as it is run: small, on builtin:mini."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

ROUNDS, MOVES = 2, 2 * 4
NONE_OF_THEM = ("failed", "refused", "mixed", "linearisability_violations")
NAMES = {
    "machine",
    *(f"swap.{name}" for name in NONE_OF_THEM),
    *(f"swap.{name}.mini" for name in NONE_OF_THEM),
    "swap.longest_gap_ms.mini",
    "swap.p99_ratio.mini",
    "swap.memory_slope",
    "swap.memory_slope.mini",
    "swap.rollback_ms",
    "swap.rollback_ms.mini",
}


@pytest.mark.slow
def test_the_suite_measures_and_writes(tmp_path: Path, bench: Callable[..., str]) -> None:
    arguments = ("--models", "builtin:mini", "--quick", "--seconds", "1")
    arguments += ("--server-option=--precision=fp32", "--output", str(tmp_path))
    printed = bench("swap", *arguments)
    records = json.loads((tmp_path / "swap.cpu.json").read_text(encoding="utf-8"))
    figures = {record["name"]: record for record in records}
    assert len(figures) == len(records)
    assert set(figures) >= NAMES
    for name in NONE_OF_THEM:
        assert (figures[f"swap.{name}"]["value"], figures[f"swap.{name}"]["passed"]) == (0, True)
    assert figures["swap.moves.mini"]["value"] == MOVES
    assert figures["swap.from_disk.mini"]["value"] == ROUNDS
    assert figures["swap.checked.mini"]["value"] > MOVES
    gap = figures["swap.longest_gap_ms.mini"]
    assert gap["target"] >= gap["baseline"] + 5
    assert gap["passed"] is (gap["value"] <= gap["target"])
    assert f"≤ {gap['target']:.0f}"[:3] in printed
    assert figures["swap.p99_ratio.mini"]["baseline"] > 0
    assert figures["swap.rollback_ms.mini"]["value"] > 0
