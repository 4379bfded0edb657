"""Closes versions behind what the device was given of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from hotclip_server.encoding.protocol import Encoder, Tower
from hotclip_server.models.probes import RunOnDevice

_log = logging.getLogger(__name__)

STOP_S = 2.0
"""For which a server that stops waits for the device, which may hang."""


class Closer:
    """Closes a version that no request pins when the device is done with it: a batch whose
    callers all went away may still wait for its turn there. Event loop only.

    Args:
        run_on_device: Runs a batch in its turn.
        blocking: Runs a call that blocks.
    """

    def __init__(
        self,
        run_on_device: RunOnDevice,
        blocking: Callable[[Callable[[], None]], Awaitable[None]],
    ) -> None:
        self._run = run_on_device
        self._blocking = blocking
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """From now on `STOP_S` is the longest wait."""
        self._stopping.set()

    async def close(self, encoder: Encoder) -> None:
        """Waits for an empty batch, which runs behind every other; then frees the weights."""
        behind = asyncio.ensure_future(self._run(encoder, Tower.TEXT, ()))
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({behind, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await asyncio.wait({behind}, timeout=STOP_S)
        if not behind.cancel() and (error := behind.exception()) is not None:
            _log.error("the device failed before a version was closed", exc_info=error)
        await self._blocking(encoder.close)
