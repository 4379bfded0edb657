"""What an encoder may offer besides `encode`. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from hotclip_server.encoding.engines.protocol import PendingBatch
from hotclip_server.encoding.protocol import Prepared, Tower


@runtime_checkable
class Overlapping(Protocol):
    """An `Encoder` whose batches overlap: the next is copied while one is computed."""

    def submit(self, tower: Tower, batch: Sequence[Prepared]) -> PendingBatch:
        """Like `Encoder.encode`, but returns when the device has all that it needs."""
