"""What the page of a comparison of versions shows, from its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hotclip_proto.v1 import drift_pb2, types_pb2
from hotclip_server.report.charts import Chart, line_chart
from hotclip_server.report.durations import duration

_TOWERS = {types_pb2.TOWER_TEXT: "clip-text", types_pb2.TOWER_VISION: "clip-vision"}
_NEEDS = {
    drift_pb2.CollectionDrift.NEED_NONE: "nothing: its vectors stay valid",
    drift_pb2.CollectionDrift.NEED_REINDEX: "reindex",
    drift_pb2.CollectionDrift.NEED_SOURCES: "reindex, but sources are missing",
    drift_pb2.CollectionDrift.NEED_DONE: "nothing: it is ready",
}


@dataclass(frozen=True)
class TowerRow:
    """One tower; figures are empty where nothing was measured."""

    name: str
    verdict: str
    items: str
    mean: str
    least: str
    p05: str
    speed: str


@dataclass(frozen=True)
class CollectionRow:
    """One collection."""

    name: str
    points: str
    need: str
    must: bool
    to_encode: str
    seconds: str
    overlap: str
    p10: str
    query_overlap: str
    same_first: str


@dataclass(frozen=True)
class DriftPage:
    """A report as its page has it."""

    version: str
    base_version: str
    headline: str
    k: str
    towers: Sequence[TowerRow]
    collections: Sequence[CollectionRow]
    chart: Chart | None
    remarks: Sequence[str]


def drift_page(report: drift_pb2.DriftReport) -> DriftPage:
    """Args:
    report: Of a job that has ended well.
    """
    lines = {
        _TOWERS[tower.tower]: [(100 * q.share, q.value) for q in tower.cosine_quantiles]
        for tower in report.towers
    }
    return DriftPage(
        version=report.version,
        base_version=report.base_version,
        headline=_headline(report),
        k=", ".join(map(str, sorted({drift.k for drift in report.collections}))),
        towers=[_tower(tower) for tower in report.towers],
        collections=[_collection(drift) for drift in report.collections],
        chart=line_chart(
            "Cosine of old and new vectors of the same items", lines, x_label="% of the items"
        ),
        remarks=list(report.remarks),
    )


def _headline(report: drift_pb2.DriftReport) -> str:
    many = len(report.collections)
    needy = [
        drift
        for drift in report.collections
        if drift.need
        in (drift_pb2.CollectionDrift.NEED_REINDEX, drift_pb2.CollectionDrift.NEED_SOURCES)
    ]
    if not needy:
        return "No collection needs to be reindexed."
    time = f", about {duration(report.reindex_s)}" if report.HasField("reindex_s") else ""
    noun = "collection needs" if many == 1 else "collections need"
    return f"{len(needy)} of {many} {noun} to be reindexed{time}."


def _tower(tower: drift_pb2.TowerDrift) -> TowerRow:
    quantiles = {round(q.share, 2): f"{q.value:.4f}" for q in tower.cosine_quantiles}
    return TowerRow(
        name=_TOWERS[tower.tower],
        verdict="the same encoder" if tower.unchanged else "changed",
        items=f"{tower.items:,}" if tower.items else "",
        mean=f"{tower.cosine_mean:.4f}" if tower.HasField("cosine_mean") else "",
        least=quantiles.get(0.0, ""),
        p05=quantiles.get(0.05, ""),
        speed=f"{tower.items_per_s:,.0f}" if tower.HasField("items_per_s") else "",
    )


def _collection(drift: drift_pb2.CollectionDrift) -> CollectionRow:
    def share(name: str) -> str:
        return f"{getattr(drift, name):.3f}" if drift.HasField(name) else ""  # type: ignore[arg-type]  # fields by name

    return CollectionRow(
        name=drift.name,
        points=f"{drift.points:,}",
        need=_NEEDS.get(drift.need, ""),
        must=drift.need == drift_pb2.CollectionDrift.NEED_REINDEX,
        to_encode=f"{drift.to_encode:,}",
        seconds=duration(drift.reindex_s) if drift.HasField("reindex_s") else "",
        overlap=share("overlap"),
        p10=share("overlap_p10"),
        query_overlap=share("query_overlap"),
        same_first=share("same_first"),
    )
