"""Whatever a job tells, its log stays small, and of repeated steps the last attempt counts."""

from __future__ import annotations

from itertools import pairwise

from hotclip_proto.v1 import job_pb2
from hotclip_server.report.run_log import MOST_LINES, MOST_STEPS, RunLog
from tests.unit.report.story import held_out, metric


def test_a_long_run_keeps_every_so_many_steps() -> None:
    log = RunLog()
    for step in range(1, 3 * MOST_STEPS):
        metric(log, "STEP", step, {"loss": 1 / step}, total=3 * MOST_STEPS)
    steps = [step for step, _ in log.steps]
    assert MOST_STEPS / 2 <= len(steps) < MOST_STEPS
    gaps = {after - before for before, after in pairwise(steps)}
    assert len(gaps) == 1
    assert steps[-1] > 2.99 * MOST_STEPS
    assert log.last_step == {"loss": 1 / (3 * MOST_STEPS - 1)}


def test_a_resumed_run_tells_some_steps_again() -> None:
    log = RunLog()
    for step in range(1, 9):
        metric(log, "STEP", step, {"loss": 1.0})
    metric(log, "EPOCH", 4, held_out(0.1))
    for step in range(1, 9):
        metric(log, "STEP", step, {"loss": 1.0})
    metric(log, "EPOCH", 8, held_out(0.1))
    for step in (5, 6):
        metric(log, "STEP", step, {"loss": 2.0})
    assert [step for step, _ in log.steps] == [1, 2, 3, 4, 5, 6]
    assert [metrics["loss"] for _, metrics in log.steps] == [1, 1, 1, 1, 2, 2]
    assert log.epochs == {}
    metric(log, "EPOCH", 6, held_out(0.2))
    assert set(log.epochs) == {6}


def test_lines_are_the_last_ones_and_warnings_stay() -> None:
    log = RunLog()
    for number in range(MOST_LINES + 50):
        level = job_pb2.LogEvent.LEVEL_WARNING if number == 3 else job_pb2.LogEvent.LEVEL_INFO
        line = job_pb2.LogEvent(level=level, message=f"line {number}")
        log.add(job_pb2.JobEvent(log=line))
    log.add(job_pb2.JobEvent(state=job_pb2.StateEvent(state=job_pb2.JOB_STATE_FAILED, message="x")))
    assert len(log.lines) == MOST_LINES
    assert log.lines[-1].text == "FAILED: x"
    assert [line.text for line in log.warnings] == ["line 3"]


def test_alphas_and_unknown_kinds() -> None:
    log = RunLog()
    metric(log, "ALPHA", 5, {"alpha": 0.5, "monitor": 0.3})
    log.add(job_pb2.JobEvent(heartbeat=job_pb2.HeartbeatEvent()))
    log.add(job_pb2.JobEvent())
    assert log.alphas == {0.5: {"monitor": 0.3}}
