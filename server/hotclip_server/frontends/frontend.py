"""One front end process, as the device process sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from hotclip_server.frontends.link import Link

log = logging.getLogger(__name__)

ANSWER_S = 2.0
"""A front end that does not answer for so long is replaced; a flip waits no longer for it."""


class Frontend:
    """One front end process and what it has said."""

    def __init__(self, link: Link, process: asyncio.subprocess.Process) -> None:
        self.link = link
        self.process = process
        self.joined = False
        """It pins versions, so flips must wait for it."""
        self.listening = asyncio.Event()
        self.drained = asyncio.Event()
        self.loaded: set[int] = set()
        self.known = 0
        """Number of the newest state that it knows."""
        self.holds = 0
        """Number of the newest hold that it keeps to."""
        self.changed = asyncio.Event()

    def note(self, told: dict[str, Any]) -> None:
        """Takes in what it says."""
        what = told["what"]
        if what == "loaded":
            self.loaded.add(told["number"])
        elif what == "known":
            self.known = told["number"]
        elif what == "holding":
            self.holds = told["number"]
        elif what == "listening":
            self.listening.set()
        elif what == "drained":
            self.drained.set()
        self.wake()

    def wake(self) -> None:
        """Lets whoever waits for it look again."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def until(self, true: Callable[[], bool], limit_s: float, what: str) -> None:
        """Waits for it to be true or to be gone; ends it if that takes too long."""
        try:
            async with asyncio.timeout(limit_s):
                while not (true() or self.link.gone):
                    await self.changed.wait()
        except TimeoutError:
            log.error("a front end did not %s within %g s; replacing it", what, limit_s)
            self.kill()

    def kill(self) -> None:
        """Ends it at once: from here on it admits nothing."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.link.close()
