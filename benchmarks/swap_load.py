"""The load beside swaps, in a process of its own; every answer is compared with what plain
open_clip gives for the version that it names.

    connect  {address, corpus, server_pid, exact}  exact: by version and tower
    alone    {content, seconds}                    → p50_ms of calls of one item, one at a time
    most     {clients, seconds}                    → rate in calls a second, closed loop
    begin    {rate, seed}                          calls at random moments from now on
    end      {}                                    → asked, errors, refused, mixed, pause_ms, cores

Calls have one to four items, texts and pixels mixed. They go straight to the wire: the client's
retries would hide a call that failed.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from benchmarks.corpus import Item, encode_request, read_items
from benchmarks.golden import Goldens, Named
from benchmarks.history import Asked, longest_pause
from benchmarks.load_generator import CHANNEL_OPTIONS, ENCODE, Unary
from benchmarks.segment import PATIENCE_S, Busy, Measured, Segment, closed_clients
from benchmarks.timing import percentile
from benchmarks.worker import obey
from hotclip_proto.v1.encode_pb2 import EncodeResponse

CONTENTS = ("text", "tensor")
REQUESTS = 128
MOST_ITEMS = 4
SEED = 20_260_201
CONNECTIONS = 8
"""That calls take in turn."""
REFUSALS = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
)


@dataclass(frozen=True)
class Request:
    """A call, ready to be sent."""

    items: tuple[Named, ...]
    data: bytes


@dataclass
class OpenLoop:
    """Calls that come at random, independent of the answers, from `start` to `stop`."""

    calls: Sequence[Unary]
    requests: Sequence[Request]
    rate: float
    """Calls a second."""
    seed: int
    asked: list[tuple[Request, float, float, float, grpc.Future[bytes]]] = field(
        default_factory=list
    )
    """Request, planned, sent, answered."""

    def start(self) -> None:
        self._end = threading.Event()
        self._left = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="open-loop")
        self._thread.start()

    def stop(self) -> None:
        """Sends no more; returns when all are answered."""
        self._end.set()
        self._thread.join()
        for _ in range(self._sent):
            self._left.acquire()

    def _run(self) -> None:
        generator = np.random.default_rng(self.seed)
        planned, self._sent = time.monotonic(), 0
        while True:
            planned += generator.exponential(1 / self.rate)
            if self._end.wait(max(0.0, planned - time.monotonic())):
                return
            request = self.requests[self._sent % len(self.requests)]
            call = self.calls[self._sent % len(self.calls)]
            sent = time.monotonic()
            future = call.future(request.data, timeout=PATIENCE_S)
            self._sent += 1
            future.add_done_callback(partial(self._answered, request, planned, sent))

    def _answered(
        self, request: Request, planned: float, sent: float, future: grpc.Future[bytes]
    ) -> None:
        self.asked.append((request, planned, sent, time.monotonic(), future))
        self._left.release()


class SwapLoad:
    """The commands."""

    def __init__(self) -> None:
        self._channels: list[grpc.Channel] = []

    def connect(self, told: dict[str, Any]) -> dict[str, Any]:
        corpus = Path(told["corpus"])
        self._server = psutil.Process(told["server_pid"])
        self._goldens = Goldens(corpus, told["exact"], CONTENTS)
        any_version = corpus / next(iter(told["exact"]))
        self._items = {content: read_items(any_version, content) for content in CONTENTS}
        self._requests = mixed_requests(self._items, REQUESTS)
        address = told["address"]
        self._channels = [
            grpc.insecure_channel(address, options=CHANNEL_OPTIONS) for _ in range(CONNECTIONS)
        ]
        self._calls: list[Unary] = [channel.unary_unary(ENCODE) for channel in self._channels]
        return {}

    def close(self) -> None:
        """Drops the connections."""
        for channel in self._channels:
            channel.close()

    def alone(self, told: dict[str, Any]) -> dict[str, Any]:
        content = told["content"]
        requests = [
            Request((Named(content, at),), encode_request([item]).SerializeToString())
            for at, item in enumerate(self._items[content])
        ]
        latencies = self._closed(1, requests, told["seconds"]).latencies
        return {"p50_ms": 1000 * percentile(latencies, 50)}

    def most(self, told: dict[str, Any]) -> dict[str, Any]:
        return {"rate": self._closed(told["clients"], self._requests, told["seconds"]).rate}

    def begin(self, told: dict[str, Any]) -> dict[str, Any]:
        self._loop = OpenLoop(self._calls, self._requests, told["rate"], told["seed"])
        self._busy = Busy(self._server)
        self._loop.start()
        return {}

    def end(self, told: dict[str, Any]) -> dict[str, Any]:
        self._loop.stop()
        own, served = self._busy.cores()
        failed: Counter[str] = Counter()
        refused: Counter[str] = Counter()
        mixed: list[str] = []
        asked = []
        for request, planned, sent, answered, future in self._loop.asked:
            error = future.exception()
            if error is None:
                version, mistakes = self.checked(request, future.result())
                mixed += mistakes
                asked.append(Asked(planned, sent, answered, version))
            elif isinstance(error, grpc.RpcError) and error.code() in REFUSALS:
                refused[str(error.code())] += 1
            else:
                failed[str(error)[:200]] += 1
        return {
            "asked": [astuple(call) for call in asked],
            "errors": dict(failed),
            "refused": dict(refused),
            "mixed": mixed,
            "pause_ms": 1000 * longest_pause(asked),
            "generator_cpu": own,
            "server_cpu": served,
        }

    def checked(self, request: Request, answer: bytes) -> tuple[str, list[str]]:
        """The version that an answer names, and what is wrong with it for that version."""
        response = EncodeResponse.FromString(answer)
        if response.errors:
            return response.version, [str(error) for error in response.errors]
        block = response.vectors
        rows = np.frombuffer(block.data, "<f4").reshape(block.count, block.dim)
        return response.version, self._goldens.mistakes(response.version, request.items, rows)

    def _closed(self, clients: int, requests: Sequence[Request], seconds: float) -> Measured:
        calls = [_blocking(self._calls[at % CONNECTIONS]) for at in range(clients)]
        asking = closed_clients(calls, [one.data for one in requests], 1, _forget)
        return Segment(asking, self._server).run(seconds)


def mixed_requests(items: dict[str, list[Item]], count: int) -> list[Request]:
    """So many calls of one to four items; the same for the same items."""
    generator = np.random.default_rng(SEED)
    pool = [Named(content, at) for content, known in items.items() for at in range(len(known))]
    made = []
    for _ in range(count):
        size = int(generator.integers(1, MOST_ITEMS + 1))
        chosen = tuple(pool[at] for at in generator.choice(len(pool), size, replace=False))
        message = encode_request([items[one.content][one.position] for one in chosen])
        made.append(Request(chosen, message.SerializeToString()))
    return made


def _forget(position: int, answer: bytes) -> None:
    """Only how fast answers come matters here."""


def _blocking(call: Unary) -> Callable[[bytes], bytes]:
    return lambda request: call(request, timeout=PATIENCE_S)


def main() -> None:
    load = SwapLoad()
    obey(
        {
            "connect": load.connect,
            "alone": load.alone,
            "most": load.most,
            "begin": load.begin,
            "end": load.end,
        }
    )
    load.close()


if __name__ == "__main__":
    main()
