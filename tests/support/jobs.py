"""A database in a temporary folder and handlers that do what a test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

from hotclip_proto.v1 import job_pb2
from hotclip_server.jobs.context import JobContext, JobResult
from hotclip_server.jobs.records import JobKind, JobRecord, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.storage.database import Database


def open_database(folder: Path) -> Database:
    database = Database(f"sqlite:///{folder / 'hotclip.db'}")
    database.open()
    return database


class Handler:
    """Runs a function as an evaluation job."""

    kind = JobKind.EVALUATE

    def __init__(self, work: Callable[[JobContext], JobResult]) -> None:
        self.run = work


class Gate:
    """A job that says when it runs and goes on when told."""

    kind = JobKind.EVALUATE

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.leave = threading.Event()

    def run(self, job: JobContext) -> JobResult:
        job.running()
        self.entered.set()
        while not self.leave.wait(0.005):
            job.check_cancelled()
        return JobResult(message="left")

    async def wait_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 10)


def new_job(name: str = "", **spec: object) -> NewJob:
    return NewJob(kind=JobKind.EVALUATE, name=name, spec=spec)


async def all_events(runner: JobRunner, job: str, after: int = 0) -> list[job_pb2.JobEvent]:
    return [event async for event in runner.watch(job, after)]


async def ended(runner: JobRunner, job: str) -> JobRecord:
    async with asyncio.timeout(200):
        await all_events(runner, job)
        return await runner.get(job)


def kinds(events: list[job_pb2.JobEvent]) -> list[str]:
    """State names, or the kind of other events."""
    return [
        job_pb2.JobState.Name(event.state.state).removeprefix("JOB_STATE_")
        if event.WhichOneof("event") == "state"
        else str(event.WhichOneof("event"))
        for event in events
    ]
