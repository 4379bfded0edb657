"""How much of the disk vectors leave free."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

from hotclip_server.storage.atomic import require_free_space

FREE_BYTES = 64 << 20
"""Stay free on the disk, as much as a frame may write in all its places: the engine writes to maps
of sparse files, and where the disk has no page for one the system kills the process."""
_PLENTY_BYTES = 1 << 30
"""With so much free it is not looked at again for a while: each look is a wait for a thread."""
_TRUST_S = 1.0


class Room:
    """Whether there is room for a write, before any of it is done.

    Args:
        folder: On the disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trusted_until = 0.0

    async def require(self, nbytes: int) -> None:
        """Raises ResourceExhausted, reason DISK_FULL, if less than FREE_BYTES would stay free."""
        if time.monotonic() >= self._trusted_until or nbytes > _PLENTY_BYTES // 2:
            await asyncio.to_thread(self._look, nbytes)

    def _look(self, nbytes: int) -> None:
        require_free_space(self._folder, nbytes, floor=FREE_BYTES)
        if shutil.disk_usage(self._folder).free > _PLENTY_BYTES:
            self._trusted_until = time.monotonic() + _TRUST_S
