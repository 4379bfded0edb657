"""What the page of a job shows, from its record, its events and its datasets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hotclip_proto.v1 import drift_pb2, job_pb2
from hotclip_server.datasets.records import DatasetRecord
from hotclip_server.jobs.records import JobRecord
from hotclip_server.report.charts import Chart
from hotclip_server.report.curves import curves, sweep_chart
from hotclip_server.report.drift_tables import DriftPage, drift_page
from hotclip_server.report.durations import duration
from hotclip_server.report.metric_table import (
    MONITOR,
    VALIDATION_LOSS,
    Cell,
    Row,
    metric_rows,
    single_row,
)
from hotclip_server.report.run_log import Line, RunLog

SHOWN_HITS = 6
SHOWN_RIGHT = 3
MOST_EXAMPLES = 12
"""With these a page has at most 180 small pictures: 2 MB if all of them are noise."""
MOST_BAD_ROWS = 50

ROLES = {
    "train_dataset": "trained on",
    "replay_dataset": "replayed",
    "eval_dataset": "measured with",
    "query_dataset": "queries",
    "dataset": "measured with",
    "index_dataset": "searched among as well",
}
_OWN = {"model", "config", "datasets", "base_version", "version", "texts", *ROLES}


@dataclass(frozen=True)
class Picture:
    """An image of a result list; `uri` is empty if it is not there any more."""

    uri: str
    right: bool


@dataclass(frozen=True)
class Hits:
    """A result list, best first, and where the first right one stands."""

    pictures: tuple[Picture, ...]
    rank: str


@dataclass(frozen=True)
class Search:
    """One query with its results; `before` is None if nothing was trained."""

    query: str
    right: tuple[Picture, ...]
    before: Hits | None
    after: Hits


@dataclass(frozen=True)
class DataFindings:
    """A dataset of the job; `record` is None if it was deleted since."""

    role: str
    id: str
    record: DatasetRecord | None
    shown_bad_rows: int = MOST_BAD_ROWS


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Everything on the page."""

    job: JobRecord
    base_version: str
    headline: str
    facts: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    monitor: Cell | None
    validation_loss: Cell | None
    k: str
    """Length of the lists that were measured; empty if the job does not say."""
    charts: Sequence[Chart]
    sweep: Chart | None
    alphas: Sequence[tuple[str, str, str, bool]]
    """Alpha, monitor, held-out loss, whether it is what was stored."""
    searches: Sequence[Search]
    datasets: Sequence[DataFindings]
    settings: Sequence[tuple[str, str]]
    drift: DriftPage | None
    """Of a job that compared versions."""
    warnings: Sequence[Line]
    lines: Sequence[Line]
    written: datetime


def build_report(
    job: JobRecord,
    log: RunLog,
    datasets: Mapping[str, DatasetRecord],
    picture: Callable[[str], str],
    written: datetime,
    drift: drift_pb2.DriftReport | None = None,
) -> RunReport:
    """Args:
    datasets: By id; those that are there.
    picture: Source of an image by its key; empty if it is not there.
    drift: Of a job that compared versions, once it has ended well.
    """
    spec = job.spec
    cell = single_row(MONITOR, log.before, log.after)
    return RunReport(
        job=job,
        base_version=str(spec.get("base_version") or spec.get("version") or ""),
        headline=_headline(log),
        facts=_facts(job, log),
        rows=metric_rows(log.before, log.after),
        monitor=cell,
        validation_loss=single_row(VALIDATION_LOSS, log.before, log.after),
        k=str(spec.get("k", "")),
        charts=curves(log),
        sweep=sweep_chart(log.alphas, _chosen(spec)),
        alphas=[
            (f"{a:g}", _number(m.get(MONITOR)), _number(m.get(VALIDATION_LOSS)), a == _chosen(spec))
            for a, m in sorted(log.alphas.items())
        ],
        searches=[_search(e, picture) for e in list(log.examples.values())[:MOST_EXAMPLES]],
        datasets=[
            DataFindings(role, str(spec[field]), datasets.get(str(spec[field])))
            for field, role in ROLES.items()
            if spec.get(field)
        ],
        settings=_settings(spec),
        drift=drift_page(drift) if drift is not None else None,
        warnings=log.warnings,
        lines=log.lines,
        written=written,
    )


def _headline(log: RunLog) -> str:
    old, new = log.before.get(MONITOR), log.after.get(MONITOR)
    if old is None or new is None:
        return (
            "" if new is None else f"Mean reciprocal rank {new:.3f}, the mean of both directions."
        )
    times = f", {new / old:.1f} times what it was" if new >= 1.5 * old > 0 else ""
    return f"Mean reciprocal rank, the mean of both directions: {old:.3f} → {new:.3f}{times}."


def _facts(job: JobRecord, log: RunLog) -> list[tuple[str, str]]:
    last = log.last_step
    facts = [("state", job.state.value)]
    if job.start_time is not None and job.end_time is not None:
        facts.append(("took", duration((job.end_time - job.start_time).total_seconds())))
    if log.steps:
        facts.append(("steps", f"{log.steps[-1][0]:,} of {log.total_steps:,}"))
    if speeds := sorted(m["samples_per_second"] for _, m in log.steps if "samples_per_second" in m):
        facts.append(("pairs a second, median", f"{speeds[len(speeds) // 2]:,.0f}"))
    if "yielded_share" in last:
        facts.append(("time given to serving", f"{last['yielded_share']:.0%}"))
    if "data_wait_s" in last:
        facts.append(("waited for images", duration(last["data_wait_s"])))
    if "chunk_size" in last:
        facts.append(("chunk size", f"{last['chunk_size']:.0f}"))
    if "skipped_steps" in last:
        facts.append(("skipped steps", f"{last['skipped_steps']:.0f}"))
    return facts


def _search(example: job_pb2.ExampleEvent, picture: Callable[[str], str]) -> Search:
    right = set(example.relevant)

    def hits(keys: Sequence[str]) -> Hits:
        rank = next((place for place, key in enumerate(keys, 1) if key in right), None)
        return Hits(
            tuple(Picture(picture(key), key in right) for key in keys[:SHOWN_HITS]),
            f"rank {rank}" if rank else f"not among the first {len(keys)}",
        )

    return Search(
        example.query,
        tuple(Picture(picture(key), True) for key in example.relevant[:SHOWN_RIGHT]),
        hits(example.before) if example.before else None,
        hits(example.after),
    )


def _settings(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the job was asked for, nested names joined by dots."""
    flat: dict[str, Any] = {}

    def flatten(prefix: str, value: object) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                flatten(f"{prefix}.{name}" if prefix else str(name), inner)
        else:
            flat[prefix] = value

    flatten("", {name: value for name, value in spec.items() if name not in _OWN})
    flatten("", spec.get("config", {}))
    return [(name, _plain(value)) for name, value in sorted(flat.items())]


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value not in (None, "") else "none"


def _chosen(spec: Mapping[str, Any]) -> float | None:
    wise = spec.get("wise_ft")
    return float(wise) if isinstance(wise, int | float) else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
