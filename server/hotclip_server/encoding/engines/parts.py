"""Computes a batch in parts, one core a part.

oneDNN divides a product of a few hundred rows unevenly among threads, and what lies between the
products keeps one thread busy: on two cores the whole of a batch uses 1.4 to 1.9 of them, two
halves 1.9.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import TypeVar

import torch

T = TypeVar("T")
Call = tuple[Future[T], Callable[[], T]]

MOST_CORES = 4
"""With more, batches stay whole: parts were measured on two, each reads all weights, and the
Python between the layers runs once a part."""
UNEVEN = 1.25
"""How much longer than its share the dearest part may be."""


class PartThreads:
    """As many threads as torch uses, each of which computes on one core; `start` starts them,
    before other threads compute: what begins to compute meanwhile gets one core as well.

    They are daemons, as is the device thread that waits for them: an engine that hangs must not
    keep the process from ending.

    Args:
        count: Of threads, if not as many.
        name: That theirs begin with.

    Attributes:
        count: 1 while they don't run: then there are no parts.
    """

    def __init__(self, count: int = 0, name: str = "hotclip-device-part") -> None:
        self.count = 1
        self._name = name
        self._wanted = count
        self._calls: SimpleQueue[Call[object] | None] = SimpleQueue()

    def start(self) -> None:
        """Starts them, unless torch uses one core or more than `MOST_CORES`."""
        threads = torch.get_num_threads()
        count = self._wanted or (threads if threads <= MOST_CORES else 1)
        if count == 1:
            return
        ready = threading.Barrier(count + 1)
        for number in range(count):
            threading.Thread(
                target=self._work, args=(ready,), name=f"{self._name}-{number}", daemon=True
            ).start()
        ready.wait()
        # What `set_num_threads` is told last is what threads begin with that are yet to come.
        torch.set_num_threads(threads)
        self.count = count

    def stop(self) -> None:
        """Ends them once they have done what they were given; does not wait."""
        count, self.count = self.count, 1
        if count > 1:
            for _ in range(count):
                self._calls.put(None)

    def run(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """What they return, in their order; raises what the first of them raises when all have
        ended. Thread-safe."""
        futures = [self._submit(work) for work in works]
        wait(futures)
        error = _first_error(futures)
        if error is not None:
            try:
                raise error
            finally:
                del error, futures  # it holds this frame
        return [future.result() for future in futures]

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._calls.put((future, work))  # type: ignore[arg-type]  # each with its own type
        return future

    def _work(self, ready: threading.Barrier) -> None:
        torch.get_num_threads()  # else the thread's first use would undo what follows
        torch.set_num_threads(1)
        ready.wait()
        while (call := self._calls.get()) is not None:
            _run(*call)
            del call  # its items may lie in memory that others wait for


def _first_error(futures: Sequence[Future[T]]) -> BaseException | None:
    errors = [error for future in futures if (error := future.exception()) is not None]
    for other in errors[1:]:
        other.__traceback__ = None  # Nobody is told of it, and it holds the items of its part.
    return errors[0] if errors else None


def _run(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - belongs to whoever waits for it
        future.set_exception(error)
    finally:
        del future, work  # an error holds this frame


def cut(costs: Sequence[float], parts: int, least: float) -> list[slice]:
    """Neighbours that cost about as much as those of every other part: so many parts, or all as
    one if they would be too small or too uneven.

    Args:
        costs: Of each item, more than 0.
        least: That a part costs on average.
    """
    whole = [slice(0, len(costs))]
    share = sum(costs) / parts
    if share < least:
        return whole
    cuts, spent, dearest, began = [0], 0.0, 0.0, 0.0
    for at, cost in enumerate(costs):
        if at > cuts[-1] and spent + cost / 2 > share * len(cuts):
            dearest, began = max(dearest, spent - began), spent
            cuts.append(at)
        spent += cost
    if len(cuts) < parts or max(dearest, spent - began) > UNEVEN * share:
        return whole
    return [slice(start, end) for start, end in zip(cuts, [*cuts[1:], len(costs)], strict=True)]
