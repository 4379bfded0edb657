"""The job that writes a version as a file for callers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hotclip_server.artifacts.export import Exporter
from hotclip_server.artifacts.records import ArtifactFormat, ArtifactRecord, Origin
from hotclip_server.jobs.context import JobContext, JobResult
from hotclip_server.jobs.records import JobKind


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """One export. `version` and `base_version` keep those from being deleted."""

    format: ArtifactFormat
    version: str
    base_version: str
    model: str

    @property
    def origin(self) -> Origin:
        """What is exported."""
        return Origin(version=self.version, base_version=self.base_version, model=self.model)

    def to_json(self) -> dict[str, Any]:
        """As the job stores it."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ExportSpec:
        """What `to_json` made."""
        return cls(**{**stored, "format": ArtifactFormat(stored["format"])})


class ExportHandler:
    """Implements `JobHandler`."""

    kind = JobKind.EXPORT

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter

    def run(self, job: JobContext) -> JobResult:
        """Exports; see `JobHandler.run`."""
        spec = ExportSpec.from_json(job.spec)
        job.running()
        record = export_in_job(job, self._exporter, spec.format, spec.origin)
        return JobResult(artifacts=(record.id,), message=f"artifact {record.id}")


def onnx_exporter(exporter: Exporter) -> Callable[[JobContext, str, str], str]:
    """Exports a version of a model as ONNX in a job of another kind; gives the artifact's id."""

    def export(job: JobContext, version: str, model: str) -> str:
        origin = Origin(version=version, model=model)
        return export_in_job(job, exporter, ArtifactFormat.ONNX, origin).id

    return export


def export_in_job(
    job: JobContext, exporter: Exporter, format_: ArtifactFormat, origin: Origin
) -> ArtifactRecord:
    """Exports while the job can be cancelled, and says in its log how large the file is."""

    def progress(_: int) -> None:
        job.check_cancelled()

    record = exporter.export(format_, origin, progress)
    job.log(
        f"version {origin.version} as {format_.value} is artifact {record.id}: "
        f"{record.size_bytes / 1e6:.1f} MB"
    )
    return record
