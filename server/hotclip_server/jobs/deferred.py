"""A handler that is made when its first job runs."""

from __future__ import annotations

from collections.abc import Callable

from hotclip_server.jobs.context import JobContext, JobHandler, JobResult
from hotclip_server.jobs.records import JobKind


class DeferredHandler:
    """Implements `JobHandler` by another, whose imports a server without such jobs does without.

    Args:
        make: Makes the other one; called for each job, on its thread.
    """

    def __init__(self, kind: JobKind, make: Callable[[], JobHandler]) -> None:
        self.kind = kind
        self._make = make

    def run(self, job: JobContext) -> JobResult:
        """See `JobHandler.run`."""
        return self._make().run(job)
