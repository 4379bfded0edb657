"""The engine of a GPU: graphs over slots whose weights are replaced in place."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hotclip_server.encoding.cuda.buckets import BATCHES
from hotclip_server.encoding.cuda.device import Device
from hotclip_server.encoding.cuda.gate import CaptureGate
from hotclip_server.encoding.cuda.pipeline import Pipeline
from hotclip_server.encoding.cuda.slot import Slot
from hotclip_server.encoding.cuda.staging import StagingRows
from hotclip_server.encoding.cuda.towers import architecture_of
from hotclip_server.encoding.engines.protocol import PendingBatch
from hotclip_server.encoding.engines.source import TowerSource

SPARE_SLOTS = 2
"""Slots of closed engines that are kept for the next version: one of each tower."""
STAGED_BYTES = 128 << 20
"""Memory of the host for images that wait, of each shape of image."""


class CudaEngine:
    """Implements `Engine`; made by `CudaEngines.build`."""

    name = "cuda"
    padded = True

    def __init__(self, engines: CudaEngines, slot: Slot) -> None:
        self.precision = slot.precision
        self._engines = engines
        self._slot: Slot | None = slot
        self._lock = threading.Lock()
        self._rows = engines.rows_of(slot)

    @property
    def batches(self) -> tuple[int, ...]:
        """Sizes that no padding is added to."""
        with self._lock:
            return self._open().buckets.batches

    def place(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Puts an image where the device can fetch it; see `StagingRows.place`. Thread-safe."""
        return pixels if self._rows is None else self._rows.place(pixels)

    def submit(self, batch: Sequence[NDArray[Any]]) -> PendingBatch:
        """Enqueues a batch as `run` takes it; waits only if two are under way.

        Raises:
            RuntimeError: the device has failed.
        """
        most = self.batches[-1]
        parts = [batch[start : start + most] for start in range(0, len(batch), most)]
        pending = []
        for part in parts:
            with self._lock:
                pending.append(self._engines.pipeline.submit(self._open(), part, self._rows))
        return pending[0] if len(pending) == 1 else _Joined(pending)

    def run(self, batch: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """See `Engine.run`."""
        return self.submit(batch).wait()

    def warm_up(self) -> Iterator[float]:
        """See `OverlappingEngine.warm_up` and `Slot.warm_up`."""
        engines = self._engines
        with self._lock:
            engines.pipeline.reserve(self._open())
            steps = self._open().warm_up(engines.pipeline.compute, engines.gate)
        yield 0.0
        while True:
            with self._lock:
                self._open()
                pause = next(steps, None)
            if pause is None:
                return
            yield pause

    def close(self) -> None:
        """Hands the slot back for the next version; no call may follow."""
        with self._lock:
            slot, self._slot = self._slot, None
        if slot is not None:
            self._engines.take_back(slot)

    def _open(self) -> Slot:
        if self._slot is None:
            raise RuntimeError("the engine is closed; this is a bug")
        return self._slot


class _Joined:
    """A batch in several parts."""

    def __init__(self, parts: Sequence[PendingBatch]) -> None:
        self._parts = parts

    def wait(self) -> NDArray[np.float32]:
        """See `PendingBatch.wait`."""
        return np.concatenate([part.wait() for part in self._parts])


class CudaEngines:
    """All engines of a device, and the slots of those that were closed.

    Args:
        gate: Shared with whatever trains on the device.
        batches: Sizes that are captured, ascending; the last is the most that run together.
    """

    def __init__(self, device: Device, gate: CaptureGate, batches: Sequence[int] = BATCHES) -> None:
        self._batches = tuple(batches)
        self.device = device
        self.gate = gate
        self.pipeline = Pipeline(device)
        self._lock = threading.Lock()
        self._spare: list[Slot] = []
        self._rows: dict[tuple[int, int, int], StagingRows] = {}

    def build(self, source: TowerSource, precision: str) -> CudaEngine:
        """An engine of this version; blocks while weights are copied. Any thread.

        Raises:
            EngineUnfit: another precision than fp32, bf16 or fp16.
        """
        slot = self._take(architecture_of(source, precision))
        if slot is not None:
            slot.load(source)
            return CudaEngine(self, slot)
        try:
            slot = Slot(self.device, source, precision, self._batches)
        except torch.OutOfMemoryError:
            self.close()
            slot = Slot(self.device, source, precision, self._batches)
        return CudaEngine(self, slot)

    def take_back(self, slot: Slot) -> None:
        """Keeps a slot for the next version of its architecture; the oldest spare one goes."""
        with self._lock:
            self._spare.append(slot)
            surplus = self._spare[:-SPARE_SLOTS]
            del self._spare[:-SPARE_SLOTS]
        for old in surplus:
            old.close()

    def _take(self, key: str) -> Slot | None:
        with self._lock:
            for slot in self._spare:
                if slot.key == key:
                    self._spare.remove(slot)
                    return slot
        return None

    def rows_of(self, slot: Slot) -> StagingRows | None:
        """Memory for images of this slot; None for a tower of texts."""
        shape = slot.tower.row_shape
        if not shape:
            return None
        with self._lock:
            if shape not in self._rows:
                row = slot.tower.row_bytes(1)
                memory = self.device.host_buffer(STAGED_BYTES // row * row)
                self._rows[shape] = StagingRows(memory, shape)
            return self._rows[shape]

    def close(self) -> None:
        """Frees the slots that nobody has."""
        with self._lock:
            spare, self._spare = self._spare, []
        for slot in spare:
            slot.close()
