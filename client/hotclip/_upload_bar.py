"""A progress bar for uploads: one line on a terminal, a line every 10 s elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO, TypeAlias

from hotclip._uploads import UploadProgress

ShowProgress: TypeAlias = "bool | Callable[[UploadProgress], None]"

_WIDTH = 28
_REDRAW_S, _QUIET_REPORT_S = 0.1, 10.0
_MIB = 1 << 20


class UploadBar:
    """Draws how far an upload is.

    Args:
        name: Shown in front.
        stream: Where to write; None: stderr.
        clock: Seconds.
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
        self._began = self._drawn_at = clock()

    def __call__(self, at: UploadProgress) -> None:
        now = self._clock()
        pause = _REDRAW_S if self._terminal else _QUIET_REPORT_S
        if not at.done and now - self._drawn_at < pause:
            return
        self._drawn_at = now
        speed = at.bytes / _MIB / (now - self._began) if now > self._began else 0.0
        tail = f"{at.images} images  {at.bytes / _MIB:.1f} MiB  {speed:.1f} MiB/s"
        if at.total_rows:
            share = min(at.rows / at.total_rows, 1.0)
            filled = round(share * _WIDTH)
            bar = "█" * filled + "·" * (_WIDTH - filled)
            line = f"{self._name} {bar} {share:4.0%} {at.rows}/{at.total_rows} rows  {tail}"
        else:
            line = f"{self._name} {at.rows} rows  {tail}"
        if self._terminal:
            self._stream.write(f"\r\x1b[2K{line}" + ("\n" if at.done else ""))
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()


def shown(told: ShowProgress, name: str) -> Callable[[UploadProgress], None]:
    """What to call with the progress: a bar, the caller's function, or nothing."""
    if callable(told):
        return told
    return UploadBar(name or "upload") if told else _ignore


def _ignore(at: UploadProgress) -> None:
    """Nobody wants to know."""
