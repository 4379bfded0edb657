"""Removes the files of images that no point has any more, while the server runs.

Looking for them reads every name, so it is not done at each deletion: soon after many may have
lost their row, else a while later. What nothing names is looked at twice, with a pause in
between, for somebody may just be reading a row that has been replaced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from hotclip_server.search import blob_rows
from hotclip_server.search.blobs import SourceBlobs
from hotclip_server.storage.database import Database

_log = logging.getLogger(__name__)

MANY = 100
"""Files that may have lost their row, after which it is looked at once."""
PATIENCE_S = 600.0
"""How long fewer wait."""
GRACE_S = 3600.0
"""Between the two looks: longer than anybody reads sources by rows that were read before, also a
reindex or a comparison that gives way to serving all the time."""


class BlobSweeper:
    """Event loop only.

    Args:
        spawn: Runs work in the background, until the server stops.
    """

    def __init__(
        self,
        database: Database,
        blobs: SourceBlobs,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._spawn = spawn
        self._released = 0
        self._many = asyncio.Event()
        self._running = False

    def released(self, count: int) -> None:
        """So many blobs may have lost their last row."""
        self._released += count
        if self._released >= MANY:
            self._many.set()
        if self._released and not self._running:
            self._running = True
            self._spawn(self._run())

    async def _run(self) -> None:
        try:
            while self._released:
                with suppress(TimeoutError):
                    async with asyncio.timeout(PATIENCE_S):
                        await self._many.wait()
                self._many.clear()
                released, self._released = self._released, 0
                try:
                    await self._sweep()
                except Exception:  # noqa: BLE001 - of the disk or the database: it is tried again
                    _log.exception("images that no point has any more are not removed yet")
                    self._released += released
                    await asyncio.sleep(GRACE_S)
        finally:
            self._running = False

    async def _sweep(self) -> None:
        with self._blobs.sparing() as spared:
            found = await asyncio.to_thread(self._blobs.names)
            idle = found - await self._database.run(blob_rows.used)
            if not idle:
                return
            await asyncio.sleep(GRACE_S)
            idle -= await self._database.run(blob_rows.used)
            removed = await asyncio.to_thread(self._blobs.remove, idle, spared)
        _log.info("removed %d images that no point has any more", removed)
