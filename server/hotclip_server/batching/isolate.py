"""Runs a batch so that one bad item fails alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hotclip_server.batching.ticket import Row
from hotclip_server.encoding.protocol import Encoder, Prepared, Tower
from hotclip_server.errors import DeviceLost, HotclipError

log = logging.getLogger(__name__)


class EncodeFailed(HotclipError):
    """The encoder failed on this item; the fault is the server's."""

    default_reason = "ENCODE_FAILED"


class Device(Protocol):
    """Where batches run, one after the other."""

    @property
    def depth(self) -> int:
        """Batches that it takes at a time: 1, or 2 where copying one overlaps with another."""

    async def run(
        self, encoder: Encoder, tower: Tower, batch: Sequence[Prepared]
    ) -> NDArray[np.float32]:
        """Runs one batch; float32 of shape (len(batch), dim)."""


async def run_isolated(
    device: Device, encoder: Encoder, tower: Tower, batch: Sequence[Prepared]
) -> list[Row]:
    """Runs a batch; halves it when it fails, until only the culprits are left.

    Returns:
        One row or error an item, in order. A row that is not finite is an error.
    """
    try:
        vectors = await device.run(encoder, tower, batch)
        expected = (len(batch), encoder.spec.dim)
        if vectors.shape != expected:
            raise EncodeFailed(f"the encoder gave shape {vectors.shape} instead of {expected}")
    except DeviceLost as error:
        return [error] * len(batch)  # halves would fail too
    except Exception as error:
        # Whatever the encoder raises, only the items that caused it fail.
        if len(batch) == 1:
            log.exception("encoding one %s item failed", tower.value)
            error.__traceback__ = None
            if isinstance(error, HotclipError):
                return [error]
            return [EncodeFailed("the encoder failed on this item")]
        half = len(batch) // 2
        log.warning("a batch of %d %s items failed (%s); halving", len(batch), tower.value, error)
        # The error and its frames hold each other, and with them items whose memory others may
        # wait for; the garbage collector may come late.
        error.__traceback__ = None
        first = await run_isolated(device, encoder, tower, batch[:half])
        return first + await run_isolated(device, encoder, tower, batch[half:])
    if np.isfinite(vectors).all():
        return list(vectors)
    return [
        row
        if np.isfinite(row).all()
        else EncodeFailed("the encoder gave a vector that is not finite")
        for row in vectors
    ]
