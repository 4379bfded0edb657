from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path

import pytest
from support.jobs import (
    Gate,
    Handler,
    all_events,
    ended,
    kinds,
    new_job,
    open_database,
)

from hotclip_proto.v1 import job_pb2
from hotclip_server.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Unavailable,
)
from hotclip_server.jobs import store
from hotclip_server.jobs.context import JobContext, JobResult
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.states import JobState
from hotclip_server.jobs.yielding import PATIENCE
from hotclip_server.storage.database import Database


def three_logs(job: JobContext) -> JobResult:
    job.running()
    for word in job.spec["words"]:
        job.log(word)
    job.metric("AFTER", {"score": 0.5}, step=3, progress=0.9)
    return JobResult(result_version="v2", activated=True, message="done")


async def test_job_runs_and_its_log_is_gapless(database: Database) -> None:
    runner = JobRunner(database, [Handler(three_logs)])
    await runner.start()
    job = await runner.submit(new_job("first", words=["a", "b\nc", "d"]))
    assert (job.state, job.last_seq, job.name) == (JobState.QUEUED, 1, "first")
    events = await all_events(runner, "first")
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert kinds(events) == [
        *("QUEUED", "PREPARING", "RUNNING", "log", "log", "log", "metric", "SUCCEEDED")
    ]
    assert events[4].log.message == "b c"
    assert events[-1].state.message == "done"
    record = await runner.get(job.id)
    assert record.state is JobState.SUCCEEDED
    assert (record.result_version, record.activated) == ("v2", True)
    assert (record.progress, dict(record.metrics)) == (1.0, {"score": 0.5})
    assert record.start_time is not None
    assert record.end_time is not None
    assert record.create_time <= record.start_time <= record.end_time
    await runner.stop()


async def test_jobs_run_one_at_a_time_in_order(database: Database) -> None:
    order: list[str] = []
    active = threading.Semaphore(1)

    def work(job: JobContext) -> JobResult:
        assert active.acquire(blocking=False), "two jobs at once"
        time.sleep(0.01)
        order.append(job.spec["label"])
        active.release()
        return JobResult()

    runner = JobRunner(database, [Handler(work)])
    await runner.start()
    for i in range(5):
        await runner.submit(new_job(f"job{i}", label=f"job{i}"))
    assert (await ended(runner, "job4")).state is JobState.SUCCEEDED
    assert order == [f"job{i}" for i in range(5)]
    await runner.stop()


async def test_an_unexpected_error_fails_the_job_and_the_thread_lives(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def work(job: JobContext) -> JobResult:
        if job.spec["how"] == "bug":
            raise ZeroDivisionError("secret of the inside")
        if job.spec["how"] == "domain":
            raise DataLoss("image 3 is damaged", reason="CHECKSUM")
        if job.spec["how"] == "disk":
            raise OSError(28, "No space left on device")
        return JobResult()

    runner = JobRunner(database, [Handler(work)])
    await runner.start()
    for how in ("bug", "domain", "disk", "well"):
        await runner.submit(new_job(how, how=how))
    with caplog.at_level(logging.ERROR):
        bug = await ended(runner, "bug")
    assert bug.state is JobState.FAILED
    assert bug.error is not None
    assert (bug.error.code, bug.error.reason) == (13, "INTERNAL")
    assert "secret" not in bug.error.message
    assert "ZeroDivisionError: secret of the inside" in caplog.text
    domain = await ended(runner, "domain")
    assert domain.error is not None
    assert (domain.error.code, domain.error.reason) == (15, "CHECKSUM")
    disk = await ended(runner, "disk")
    assert disk.error is not None
    assert (disk.error.code, disk.error.reason) == (8, "DISK_FULL")
    assert (await ended(runner, "well")).state is JobState.SUCCEEDED
    await runner.stop()


async def test_cancel_running_queued_and_ended(database: Database) -> None:
    gate = Gate()
    runner = JobRunner(database, [gate])
    await runner.start()
    await runner.submit(new_job("running"))
    await runner.submit(new_job("waiting"))
    await gate.wait_entered()
    assert (await runner.cancel("waiting")).state is JobState.CANCELLED
    assert (await runner.cancel("running")).state is JobState.CANCELLING
    record = await ended(runner, "running")
    assert record.state is JobState.CANCELLED
    assert kinds(await all_events(runner, "running"))[-2:] == ["CANCELLING", "CANCELLED"]
    assert (await runner.cancel("running")).last_seq == record.last_seq
    assert kinds(await all_events(runner, "waiting")) == ["QUEUED", "CANCELLED"]
    with pytest.raises(NotFound):
        await runner.cancel("nobody")
    await runner.stop()


async def test_names_and_request_ids(database: Database) -> None:
    runner = JobRunner(database, [Gate()])  # not started: everything stays queued
    wish = NewJob(
        kind=JobKind.EVALUATE, name="n", spec={}, request_id="r", fingerprint="one request"
    )
    first = await runner.submit(wish)
    assert (await runner.submit(wish)).id == first.id
    again = await runner.requested(JobKind.EVALUATE, "r", "one request")
    assert again is not None
    assert again.id == first.id
    with pytest.raises(InvalidArgument) as reused:
        await runner.requested(JobKind.EVALUATE, "r", "another")
    assert reused.value.violations[0].field == "request_id"
    for taken in ("n", first.id):
        with pytest.raises(AlreadyExists):
            await runner.submit(new_job(taken))
    assert (await runner.submit(new_job())).name.startswith("job-")


async def test_stop_interrupts_and_a_restart_goes_on(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    gate = Gate()
    runner = JobRunner(database, [gate])
    await runner.start()
    await runner.submit(new_job("running"))
    await runner.submit(new_job("waiting"))
    await gate.wait_entered()
    watching = asyncio.create_task(all_events(runner, "waiting"))
    await asyncio.sleep(0.05)
    await runner.stop()
    with pytest.raises(Unavailable):
        await watching
    assert (await runner.get("running")).state is JobState.INTERRUPTED
    database.close()

    database = open_database(tmp_path)
    gate = Gate()
    gate.leave.set()
    runner = JobRunner(database, [gate])
    await runner.start()
    assert (await ended(runner, "waiting")).state is JobState.SUCCEEDED
    assert (await runner.resume("running")).state is JobState.QUEUED
    assert (await ended(runner, "running")).state is JobState.SUCCEEDED
    events = await all_events(runner, "running")
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert kinds(events) == [
        *("QUEUED", "PREPARING", "RUNNING", "INTERRUPTED"),
        *("QUEUED", "PREPARING", "RUNNING", "SUCCEEDED"),
    ]
    with pytest.raises(FailedPrecondition):
        await runner.resume("running")
    await runner.stop()
    database.close()


@pytest.mark.parametrize("state", [JobState.PREPARING, JobState.RUNNING, JobState.CANCELLING])
async def test_what_a_crash_left_is_settled(database: Database, state: JobState) -> None:
    with database.transaction() as connection:
        record, _ = store.create(connection, new_job("crashed"))
        store.set_state(connection, record.id, JobState.PREPARING)
        if state is not JobState.PREPARING:
            store.set_state(connection, record.id, state)
    runner = JobRunner(database, [Gate()])
    await runner.start()
    events = await all_events(runner, "crashed")
    cancelled = state is JobState.CANCELLING
    assert kinds(events)[-1] == ("CANCELLED" if cancelled else "INTERRUPTED")
    assert (await runner.get("crashed")).end_time is not None
    await runner.stop()


async def test_a_job_that_goes_on_is_never_seen_as_ended(database: Database) -> None:
    with database.transaction() as connection:
        record, _ = store.create(connection, new_job("stopped"))
        store.set_state(connection, record.id, JobState.PREPARING)
        store.set_state(connection, record.id, JobState.INTERRUPTED)
    gate = Gate()
    gate.leave.set()
    runner = JobRunner(database, [gate], resume=True)
    await runner.recover()  # From here on calls are taken; models are still loaded.
    watching = asyncio.create_task(all_events(runner, "stopped"))
    await asyncio.sleep(0.05)
    assert not watching.done()
    assert (await runner.get("stopped")).state is JobState.QUEUED
    await runner.start()
    async with asyncio.timeout(10):
        assert kinds(await watching)[-1] == "SUCCEEDED"
    await runner.stop()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_what_breaks_off_because_of_a_stop_has_not_failed(
    database: Database, cancelled: bool
) -> None:
    entered = threading.Event()

    def breaks(job: JobContext) -> JobResult:
        job.running()
        entered.set()
        while not job.stopping:
            time.sleep(0.002)
        raise RuntimeError("what the job needs was closed")

    runner = JobRunner(database, [Handler(breaks)])
    await runner.start()
    await runner.submit(new_job("broken"))
    assert await asyncio.to_thread(entered.wait, 10)
    if cancelled:
        await runner.cancel("broken")
    await runner.stop()
    state = (await runner.get("broken")).state
    assert state is (JobState.CANCELLED if cancelled else JobState.INTERRUPTED)


async def test_delete_and_list(database: Database) -> None:
    runner = JobRunner(database, [Gate()])
    for i in range(5):
        await runner.submit(new_job(f"j{i}"))
    newest = await runner.list(limit=3)
    assert [job.name for job in newest] == ["j4", "j3", "j2"]
    rest = await runner.list(limit=3, before=(newest[-1].create_time, newest[-1].id))
    assert [job.name for job in rest] == ["j1", "j0"]
    assert await runner.list(limit=3, kind=JobKind.REINDEX) == []
    with pytest.raises(FailedPrecondition):
        await runner.delete("j0")
    await runner.cancel("j0")
    await runner.delete("j0")
    with pytest.raises(NotFound):
        await runner.get("j0")
    with pytest.raises(NotFound):
        await all_events(runner, "j0")


async def test_step_events_are_thinned_but_the_last_is_kept(database: Database) -> None:
    def work(job: JobContext) -> JobResult:
        for step in range(1, 1001):
            job.metric("STEP", {"loss": 1 / step}, step=step, total_steps=1000)
        return JobResult()

    runner = JobRunner(database, [Handler(work)])
    await runner.start()
    await runner.submit(new_job("fast"))
    assert (await ended(runner, "fast")).metrics["loss"] == 0.001
    steps = [e.metric.step for e in await all_events(runner, "fast") if e.HasField("metric")]
    assert steps[0] == 1
    assert steps[-1] == 1000
    assert len(steps) < 20
    await runner.stop()


async def test_a_silent_job_has_a_heartbeat(database: Database) -> None:
    gate = Gate()
    runner = JobRunner(database, [gate], heartbeat_s=0.1)
    await runner.start()
    await runner.submit(new_job("silent"))
    await gate.wait_entered()
    async with asyncio.timeout(5):
        async for event in runner.watch("silent"):
            if event.WhichOneof("event") == "heartbeat":
                break
    gate.leave.set()
    assert (await ended(runner, "silent")).state is JobState.SUCCEEDED
    await runner.stop()


@pytest.mark.alone
async def test_yielding_leaves_the_floor(database: Database) -> None:
    waited: list[float] = []

    def work(job: JobContext) -> JobResult:
        job.yield_to_serving()
        for _ in range(5):
            time.sleep(0.02)
            before = job.yielded_s
            job.yield_to_serving()
            waited.append(job.yielded_s - before)
        return JobResult()

    runner = JobRunner(database, [Handler(work)], pressure_s=lambda: 0.01)
    await runner.start()
    await runner.submit(new_job("polite"))
    await ended(runner, "polite")
    assert all(0.015 * PATIENCE < wait < 0.2 * PATIENCE for wait in waited), waited
    await runner.stop()


@pytest.mark.alone
async def test_small_pieces_of_work_keep_their_share_too(database: Database) -> None:
    shares: list[float] = []

    def work(job: JobContext) -> JobResult:
        began = time.monotonic()
        worked = 0.0
        while worked < 0.2:
            piece = time.monotonic()
            while time.monotonic() - piece < 0.0003:
                pass
            worked += time.monotonic() - piece
            job.yield_to_serving()
        shares.append(worked / (time.monotonic() - began))
        return JobResult()

    runner = JobRunner(database, [Handler(work)], pressure_s=lambda: 0.01)
    await runner.start()
    await runner.submit(new_job("busy"))
    await ended(runner, "busy")
    assert shares[0] > 0.8 / (1 + PATIENCE), shares  # what slept too long is made up for
    await runner.stop()


async def test_watch_beyond_the_end(database: Database) -> None:
    runner = JobRunner(database, [Gate()])
    job = await runner.submit(new_job("short"))
    with pytest.raises(OutOfRange):
        await all_events(runner, "short", job.last_seq + 1)
    await runner.cancel("short")
    assert await all_events(runner, "short", 2) == []


async def test_state_events_name_the_proto_states() -> None:
    for state in JobState:
        assert job_pb2.JobState.Name(store.state_event(state).state.state) == f"JOB_STATE_{state}"
