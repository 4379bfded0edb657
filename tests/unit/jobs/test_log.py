"""The event log has no gap and no duplicate, whoever writes, watches or dies."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.jobs import Gate, Handler, all_events, new_job, open_database

from hotclip_proto.v1 import job_pb2
from hotclip_server.errors import FailedPrecondition
from hotclip_server.jobs import store
from hotclip_server.jobs.context import JobContext, JobResult
from hotclip_server.jobs.runner import WATCH_PAGE, JobRunner
from hotclip_server.jobs.states import JobState
from hotclip_server.storage.database import Database


def log_event(text: str) -> job_pb2.JobEvent:
    return job_pb2.JobEvent(log=job_pb2.LogEvent(message=text))


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    writers=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=8), min_size=1, max_size=3),
    breaks=st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
async def test_watchers_that_reconnect_see_every_event_once(
    database: Database, writers: list[list[int]], breaks: list[int]
) -> None:
    """Several threads append batches while watchers drop the stream and come back."""
    total = sum(sum(batches) for batches in writers)
    done = threading.Barrier(len(writers) + 1)

    def work(job: JobContext) -> JobResult:
        job.running()

        def write(batches: list[int]) -> None:
            for size in batches:
                with database.transaction() as connection:
                    store.append(connection, job.id, [log_event("x")] * size)
                job._changed(job.id)
            done.wait(20)

        for batches in writers:
            threading.Thread(target=write, args=(batches,), daemon=True).start()
        done.wait(20)
        return JobResult()

    async def follow(job: str, pause: float) -> list[int]:
        seen: list[int] = []
        rounds = iter(breaks)
        while True:
            left = next(rounds, None)
            async for event in runner.watch(job, seen[-1] if seen else 0):
                seen.append(event.seq)
                await asyncio.sleep(pause)
                if left is not None and len(seen) % left == 0:
                    break
            else:
                return seen

    runner = JobRunner(database, [Handler(work)])
    await runner.start()
    job = await runner.submit(new_job())
    async with asyncio.timeout(30):
        logs = await asyncio.gather(*(follow(job.id, pause) for pause in (0, 0.001)))
    expected = list(range(1, total + 5))  # and queued, preparing, running, succeeded
    assert logs == [expected, expected]
    await runner.stop()


async def test_a_long_backlog_comes_in_pages(database: Database) -> None:
    runner = JobRunner(database, [Gate()])
    job = await runner.submit(new_job())
    with database.transaction() as connection:
        store.append(connection, job.id, [log_event("x")] * (2 * WATCH_PAGE + 3))
    await runner.cancel(job.id)
    events = await all_events(runner, job.id, 7)
    assert [event.seq for event in events] == list(range(8, 2 * WATCH_PAGE + 6))


def test_only_allowed_transitions(database: Database) -> None:
    allowed = {
        state: {other for other in JobState if state.may_become(other)} for state in JobState
    }
    assert not allowed[JobState.SUCCEEDED]
    ended = (JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED)
    assert all(allowed[state] == {JobState.QUEUED} for state in ended)
    assert all(JobState.INTERRUPTED in allowed[s] for s in JobState if s.name.endswith("ING"))
    with database.transaction() as connection:
        job, _ = store.create(connection, new_job())
    with pytest.raises(FailedPrecondition), database.transaction() as connection:
        store.set_state(connection, job.id, JobState.RUNNING)
    with database.transaction() as connection:
        assert store.get(connection, job.id).last_seq == 1


CHILD = """
import sys
from pathlib import Path
from support.jobs import open_database, new_job
from hotclip_server.jobs import store
from hotclip_server.jobs.states import JobState
from hotclip_proto.v1 import job_pb2
database = open_database(Path(sys.argv[1]))
with database.transaction() as connection:
    job, _ = store.create(connection, new_job("victim"))
    store.set_state(connection, job.id, JobState.PREPARING)
    store.set_state(connection, job.id, JobState.RUNNING)
event = job_pb2.JobEvent(log=job_pb2.LogEvent(message="x" * 300))
for i in range(100000):
    with database.transaction() as connection:
        last = store.append(connection, job.id, [event] * (1 + i % 3), progress=i / 100000)
    print(last, flush=True)  # a watcher has it from here on
"""


def write_until_killed(folder: Path) -> int:
    """The last number that the child told of before it was killed in the middle of writing."""
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "tests")},
        text=True,
    ) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(30)]
        time.sleep(random.uniform(0, 0.02))
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines(keepends=True)
    return max(int(line) for line in lines if line.endswith("\n"))


async def test_kill_in_the_middle_of_appending_leaves_no_gap(tmp_path: Path) -> None:
    told = await asyncio.to_thread(write_until_killed, tmp_path)

    database = open_database(tmp_path)
    runner = JobRunner(database, [Gate()])
    await runner.start()
    events = await all_events(runner, "victim")
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    record = await runner.get("victim")
    assert record.last_seq == len(events)
    assert record.last_seq > told  # what was told is there, and INTERRUPTED besides
    assert record.state is JobState.INTERRUPTED
    await runner.stop()
    database.close()
