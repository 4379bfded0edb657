"""Lanes, and jobs that go on after they ended."""

from __future__ import annotations

from support.jobs import Gate, Handler, ended, new_job

from hotclip_proto.v1 import job_pb2
from hotclip_server.jobs import store
from hotclip_server.jobs.context import JobResult, attempt_of
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.states import JobState
from hotclip_server.storage.database import Database


async def test_a_job_of_another_lane_does_not_wait(database: Database) -> None:
    class Index(Handler):
        kind = JobKind.REINDEX

    gate = Gate()
    runner = JobRunner(database, [gate, Index(lambda job: JobResult(message="indexed"))])
    await runner.start()
    await runner.submit(new_job("long"))
    await gate.wait_entered()
    await runner.submit(NewJob(kind=JobKind.REINDEX, name="index", spec={}))
    assert (await ended(runner, "index")).state is JobState.SUCCEEDED
    assert (await runner.get("long")).state is JobState.RUNNING
    gate.leave.set()
    assert (await ended(runner, "long")).state is JobState.SUCCEEDED
    await runner.stop()


async def test_a_cancelled_job_may_be_resumed(database: Database) -> None:
    gate = Gate()
    runner = JobRunner(database, [gate])
    await runner.submit(new_job("changed mind"))
    await runner.cancel("changed mind")
    gate.leave.set()
    await runner.start()
    await runner.resume("changed mind")
    assert (await ended(runner, "changed mind")).state is JobState.SUCCEEDED
    await runner.stop()


async def test_a_job_that_got_further_is_resumed_again(database: Database) -> None:
    with database.transaction() as connection:
        record, _ = store.create(connection, new_job("slow"))
    saved = job_pb2.JobEvent(checkpoint=job_pb2.CheckpointEvent(step=1))
    for lives in range(1, 9):
        with database.transaction() as connection:
            store.set_state(connection, record.id, JobState.PREPARING)
            saved.checkpoint.step += lives % 2
            store.append(connection, record.id, [saved])
            assert [job.name for job in store.recover(connection, resume=True)] == ["slow"]
            events = store.events_after(connection, record.id, 0, limit=999)
            assert attempt_of(events, 0) == lives


async def test_no_two_attempts_have_one_number(database: Database) -> None:
    restarts = {1: 2, 2: 0, 3: 1}  # of processes, in each life of the server
    with database.transaction() as connection:
        record, _ = store.create(connection, new_job("twice"))
        told = []
        for lives, again in restarts.items():
            store.set_state(connection, record.id, JobState.PREPARING)
            for restart in range(again + 1):
                if lives + restart > 1:  # the very first one does not go on from anything
                    events = store.events_after(connection, record.id, 0, limit=999)
                    told.append(attempt_of(events, restart))
                    event = job_pb2.ResumedEvent(from_step=lives, attempt=told[-1])
                    store.append(connection, record.id, [job_pb2.JobEvent(resumed=event)])
            store.recover(connection, resume=True)
    assert told == [2, 3, 4, 5, 6]


async def test_interrupted_jobs_go_on_by_themselves_but_not_for_ever(database: Database) -> None:
    gate = Gate()
    with database.transaction() as connection:
        record, _ = store.create(connection, new_job("crashes"))
    for lives in (1, 2, 3):
        with database.transaction() as connection:
            store.set_state(connection, record.id, JobState.PREPARING)
            queued = store.recover(connection, resume=True)
            assert [job.name for job in queued] == (["crashes"] if lives < 3 else [])
    runner = JobRunner(database, [gate], resume=True)
    await runner.start()
    assert (await runner.get("crashes")).state is JobState.INTERRUPTED
    await runner.stop()
