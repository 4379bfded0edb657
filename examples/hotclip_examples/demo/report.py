"""The page that shows what changed: numbers, pictures before and after, curves.

One file: pictures and charts are inside it, so it can be mailed and opened anywhere.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from hotclip_examples.demo.curves import Points, line_chart

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


_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2rem auto;padding:0 1.2rem}
h1{margin-bottom:0}h2{margin-top:2.2rem}.sub{color:#777;margin-top:.2rem}
table{border-collapse:collapse}td,th{padding:.35rem .9rem;text-align:right;
border-bottom:1px solid #8884}td:first-child,th:first-child{text-align:left}
.up{color:#059669;font-weight:600}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:.6rem}
.facts div{border:1px solid #8884;border-radius:8px;padding:.5rem .8rem}
.facts b{display:block;font-size:1.1rem;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:1rem}
figure{margin:0;border:1px solid #8884;border-radius:8px;padding:.6rem}
figcaption{font-weight:600}svg{width:100%;height:auto}svg text{font-size:11px;fill:#888}
.grid{stroke:#8883}.mark{stroke:#888;stroke-dasharray:4 3}
.legend{margin:.2rem 0 0;font-size:13px}.legend span{margin-right:1rem}
.legend i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:5px}
.q td{vertical-align:middle;text-align:left}.q th{text-align:left}.hits{display:flex;gap:6px}
.hits img{width:56px;height:56px;background:#fff;border-radius:8px;border:3px solid #8883}
.hits img.right{border-color:#059669}.rank{color:#777;font-size:13px}
"""


def render_report(report: Report) -> str:
    """The whole page as HTML."""
    quality = "".join(
        _quality_row(name, one)
        for name, one in (
            ("English names, base version", report.english),
            ("German names, base version", report.before),
            ("German names, fine-tuned version", report.after),
            ("English names, fine-tuned version", report.english_after),
        )
    )
    facts = "".join(
        f"<div>{escape(label)}<b>{escape(value)}</b></div>" for label, value in report.facts.items()
    )
    rows = "".join(_query_row(query, report.pictures) for query in report.queries)
    charts = "".join(
        (
            line_chart("Training loss", {"loss": report.loss}, x_label="step"),
            line_chart(
                "Held-out retrieval while training",
                {"mRR, mean of both directions": report.held_out},
                x_label="step",
            ),
            line_chart(
                "Answers a second, by the version that answered",
                report.traffic,
                x_label="seconds",
                marks=report.moments,
            ),
        )
    )
    gain = report.after.mrr / max(report.before.mrr, 1e-9)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hotclip: learned while serving</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>
<body><h1>Learned while serving</h1>
<p class="sub">A catalogue of OpenMoji drawings, searched in German. The model had seen neither.
After one FineTune call the mean reciprocal rank is <span class="up">{gain:.1f} times</span> what
it was; weights and index changed together, under load.</p>
<h2>Search quality on held-out drawings</h2>
<table><tr><th>queries</th><th>mRR</th><th>hit@1</th><th>hit@10</th></tr>{quality}</table>
<h2>What the traffic saw</h2><div class="facts">{facts}</div>
<h2>Ten searches, before and after</h2>
<p class="sub">Every so many of the held-out queries; the right drawing has a green frame.</p>
<table class="q"><tr><th>query</th><th>before</th><th>after</th></tr>{rows}</table>
<h2>Curves</h2><div class="charts">{charts}</div>
<p class="sub">Drawings: OpenMoji, CC BY-SA 4.0. Names: Unicode CLDR.</p>
</body></html>
"""


def _quality_row(name: str, one: Quality) -> str:
    return (
        f"<tr><td>{escape(name)}</td><td>{one.mrr:.3f}</td>"
        f"<td>{one.hit1:.3f}</td><td>{one.hit10:.3f}</td></tr>"
    )


def _query_row(query: QueryPictures, pictures: Mapping[str, bytes]) -> str:
    return (
        f"<tr><td><b>{escape(query.text)}</b><br><span class='rank'>{escape(query.english)}</span>"
        f"</td><td>{_hits(query.before, query.right, query.rank_before, pictures)}</td>"
        f"<td>{_hits(query.after, query.right, query.rank_after, pictures)}</td></tr>"
    )


def _hits(codes: Sequence[str], right: str, rank: int | None, pictures: Mapping[str, bytes]) -> str:
    images = "".join(
        f'<img alt="{escape(code)}" class="{"right" if code == right else ""}"'
        f' src="data:image/png;base64,{base64.b64encode(pictures[code]).decode()}">'
        for code in codes[:SHOWN_HITS]
    )
    found = f"rank {rank}" if rank else "not among the first thousand"
    return f'<div class="hits">{images}</div><span class="rank">{found}</span>'
