"""Wakes those who wait for something to change; on the event loop only."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Signals:
    """One event a listener, so that a slow one keeps nobody waiting and holds no data."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self.closed = False

    @contextmanager
    def listen(self, key: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever `key` changes."""
        signal = asyncio.Event()
        self._listeners.setdefault(key, set()).add(signal)
        try:
            yield signal
        finally:
            listeners = self._listeners[key]
            listeners.discard(signal)
            if not listeners:
                del self._listeners[key]

    def notify(self, key: str) -> None:
        """Wakes the listeners of `key`."""
        for signal in self._listeners.get(key, ()):
            signal.set()

    def close(self) -> None:
        """Wakes everybody for the last time."""
        self.closed = True
        for listeners in self._listeners.values():
            for signal in listeners:
                signal.set()
