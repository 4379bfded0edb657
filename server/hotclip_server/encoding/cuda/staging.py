"""Rows of memory that the device can read beside the host, given to images as they are prepared.

A prepared image is written into its row once, on the pool's threads. The device thread then
copies nothing: it tells the device which rows to fetch.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class StagingRows:
    """Rows of one shape. Thread-safe.

    Args:
        memory: uint8 [count * row bytes], from `Device.host_buffer`.
        shape: Of one row.
    """

    def __init__(self, memory: Tensor, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.row_bytes = int(np.prod(shape))
        self.memory = memory.view(-1, self.row_bytes)
        self._start = memory.data_ptr()
        self.free: deque[int] = deque(range(len(self.memory)))
        """Rows that nobody has; deque's own operations are atomic."""

    def place(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Copies an image into a free row.

        Returns:
            The row, which is free again when the last array that looks into it is gone; the
            image itself if it has another shape or no row is free.
        """
        if pixels.shape != self.shape:
            return pixels
        try:
            index = self.free.popleft()
        except IndexError:
            return pixels
        row = np.asarray(_Row(self, index))
        row[:] = pixels
        row.flags.writeable = False
        return row

    def index_of(self, pixels: NDArray[Any]) -> int | None:
        """The row that this array is; None if it is none."""
        offset = pixels.__array_interface__["data"][0] - self._start
        inside = 0 <= offset < self.memory.numel() and pixels.shape == self.shape
        whole = inside and offset % self.row_bytes == 0 and pixels.flags.c_contiguous
        return int(offset // self.row_bytes) if whole else None


class _Row:
    """Memory of one row, which numpy keeps as the base of every array that looks into it."""

    def __init__(self, rows: StagingRows, index: int) -> None:
        self._rows, self._index = rows, index

    @property
    def __array_interface__(self) -> dict[str, Any]:
        rows = self._rows
        address = rows.memory.data_ptr() + self._index * rows.row_bytes
        return {"shape": rows.shape, "typestr": "|u1", "data": (address, False), "version": 3}

    def __del__(self) -> None:
        self._rows.free.append(self._index)
