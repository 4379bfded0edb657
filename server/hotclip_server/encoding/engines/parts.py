"""Computes a batch in parts, one core a part.

oneDNN divides a product of a few hundred rows unevenly among threads, and what lies between the
products keeps one thread busy: on two cores the whole of a batch uses 1.4 to 1.9 of them, two
halves 1.9.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

import torch

T = TypeVar("T")
Call = tuple[Future[T], Callable[[], T]]


class Parts:
    """As many threads as torch uses now, each of which computes on one core; thread-safe.

    They are daemons, as is the device thread that waits for them: an engine that hangs must not
    keep the process from ending. Make it before other threads compute: while it is made, what
    they begin with is one core as well.

    Args:
        count: Of threads, if not as many.
    """

    def __init__(self, count: int = 0) -> None:
        threads = torch.get_num_threads()
        self.count = count or threads
        self._calls: SimpleQueue[Call[object]] = SimpleQueue()
        if self.count == 1:
            return
        ready = threading.Barrier(self.count + 1)
        for number in range(self.count):
            threading.Thread(
                target=self._work, args=(ready,), name=f"hotclip-device-part-{number}", daemon=True
            ).start()
        ready.wait()
        # What `set_num_threads` is told last is what threads begin with that are yet to come.
        torch.set_num_threads(threads)

    def run(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """What they return, in their order; raises what the first of them raises when all have
        ended."""
        futures: list[Future[T]] = [Future() for _ in works]
        for future, work in zip(futures, works, strict=True):
            self._calls.put((future, work))  # type: ignore[arg-type]  # each with its own type
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error
        return [future.result() for future in futures]

    def _work(self, ready: threading.Barrier) -> None:
        torch.get_num_threads()  # else the thread's first use would undo what follows
        torch.set_num_threads(1)
        ready.wait()
        while True:
            _run(*self._calls.get())


def _run(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - belongs to whoever waits for it
        future.set_exception(error)


def cut(costs: Sequence[float], parts: int) -> list[slice]:
    """Neighbours that cost about as much as those of every other part; at most so many parts,
    none empty.

    Args:
        costs: Of each item, more than 0.
    """
    share = sum(costs) / parts
    cuts, spent = [0], 0.0
    for at, cost in enumerate(costs):
        if at > cuts[-1] and spent + cost / 2 > share * len(cuts):
            cuts.append(at)
        spent += cost
    return [slice(start, end) for start, end in zip(cuts, [*cuts[1:], len(costs)], strict=True)]
