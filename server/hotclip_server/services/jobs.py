"""JobService: the wire side of jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf.struct_pb2 import Struct

from hotclip_proto.v1 import job_pb2, job_pb2_grpc
from hotclip_server.errors import InvalidArgument
from hotclip_server.jobs.records import JobKind, JobRecord
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.store import timestamp
from hotclip_server.report.reporter import Reporter
from hotclip_server.services.datasets import newest_first_key
from hotclip_server.services.paging import PageRequest

Context = grpc.aio.ServicerContext[Any, Any]
_NOT_TOLD = frozenset({"model", "datasets", "texts"})
"""Of a specification: what a job says elsewhere, and what may be megabytes."""


class JobService(job_pb2_grpc.JobServiceServicer):
    """See job.proto."""

    def __init__(self, jobs: JobRunner, reporter: Reporter) -> None:
        self._jobs = jobs
        self._reporter = reporter

    async def GetJob(  # noqa: N802 - named by the proto
        self, request: job_pb2.GetJobRequest, context: Context
    ) -> job_pb2.Job:
        """By id or name."""
        return job_to_proto(await self._jobs.get(request.job))

    async def ListJobs(  # noqa: N802 - named by the proto
        self, request: job_pb2.ListJobsRequest, context: Context
    ) -> job_pb2.ListJobsResponse:
        """Newest first."""
        kind = _kind(request.kind)
        page = PageRequest.parse(
            request.page_size, request.page_token, listing=f"jobs/{kind}", kinds=(str, str)
        )
        before = newest_first_key(page)
        rows = await self._jobs.list(limit=page.size + 1, before=before, kind=kind)
        rows, token = page.cut(rows, key=lambda row: (row.create_time.isoformat(), row.id))
        return job_pb2.ListJobsResponse(
            jobs=[job_to_proto(row, config=False) for row in rows], next_page_token=token
        )

    async def WatchJob(  # noqa: N802 - named by the proto
        self, request: job_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[job_pb2.JobEvent]:
        """Every event after `after_seq`, to the end of the job."""
        async for event in self._jobs.watch(request.job, request.after_seq):
            yield event

    async def GetJobReport(  # noqa: N802 - named by the proto
        self, request: job_pb2.GetJobReportRequest, context: Context
    ) -> job_pb2.GetJobReportResponse:
        """A page for people."""
        return job_pb2.GetJobReportResponse(html=await self._reporter.html(request.job))

    async def CancelJob(  # noqa: N802 - named by the proto
        self, request: job_pb2.CancelJobRequest, context: Context
    ) -> job_pb2.Job:
        """Asks it to end."""
        return job_to_proto(await self._jobs.cancel(request.job))

    async def ResumeJob(  # noqa: N802 - named by the proto
        self, request: job_pb2.ResumeJobRequest, context: Context
    ) -> job_pb2.Job:
        """Queues it again."""
        return job_to_proto(await self._jobs.resume(request.job))

    async def DeleteJob(  # noqa: N802 - named by the proto
        self, request: job_pb2.DeleteJobRequest, context: Context
    ) -> job_pb2.DeleteJobResponse:
        """Forgets it."""
        await self._jobs.delete(request.job)
        return job_pb2.DeleteJobResponse()


def job_to_proto(record: JobRecord, *, config: bool = True) -> job_pb2.Job:
    """As the wire has it; `config` is left out where a thousand of them would be too much."""
    job = job_pb2.Job(
        id=record.id,
        name=record.name,
        kind=job_pb2.JobKind.Value(f"JOB_KIND_{record.kind}"),
        state=job_pb2.JobState.Value(f"JOB_STATE_{record.state}"),
        model=record.model,
        description=record.description,
        create_time=timestamp(record.create_time),
        progress=record.progress,
        last_seq=record.last_seq,
        result_version=record.result_version,
        activated=record.activated,
        artifacts=record.artifacts,
    )
    if record.start_time is not None:
        job.start_time.FromDatetime(record.start_time)
    if record.end_time is not None:
        job.end_time.FromDatetime(record.end_time)
    if record.error is not None:
        job.error.code = record.error.code
        job.error.reason = record.error.reason
        job.error.message = record.error.message
    for name, value in sorted(record.metrics.items()):
        job.metrics.add(name=name, value=value)
    if config:
        job.config.CopyFrom(job_config(record.spec))
    return job


def job_config(spec: Mapping[str, Any]) -> Struct:
    """What a job was told, as JSON, from its specification."""
    told = Struct()
    told.update({name: value for name, value in spec.items() if name not in _NOT_TOLD})
    return told


def _kind(kind: int) -> JobKind | None:
    if kind == job_pb2.JOB_KIND_UNSPECIFIED:
        return None
    known = job_pb2.JobKind.DESCRIPTOR.values_by_number.get(kind)
    if known is None:
        raise InvalidArgument.field("kind", f"{kind} is no kind of job")
    return JobKind(known.name.removeprefix("JOB_KIND_"))
