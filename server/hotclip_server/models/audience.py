"""Who else hands out versions, and must not hand out an old one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol


class Audience(Protocol):
    """Others that admit requests with versions of this process. Never raises, and waits for
    each of them within a bound of its own."""

    async def told(self) -> None:
        """Waits until all of them know what is in memory and live now."""

    def held(self) -> AbstractAsyncContextManager[None]:
        """Inside, nobody admits a request; afterwards all of them know what has changed."""


class Alone:
    """Nobody else: requests are admitted in this process only."""

    async def told(self) -> None:
        """Nobody has to be told."""

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Nobody has to be held."""
        yield
