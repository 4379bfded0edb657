"""What was measured is there after a restart, on the same machine only."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hotclip_server.encoding.engines import remembered
from hotclip_server.encoding.engines.choices import EngineWish
from hotclip_server.encoding.engines.protocol import EngineChoice, EngineFigures
from hotclip_server.encoding.engines.remembered import MOST_ENTRIES, EngineMemory, Ranked
from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import ResourceExhausted
from hotclip_server.storage.atomic import write_atomically

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


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": [[1, 12, 0.0], [4, 12, 0.02]]},
        {"seconds": [[1, 12, -1.0], [4, 12, 0.02]]},
        {"seconds": [[1, 12, float("nan")], [4, 12, 0.02]]},
        {"seconds": [[1, 12, float("inf")], [4, 12, 0.02]]},
        {"seconds": [[0, 12, 0.01], [4, 12, 0.02]]},
        {"seconds": [[float("inf"), 12, 0.01], [4, 12, 0.02]]},
        {"seconds": [[1, 0, 0.01], [4, 12, 0.02]]},
        {"seconds": []},
        {"best_batch": 0},
        {"best_batch": 2},
        {"best_batch": 4.0},
        {"best_batch": "4"},
        {"padded": "no"},
    ],
)
def test_figures_that_nobody_measured_are_dropped(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "engines.json"
    memory = EngineMemory(path, "this")
    memory.remember_ranking("bad", Tower.TEXT, WISH, RANKING)
    memory.remember_ranking("good", Tower.TEXT, WISH, RANKING)
    memory.remember_verdict("v", Tower.TEXT, FAST, passed=True)
    content = json.loads(path.read_bytes())
    next(iter(content["rankings"].values()))[0]["figures"] |= change
    path.write_text(json.dumps(content))
    again = EngineMemory(path, "this")
    assert again.ranking("bad", Tower.TEXT, WISH) is None
    assert again.ranking("good", Tower.TEXT, WISH) == RANKING
    assert again.verdict("v", Tower.TEXT, FAST) is True


def failing(problem: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise problem

    return fail


@pytest.mark.parametrize(
    "problem", [OSError(errno.EIO, "broken"), ResourceExhausted("full", reason="DISK_FULL")]
)
def test_what_cant_be_written_is_known_until_the_end(
    problem: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "write_atomically", failing(problem))
    memory = EngineMemory(tmp_path / "engines.json", "this")
    memory.remember_ranking("shape", Tower.TEXT, WISH, RANKING)
    memory.remember_verdict("v", Tower.TEXT, FAST, passed=True)
    assert memory.ranking("shape", Tower.TEXT, WISH) == RANKING
    assert memory.verdict("v", Tower.TEXT, FAST) is True


def test_what_cant_be_read_counts_as_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "engines.json"
    path.write_bytes(b"{}")
    monkeypatch.setattr(Path, "read_bytes", failing(PermissionError("not yours")))
    memory = EngineMemory(path, "this")
    assert memory.ranking("shape", Tower.TEXT, WISH) is None
    assert memory.verdict("v", Tower.TEXT, FAST) is None


def test_nobody_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def slow(path: Path, data: bytes) -> None:
        writing.set()
        assert go_on.wait(30)
        write_atomically(path, data)

    monkeypatch.setattr(remembered, "write_atomically", slow)
    path = tmp_path / "engines.json"
    memory = EngineMemory(path, "this")

    def remember(version: str) -> None:
        memory.remember_verdict(version, Tower.TEXT, FAST, passed=True)

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(remember, "v")]
        assert writing.wait(30)
        try:
            asked = pool.submit(memory.verdict, "v", Tower.TEXT, FAST)
            assert asked.result(timeout=10) is True
            writers.append(pool.submit(remember, "w"))
        finally:
            go_on.set()
        for writer in writers:
            writer.result(timeout=30)
    again = EngineMemory(path, "this")
    assert [again.verdict(version, Tower.TEXT, FAST) for version in ("v", "w")] == [True, True]


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
