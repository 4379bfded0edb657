"""`Device` by torch.cuda.

What the code here rests on (torch 2.11; CUDA 12):

- A stream is one of 32 a priority, handed out in turn, so two `torch.cuda.Stream()` may be the
  same (c10/cuda/CUDAStream.cpp). Serving takes its streams from the high priority and never the
  same twice: a training's stream, of priority 0, can't be one that is being captured.
- Only what the capturing thread does can break a capture in the mode "thread_local"; in the
  default mode an allocation of any thread does (cudaStreamBeginCapture;
  github.com/pytorch/pytorch/pull/107407).
- `torch.cuda.graph` waits for the whole device and empties the allocator's cache before it
  captures, both of which would hold up serving and training (torch/cuda/graphs.py); so
  `capture_begin` and `capture_end` are called without it.
- A captured product keeps the address of a cuBLAS workspace that belongs to (handle, stream),
  and resetting a graph frees the workspaces of the stream that it was captured on
  (github.com/pytorch/pytorch/issues/193402). So every set of graphs is captured on a stream of
  its own, no other work ever runs there, and the set ends as a whole.
- Graphs may share a memory pool if none reads another's result and no two run at a time
  (docs.pytorch.org/docs/stable/notes/cuda.html#sharing-memory-across-captures): results are
  copied out of the pool by the captured work itself, and all replays are in one stream.
- A kernel's first launch may load its module, and a library's first call makes its handle;
  neither may happen in a capture. So the same work runs once before, on the same thread.
- Memory that the allocator takes back from one stream while another still uses it is guarded by
  events (`record_stream`), which an allocation beside a capture may query although they are part
  of it (github.com/pytorch/pytorch/issues/193982). So no tensor crosses streams but buffers that
  live as long as their lane or slot, and those are ready before any queue sees them.
- A graph keeps addresses, not tensors: weights that are copied into place are seen by the next
  replay, weights that are put in their place are not.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hotclip_server.encoding.cuda.device import CaptureFailed, Event, Graph

log = logging.getLogger(__name__)

HIGH_PRIORITY = -1
STREAMS = 32
"""Of one priority that torch hands out before it hands out the first one again."""


class TorchEvent:
    """`Event`: waiting for it leaves the processor to others."""

    def __init__(self) -> None:
        self.native: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch has no types

    def synchronize(self) -> None:
        """See `Event.synchronize`."""
        self.native.synchronize()


class TorchQueue:
    """`Queue`: a stream."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def record(self, event: Event) -> None:
        """See `Queue.record`."""
        event.native.record(self.stream)

    def wait(self, event: Event) -> None:
        """See `Queue.wait`."""
        self.stream.wait_event(event.native)

    def copy(self, to: Tensor, source: Tensor) -> None:
        """See `Queue.copy`."""
        with torch.cuda.stream(self.stream):
            to.copy_(source, non_blocking=True)

    def run(self, work: Callable[[], None]) -> None:
        """See `Queue.run`."""
        with torch.cuda.stream(self.stream), torch.no_grad():
            work()

    def replay(self, graph: Graph) -> None:
        """See `Queue.replay`."""
        with torch.cuda.stream(self.stream):
            graph.native.replay()

    def synchronize(self) -> None:
        """See `Queue.synchronize`."""
        self.stream.synchronize()


class TorchGraph:
    """`Graph`."""

    def __init__(self) -> None:
        self.native: Any = torch.cuda.CUDAGraph()


class TorchGraphs:
    """`Graphs`: one capture stream and one memory pool. Made on the thread that captures."""

    def __init__(self, stream: Any, give_back: Callable[[Any], None]) -> None:
        self._stream = stream
        self._give_back = give_back
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[TorchGraph] = []
        self._make_workspaces()

    def capture(self, work: Callable[[], None]) -> TorchGraph:
        """See `Graphs.capture`. On the thread that ran the work before."""
        made = TorchGraph()
        self._graphs.append(made)  # also when it fails: it must not end before the others
        graph = made.native
        with torch.cuda.stream(self._stream), torch.no_grad(), _no_collection():
            try:
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                work()
                graph.capture_end()
            except Exception as error:
                self._abandon(graph)
                raise CaptureFailed(f"{type(error).__name__}: {error}") from error
        return made

    def close(self) -> None:
        """See `Graphs.close`."""
        for graph in self._graphs:
            graph.native.reset()
        self._graphs.clear()
        self._give_back(self._stream)

    def _make_workspaces(self) -> None:
        """Of cuBLAS and cuBLASLt, in ordinary memory: made in a capture, they would be in the
        pool of the graphs and keep all of it."""
        with torch.cuda.stream(self._stream), torch.no_grad():
            square = torch.zeros(16, 16, device=self._stream.device)
            torch.addmm(square[0], square, square @ square)
        self._stream.synchronize()

    def _abandon(self, graph: Any) -> None:
        """Ends a capture that has failed.

        Where `capture_end` raises, it does so before it tells the allocator and the generators
        that the capture is over (ATen/cuda/CUDAGraph.cpp). The first would free nothing any more;
        until torch 2.12 no graph could be replayed any more either, because all share the state
        of the default generator, which a capture that succeeds puts right.
        """
        try:
            graph.capture_end()
        except Exception:  # noqa: BLE001 - what went wrong first is raised
            with contextlib.suppress(RuntimeError):  # it had not begun
                torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
                torch._C._cuda_releasePool(self._stream.device_index, self._pool)
            number = torch.zeros(1, device=self._stream.device)
            repair = TorchGraph()
            self._graphs.append(repair)
            repair.native.capture_begin(capture_error_mode="thread_local")
            number.add_(1)
            repair.native.capture_end()


class TorchDevice:
    """`Device` on one GPU; queues have the high priority.

    Args:
        index: Of the device.
    """

    def __init__(self, index: int) -> None:
        self.torch_device = torch.device("cuda", index)
        self._lock = threading.Lock()
        self._taken: set[int] = set()
        self._free: list[Any] = []

    def queue(self) -> TorchQueue:
        """See `Device.queue`."""
        return TorchQueue(self._take_stream())

    def event(self) -> TorchEvent:
        """See `Device.event`."""
        return TorchEvent()

    def graphs(self) -> TorchGraphs:
        """See `Device.graphs`."""
        return TorchGraphs(self._take_stream(), self._give_back_stream)

    def host_buffer(self, nbytes: int) -> Tensor:
        """See `Device.host_buffer`."""
        return torch.zeros(nbytes, dtype=torch.uint8, pin_memory=True)

    def buffer(self, nbytes: int) -> Tensor:
        """See `Device.buffer`. Waits, because its memory may just have been freed by work that
        still runs in the stream of this thread."""
        made = torch.zeros(nbytes, dtype=torch.uint8, device=self.torch_device)
        self.settle()
        return made

    def settle(self) -> None:
        """See `Device.settle`."""
        torch.cuda.current_stream(self.torch_device).synchronize()

    def is_lost(self) -> bool:
        """A sticky error, such as an illegal address, makes every later call fail with it: so
        the answer is whether the smallest call fails."""
        try:
            torch.zeros(1, device=self.torch_device).cpu()
        except torch.OutOfMemoryError:
            return False
        except RuntimeError:
            log.critical("the CUDA device is lost", exc_info=True)
            return True
        return False

    def _take_stream(self) -> Any:
        with self._lock:
            if self._free:  # its workspaces are there already
                return self._free.pop()
            for _ in range(STREAMS):
                stream: Any = torch.cuda.Stream(self.torch_device, priority=HIGH_PRIORITY)  # type: ignore[no-untyped-call]  # torch has no types
                if stream.cuda_stream not in self._taken:
                    self._taken.add(stream.cuda_stream)
                    return stream
        raise CaptureFailed(f"all {STREAMS} streams of the device are in use")

    def _give_back_stream(self, stream: Any) -> None:
        with self._lock:
            self._free.append(stream)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage that is collected in a capture may be a graph or an event, whose end is a call
    that a capture forbids."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
