"""What was measured is there after a restart, on the same machine only."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotclip_server.encoding.engines.choices import EngineWish
from hotclip_server.encoding.engines.protocol import EngineChoice, EngineFigures
from hotclip_server.encoding.engines.remembered import MOST_ENTRIES, EngineMemory, Ranked
from hotclip_server.encoding.protocol import Tower

FAST = EngineChoice("torch", "bf16")
FIGURES = EngineFigures(best_batch=4, seconds=((1, 12, 0.01), (4, 12, 0.02)), padded=False)
RANKING = [
    Ranked(choice=FAST, figures=FIGURES),
    Ranked(choice=EngineChoice("eager", "fp32"), figures=None),
]
WISH = EngineWish()


def test_a_restart_finds_it_and_another_machine_does_not(tmp_path: Path) -> None:
    path = tmp_path / "data" / "engines.json"
    memory = EngineMemory(path, "this")
    assert memory.ranking("shape", Tower.TEXT, WISH) is None
    memory.remember_ranking("shape", Tower.TEXT, WISH, RANKING)
    memory.remember_verdict("v", Tower.TEXT, FAST, passed=True)
    memory.remember_verdict("w", Tower.TEXT, FAST, passed=False)
    again = EngineMemory(path, "this")
    assert again.ranking("shape", Tower.TEXT, WISH) == RANKING
    assert again.ranking("shape", Tower.VISION, WISH) is None
    assert again.ranking("shape", Tower.TEXT, EngineWish(precision="fp32")) is None
    assert again.verdict("v", Tower.TEXT, FAST) is True
    assert again.verdict("w", Tower.TEXT, FAST) is False
    assert again.verdict("v", Tower.TEXT, EngineChoice("torch", "fp32")) is None
    other = EngineMemory(path, "that")
    assert other.ranking("shape", Tower.TEXT, WISH) is None
    assert other.verdict("v", Tower.TEXT, FAST) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 1}',
        b'{"format": 2, "rankings": {}, "verdicts": {}}',
        b'{"format": 1, "rankings": {"a": [{"engine": "x"}]}, "verdicts": {}}',
    ],
)
def test_a_damaged_file_counts_as_empty(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "engines.json"
    path.write_bytes(content)
    memory = EngineMemory(path, "this")
    assert memory.ranking("shape", Tower.TEXT, WISH) is None
    memory.remember_ranking("shape", Tower.TEXT, WISH, RANKING)
    assert EngineMemory(path, "this").ranking("shape", Tower.TEXT, WISH) == RANKING


def test_the_oldest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_ENTRIES >= 1000
    monkeypatch.setattr("hotclip_server.encoding.engines.remembered.MOST_ENTRIES", 3)
    memory = EngineMemory(tmp_path / "engines.json", "this")
    for number in range(5):
        memory.remember_verdict(f"v{number}", Tower.TEXT, FAST, passed=True)
    found = [memory.verdict(f"v{number}", Tower.TEXT, FAST) for number in range(5)]
    assert found == [None, None, True, True, True]


def test_items_per_second_are_those_of_the_best_batch() -> None:
    figures = EngineFigures(
        best_batch=4, seconds=((1, 12, 0.01), (4, 12, 0.02), (8, 12, 0.039), (8, 6, 0.001))
    )
    assert figures.items_per_s == pytest.approx(200)
    assert EngineFigures(best_batch=1, seconds=()).items_per_s == 0
