"""The load, in a process of its own: requests made ready beforehand, sent as bytes.

    connect  {address, corpus, server_pid, exact}
    closed   {content, clients, items, seconds}   → rate, latencies, processor time, parity
    public   {content, clients, items, seconds}   → the same, by the public client
    stream   {content, items, seconds}            → the same
    open     {content, rate, seconds, seed}       → latencies from the planned arrivals

Knows nothing of torch. Each client has a connection of its own, as clients have.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import numpy as np
import psutil

from benchmarks.answers import Answers
from benchmarks.corpus import Item, encode_request, read_items, read_references, tower_of
from benchmarks.segment import (
    PATIENCE_S,
    Busy,
    Call,
    CallFailed,
    Measured,
    Segment,
    closed_clients,
)
from benchmarks.timing import Span, percentile, poisson_arrivals
from benchmarks.worker import obey
from hotclip import Client, Image
from hotclip_proto.v1.encode_pb2 import (
    EncodeRequest,
    EncodeStreamRequest,
    EncodeStreamResponse,
)

ENCODE = "/hotclip.v1.EncodeService/Encode"
STREAM = "/hotclip.v1.EncodeService/EncodeStream"
CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
)
Unary: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"
Stream: TypeAlias = "grpc.StreamStreamMultiCallable[bytes, bytes]"
OPEN_CHANNELS = 8
"""Connections that open-loop calls take in turn."""
WARM_SHARE = 0.1
"""Share of an open-loop run before it counts."""


@dataclass
class Generator:
    """Everything that outlives a segment: connections, requests, the expected answers."""

    address: str = ""
    corpus: Path = Path()
    exact: dict[str, bool] | None = None
    """Whether a tower's answers must be as near to the references as fp32 is; None: there are
    no references."""
    server: psutil.Process = field(default_factory=psutil.Process)
    _channels: list[grpc.Channel] = field(default_factory=list)
    _requests: dict[tuple[str, int], list[bytes]] = field(default_factory=dict)

    def connect(self, told: dict[str, Any]) -> dict[str, Any]:
        self.address, self.corpus = told["address"], Path(told["corpus"])
        self.exact, self.server = told["exact"], psutil.Process(told["server_pid"])
        self.close()
        return {}

    def close(self) -> None:
        """Drops connections and requests."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        self._requests.clear()

    def closed(self, told: dict[str, Any]) -> dict[str, Any]:
        content, items = told["content"], told["items"]
        answers = self.answers(content, items)
        calls = [self.call(client) for client in range(told["clients"])]
        clients = closed_clients(calls, self.requests(content, items), items, answers.keep)
        return report(Segment(clients, self.server).run(told["seconds"]), answers)

    def public(self, told: dict[str, Any]) -> dict[str, Any]:
        """As `closed`, with `hotclip.Client`, which packs and unpacks while the clock runs."""
        content, items = told["content"], told["items"]
        pool = [as_input(item) for item in read_items(self.corpus, content)]
        requests = [pool[at : at + items] for at in range(0, len(pool) - items + 1, items)]
        answers = self.answers(content, items)
        with ExitStack() as stack:
            calls = [
                stack.enter_context(Client(self.address, timeout=PATIENCE_S)).encode
                for _ in range(told["clients"])
            ]
            clients = closed_clients(calls, requests, items, answers.keep_rows)
            return report(Segment(clients, self.server).run(told["seconds"]), answers)

    def stream(self, told: dict[str, Any]) -> dict[str, Any]:
        content, items = told["content"], told["items"]
        requests = self.requests(content, items)
        answers = self.answers(content, items)
        client = partial(self._ask_on_stream, requests, answers, items)
        return report(Segment([client], self.server).run(told["seconds"]), answers)

    def open(self, told: dict[str, Any]) -> dict[str, Any]:
        requests, answers = self.requests(told["content"], 1), self.answers(told["content"], 1)
        seconds = told["seconds"]
        arrivals = poisson_arrivals(told["rate"], seconds, seed=told["seed"])
        calls: list[Unary] = [self.channel(at).unary_unary(ENCODE) for at in range(OPEN_CHANNELS)]
        latencies: list[float] = [np.nan] * len(arrivals)
        left = threading.Semaphore(0)

        def answered(position: int, planned: float, future: grpc.Future[bytes]) -> None:
            latencies[position] = time.perf_counter() - planned
            if future.exception() is None:
                answers.keep(position % len(requests), future.result())
            left.release()

        futures: list[grpc.Future[bytes]] = []
        lag = 0.0
        busy, start = Busy(self.server), time.perf_counter()
        for position, arrival in enumerate(arrivals):
            planned = start + arrival
            if (early := planned - time.perf_counter()) > 0:
                time.sleep(early)
            lag = max(lag, time.perf_counter() - planned)
            call = calls[position % OPEN_CHANNELS]
            future = call.future(requests[position % len(requests)], timeout=PATIENCE_S)
            future.add_done_callback(partial(answered, position, planned))
            futures.append(future)
        for _ in arrivals:
            left.acquire()
        ended = time.perf_counter()
        own, served = busy.cores()
        failures = [error for future in futures if (error := future.exception()) is not None]
        if failures:
            raise CallFailed(f"{len(failures)} of {len(arrivals)} calls: {failures[0]}")
        counted = [
            latency
            for arrival, latency in zip(arrivals, latencies, strict=True)
            if arrival >= WARM_SHARE * seconds
        ]
        measured = Measured(
            rate=len(arrivals) / (ended - start),
            latencies=counted,
            generator_cpu=own,
            server_cpu=served,
        )
        return {**report(measured, answers), "lag_ms": 1000 * lag}

    def _ask_on_stream(
        self, requests: list[bytes], answers: Answers, items: int, segment: Segment, client: int
    ) -> None:
        messages = [
            EncodeStreamRequest(
                id=at + 1, request=EncodeRequest.FromString(data)
            ).SerializeToString()
            for at, data in enumerate(requests)
        ]
        room = threading.Semaphore(0)  # for as many requests as may be unanswered
        sent: deque[tuple[int, float]] = deque()

        def send() -> Iterator[bytes]:
            for at in itertools.cycle(range(len(messages))):
                room.acquire()
                if not segment.running:
                    return
                sent.append((at, time.perf_counter()))
                yield messages[at]

        stream: Stream = self.channel(client).stream_stream(STREAM)
        call = stream(send())
        try:
            limits = EncodeStreamResponse.FromString(next(call)).limits
            in_flight = min(limits.max_in_flight, len(messages))
            segment.keeps_in_flight(client, in_flight)
            room.release(in_flight)
            for data in call:
                at, began = sent.popleft()
                segment.done(client, Span(began, time.perf_counter(), items))
                answers.keep_streamed(at, data)
                room.release()
                if not segment.running:
                    return
        finally:
            call.cancel()
            room.release()

    def call(self, position: int) -> Call:
        """Encode on a connection, blocking."""
        encode: Unary = self.channel(position).unary_unary(ENCODE)
        return lambda request: encode(request, timeout=PATIENCE_S)

    def channel(self, position: int) -> grpc.Channel:
        while len(self._channels) <= position:
            self._channels.append(grpc.insecure_channel(self.address, options=CHANNEL_OPTIONS))
        return self._channels[position]

    def requests(self, content: str, items: int) -> list[bytes]:
        """Different requests of so many items each, serialised."""
        if (content, items) not in self._requests:
            pool = read_items(self.corpus, content)
            starts = range(0, len(pool) - items + 1, items)
            self._requests.clear()  # of one workload at a time, they may be large
            self._requests[content, items] = [
                encode_request(pool[at : at + items]).SerializeToString() for at in starts
            ]
        return self._requests[content, items]

    def answers(self, content: str, items: int) -> Answers:
        if self.exact is None:
            return Answers(None, items, exact=False)
        references = read_references(self.corpus, content)
        return Answers(references, items, exact=self.exact[tower_of(content)])


def as_input(item: Item) -> str | bytes | Image:
    """What the client takes."""
    return Image.from_pixels(item) if isinstance(item, np.ndarray) else item


def report(measured: Measured, answers: Answers) -> dict[str, Any]:
    """A segment as JSON; latencies in milliseconds."""
    milliseconds = [1000 * seconds for seconds in measured.latencies]
    found = {f"p{share}_ms": percentile(milliseconds, share) for share in (50, 95, 99)}
    return {
        "rate": measured.rate,
        "calls": len(milliseconds),
        "generator_cpu": measured.generator_cpu,
        "server_cpu": measured.server_cpu,
        **found,
        **answers.checked(),
    }


def main() -> None:
    generator = Generator()
    obey(
        {
            "connect": generator.connect,
            "closed": generator.closed,
            "public": generator.public,
            "stream": generator.stream,
            "open": generator.open,
        }
    )


if __name__ == "__main__":
    main()
