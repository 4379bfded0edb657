"""What the pipeline needs of a device: queues, events, buffers, graphs.

Two implementations: torch.cuda's (`torch_device`), and one of the tests that runs what was
enqueued in any order that the recorded dependencies allow, so that a missing wait or a buffer
that is reused too early shows as a wrong result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A point in a queue; recording it again moves it."""

    @property
    def native(self) -> Any:
        """What the device itself has for it."""

    def synchronize(self) -> None:
        """Blocks the host until the queue has come to the latest record; returns at once if it
        was never recorded. Any thread."""


class Queue(Protocol):
    """Work that runs in order, beside the host and the other queues."""

    def record(self, event: Event) -> None:
        """Puts the event behind everything that is in the queue."""

    def wait(self, event: Event) -> None:
        """Later work of this queue begins when the event's latest record has been reached."""

    def copy(self, to: Tensor, source: Tensor) -> None:
        """Copies; a side on the host must be of `Device.host_buffer` and stay as it is until
        the copy has been done."""

    def run(self, work: Callable[[], None]) -> None:
        """Enqueues the torch operations of `work`."""

    def replay(self, graph: Graph) -> None:
        """Enqueues what was captured."""

    def synchronize(self) -> None:
        """Blocks the host until the queue is empty."""


class Graph(Protocol):
    """Captured work, bound to the addresses that it had."""

    @property
    def native(self) -> Any:
        """What the device itself has for it."""


class Graphs(Protocol):
    """Graphs that share the memory of their intermediate results, and end together."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """Captures the torch operations of `work`, which ran before with the same shapes.

        Raises:
            CaptureFailed: it does what can't be captured; nothing is left of the attempt.
        """

    def close(self) -> None:
        """Frees all; none of them may be enqueued or running."""


class Device(Protocol):
    """Where an engine runs."""

    @property
    def torch_device(self) -> torch.device:
        """Where its tensors are."""

    def queue(self) -> Queue:
        """A new queue; there are few."""

    def event(self) -> Event:
        """A new event, not recorded."""

    def graphs(self) -> Graphs:
        """A new, empty set of graphs.

        Raises:
            CaptureFailed: there are as many as there can be.
        """

    def host_buffer(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] of the host, zero, from and to which copies run beside the host."""

    def buffer(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] of the device, zero, ready for every queue."""

    def settle(self) -> None:
        """Blocks until what this thread enqueued outside of queues has been done."""

    def is_lost(self) -> bool:
        """Whether every further call fails; asked after one has failed."""


class CaptureFailed(Exception):
    """This work can't be captured."""
