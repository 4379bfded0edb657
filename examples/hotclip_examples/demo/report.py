"""The page that shows what changed: numbers, pictures before and after, curves.

One file: pictures and charts are inside it, so it can be mailed and opened anywhere. Style,
charts and pictures are those of the server's page of a job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import PackageLoader

from hotclip_server.report.charts import Points, line_chart
from hotclip_server.report.page import environment
from hotclip_server.report.pictures import data_uri, thumbnail
from hotclip_server.report.run_report import Hits, Picture

SHOWN_HITS = 5


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Retrieval over the held-out queries among the whole index."""

    mrr: float
    hit1: float
    hit10: float


@dataclass(frozen=True, kw_only=True)
class QueryPictures:
    """One query: codes of the best hits before and after, best first, and the right one."""

    text: str
    english: str
    right: str
    rank_before: int | None
    rank_after: int | None
    before: Sequence[str]
    after: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything on the page."""

    english: Quality
    before: Quality
    after: Quality
    english_after: Quality
    facts: Mapping[str, str]
    """Label to value: requests, failures, versions, times."""
    queries: Sequence[QueryPictures]
    pictures: Mapping[str, bytes]
    """PNG by code, of every code in `queries`."""
    loss: Points
    held_out: Points
    """Held-out mRR by step."""
    traffic: Mapping[str, Points]
    """Answers a second by version."""
    moments: Sequence[tuple[float, str]]


def render_report(report: Report) -> str:
    """The whole page as HTML."""
    shown = (
        line_chart("Training loss", {"loss": report.loss}, x_label="step", smooth=("loss",)),
        line_chart(
            "Held-out mRR while training, mean of both directions",
            {"mRR": report.held_out},
            x_label="step",
        ),
        line_chart(
            "Answers a second, by the version that answered",
            report.traffic,
            x_label="seconds",
            marks=report.moments,
            from_zero=True,
        ),
    )
    template = environment(PackageLoader("hotclip_examples.demo")).get_template("demo.html")
    return template.render(
        report=report,
        gain=report.after.mrr / max(report.before.mrr, 1e-9),
        quality=(
            ("English names, base version", report.english),
            ("German names, base version", report.before),
            ("German names, fine-tuned version", report.after),
            ("English names, fine-tuned version", report.english_after),
        ),
        searches=[
            {
                "text": query.text,
                "english": query.english,
                "before": _hits(query.before, query.right, query.rank_before, report.pictures),
                "after": _hits(query.after, query.right, query.rank_after, report.pictures),
            }
            for query in report.queries
        ],
        shown=[chart for chart in shown if chart is not None],
    )


def _hits(
    codes: Sequence[str], right: str, rank: int | None, pictures: Mapping[str, bytes]
) -> Hits:
    return Hits(
        tuple(
            Picture(data_uri(thumbnail(pictures[code])), code == right)
            for code in codes[:SHOWN_HITS]
        ),
        f"rank {rank}" if rank else "not among the first thousand",
    )
