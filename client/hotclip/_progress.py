"""A progress bar for jobs: one line on a terminal, few lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

from hotclip._jobs import JobEvent, LogLine, Measurement, StateChange

_WIDTH, _LEAST_WIDTH = 28, 8
_COLUMNS = 80
_REDRAW_S = 0.1
_QUIET_REPORT_S = 10.0
# Of the many metrics of an evaluation, those that fit on a line.
_SHOWN = ("reciprocal_rank", "epoch_loss")


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
        self._drawn_at = float("-inf")
        self._first: tuple[float, int] | None = None
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
            shown = {n: v for n, v in detail.metrics.items() if n.endswith(_SHOWN)}
            numbers = "  ".join(f"{n} {v:.4f}" for n, v in sorted(shown.items()))
            self._say(f"{self._name} {detail.stage.lower()}  {numbers}".rstrip())

    def _step(self, at: Measurement, measured: float) -> None:
        now = self._clock()
        if self._first is None:
            self._first = (measured, at.step)
        elapsed, steps = measured - self._first[0], at.step - self._first[1]
        share = min(at.step / at.total_steps, 1.0) if at.total_steps else 0.0
        of = f"/{at.total_steps}" if at.total_steps else ""
        loss = f"  loss {at.metrics['loss']:.4f}" if "loss" in at.metrics else ""
        speed = f"  {steps / elapsed:.1f} steps/s" if elapsed > 0 and steps else ""
        if pairs := at.metrics.get("samples_per_second"):
            speed += f"  {pairs:.0f} pairs/s"
        tail = f"{share:4.0%} {at.step}{of}{loss}{speed}"
        room = self._columns() - len(self._name) - len(tail) - 3  # two spaces, the cursor
        width = max(_LEAST_WIDTH, min(room, _WIDTH)) if self._terminal else _WIDTH
        filled = round(share * width)
        self._line = f"{self._name} {'█' * filled + '·' * (width - filled)} {tail}"
        if now - self._drawn_at >= (_REDRAW_S if self._terminal else _QUIET_REPORT_S):
            self._draw(now)

    def _draw(self, now: float) -> None:
        self._drawn_at, self._shown = now, self._line
        if self._terminal:
            self._stream.write(f"\r\x1b[2K{self._fitting()}")
        else:
            self._stream.write(f"{self._line}\n")
        self._stream.flush()

    def _fitting(self) -> str:
        """What fits on one line of the terminal: a wrapped one could not be drawn over."""
        return self._line[: self._columns() - 1]

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or _COLUMNS
        except OSError:
            return _COLUMNS

    def _say(self, text: str) -> None:
        before = "\r\x1b[2K" if self._terminal else ""
        self._stream.write(f"{before}{text}\n")
        if self._terminal and self._line:
            self._stream.write(self._fitting())
        self._stream.flush()

    def close(self) -> None:
        """Draws the last state and ends the line."""
        if self._line and self._shown != self._line:
            self._draw(self._clock())
        if self._line and self._terminal:
            self._stream.write("\n")
            self._stream.flush()
