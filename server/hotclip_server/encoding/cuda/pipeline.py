"""Two batches under way: one is copied in and out while the other is computed.

    arrive    host_in ──▶ landing of the lane
    compute               landing ──▶ input of the slot ──▶ output of the slot ──▶ result
    leave                                                        result ──▶ host_out of the lane

A slot's input and output are used by the compute queue alone, which is in order. A lane's
buffers are written again only when the host has seen its batch end. What is left are two waits
a batch: compute for arrive, leave for compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hotclip_server.encoding.cuda.buckets import Bucket
from hotclip_server.encoding.cuda.device import Device
from hotclip_server.encoding.cuda.lane import Lane, Pending
from hotclip_server.encoding.cuda.slot import Slot
from hotclip_server.encoding.cuda.staging import StagingRows

LANES = 2


class Pipeline:
    """The queues of a device. `submit` is for the device thread alone.

    Args:
        lanes: Batches that may be under way.
    """

    def __init__(self, device: Device, lanes: int = LANES) -> None:
        self._device = device
        self._arrive, self.compute, self._leave = device.queue(), device.queue(), device.queue()
        self._lanes = [Lane(device) for _ in range(lanes)]
        self._turn = 0

    def submit(
        self, slot: Slot, batch: Sequence[NDArray[Any]], staged: StagingRows | None = None
    ) -> Pending:
        """Enqueues a batch; waits only if all lanes are taken.

        Args:
            batch: As for `Engine.run`; at most as many as the slot's largest bucket.
            staged: Where its images may lie already.

        Raises:
            ValueError: too many items, or too long ones.
            RuntimeError: the device has failed.
        """
        length = max(map(len, batch)) if not slot.tower.row_shape else 1
        bucket = slot.buckets.of(len(batch), length)
        lane = self._lanes[self._turn]
        self._turn = (self._turn + 1) % len(self._lanes)
        lane.free()
        try:
            return self._enqueue(lane, slot, bucket, batch, staged)
        except Exception:
            # Part of it may be under way, in the buffers of this lane.
            self.drain()
            raise

    def reserve(self, slot: Slot) -> None:
        """Makes the lanes large enough for any batch of a slot; waits for what is under way."""
        largest = slot.buckets.largest
        row = slot.tower.row_bytes(largest.length)
        for lane in self._lanes:
            lane.free()
            lane.reserve(largest.items * row, 4 * largest.items * slot.dim)

    def drain(self) -> None:
        """Blocks until all queues are empty, or the device has failed."""
        for queue in (self._arrive, self.compute, self._leave):
            with contextlib.suppress(RuntimeError):  # told by the batch that it belongs to
                queue.synchronize()

    def _enqueue(
        self,
        lane: Lane,
        slot: Slot,
        bucket: Bucket,
        batch: Sequence[NDArray[Any]],
        staged: StagingRows | None,
    ) -> Pending:
        items, row = len(batch), slot.tower.row_bytes(bucket.length)
        in_bytes, out_bytes = items * row, 4 * items * slot.dim
        lane.reserve(in_bytes, out_bytes)
        places = [staged.index_of(array) if staged else None for array in batch]
        order, runs = _runs(places)
        rest = order[sum(count for _, count in runs) :]
        at = 0
        for start, count in runs:
            source = _memory(staged)[start : start + count].reshape(-1)
            self._arrive.copy(lane.landing[at : at + len(source)], source)
            at += len(source)
        if rest:
            host = lane.host_in[at:in_bytes]
            rows = host.numpy().reshape(len(rest), row)
            slot.tower.write(rows, [batch[index] for index in rest], bucket.length)
            self._arrive.copy(lane.landing[at:in_bytes], host)
        self._arrive.record(lane.arrived)
        self.compute.wait(lane.arrived)
        self.compute.copy(slot.input[:in_bytes], lane.landing[:in_bytes])
        slot.enqueue(self.compute, items, bucket)
        self.compute.copy(lane.result[:out_bytes], slot.output[:out_bytes])
        self.compute.record(lane.computed)
        self.compute.record(slot.used)
        self._leave.wait(lane.computed)
        self._leave.copy(lane.host_out[:out_bytes], lane.result[:out_bytes])
        self._leave.record(lane.left)
        lane.pending = Pending(lane, (items, slot.dim), np.argsort(order), list(batch))
        return lane.pending


def _runs(places: Sequence[int | None]) -> tuple[list[int], list[tuple[int, int]]]:
    """How a batch lies on the device: staged images by row, then the others as they come.

    Returns:
        The position in the batch of each row, and (first row, count) of each run of staged rows.
    """
    staged = sorted((place, index) for index, place in enumerate(places) if place is not None)
    runs: list[tuple[int, int]] = []
    seen: set[int] = set()
    twice: list[int] = []
    order: list[int] = []
    for place, index in staged:
        if place in seen:  # the same image twice: copied like one that is not staged
            twice.append(index)
            continue
        seen.add(place)
        order.append(index)
        if runs and sum(runs[-1]) == place:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((place, 1))
    order += sorted(twice + [index for index, place in enumerate(places) if place is None])
    return order, runs


def _memory(staged: StagingRows | None) -> Tensor:
    if staged is None:
        raise RuntimeError("staged rows without their memory; this is a bug")
    return staged.memory
