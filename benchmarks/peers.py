"""The same workloads against another server: infinity, or clip-as-service over HTTP.

    python -m benchmarks.peers infinity 127.0.0.1:7997 --model ViT-B-32
    python -m benchmarks.peers clip-as-service 127.0.0.1:51000 --hotclip 127.0.0.1:50051

With --hotclip the segments of the two servers alternate, the one that begins as well, and the
median of the ratios of neighbours is a figure, judged by its target. If the two give different
vectors there is none: the exit code is 1. Requests are made ready beforehand and answers are
parsed afterwards, so that neither server waits for JSON on our side.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.answers import WrongAnswer
from benchmarks.corpus import TEXTS, Item, encode_request, read_items, write_corpus
from benchmarks.encode_plan import CLOSED, EIGHT, Shape
from benchmarks.figures import Figure, judged, table
from benchmarks.load_generator import Generator
from benchmarks.machine import device_name, has_device
from benchmarks.segment import PATIENCE_S, Call, CallFailed, Measured, Segment, closed_clients
from benchmarks.timing import paired_ratio
from hotclip_proto.v1.encode_pb2 import EncodeResponse

Result = TypeVar("Result")

CONTENTS = ("jpeg_small", "text")
ITEMS = 256
MIN_COSINE = 0.99
"""Of two servers' vectors of an item: what the precisions that servers choose leave between
vectors of the same weights."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """How another server is spoken to."""

    path: str
    body: Callable[[Sequence[Item], str], bytes]
    """Of items of one kind, for a model by name."""
    vectors: Callable[[bytes], NDArray[np.float32]]
    """Of an answer; float32 (n, dim), not normalised."""


def infinity_body(items: Sequence[Item], model: str) -> bytes:
    """OpenAI's embeddings with a modality; images as data URIs, vectors asked for as base64."""
    texts = all(isinstance(item, str) for item in items)
    return json.dumps(
        {
            "model": model,
            "input": [
                item if isinstance(item, str) else f"data:image/jpeg;base64,{_base64(item)}"
                for item in items
            ],
            "modality": "text" if texts else "image",
            "encoding_format": "base64",
        }
    ).encode()


def infinity_vectors(answer: bytes) -> NDArray[np.float32]:
    """`data`: objects with `index` and `embedding`, the bytes of float32 as base64."""
    rows = sorted(json.loads(answer)["data"], key=lambda row: int(row["index"]))
    return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows])


def clip_as_service_body(items: Sequence[Item], model: str) -> bytes:
    """Jina's documents: `text`, or `blob` as base64."""
    documents = [
        {"text": item} if isinstance(item, str) else {"blob": _base64(item)} for item in items
    ]
    endpoint = f"/encode/{model}".rstrip("/")
    return json.dumps({"data": documents, "execEndpoint": endpoint}).encode()


def clip_as_service_vectors(answer: bytes) -> NDArray[np.float32]:
    """`data`: documents with `embedding`, a list of numbers, in the order of the request."""
    return np.array([row["embedding"] for row in json.loads(answer)["data"]], np.float32)


PEERS = {
    "infinity": Peer(path="/embeddings", body=infinity_body, vectors=infinity_vectors),
    "clip-as-service": Peer(
        path="/post", body=clip_as_service_body, vectors=clip_as_service_vectors
    ),
}


def post(connection: http.client.HTTPConnection, path: str, body: bytes) -> bytes:
    """The answer's body.

    Raises:
        CallFailed: a status that is not 200.
    """
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise CallFailed(f"{path} answered {response.status}: {answer[:500]!r}")
    return answer


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One segment, and the vectors of the items that were answered, by position."""

    measured: Measured
    rows: dict[int, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Load:
    """One workload: items of one kind in one shape."""

    items: Sequence[Item]
    shape: Shape
    seconds: float

    def run(
        self,
        calls: Sequence[Call],
        body: Callable[[Sequence[Item]], bytes],
        vectors: Callable[[bytes], NDArray[np.float32]],
        server: psutil.Process | None,
    ) -> Ran:
        """A segment against whatever `calls` lead to.

        Raises:
            CallFailed: a call failed, or was answered with another number of vectors.
        """
        size = self.shape.items
        starts = range(0, len(self.items) - size + 1, size)
        requests = [body(self.items[at : at + size]) for at in starts]
        kept: dict[int, bytes] = {}
        clients = closed_clients(calls, requests, size, kept.__setitem__)
        measured = Segment(clients, server).run(self.seconds)
        rows: dict[int, NDArray[np.float32]] = {}
        for at, answer in kept.items():
            found = vectors(answer)
            if len(found) != size:
                raise CallFailed(f"{len(found)} vectors for {size} items")
            rows |= dict(enumerate(found, at * size))
        return Ran(measured=measured, rows=rows)


def measure_peer(told: argparse.Namespace) -> Iterator[Figure]:
    """Rates of the peer, and of hotclip over it if there is one to compare with."""
    peer = PEERS[told.peer]
    process = psutil.Process(told.pid) if told.pid else None
    with tempfile.TemporaryDirectory(prefix="hotclip-peers-") as folder:
        write_corpus(Path(folder), dict.fromkeys(told.contents, ITEMS), image_size=224)
        for content in told.contents:
            items = read_items(Path(folder), content)
            for shape in (EIGHT, CLOSED):
                load = Load(items=items, shape=shape, seconds=told.seconds)
                place = f"{content}.{shape}"
                run_theirs = partial(_run_peer, peer, load, told, process)
                if told.hotclip:
                    run_ours = partial(_run_hotclip, load, told.hotclip)
                    theirs, ours = in_turn(run_theirs, run_ours, told.rounds)
                    cosine = same_vectors(place, ours, theirs)
                else:
                    theirs, ours = [run_theirs() for _ in range(told.rounds)], []
                yield Figure(
                    name=f"rate.{told.peer}.{place}",
                    value=statistics.median(ran.measured.rate for ran in theirs),
                    unit="items/s",
                    generator_cpu=statistics.median(ran.measured.generator_cpu for ran in theirs),
                    server_cpu=theirs[-1].measured.server_cpu,
                )
                if ours:
                    rates = [ran.measured.rate for ran in theirs]
                    yield Figure(
                        name=f"over_{told.peer}.{place}",
                        value=paired_ratio([ran.measured.rate for ran in ours], rates),
                        unit="ratio",
                        baseline=statistics.median(rates),
                        min_cosine=cosine,
                    )


def in_turn(
    first: Callable[[], Result], second: Callable[[], Result], rounds: int
) -> tuple[list[Result], list[Result]]:
    """Results of both, run side by side; the one that begins changes from round to round, so
    that what the first of two does to the machine meets both."""
    of_first: list[Result] = []
    of_second: list[Result] = []
    for turn in range(rounds):
        order = [(first, of_first), (second, of_second)]
        for run, results in reversed(order) if turn % 2 else order:
            results.append(run())
    return of_first, of_second


def same_vectors(place: str, ours: Sequence[Ran], theirs: Sequence[Ran]) -> float:
    """The smallest cosine between the two servers' vectors of an item, in any round.

    Raises:
        WrongAnswer: it is below MIN_COSINE, or no item was answered by both.
    """
    pairs = zip(ours, theirs, strict=True)
    cosine = min(_min_cosine(one.rows, other.rows) for one, other in pairs)
    if not cosine >= MIN_COSINE:  # NaN is no agreement
        raise WrongAnswer(
            f"{place}: the two servers' vectors of an item have a cosine of {cosine:.6f}, less than"
            f" {MIN_COSINE}; do they serve the same weights?"
        )
    return cosine


def _run_peer(
    peer: Peer, load: Load, told: argparse.Namespace, process: psutil.Process | None
) -> Ran:
    connections = [
        http.client.HTTPConnection(told.address, timeout=PATIENCE_S)
        for _ in range(load.shape.clients)
    ]
    calls = [partial(post, connection, peer.path) for connection in connections]
    try:
        return load.run(calls, partial(_with_model, peer, told.model), peer.vectors, process)
    finally:
        for connection in connections:
            connection.close()


def _with_model(peer: Peer, model: str, items: Sequence[Item]) -> bytes:
    return peer.body(items, model)


def _run_hotclip(load: Load, address: str) -> Ran:
    generator = Generator(address=address)
    calls = [generator.call(client) for client in range(load.shape.clients)]
    try:
        return load.run(
            calls, lambda items: encode_request(items).SerializeToString(), _own_vectors, None
        )
    finally:
        generator.close()


def _own_vectors(answer: bytes) -> NDArray[np.float32]:
    response = EncodeResponse.FromString(answer)
    for error in response.errors:
        raise CallFailed(f"item {error.index}: {error.reason}: {error.message}")
    block = response.vectors
    return np.frombuffer(block.data, "<f4").reshape(block.count, block.dim)


def _min_cosine(
    ours: dict[int, NDArray[np.float32]], theirs: dict[int, NDArray[np.float32]]
) -> float:
    """Between vectors by position of the item; NaN if there are none of the same item."""
    cosines: list[float] = []
    for at in ours.keys() & theirs.keys():
        one, other = ours[at], theirs[at]
        cosines.append(float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other))))
    return float(np.min(cosines)) if cosines else float("nan")


def _base64(item: Item) -> str:
    if isinstance(item, bytes):
        return base64.b64encode(item).decode()
    raise TypeError("other servers take no tensors; measure jpeg_small, jpeg_large or texts")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("address", help="host:port of the other server")
    parser.add_argument("--model", default="", help="by the other server's name")
    parser.add_argument("--hotclip", default="", help="host:port of a hotclip server")
    parser.add_argument("--device", default="cpu", help="that both run on: cpu, cuda or cuda:<n>")
    parser.add_argument("--pid", type=int, default=0, help="process of the other server")
    parser.add_argument(
        "--contents", nargs="+", default=CONTENTS, choices=("jpeg_small", "jpeg_large", *TEXTS)
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of a segment")
    parser.add_argument("--rounds", type=int, default=3, help="segments of each")
    told = parser.parse_args(arguments)
    if not has_device(told.device):
        parser.error(f"PyTorch finds no device {told.device}")
    device = device_name(told.device)
    try:
        print(table([judged(figure, device) for figure in measure_peer(told)], device))
    except (CallFailed, WrongAnswer, OSError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
