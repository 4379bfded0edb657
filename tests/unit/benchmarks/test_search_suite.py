"""The suite search as it is run: small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.search_clock import timed

NAMES = {
    "machine",
    "search.insert_per_s",
    "search.index_build_s",
    "search.recall_at_10",
    "search.recall_at_10.names",
    "search.recall_at_10.pictures",
    "search.recall_at_10.filtered.half",
    "search.recall_at_10.filtered.few",
    "search.p50_ms",
    "search.p99_ms",
    "search.added_ms.single",
    "search.batch64.p50_ms",
    "search.over_engine.batch64",
    "search.engine_open_s",
    "search.filtered.half.p50_ms",
    "search.filtered.few.p99_ms",
    "search.exact.p50_ms",
    "search.encode_gap_added_ms",
    "search.reopen_s",
}
SIGNED = {"search.added_ms.single", "search.encode_gap_added_ms"}


@pytest.mark.slow
def test_the_suite_measures_and_writes(tmp_path: Path, bench: Callable[..., str]) -> None:
    arguments = ("--quick", "--seconds", "0.4", "--rounds", "1", "--server-option=--precision=fp32")
    bench("search", *arguments, "--output", str(tmp_path))
    records = json.loads((tmp_path / "search.cpu.json").read_text(encoding="utf-8"))
    figures = {record["name"]: record for record in records}
    assert set(figures) >= NAMES
    assert len(figures) == len(records)
    for name in NAMES - {"machine"} - SIGNED:
        assert figures[name]["value"] > 0
    for name in NAMES:
        if "recall" in name:
            assert figures[name]["value"] > 0.9
    assert figures["search.recall_at_10"]["target"] == 0.98
    assert figures["search.over_engine.batch64"]["baseline"] > 0


def test_calls_are_timed_one_after_another() -> None:
    asked: list[int] = []
    found = timed(asked.append, 4, 0.02)
    assert asked[:3] == [0, 1, 2]
    assert asked[3:8] == [0, 1, 2, 3, 0]
    assert found["calls"] == len(asked) - 3
    assert 0 <= found["p50_ms"] <= found["p99_ms"]


def test_the_tenth_nearest_is_found_by_comparing_all() -> None:
    from benchmarks.search_corpus import Corpus, tenth_nearest

    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rows[:120] + np.float32(0.01)
    corpus = Corpus(ids=[], payloads=[], vectors=rows, queries=queries, by_picture=0)
    every = np.sort(queries @ rows.T, axis=1)[:, -10]
    np.testing.assert_allclose(tenth_nearest(corpus), every, atol=1e-6)
    some = np.sort(queries @ rows[::2].T, axis=1)[:, -10]
    np.testing.assert_allclose(tenth_nearest(corpus, list(range(0, 300, 2))), some, atol=1e-6)
