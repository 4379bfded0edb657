"""Copying what is mined: whole or not at all, and never longer than somebody wants it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.jobs import ended, open_database

from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.states import JobState
from hotclip_server.training.candidates import CANDIDATES, Candidates, copy_candidates
from hotclip_server.training.config import MiningConfig
from hotclip_server.training.finetune_job import FineTuneHandler
from tests.unit.training.test_finetune_job import CONFIG, Desk, Shelf, place, spec
from tests.unit.training.tiny import tiny_clip

MANY = 500


def test_each_image_is_kept_once(tmp_path: Path) -> None:
    pauses: list[None] = []
    copy_candidates([b"one", b"two", b"one"], tmp_path / CANDIDATES, lambda: pauses.append(None))
    found = Candidates(tmp_path / CANDIDATES)
    assert [found.image_bytes(key) for key in found.keys] == [b"one", b"two"]
    assert len(pauses) == 3


def test_broken_off_it_leaves_nothing(tmp_path: Path) -> None:
    class Ended(Exception):
        pass

    def end() -> None:
        raise Ended

    with pytest.raises(Ended):
        copy_candidates([b"one", b"two"], tmp_path / CANDIDATES, end)
    assert list(tmp_path.iterdir()) == []


async def test_a_job_that_is_cancelled_copies_no_further_image(tmp_path: Path) -> None:
    reached, cancelled = threading.Event(), threading.Event()
    read: list[int] = []

    def images(collection: str, count: int, seed: int) -> Iterator[bytes]:
        for number in range(MANY):
            read.append(number)
            if number == 2:
                reached.set()
                assert cancelled.wait(30)
            yield b"%d" % number

    database = open_database(tmp_path)
    where = place(Shelf({"base": tiny_clip()}), database)
    runner = JobRunner(database, [FineTuneHandler(where, Desk(), sample_images=images)])
    await runner.start()
    asked = replace(spec(), config=replace(CONFIG, mining=MiningConfig(collection="shop")))
    job = await runner.submit(NewJob(kind=JobKind.FINE_TUNE, spec=asked.to_json()))
    assert await asyncio.to_thread(reached.wait, 30)
    await runner.cancel(job.id)
    cancelled.set()
    record = await ended(runner, job.id)
    await runner.stop()
    database.close()
    assert record.state is JobState.CANCELLED, record.error
    assert read == [0, 1, 2]
