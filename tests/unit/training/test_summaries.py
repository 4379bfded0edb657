"""What a run tells people: a line an epoch, and one of its end."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.jobs import all_events, ended

from hotclip_proto.v1 import job_pb2
from hotclip_server.jobs.folders import JobFolders
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.specs import FineTuneSpec
from hotclip_server.jobs.states import JobState
from hotclip_server.storage.database import Database
from hotclip_server.training.events import EpochEnd
from hotclip_server.training.finetune_job import FineTuneHandler
from hotclip_server.training.summaries import end_line, epoch_line
from tests.unit.training.test_finetune_job import CONFIG, Desk, Shelf, place, spec
from tests.unit.training.tiny import tiny_clip

EPOCHS = 6
EPOCH = re.compile(r"epoch (\d+) of (\d+): ")
SHORT = replace(CONFIG, max_steps=None, epochs=EPOCHS)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    yield database
    database.close()


@pytest.fixture
def runner(database: Database, tmp_path: Path) -> JobRunner:
    handler = FineTuneHandler(place(Shelf({"base": tiny_clip()}), database), Desk())
    return JobRunner(database, [handler], folders=JobFolders(tmp_path / "checkpoints"))


async def submitted(runner: JobRunner, asked: FineTuneSpec) -> str:
    await runner.start()
    return (await runner.submit(NewJob(kind=JobKind.FINE_TUNE, spec=asked.to_json()))).id


def lines_of(events: Sequence[job_pb2.JobEvent]) -> list[str]:
    return [event.log.message for event in events if event.HasField("log")]


def measured(events: Sequence[job_pb2.JobEvent], stage: str) -> list[Mapping[str, float]]:
    number = job_pb2.MetricEvent.Stage.Value(f"STAGE_{stage}")
    return [
        {metric.name: metric.value for metric in event.metric.metrics}
        for event in events
        if event.HasField("metric") and event.metric.stage == number
    ]


async def test_each_epoch_and_the_end_are_told_in_a_line(runner: JobRunner) -> None:
    job = await submitted(runner, replace(spec(), config=SHORT))
    record = await ended(runner, job)
    events = await all_events(runner, job)
    await runner.stop()
    assert record.state is JobState.SUCCEEDED, record.error
    best, expected = -math.inf, []
    for number, found in enumerate(measured(events, "EPOCH"), 1):
        line = (
            f"epoch {number} of {EPOCHS}: loss {found['epoch_loss']:.4f}, "
            f"validation loss {found['validation_loss']:.4f}, monitor {found['monitor']:.4f}"
        )
        expected.append(f"{line}, the best so far" if found["monitor"] > best else line)
        best = max(best, found["monitor"])
    lines = lines_of(events)
    assert len(expected) == EPOCHS
    assert len({line.endswith("the best so far") for line in expected}) == 2, "try another seed"
    assert [line for line in lines if EPOCH.match(line)] == expected
    [before], [after] = measured(events, "BEFORE"), measured(events, "AFTER")
    told = ", ".join(
        f"{name} {after[key]:.4f} (before {before[key]:.4f})"
        for name, key in (("validation loss", "validation_loss"), ("monitor", "monitor"))
    )
    assert lines[lines.index("stored version new") - 1] == f"the weights that are kept: {told}"


async def test_with_nothing_held_out_there_is_the_loss_to_tell(runner: JobRunner) -> None:
    job = await submitted(runner, replace(spec(held_out=False), config=SHORT))
    record = await ended(runner, job)
    events = await all_events(runner, job)
    await runner.stop()
    assert record.state is JobState.SUCCEEDED, record.error
    lines = lines_of(events)
    assert [line for line in lines if EPOCH.match(line)] == [
        f"epoch {number} of {EPOCHS}: loss {found['epoch_loss']:.4f}"
        for number, found in enumerate(measured(events, "EPOCH"), 1)
    ]
    assert not any("weights that are kept:" in line for line in lines)


async def test_a_resumed_run_tells_each_epoch_once(runner: JobRunner) -> None:
    slow = replace(SHORT, epochs=40, chunk_size=2)
    job = await submitted(runner, replace(spec(), config=slow))
    async for event in runner.watch(job):
        if EPOCH.match(event.log.message):
            break
    await runner.cancel(job)
    assert (await ended(runner, job)).state is JobState.CANCELLED
    await runner.resume(job)
    record = await ended(runner, job)
    events = await all_events(runner, job)
    await runner.stop()
    assert record.state is JobState.SUCCEEDED, record.error
    assert any(event.HasField("resumed") for event in events)
    told = [match.groups() for line in lines_of(events) if (match := EPOCH.match(line))]
    assert told == [(str(number), "40") for number in range(1, 41)]


def test_an_epoch_without_a_finite_step_says_so() -> None:
    end = EpochEnd(epoch=2, epochs=3, step=4, steps=6, mean_loss=math.nan)
    assert epoch_line(end, {"monitor": 0.25}, "monitor", best=False) == (
        "epoch 2 of 3: no step was finite, monitor 0.2500"
    )


def test_what_decides_is_told_first() -> None:
    end = EpochEnd(epoch=1, epochs=3, step=2, steps=6, mean_loss=0.5)
    found = {"epoch_loss": 0.5, "validation_loss": 0.75, "monitor": 0.25, "hits": 0.125, "other": 1}
    assert epoch_line(end, found, "hits", best=True) == (
        "epoch 1 of 3: loss 0.5000, hits 0.1250, validation loss 0.7500, monitor 0.2500, "
        "the best so far"
    )
    assert end_line(found, found, "hits").startswith(
        "the weights that are kept: hits 0.1250 (before 0.1250), validation loss"
    )
