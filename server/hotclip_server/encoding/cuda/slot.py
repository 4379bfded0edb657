"""One tower's place on the device: weights, input and output at addresses that never change,
and the graphs that were captured over them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from hotclip_server.encoding.cuda.buckets import Bucket
from hotclip_server.encoding.cuda.device import CaptureFailed, Device, Graph, Graphs, Queue
from hotclip_server.encoding.cuda.gate import CaptureGate
from hotclip_server.encoding.cuda.towers import architecture_of, build_tower
from hotclip_server.encoding.engines.source import TowerSource

log = logging.getLogger(__name__)

RETRY_S = 0.005
"""Until the next try of a capture for which a training would have to wait."""


class Slot:
    """Holds the weights of one version at a time.

    Args:
        source: The first version.
        batches: Sizes that are captured.
    """

    def __init__(
        self, device: Device, source: TowerSource, precision: str, batches: Sequence[int]
    ) -> None:
        self.key = architecture_of(source, precision)
        self.precision = precision
        self.tower = build_tower(source, precision, batches)
        self.buckets = self.tower.buckets
        largest = self.buckets.largest
        self.input = device.buffer(largest.items * self.tower.row_bytes(largest.length))
        self.used = device.event()
        """Recorded behind the last batch that ran here."""
        self.captured: dict[Bucket, Graph] = {}
        self._device = device
        with torch.no_grad():
            self.tower.load(source)
            self.dim = int(self.tower.run(self.input, Bucket(1, self.buckets.lengths[0])).shape[1])
        self.output = device.buffer(4 * largest.items * self.dim)
        self._rows = self.output.view(torch.float32).view(largest.items, self.dim)
        self._graphs: Graphs | None = None

    def load(self, source: TowerSource) -> None:
        """Copies the weights of another version into place; blocks.

        Nothing that was enqueued may still run here: the slot is nobody's.
        """
        self.used.synchronize()
        self.tower.load(source)
        self._device.settle()

    def forward(self, bucket: Bucket) -> None:
        """The first `bucket.items` rows of the input to those of the output."""
        self._rows[: bucket.items].copy_(self.tower.run(self.input, bucket))

    def enqueue(self, queue: Queue, items: int, bucket: Bucket) -> None:
        """Enqueues a batch of `items` whose rows are in the input: as captured, else as it is."""
        graph = self.captured.get(bucket)
        if graph is not None:
            queue.replay(graph)
        else:
            queue.run(partial(self.forward, Bucket(items, bucket.length)))

    def warm_up(self, queue: Queue, gate: CaptureGate) -> Iterator[float]:
        """Runs and captures every bucket, one step at each `next`, none longer than a batch.

        Yields:
            Seconds after which the next step makes sense.
        """
        for bucket in self.buckets:
            if bucket in self.captured:
                continue
            queue.run(partial(self.forward, bucket))
            queue.record(self.used)
            yield 0.0
            while not gate.try_begin():
                yield RETRY_S
            try:
                self._graphs = self._graphs or self._device.graphs()
                self.captured[bucket] = self._graphs.capture(partial(self.forward, bucket))
            except CaptureFailed as error:
                # It runs without graphs, at the cost of its launches.
                log.warning("a tower can't be captured: %s", error)
                return
            finally:
                gate.end()
            yield 0.0
            # The first launch of a graph uploads it; that is not left to a request.
            queue.replay(self.captured[bucket])
            queue.record(self.used)

    def close(self) -> None:
        """Frees everything; blocks until nothing runs here."""
        self.used.synchronize()
        self.captured.clear()
        if self._graphs is not None:
            self._graphs.close()
