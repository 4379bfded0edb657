"""A progress bar for jobs: one line on a terminal, few lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from hotclip._jobs import JobEvent, LogLine, Measurement, StateChange

_WIDTH, _LEAST_WIDTH = 28, 8
_COLUMNS = 80
_REDRAW_S = 0.1
_QUIET_REPORT_S = 10.0
# Of the many metrics of an evaluation, those that fit on a line, with how they are called there.
_SHOWN = {
    "clip-text-to-clip-vision_reciprocal_rank": "mRR text→image",
    "clip-vision-to-clip-text_reciprocal_rank": "image→text",
    "validation_loss": "held-out loss",
    "epoch_loss": "loss",
}


class ProgressBar:
    """Draws a job's events; on something that is no terminal it writes a line every 10 s.

    Args:
        name: Shown in front.
        stream: Where to write; None: stderr.
        clock: Seconds, for drawing not too often; for throughput if an event has no time.
    """

    def __init__(
        self,
        name: str,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._stream = stream or sys.stderr
        self._clock = clock
        self._terminal = self._stream.isatty()
        self._full, self._empty = _characters(self._stream.encoding or "utf-8")
        self._drawn_at = float("-inf")
        self._first: tuple[float, int] | None = None
        self._last_step = 0
        self._line = ""
        self._shown = ""

    def show(self, event: JobEvent) -> None:
        """Takes an event into account."""
        detail = event.detail
        if isinstance(detail, StateChange):
            note = f": {detail.message}" if detail.message else ""
            self._say(f"{self._name} {detail.state.value}{note}")
        elif isinstance(detail, LogLine) and detail.level != "INFO":
            self._say(str(detail))
        elif isinstance(detail, Measurement) and detail.stage == "STEP":
            self._step(detail, event.time.timestamp() if event.time else self._clock())
        elif isinstance(detail, Measurement):
            self._say(f"{self._name} {_stage(detail)}  {_numbers(detail.metrics)}".rstrip())

    def _step(self, at: Measurement, measured: float) -> None:
        now = self._clock()
        if self._first is None or at.step < self._last_step:  # resumed at an earlier step
            self._first = (measured, at.step)
        self._last_step = at.step
        elapsed, steps = measured - self._first[0], at.step - self._first[1]
        share = min(at.step / at.total_steps, 1.0) if at.total_steps else 0.0
        of = f"/{at.total_steps}" if at.total_steps else ""
        loss = f"  loss {at.metrics['loss']:.4f}" if "loss" in at.metrics else ""
        speed = f"  {steps / elapsed:.1f} steps/s" if elapsed > 0 and steps else ""
        if pairs := at.metrics.get("samples_per_second"):
            speed += f"  {pairs:.0f} pairs/s"
        if elapsed > 0 and steps and at.total_steps > at.step:
            speed += f"  {_clock_of((at.total_steps - at.step) * elapsed / steps)} left"
        tail = f"{share:4.0%} {at.step}{of}{loss}{speed}"
        room = self._columns() - len(self._name) - len(tail) - 3  # two spaces, the cursor
        width = max(_LEAST_WIDTH, min(room, _WIDTH)) if self._terminal else _WIDTH
        filled = round(share * width)
        self._line = f"{self._name} {self._full * filled}{self._empty * (width - filled)} {tail}"
        if now - self._drawn_at >= (_REDRAW_S if self._terminal else _QUIET_REPORT_S):
            self._draw(now)

    def _draw(self, now: float) -> None:
        self._drawn_at, self._shown = now, self._line
        if self._terminal:
            self._write(f"\r\x1b[2K{self._fitting()}")
        else:
            self._write(f"{self._line}\n")

    def _fitting(self) -> str:
        """What fits on one line of the terminal: a wrapped one could not be drawn over."""
        return self._line[: self._columns() - 1]

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or _COLUMNS
        except OSError:
            return _COLUMNS

    def _say(self, text: str) -> None:
        """A line that stays; the bar goes on below it."""
        clean = "".join(c if c.isprintable() else " " for c in text)
        before = "\r\x1b[2K" if self._terminal else ""
        after = self._fitting() if self._terminal else ""
        self._write(f"{before}{clean}\n{after}")

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()

    def close(self) -> None:
        """Draws the last state and ends the line."""
        if self._line and self._shown != self._line:
            self._draw(self._clock())
        if self._line and self._terminal:
            self._write("\n")


def _characters(encoding: str) -> tuple[str, str]:
    """For the part of the bar that is done, and the rest."""
    try:
        "█·".encode(encoding)
    except UnicodeEncodeError:
        return "#", "."
    return "█", "·"


def _stage(at: Measurement) -> str:
    if at.stage == "EPOCH":
        return f"epoch {at.epoch + 1}"
    if at.stage == "ALPHA":
        return f"alpha {at.metrics.get('alpha', 0.0):g}"
    return at.stage.lower()


def _numbers(metrics: Mapping[str, float]) -> str:
    return "  ".join(
        f"{text} {metrics[name]:.4f}" for name, text in _SHOWN.items() if name in metrics
    )


def _clock_of(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
