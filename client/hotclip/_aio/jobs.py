"""Jobs: following, ending and finding them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hotclip import _jobs as parse
from hotclip._aio import downloads
from hotclip._aio.connection import Connection
from hotclip._artifacts import FormatName, Progress, export_request
from hotclip._events import EventCursor
from hotclip._jobs import Example, Job, JobEvent, JobKind, JobState, LogLine, Measurement
from hotclip._message import made
from hotclip._page import write_page
from hotclip._progress import ProgressBar
from hotclip.errors import Cancelled, Unavailable
from hotclip_proto.v1 import job_pb2

if TYPE_CHECKING:
    from hotclip._aio.client import AsyncClient


class AsyncRun:
    """A handle on a job of the server; it costs nothing and may be thrown away.

    Attributes:
        id: Made by the server.
        name: Chosen by the caller; the id if none was.
        advice: Of a fine-tune: what could be asked for instead; empty: nothing.
        config: What the job was told, as Job.config has it.
    """

    def __init__(self, connection: Connection, started: Job) -> None:
        self._connection = connection
        self.id = started.id
        self.name = started.name
        self.advice = started.advice
        self.config = started.config

    async def job(self, *, timeout: float | None = None) -> Job:
        """Everything about the job as it is now. Raises NotFound if it was deleted."""
        connection = self._connection
        request = made(job_pb2.GetJobRequest, job=self.id)
        stub = connection.stubs().jobs
        return parse.job(await connection.call(stub.GetJob, request, connection.deadline(timeout)))

    async def status(self, *, timeout: float | None = None) -> JobState:
        """Where the job stands now."""
        return (await self.job(timeout=timeout)).state

    async def wait(self, timeout: float | None = None, *, progress: bool = False) -> Job:
        """Waits until the job ends.

        Args:
            timeout: Seconds to wait; None: as long as it takes. The job goes on anyhow.
            progress: Whether to show a bar with loss and throughput on stderr.

        Raises:
            JobFailed: It ended as FAILED, CANCELLED or INTERRUPTED.
            DeadlineExceeded: It did not end in time.
        """
        bar = ProgressBar(self.name) if progress else None
        try:
            async for event in self.events(timeout=timeout):
                if bar:
                    bar.show(event)
        finally:
            if bar:
                bar.close()
        return (await self.job()).ended_well()

    async def events(
        self, after_seq: int = 0, *, follow: bool = True, timeout: float | None = None
    ) -> AsyncIterator[JobEvent]:
        """Events of the job in order, each once, also over broken connections.

        Args:
            after_seq: The last event that the caller has; 0: from the beginning.
            follow: Whether to wait for new ones until the job ends.
            timeout: Seconds after which DeadlineExceeded is raised; None: never.

        Raises:
            OutOfRange: There is no event after_seq yet.
            DataLoss: An event is missing.
        """
        connection, cursor = self._connection, EventCursor(self.id, after_seq)
        deadline = connection.deadline(float("inf") if timeout is None else timeout)
        last = None if follow else (await self.job()).last_seq
        while last is None or cursor.seq < last:
            watch = connection.stubs().jobs.WatchJob
            stream = connection.watch(watch, cursor.request(), deadline)
            try:
                async for message in stream:
                    if event := cursor.accept(message):
                        yield event
                    if last is not None and cursor.seq >= last:
                        return
                pause = cursor.finished()
                if pause is None:
                    return
            except (Unavailable, Cancelled) as error:
                pause = cursor.broken(error)
            finally:
                await stream.aclose()
            await connection.sleep(deadline.pause(pause))

    async def logs(self) -> list[LogLine]:
        """The lines that the job has logged so far."""
        return [e.detail async for e in self.events(follow=False) if isinstance(e.detail, LogLine)]

    async def stream_logs(self) -> AsyncIterator[LogLine]:
        """The lines that the job logs, from the first on, until it ends."""
        async for event in self.events():
            if isinstance(event.detail, LogLine):
                yield event.detail

    async def metrics(self) -> dict[str, float]:
        """The last value of each metric by name."""
        return dict((await self.job()).metrics)

    async def measurements(self) -> list[Measurement]:
        """Every measurement so far: the curves."""
        return [
            e.detail async for e in self.events(follow=False) if isinstance(e.detail, Measurement)
        ]

    async def report(
        self, path: Path | str = "report.html", *, timeout: float | None = None
    ) -> Path:
        """Writes a page on what the job did so far: one HTML file for people.

        It shows curves, metrics before and after, example searches in pictures, what the data
        holds and the log, and loads nothing from elsewhere. Also of a job that runs.

        Args:
            path: The file, or an existing folder for a file named after the job.
            timeout: Seconds; None: the client's default.

        Returns:
            The path of the file.

        Raises:
            NotFound: The job was deleted.
        """
        connection = self._connection
        request = made(job_pb2.GetJobReportRequest, job=self.id)
        stub = connection.stubs().jobs
        reply = await connection.call(stub.GetJobReport, request, connection.deadline(timeout))
        return await connection.run(partial(write_page, Path(path), self.name, reply.html))

    async def examples(self) -> list[Example]:
        """What some held-out queries found before and after, by the keys of the images: the
        sha256 of each file, in hex."""
        return [e.detail async for e in self.events(follow=False) if isinstance(e.detail, Example)]

    async def cancel(self) -> Job:
        """Asks the job to end; it passes through CANCELLING. Harmless if it has ended."""
        connection = self._connection
        request = made(job_pb2.CancelJobRequest, job=self.id)
        stub = connection.stubs().jobs
        return parse.job(await connection.call(stub.CancelJob, request, connection.deadline(None)))

    async def resume(self) -> Job:
        """Puts an INTERRUPTED, CANCELLED or FAILED job back into the queue.

        Raises FailedPrecondition (reason JOB_NOT_RESUMABLE).
        """
        connection = self._connection
        request = made(job_pb2.ResumeJobRequest, job=self.id)
        stub = connection.stubs().jobs
        return parse.job(await connection.call(stub.ResumeJob, request, connection.deadline(None)))

    async def delete(self) -> None:
        """Forgets an ended job and its events; versions that it made stay.

        Raises FailedPrecondition (reason JOB_ACTIVE).
        """
        connection = self._connection
        request = made(job_pb2.DeleteJobRequest, job=self.id)
        await connection.call(connection.stubs().jobs.DeleteJob, request, connection.deadline(None))

    async def save_artifact(
        self,
        directory: Path | str = "artifacts",
        *,
        format: FormatName = "open_clip",  # noqa: A002  # named by the API
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Path:
        """Waits for the job and downloads the model that it made, or the file if it was an export.

        Args:
            directory: Made if it does not exist.
            format: Of a model: "open_clip", "onnx" or "delta"; see Client.export.
            progress: Told how many bytes of how many are there.
            timeout: Seconds for all of it; None: as long as it takes.

        Returns:
            The path of the archive, which hotclip.get_model reads.

        Raises:
            JobFailed: It, or the export, ended badly.
            FailedPrecondition: It made neither a model nor a file (reason NOTHING_TO_SAVE).
            DataLoss: The file is damaged.
        """
        connection = self._connection
        deadline = connection.deadline(float("inf") if timeout is None else timeout)
        ended = await self.wait(deadline.remaining())
        made = ended.artifacts
        if ended.kind is not JobKind.EXPORT:
            request = export_request(ended, format)
            started = await connection.call(connection.stubs().models.Export, request, deadline)
            export = AsyncRun(connection, parse.job(started))
            made = (await export.wait(deadline.remaining())).artifacts
        folder = Path(directory)
        await connection.run(partial(folder.mkdir, parents=True, exist_ok=True))
        return await downloads.fetch(connection, made[0], folder, progress, deadline)

    def __repr__(self) -> str:
        return f"AsyncRun(id={self.id!r}, name={self.name!r})"


async def get_job(self: AsyncClient, job: str, *, timeout: float | None = None) -> AsyncRun:
    """A handle on a job by id or name, e.g. in another process. Raises NotFound."""
    connection = self._connection
    request = made(job_pb2.GetJobRequest, job=job)
    stub = connection.stubs().jobs
    reply = await connection.call(stub.GetJob, request, connection.deadline(timeout))
    return AsyncRun(connection, parse.job(reply))


async def list_jobs(
    self: AsyncClient, *, kind: JobKind | None = None, timeout: float | None = None
) -> list[Job]:
    """All jobs, or those of a kind, newest first."""
    connection, found, token = self._connection, list[Job](), ""
    deadline = connection.deadline(timeout)
    while True:
        request = parse.list_request(kind, token)
        reply = await connection.call(connection.stubs().jobs.ListJobs, request, deadline)
        found += map(parse.job, reply.jobs)
        token = reply.next_page_token
        if not token:
            return found
