"""One timed stretch of a closed loop: clients that each ask again as soon as they are answered."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import psutil

from benchmarks.timing import Span, steady_rate

PATIENCE_S = 600.0
"""Longest wait for one call."""


Client: TypeAlias = Callable[["Segment", int], None]
"""Runs on a thread of its own until the segment ends; is told the segment and its position."""
Call: TypeAlias = Callable[[bytes], bytes]
Request = TypeVar("Request")
Answer = TypeVar("Answer")


class CallFailed(RuntimeError):
    """A call of the load failed: there is no figure of such a segment."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a segment gave."""

    rate: float
    """Items a second."""
    latencies: list[float]
    """Seconds of every call that ended in the window or soon after."""
    generator_cpu: float
    """Cores that this process kept busy."""
    server_cpu: float | None
    """Cores that the server and its children kept busy; None if it is not known."""


class Segment:
    """A load that runs from `run` to its end, measured in a window within.

    The window opens when every client was answered as often as it has requests under way, and
    the load goes on after it until every client was answered as often again: all requests that
    touch the window are counted, and none of those that found the server empty.

    Args:
        clients: Each is called on a thread of its own; it reports calls to `done` for as long
            as `running`.
        server: The process whose time is counted, if it is known.
    """

    def __init__(self, clients: Sequence[Client], server: psutil.Process | None) -> None:
        self._clients = clients
        self._server = server
        self._spans: list[list[Span]] = [[] for _ in clients]
        self._left_before = [1] * len(clients)
        """Answers of each client before the window may open."""
        self._left_after = [1] * len(clients)
        """Answers of each client after the window before the load may end."""
        self._first = [threading.Event() for _ in clients]
        self._past = [threading.Event() for _ in clients]
        self._window_end = float("inf")
        self._end = threading.Event()
        self._failures: list[BaseException] = []

    @property
    def running(self) -> bool:
        """Whether clients shall go on."""
        return not self._end.is_set()

    def keeps_in_flight(self, client: int, requests: int) -> None:
        """A client has so many requests under way at a time, answered in order, and not one.

        To be told before the client's first answer.
        """
        self._left_before[client] = self._left_after[client] = requests

    def done(self, client: int, span: Span) -> None:
        """A call of a client was answered."""
        self._spans[client].append(span)
        self._left_before[client] -= 1
        if self._left_before[client] <= 0:
            self._first[client].set()
        if span.ended >= self._window_end:
            self._left_after[client] -= 1
            if self._left_after[client] <= 0:
                self._past[client].set()

    def run(self, seconds: float) -> Measured:
        """Runs the load with a window of so many seconds.

        Raises:
            CallFailed: a client raised, or was not answered in time.
        """
        threads = [
            threading.Thread(target=self._run_client, args=(position,), name=f"client-{position}")
            for position in range(len(self._clients))
        ]
        for thread in threads:
            thread.start()
        try:
            self._wait(self._first)
            busy = Busy(self._server)
            began = time.perf_counter()
            self._end.wait(seconds)
            self._window_end = ended = time.perf_counter()
            own, served = busy.cores()
            self._wait(self._past)
        finally:
            self._end.set()
            for thread in threads:
                thread.join()
        if self._failures:
            raise CallFailed(str(self._failures[0])) from self._failures[0]
        spans = [span for of_client in self._spans for span in of_client]
        return Measured(
            rate=steady_rate(spans, began, ended),
            latencies=[s.ended - s.began for s in spans if s.ended >= began],
            generator_cpu=own,
            server_cpu=served,
        )

    def _run_client(self, position: int) -> None:
        try:
            self._clients[position](self, position)
        except BaseException as error:  # noqa: BLE001 - raised again where the segment is run
            self._failures.append(error)
            self._end.set()
        finally:
            self._first[position].set()
            self._past[position].set()

    def _wait(self, events: Sequence[threading.Event]) -> None:
        for event in events:
            if not event.wait(PATIENCE_S):
                raise CallFailed(f"no answer within {PATIENCE_S:.0f} s")


def closed_clients(
    calls: Sequence[Callable[[Request], Answer]],
    requests: Sequence[Request],
    items: int,
    keep: Callable[[int, Answer], None],
) -> list[Client]:
    """Clients that each ask one request after another; no two ask for the same at a time.

    Args:
        calls: One a client.
        requests: At least one a client, all different.
        items: Of one request.
        keep: Takes the position of a request and its answer.
    """
    if len(requests) < len(calls):
        raise ValueError(f"{len(requests)} different requests are too few for {len(calls)}")

    def ask(segment: Segment, client: int) -> None:
        for at in itertools.cycle(range(client, len(requests), len(calls))):
            if not segment.running:
                return
            began = time.perf_counter()
            answer = calls[client](requests[at])
            segment.done(client, Span(began, time.perf_counter(), items))
            keep(at, answer)

    return [ask] * len(calls)


class Busy:
    """Processor time of this process and of a server, from now on."""

    def __init__(self, server: psutil.Process | None) -> None:
        self._server = server
        self._began, self._own = time.perf_counter(), time.process_time()
        self._served = None if server is None else cpu_seconds(server)

    def cores(self) -> tuple[float, float | None]:
        """Cores that this process, and the server, kept busy since then."""
        seconds = time.perf_counter() - self._began
        own = (time.process_time() - self._own) / seconds
        if self._server is None or self._served is None:
            return own, None
        return own, (cpu_seconds(self._server) - self._served) / seconds


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time of a process and its living descendants, user and system."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        times = one.cpu_times()
        total += times.user + times.system
    return total
