"""The suite swap as it is run: small, on builtin:mini."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.history import Move
from benchmarks.swap import Seen, figures_of

ROUNDS, MOVES = 2, 2 * 4
NONE_OF_THEM = ("failed", "refused", "mixed", "linearisability_violations")
RATIOS = ("p99_ratio", "staging_p99_ratio", "moves_p99_ratio")
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


def test_latencies_beside_loading_and_beside_moves_are_told_apart() -> None:
    # A call a second, each a tenth of one but for those at 1 and 4.
    took = {1: 0.3, 4: 0.2}
    asked = [(at, at, at + took.get(at, 0.1), "v") for at in range(6)]
    window = {
        **{"asked": asked, "errors": {}, "refused": {}, "mixed": [], "pause_ms": 1.0},
        **{"generator_cpu": 0.0, "server_cpu": 0.0},
    }
    calm = {**window, "asked": [(at, at, at + 0.1, "v") for at in range(6)]}
    loading, move = Move(1.1, 2.9, "w"), Move(4.1, 4.15, "v")
    seen = Seen(
        moves=[loading, move],
        rollbacks_ms=[50.0],
        activations_ms=[50.0],
        stagings=[loading],
        in_memory=[move],
        swapped=[window],
        control=[calm],
        memory=[1e9, 1e9],
    )
    figures = {figure.name: figure for figure in figures_of("m", seen, "v", batch_ms=1.0)}
    found = {name: figures[f"swap.{name}.m"].value for name in RATIOS}
    assert found == pytest.approx(dict(zip(RATIOS, (3.0, 3.0, 2.0), strict=True)))
    assert figures["swap.p99_ratio.m"].interval == pytest.approx((3.0, 3.0))


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
    ratio = figures["swap.p99_ratio.mini"]
    assert ratio["baseline"] > 0
    assert 0 < ratio["interval"][0] <= ratio["interval"][1]
    assert figures["swap.rollback_ms.mini"]["value"] > 0
