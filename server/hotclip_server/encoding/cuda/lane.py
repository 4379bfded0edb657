"""The buffers of one batch under way, on the host and on the device."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hotclip_server.encoding.cuda.device import Device


class Pending:
    """A batch that was enqueued.

    Args:
        order: Which row of the lane each item of the batch is.
        keep: What must live until it is done.
    """

    def __init__(
        self, lane: Lane, shape: tuple[int, int], order: NDArray[np.intp], keep: Sequence[Any]
    ) -> None:
        self._lane, self._shape, self._order, self._keep = lane, shape, order, keep
        self._lock = threading.Lock()
        self._rows: NDArray[np.float32] | None = None
        self._error: Exception | None = None

    def wait(self) -> NDArray[np.float32]:
        """Blocks until the batch is done. Any thread, any number of times.

        Returns:
            float32 (items, dim).

        Raises:
            RuntimeError: the device has failed.
        """
        with self._lock:
            if self._rows is None and self._error is None:
                try:
                    self._lane.left.synchronize()
                    self._rows = self._lane.rows(self._shape)[self._order]
                except Exception as error:  # noqa: BLE001 - belongs to everyone who waits
                    self._error = error
                self._keep = ()
            if self._error is not None:
                raise self._error
            if self._rows is None:
                raise RuntimeError("a batch has neither rows nor an error; this is a bug")
            return self._rows


class Lane:
    """Staging for one batch. Whoever owns the lane may write to it only after `free`.

    host_in → landing → (the slot's own buffers) → result → host_out
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.host_in = self.landing = self.result = self.host_out = torch.zeros(
            0, dtype=torch.uint8
        )
        self.arrived, self.computed, self.left = device.event(), device.event(), device.event()
        self.pending: Pending | None = None

    def free(self) -> None:
        """Blocks until the batch before is done and read; how it ended is not told here."""
        pending, self.pending = self.pending, None
        if pending is not None:
            try:
                pending.wait()
            except Exception:  # noqa: BLE001 - told to whoever waits for that batch
                return

    def reserve(self, in_bytes: int, out_bytes: int) -> None:
        """Makes the buffers at least so large; the lane must be free."""
        if len(self.host_in) < in_bytes:
            self.host_in = self._device.host_buffer(in_bytes)
            self.landing = self._device.buffer(in_bytes)
        if len(self.host_out) < out_bytes:
            self.host_out = self._device.host_buffer(out_bytes)
            self.result = self._device.buffer(out_bytes)

    def rows(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """What came out, float32 of this shape; memory of the lane."""
        items, dim = shape
        flat = self.host_out[: 4 * items * dim].view(torch.float32)
        found: NDArray[np.float32] = flat.view(items, dim).numpy()
        return found
