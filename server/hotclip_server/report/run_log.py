"""What a job's events told, kept in bounded memory however long it ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from hotclip_proto.v1 import job_pb2

MOST_STEPS = 4096
"""Steps that are kept; of a longer run every second, fourth … one."""
MOST_LINES = 300
"""Log lines that are kept: the last ones, and the last warnings apart from them."""
MOST_EXAMPLES = 50

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Line:
    """A log line or a change of state."""

    time: datetime
    level: str
    text: str


class RunLog:
    """Takes events in order.

    A run that was resumed tells some steps again; the last attempt counts.
    """

    def __init__(self) -> None:
        self.before: Metrics = {}
        self.after: Metrics = {}
        self.epochs: dict[int, Metrics] = {}
        """By steps done."""
        self.alphas: dict[float, Metrics] = {}
        self.examples: dict[str, job_pb2.ExampleEvent] = {}
        """By query."""
        self.lines: list[Line] = []
        self.warnings: list[Line] = []
        self.total_steps = 0
        self.last_step: Metrics = {}
        self._steps: list[tuple[int, Metrics]] = []
        self._stride = 1
        self._count = 0

    @property
    def steps(self) -> list[tuple[int, Metrics]]:
        """Steps and what was measured at each, in order."""
        return self._steps

    def add(self, event: job_pb2.JobEvent) -> None:
        """Takes an event into account."""
        time = event.time.ToDatetime(tzinfo=UTC)
        match event.WhichOneof("event"):
            case "metric":
                self._measured(event.metric)
            case "log":
                level = job_pb2.LogEvent.Level.Name(event.log.level).removeprefix("LEVEL_")
                self._say(Line(time, level, event.log.message))
            case "state":
                state = job_pb2.JobState.Name(event.state.state).removeprefix("JOB_STATE_")
                note = f": {event.state.message}" if event.state.message else ""
                self._say(Line(time, "STATE", f"{state}{note}"))
            case "example":
                if len(self.examples) < MOST_EXAMPLES or event.example.query in self.examples:
                    self.examples[event.example.query] = event.example
            case "checkpoint" | "heartbeat" | None:
                pass

    def _measured(self, event: job_pb2.MetricEvent) -> None:
        metrics = {metric.name: metric.value for metric in event.metrics}
        match event.stage:
            case job_pb2.MetricEvent.STAGE_STEP:
                self._step(event, metrics)
            case job_pb2.MetricEvent.STAGE_BEFORE:
                self.before = metrics
            case job_pb2.MetricEvent.STAGE_EPOCH:
                self._forget_after(event.step)
                self.epochs[event.step] = metrics
            case job_pb2.MetricEvent.STAGE_AFTER:
                self.after = metrics
            case job_pb2.MetricEvent.STAGE_ALPHA:
                self.alphas[metrics.pop("alpha", 0.0)] = metrics
            case _:
                pass

    def _step(self, event: job_pb2.MetricEvent, metrics: Metrics) -> None:
        if self._steps and event.step <= self._steps[-1][0]:
            self._forget_after(event.step - 1)
        self.total_steps = event.total_steps or self.total_steps
        self.last_step = metrics
        self._count += 1
        if self._count % self._stride:
            return
        self._steps.append((event.step, metrics))
        if len(self._steps) == MOST_STEPS:
            self._steps = self._steps[1::2]
            self._stride *= 2

    def _forget_after(self, step: int) -> None:
        while self._steps and self._steps[-1][0] > step:
            self._steps.pop()
        self.epochs = {at: metrics for at, metrics in self.epochs.items() if at <= step}

    def _say(self, line: Line) -> None:
        self.lines.append(line)
        if line.level in ("WARNING", "ERROR"):
            self.warnings.append(line)
        del self.lines[:-MOST_LINES], self.warnings[:-MOST_LINES]
