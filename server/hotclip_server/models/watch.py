"""Tells watchers that models changed. Event loop only; latest state, no history."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Watcher:
    """One reader of changes. It sees a name once, however often that changed meanwhile, so
    what it holds is bounded by the number of names."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._wake = asyncio.Event()
        self._closed = False

    def notify(self, name: str) -> None:
        """`name` changed."""
        self._names.add(name)
        self._wake.set()

    def close(self) -> None:
        """Nothing will change any more."""
        self._closed = True
        self._wake.set()

    async def next(self) -> set[str]:
        """Waits for changes; returns the names, or nothing once it is closed."""
        await self._wake.wait()
        if not self._closed:
            self._wake.clear()
        names, self._names = self._names, set()
        return names


class Changes:
    """Fans changes of named things out to any number of watchers."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()

    @contextmanager
    def subscribe(self) -> Iterator[Watcher]:
        """A watcher that misses nothing from here on."""
        watcher = Watcher()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def notify(self, name: str) -> None:
        """`name` changed."""
        for watcher in self._watchers:
            watcher.notify(name)

    def close(self) -> None:
        """Ends every watcher."""
        for watcher in self._watchers:
            watcher.close()
