"""The page of a job: what it says, that it loads nothing, and that nobody's text is markup."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from hotclip_proto.v1 import job_pb2
from hotclip_server.datasets.report import BadRow
from hotclip_server.jobs.records import JobError, JobRecord
from hotclip_server.jobs.states import JobState
from hotclip_server.report.metric_table import metric_rows
from hotclip_server.report.page import render
from hotclip_server.report.run_log import RunLog
from hotclip_server.report.run_report import build_report
from tests.unit.report.story import BEGAN, dataset, held_out, job, metric

EVIL = "</bdi><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}"


class Page(HTMLParser):
    """Tags in order, attributes that load or run something, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith("on") or (
                name in ("src", "href", "srcset", "action", "data")
                and not (value or "").startswith("data:image/webp;base64,")
            ):
                self.loads.append(f"{name}={value}")

    def handle_data(self, data: str) -> None:
        self.text += data


def page(record: JobRecord, log: RunLog, **datasets: object) -> Page:
    """The page, with a picture of every key but "gone"."""

    def picture(key: str) -> str:
        return "" if key == "gone" else f"data:image/webp;base64,{key}"

    return Page(render(build_report(record, log, datasets, picture, BEGAN)))  # type: ignore[arg-type]  # ids are names here


def told(text: str = "fox") -> RunLog:
    """A run with everything in it."""
    log = RunLog()
    metric(log, "BEFORE", 0, held_out(0.2))
    for step in range(1, 101):
        metric(
            log,
            "STEP",
            step,
            {
                "loss": 3 - step / 50,
                "learning_rate": 1e-4,
                "grad_norm": 1.0,
                "logit_scale": 50.0,
                "samples_per_second": 812.0,
                "yielded_share": 0.25,
                "data_wait_s": 1.5,
                "skipped_steps": 1,
            },
        )
        if step == 50:
            metric(log, "EPOCH", 50, held_out(0.3))
    metric(log, "EPOCH", 100, held_out(0.5))
    for alpha in (0.0, 0.5, 1.0):
        metric(log, "ALPHA", 100, {"alpha": alpha, **held_out(0.2 + 0.3 * alpha)})
    metric(log, "AFTER", 100, held_out(0.5))
    example = job_pb2.ExampleEvent(
        query=text, before=["a", "gone"], after=["b", "a"], relevant=["b"]
    )
    log.add(job_pb2.JobEvent(example=example))
    line = job_pb2.LogEvent(level=job_pb2.LogEvent.LEVEL_WARNING, message=text)
    log.add(job_pb2.JobEvent(log=line))
    return log


def test_all_of_a_run_is_there() -> None:
    spec = {"train_dataset": "own", "eval_dataset": "held", "wise_ft": 0.5, "base_version": "ver-1"}
    shown = page(job(spec), told(), own=dataset("own", BadRow("line 4", "image", "no image")))
    for text in (
        *("first", "ver-1", "ver-2", "(activated)", "0.200 → 0.500, 2.5 times what it was"),
        *("1 min 15 s", "100 of 100", "812", "25%", "1.5 s"),
        *("reciprocal rank", "hit@10", "+0.3000", "−30.0"),
        *("before, not among the first 2", "after, rank 1"),
        *("0.5 (stored)", "Held-out loss 2.8000 → 2.5000"),
        *("1,200 of 1,100 images", "7 pairs were given again", "1 of 1,208 were left out"),
        *("line 4", "no image", "Deleted since"),
    ):
        assert text in shown.text, text
    assert shown.tags.count("figure") == 7
    assert shown.tags.count("img") == 4  # two lists of two, what is right, one that is gone
    assert shown.loads == []


def of_texts(text: str) -> Page:
    """A page with this text wherever it may come from users."""
    spec = {"train_dataset": text, "dataset": "own", "config": {text: text}}
    record = job(
        spec,
        name=text,
        description=text,
        model=text,
        error=JobError(code=13, reason=text, message=text),
        state=JobState.FAILED,
    )
    return page(record, told(text), own=dataset(text, BadRow(text, text, text), text=text))


def test_texts_of_users_are_text() -> None:
    evil, plain = of_texts(EVIL), of_texts("harmless")
    assert evil.tags == plain.tags
    assert "script" not in evil.tags
    assert evil.loads == []
    assert evil.text.count(EVIL) == plain.text.count("harmless") >= 12


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING, JobState.FAILED])
def test_a_job_that_told_nothing_yet(state: JobState) -> None:
    shown = page(job(state=state, start_time=None, end_time=None, result_version=""), RunLog())
    assert state.value in shown.text
    assert "figure" not in shown.tags


def test_an_evaluation_has_no_before() -> None:
    log = RunLog()
    metric(log, "AFTER", 40, held_out(0.4))
    example = job_pb2.ExampleEvent(query="fox", after=["a", "b"], relevant=["b"])
    log.add(job_pb2.JobEvent(example=example))
    shown = page(job({"version": "ver-7", "dataset": "own"}), log, own=dataset("own"))
    assert "Mean reciprocal rank 0.400" in shown.text
    assert "rank 2" in shown.text
    assert "before, " not in shown.text


def test_lower_is_better_for_ranks_and_counts_are_neither() -> None:
    rows = {row.name: row.cells for row in metric_rows(held_out(0.5), held_out(0.4))}
    of = {name: cells[0] for name, cells in rows.items()}
    assert {name: cell.trend for name, cell in of.items() if cell} == {
        "reciprocal rank": "worse",
        "hit@10": "worse",
        "mean rank": "worse",
        "queries": "",
    }
    assert next(iter(rows)) == "reciprocal rank"
    assert list(rows)[-1] == "queries"
