"""What an exception in a job says to the one who asked for the job."""

from __future__ import annotations

import grpc

from hotclip_server.errors import HotclipError
from hotclip_server.jobs.records import JobError
from hotclip_server.storage.atomic import is_disk_full


def job_error(error: Exception) -> JobError:
    """The error to store; of an unexpected one it tells nothing of the server's inside."""
    if isinstance(error, HotclipError):
        return JobError(code=error.code.value[0], reason=error.reason, message=error.message)
    if is_disk_full(error):
        code = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        return JobError(code=code, reason="DISK_FULL", message="the server's disk is full")
    return JobError(
        code=grpc.StatusCode.INTERNAL.value[0],
        reason="INTERNAL",
        message="an unexpected error; the server's log tells more",
    )
