"""Other servers' formats, against small fakes of them on loopback."""

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.corpus import Item
from benchmarks.peers import PEERS, in_turn, main
from hotclip_server.testing import FakeEncoder, running_server

from .conftest import prepared

ENCODER = FakeEncoder("fake:default")


def vector(item: Item) -> NDArray[np.float32]:
    return ENCODER.vector(prepared(ENCODER, item))


def infinity(path: str, asked: dict[str, Any]) -> dict[str, Any]:
    """As infinity 0.0.77 answers: any order, with an index."""
    assert (path, asked["model"], asked["encoding_format"]) == ("/embeddings", "tiny", "base64")
    items: list[Item] = asked["input"]
    if asked["modality"] == "image":
        items = [read_data_uri(str(uri)) for uri in items]
    rows = [
        {"object": "embedding", "index": index, "embedding": packed(vector(item))}
        for index, item in enumerate(items)
    ]
    return {"object": "list", "data": rows[::-1], "model": asked["model"]}


def clip_as_service(path: str, asked: dict[str, Any]) -> dict[str, Any]:
    assert (path, asked["execEndpoint"]) == ("/post", "/encode/tiny")
    rows = []
    for document in asked["data"]:
        item = document.get("text") or base64.b64decode(document["blob"], validate=True)
        rows.append({"id": "x", "embedding": (3 * vector(item)).tolist()})
    return {"header": {"status": {"code": 0}}, "data": rows}


FAKES = {"infinity": infinity, "clip-as-service": clip_as_service}


def read_data_uri(uri: str) -> bytes:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return base64.b64decode(data, validate=True)


def packed(row: NDArray[np.float32]) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


@contextmanager
def fake_peer(
    name: str, *, status: int = 200, change: Callable[[Any], Any] = lambda answer: answer
) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(change(FAKES[name](self.path, asked))).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("name", PEERS)
async def test_the_same_workloads_run_on_both(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_server() as ours:
        with fake_peer(name) as address:
            short = ["--model", "tiny", "--seconds", "0.1", "--rounds", "1"]
            told = [name, address, "--hotclip", ours.address, *short]
            assert await asyncio.to_thread(main, told) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    figures = {line.split()[0]: line for line in lines}
    assert set(figures) == {
        f"{figure}.{content}.{shape}"
        for figure in (f"rate.{name}", f"over_{name}")
        for content in ("jpeg_small", "text")
        for shape in ("8x1", "4x16")
    }
    # Both give the vectors of the same encoder, in the order of the items.
    assert all("1.000000" in line for name, line in figures.items() if name.startswith("over"))


async def test_other_weights_are_no_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    def exchanged(answer: Any) -> Any:
        first, *others = answer["data"]
        return {**answer, "data": [*others, first]}

    async with running_server() as ours:
        with fake_peer("clip-as-service", change=exchanged) as address:
            told = ["clip-as-service", address, "--model", "tiny", "--hotclip", ours.address]
            short = ["--contents", "text", "--seconds", "0.1", "--rounds", "1"]
            assert await asyncio.to_thread(main, [*told, *short]) == 1
    captured = capsys.readouterr()
    assert "text.4x16: the two servers' vectors" in captured.err
    assert "rate" not in captured.out


def test_the_one_that_begins_changes() -> None:
    ran: list[str] = []

    def run(name: str) -> str:
        ran.append(name)
        return f"{name}{len(ran)}"

    theirs, ours = in_turn(lambda: run("theirs"), lambda: run("ours"), 3)
    assert ran == ["theirs", "ours", "ours", "theirs", "theirs", "ours"]
    assert (theirs, ours) == (["theirs1", "theirs4", "theirs5"], ["ours2", "ours3", "ours6"])


def test_a_refusal_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_peer("infinity", status=503) as address:
        assert main(["infinity", address, "--model", "tiny", "--seconds", "0.1"]) == 1
    assert "/embeddings answered 503" in capsys.readouterr().err
