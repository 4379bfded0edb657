"""Keeps captures and the random numbers of a training apart.

Until torch 2.12 a capture, of whatever work, marks the device's default generator as capturing
(CUDAGraph::capture_begin, CUDAGeneratorState::increase in ATen/cuda), and dropout on any other
thread then fails with "Offset increment outside graph capture encountered unexpectedly"; since
then each capture has a state of its own (github.com/pytorch/pytorch/pull/176752).

A training waits for a capture, some milliseconds; a capture never waits, because it is on the
thread that serves: it is tried again, and a training that comes meanwhile lets it go first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_S = 0.1
"""For this long a training lets a capture go first that was turned away."""


class CaptureGate:
    """Thread-safe; captures are all on one thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._drawing = 0
        self._capturing = False
        self._wanted = False

    def try_begin(self) -> bool:
        """Whether a capture may begin now; if so, call `end` after it."""
        with self._changed:
            self._wanted = self._drawing > 0
            self._capturing = not self._wanted
            return self._capturing

    def end(self) -> None:
        """The capture is over."""
        with self._changed:
            self._capturing = False
            self._changed.notify_all()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Inside, operations on the device may draw from its default generator."""
        with self._changed:
            self._changed.wait_for(lambda: not self._wanted, PATIENCE_S)
            self._wanted = False  # whoever wanted it has gone away
            self._changed.wait_for(lambda: not self._capturing)
            self._drawing += 1
        try:
            yield
        finally:
            with self._changed:
                self._drawing -= 1
