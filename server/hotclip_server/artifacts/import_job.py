"""The job that makes a version of an artifact."""

from __future__ import annotations

from typing import Protocol

from hotclip_server.jobs.context import JobContext, JobResult
from hotclip_server.jobs.records import JobKind

ARTIFACT_SOURCE = "artifact:"
"""How `LoadVersion` names an artifact; its id follows."""


class Loads(Protocol):
    """What makes versions; `RegistryReleases` is one."""

    def load(self, model: str, source: str) -> str:
        """Imports, stages and verifies a source; gives the id of the version. Blocks; errors as
        `ModelRegistry.load_version`."""


class ImportHandler:
    """Implements `JobHandler`. The spec is {"model", "artifact"}; it can't be cancelled once the
    weights are read.
    """

    kind = JobKind.IMPORT

    def __init__(self, versions: Loads) -> None:
        self._versions = versions

    def run(self, job: JobContext) -> JobResult:
        """Imports; see `JobHandler.run`."""
        job.running()
        version = self._versions.load(job.spec["model"], ARTIFACT_SOURCE + job.spec["artifact"])
        job.log(f"artifact {job.spec['artifact']} is version {version}, staged")
        return JobResult(result_version=version, message=f"version {version}")
