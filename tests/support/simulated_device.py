"""A device that does what was enqueued as late, and in as odd an order, as its events allow.

Every queue is a list of operations. They run when the host waits for an event, and some at
random before: which queue goes on is drawn each time. So a wait that is missing, or a buffer
that is written before its reader is through, gives a wrong result for some seed. A capture is a
trace that keeps tensors by reference and runs nothing, as a CUDA graph keeps addresses.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hotclip_server.encoding.cuda.device import CaptureFailed, Event, Graph


class Fault(RuntimeError):
    """What a call of the device raises when it is told to fail."""


@dataclass(eq=False)
class Mark:
    """One record of an event."""

    reached: bool = False


class SimulatedEvent:
    def __init__(self, device: SimulatedDevice) -> None:
        self.native: Mark | None = None
        self._device = device

    def synchronize(self) -> None:
        self._device.called()
        if self.native is not None:
            self._device.run_until(self.native)


@dataclass(eq=False)
class SimulatedGraph:
    native: Any


@dataclass(eq=False)
class SimulatedQueue:
    device: SimulatedDevice
    pending: deque[Mark | Callable[[], object] | tuple[Mark | None]] = field(default_factory=deque)
    """A mark to reach, work to do, or a mark of another queue to wait for."""

    def record(self, event: Event) -> None:
        self.device.called()
        assert isinstance(event, SimulatedEvent)
        event.native = Mark()
        self.pending.append(event.native)

    def wait(self, event: Event) -> None:
        self.device.called()
        assert isinstance(event, SimulatedEvent)
        if not self.device.ignores_waits:
            self.pending.append((event.native,))

    def copy(self, to: Tensor, source: Tensor) -> None:
        assert to.shape == source.shape
        assert to.dtype == source.dtype == torch.uint8
        self.run(lambda: to.copy_(source))

    def run(self, work: Callable[[], object]) -> None:
        self.device.called()
        self.pending.append(work)
        self.device.called()

    def replay(self, graph: Graph) -> None:
        self.device.replays += 1
        self.run(graph.native)

    def synchronize(self) -> None:
        self.device.called()
        mark = Mark()
        self.pending.append(mark)
        self.device.run_until(mark)

    def may_go_on(self) -> bool:
        if not self.pending:
            return False
        head = self.pending[0]
        return not isinstance(head, tuple) or head[0] is None or head[0].reached

    def go_on(self) -> None:
        head = self.pending.popleft()
        if isinstance(head, Mark):
            head.reached = True
        elif not isinstance(head, tuple):
            with torch.no_grad():
                head()


class SimulatedGraphs:
    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self.captured: list[SimulatedGraph] = []
        self.closed = False

    def capture(self, work: Callable[[], None]) -> SimulatedGraph:
        if self._device.captures_fail:
            raise CaptureFailed("told to")

        def traced() -> Tensor:
            work()
            return torch.zeros(())

        try:
            with torch.no_grad():
                trace = make_fx(traced, tracing_mode="fake", _allow_non_fake_inputs=True)()
        except Exception as error:
            raise CaptureFailed(str(error)) from error
        graph = SimulatedGraph(trace)
        self.captured.append(graph)
        return graph

    def close(self) -> None:
        self.closed = True
        self._device.open_graphs.remove(self)


class SimulatedDevice:
    """`Device` on the CPU.

    Args:
        seed: Of the order.
    """

    torch_device = torch.device("cpu")

    def __init__(self, seed: int = 0) -> None:
        self.begin(seed)
        self._queues: list[SimulatedQueue] = []
        self._lock = threading.RLock()
        self.ignores_waits = False
        """Drops what one queue should wait for of another."""
        self.captures_fail = False
        self.lost = False
        self.allocated = 0
        """Bytes of all buffers."""
        self.open_graphs: list[SimulatedGraphs] = []

    def begin(self, seed: int, faults: frozenset[int] = frozenset()) -> None:
        """Draws anew; the calls of these numbers, from 0 on, fail."""
        self._random = random.Random(seed)
        self._eager = self._random.choice((0.0, 0.2, 0.5, 0.9))
        self._faults = faults
        self._calls = 0
        self.replays = 0

    def queue(self) -> SimulatedQueue:
        self._queues.append(SimulatedQueue(self))
        return self._queues[-1]

    def event(self) -> SimulatedEvent:
        return SimulatedEvent(self)

    def graphs(self) -> SimulatedGraphs:
        self.open_graphs.append(SimulatedGraphs(self))
        return self.open_graphs[-1]

    def host_buffer(self, nbytes: int) -> Tensor:
        return self.buffer(nbytes)

    def buffer(self, nbytes: int) -> Tensor:
        self.allocated += nbytes
        return torch.zeros(nbytes, dtype=torch.uint8)

    def settle(self) -> None:
        if self.lost:
            raise Fault("lost")

    def is_lost(self) -> bool:
        return self.lost

    def is_idle(self) -> bool:
        """Whether nothing is enqueued."""
        return not any(queue.pending for queue in self._queues)

    def called(self) -> None:
        """Fails if told to; else lets a few operations run."""
        with self._lock:
            number, self._calls = self._calls, self._calls + 1
            if self.lost or number in self._faults:
                raise Fault(f"call {number}")
            while self._random.random() < self._eager and self._go_on():
                pass

    def run_until(self, mark: Mark) -> None:
        while True:
            with self._lock:
                if mark.reached:
                    return
                assert self._go_on(), "nothing can go on: a deadlock"

    def _go_on(self) -> bool:
        able = [queue for queue in self._queues if queue.may_go_on()]
        if able:
            self._random.choice(able).go_on()
        return bool(able)
