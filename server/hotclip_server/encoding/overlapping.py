"""An encoder that enqueues a batch and is told later that it is done. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hotclip_server.encoding.protocol import Prepared, Tower


class PendingBatch(Protocol):
    """A batch that the device has been given."""

    def wait(self) -> NDArray[np.float32]:
        """Blocks until it is done. Any thread.

        Returns:
            float32 of shape (items, dim).

        Raises:
            DeviceLost: every further batch would fail too.
        """


@runtime_checkable
class Overlapping(Protocol):
    """What an `Encoder` may offer besides: the next batch is copied while one is computed."""

    def submit(self, tower: Tower, batch: Sequence[Prepared]) -> PendingBatch:
        """Like `Encoder.encode`, but returns when the device has all that it needs."""
