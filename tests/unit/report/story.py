"""Events and records of a run, as its page sees them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from hotclip_proto.v1 import job_pb2
from hotclip_server.datasets.records import DatasetCounts, DatasetRecord
from hotclip_server.datasets.report import BadRow, DatasetReport
from hotclip_server.jobs.records import JobKind, JobRecord
from hotclip_server.jobs.states import JobState
from hotclip_server.report.run_log import RunLog

BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)
Stage = Literal["STEP", "BEFORE", "EPOCH", "AFTER", "ALPHA"]


def metric(
    log: RunLog, stage: Stage, step: int, values: Mapping[str, float], total: int = 100
) -> None:
    """Adds a metric event."""
    event = job_pb2.MetricEvent(
        stage=job_pb2.MetricEvent.Stage.Value(f"STAGE_{stage}"), step=step, total_steps=total
    )
    for name, value in values.items():
        event.metrics.add(name=name, value=value)
    log.add(job_pb2.JobEvent(metric=event))


def held_out(quality: float) -> dict[str, float]:
    """What an evaluation tells."""
    found = {"monitor": quality, "validation_loss": 3 - quality}
    for direction in ("clip-text-to-clip-vision", "clip-vision-to-clip-text"):
        found[f"{direction}_reciprocal_rank"] = quality
        found[f"{direction}_hit_at_10"] = min(1.0, 1.5 * quality)
        found[f"{direction}_mean_rank"] = 10 / quality
        found[f"{direction}_queries"] = 40
    return found


def job(spec: Mapping[str, Any] | None = None, **changes: Any) -> JobRecord:
    """A fine-tune that ended well."""
    values: dict[str, Any] = {
        "id": "job-1",
        "name": "first",
        "kind": JobKind.FINE_TUNE,
        "state": JobState.SUCCEEDED,
        "model": "default",
        "description": "",
        "spec": spec or {},
        "create_time": BEGAN,
        "start_time": BEGAN,
        "end_time": BEGAN + timedelta(seconds=75),
        "progress": 1.0,
        "last_seq": 9,
        "error": None,
        "result_version": "ver-2",
        "activated": True,
    }
    return JobRecord(**{**values, **changes})


def dataset(name: str, *bad: BadRow, text: str = "") -> DatasetRecord:
    """A dataset of an upload with so many bad rows."""
    return DatasetRecord(
        id=f"ds-{name}",
        name=name,
        description="",
        create_time=BEGAN,
        counts=DatasetCounts(
            pairs=1200,
            images=1100,
            texts=900,
            groups=0,
            labels=0,
            uncaptioned_pairs=0,
            pairs_with_negatives=0,
            duplicate_pairs=7,
            size_bytes=1,
        ),
        report=DatasetReport(
            rows=1207 + len(bad),
            bad_rows=len(bad),
            listed=bad,
            duplicate_pairs=7,
            images_with_several_texts=3,
            texts_with_several_images=4,
            most_frequent_text=text,
            most_frequent_text_pairs=5,
            min_width=10,
            max_width=20,
            min_height=10,
            max_height=20,
            min_image_bytes=1,
            max_image_bytes=2,
            formats={"PNG": 1100},
            notes=(),
        ),
    )
