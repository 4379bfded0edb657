"""Answers of one version never pass as those of another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.corpus import write_references
from benchmarks.golden import Goldens, Named, VersionsAlike

EXACT = {"clip-text": True, "clip-vision": False}


def unit_rows(seed: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((6, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, NDArray[np.float32]]:
    made = {version: unit_rows(seed) for seed, version in enumerate("ab")}
    for version, block in made.items():
        (tmp_path / version).mkdir()
        write_references(tmp_path / version, "text", block)
        write_references(tmp_path / version, "tensor", block[::-1])
    return made


def test_what_is_right_and_what_is_not(
    rows: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    goldens = Goldens(tmp_path, {"a": EXACT, "b": EXACT}, ("text", "tensor"))
    items = [Named("text", 1), Named("tensor", 2)]
    right = np.stack([rows["a"][1], rows["a"][3]])
    assert goldens.mistakes("a", items, right) == []
    assert len(goldens.mistakes("b", items, right)) == 2  # of another version
    assert len(goldens.mistakes("a", items, right[::-1])) == 2  # of another item
    mixed = np.stack([rows["a"][1], rows["b"][3]])
    assert len(goldens.mistakes("a", items, mixed)) == 1
    assert goldens.mistakes("a", items, right[:1]) == ["1 vectors for 2 items"]
    assert "nobody" in goldens.mistakes("c", items, right)[0]
    # The tolerance is that of the tower's precision.
    near = right + np.float32(0.005)
    assert [m for m in goldens.mistakes("a", items, near) if "tensor" in m] == []
    assert len(goldens.mistakes("a", items, near)) == 1


def test_versions_that_can_not_be_told_apart(
    rows: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    write_references(tmp_path / "b", "text", rows["a"])
    with pytest.raises(VersionsAlike, match="apart"):
        Goldens(tmp_path, {"a": EXACT, "b": EXACT}, ("text",))
