"""Faults of the runner itself: the database refuses a write that it should take."""

from __future__ import annotations

import logging

import pytest
import sqlalchemy as sa
from support.jobs import Handler, ended, kinds, new_job

from hotclip_server.jobs.context import JobContext, JobResult
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.states import JobState
from hotclip_server.storage.database import Database


def refuse(database: Database, state: JobState) -> None:
    """From now on SQLite raises an IntegrityError when the job named "broken" gets `state`."""
    with database.transaction() as connection:
        connection.execute(
            sa.text(
                f"CREATE TRIGGER refuse BEFORE UPDATE OF state ON jobs"
                f" WHEN new.state = '{state}' AND new.name = 'broken'"
                " BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
            )
        )


def work(job: JobContext) -> JobResult:
    job.running()
    return JobResult()


@pytest.mark.parametrize("state", [JobState.PREPARING, JobState.SUCCEEDED])
async def test_a_job_that_breaks_the_runner_fails_and_the_next_one_runs(
    database: Database, state: JobState, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(database, state)
    runner = JobRunner(database, [Handler(work)])
    await runner.start()
    await runner.submit(new_job("broken"))
    await runner.submit(new_job("next"))
    with caplog.at_level(logging.ERROR):
        broken = await ended(runner, "broken")
    assert broken.state is JobState.FAILED
    assert broken.error is not None
    assert (broken.error.code, broken.error.reason) == (13, "INTERNAL")
    assert "broke the runner" in caplog.text
    assert (await ended(runner, "next")).state is JobState.SUCCEEDED
    assert broken.end_time is not None
    await runner.stop()


async def test_a_job_whose_every_end_is_refused_does_not_stop_the_thread(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(database, JobState.FAILED)

    def fail(job: JobContext) -> JobResult:
        if job.spec["fails"]:
            raise ZeroDivisionError
        return JobResult()

    runner = JobRunner(database, [Handler(fail)])
    await runner.start()
    await runner.submit(new_job("broken", fails=True))
    await runner.submit(new_job("next", fails=False))
    with caplog.at_level(logging.ERROR):
        assert (await ended(runner, "next")).state is JobState.SUCCEEDED
    assert "keeps its state until the next start" in caplog.text
    await runner.stop()
    again = JobRunner(database, [Handler(fail)])
    await again.recover()
    assert (await again.get("broken")).state is JobState.INTERRUPTED


async def test_a_job_that_the_database_cannot_take_yet_is_begun_later(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A table that is missing for a while is an OperationalError, as a full disk is."""
    monkeypatch.setattr("hotclip_server.jobs.runner.RETRY_S", 0.01)
    runner = JobRunner(database, [Handler(work)])
    await runner.submit(new_job("broken"))
    with database.transaction() as connection:
        connection.execute(
            sa.text(
                "CREATE TRIGGER refuse BEFORE UPDATE OF state ON jobs"
                " WHEN new.state = 'PREPARING' BEGIN INSERT INTO gone VALUES (1); END"
            )
        )
    with caplog.at_level(logging.ERROR):
        await runner.start()
        while "could not be begun" not in caplog.text:
            assert (await runner.get("broken")).state is JobState.QUEUED
        with database.transaction() as connection:
            connection.execute(sa.text("DROP TRIGGER refuse"))
        record = await ended(runner, "broken")
    assert record.state is JobState.SUCCEEDED
    events = [event async for event in runner.watch("broken")]
    assert kinds(events) == ["QUEUED", "PREPARING", "RUNNING", "SUCCEEDED"]
    await runner.stop()
