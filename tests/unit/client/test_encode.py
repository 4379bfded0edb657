"""Encoding through real gRPC against the small server."""

from __future__ import annotations

import _thread
import threading
from pathlib import Path

import numpy as np
import pytest
from google.rpc import code_pb2

from hotclip import Client, Image, Text
from hotclip.errors import (
    Cancelled,
    DeadlineExceeded,
    HotclipError,
    InvalidArgument,
    ItemsFailed,
    NotFound,
    SpaceMismatch,
    Unavailable,
)

from .conftest import DIM, FakeEncode, rich, vector


def test_one_and_many(fake: FakeEncode) -> None:
    with Client(fake.address) as client:
        one = client.encode("a fox")
        many = client.encode(["a fox", Text("a dog")], dtype=np.float16)
    assert one.shape == (DIM,)
    assert one.version == "v1"
    assert one.space_id == "space-v1"
    np.testing.assert_array_equal(one, vector(b"a fox", "v1"))
    assert many.shape == (2, DIM)
    assert many.dtype == np.float16


def test_every_kind_of_input(fake: FakeEncode, tmp_path: Path) -> None:
    from PIL import Image as Pil

    pil = Pil.new("RGB", (3, 2), (255, 0, 0))
    file = tmp_path / "x.png"
    pil.save(file)
    items = [
        "x.png",  # a text, whatever it looks like
        file,
        file.read_bytes(),
        pil,
        np.zeros((2, 3, 3), np.uint8),
        Image.from_pixels(np.zeros((2, 2, 3), np.uint8)),
    ]
    with Client(fake.address) as client:
        client.encode(items)
    sent = [item for request in fake.requests for item in request.items]
    assert [item.WhichOneof("content") for item in sent] == [
        "text",
        "image",
        "image",
        "image",
        "image",
        "tensor",
    ]
    assert sent[1].image == sent[2].image == file.read_bytes()


def test_split_call_is_pinned_and_restarts_when_its_version_goes(fake: FakeEncode) -> None:
    fake.swap_after = 2
    texts = [f"text {i}" for i in range(10)]
    with Client(fake.address) as client:
        vectors = client.encode(texts)
    assert vectors.version == "v2"
    np.testing.assert_array_equal(vectors, np.stack([vector(t.encode(), "v2") for t in texts]))
    assert [r.version for r in fake.requests] == ["", "v1", "v1", "", "v2", "v2"]


def test_the_callers_own_pin_is_not_replaced(fake: FakeEncode) -> None:
    with Client(fake.address) as client, pytest.raises(NotFound) as caught:
        client.encode(["a"] * 10, version="v0")
    assert caught.value.reason == "VERSION_NOT_FOUND"
    assert caught.value.request_id == "r-1"


def test_split_by_bytes(fake: FakeEncode) -> None:
    fake.max_bytes = 70_000 + (64 << 10)
    with Client(fake.address) as client:
        client.encode([Image.from_bytes(bytes([i]) * 30_000) for i in range(4)])
    assert [len(r.items) for r in fake.requests] == [2, 2]


def test_bad_items_raise_or_return(fake: FakeEncode, tmp_path: Path) -> None:
    items = ["a", "bad", tmp_path / "none.png", "b", "", "c"]
    with Client(fake.address) as client:
        with pytest.raises(ItemsFailed) as caught:
            client.encode(items)
        vectors = client.encode(items, on_error="return")
    assert [(e.index, e.reason) for e in caught.value.errors] == [
        (1, "TEXT_BAD"),
        (2, "IMAGE_UNREADABLE"),
        (4, "TEXT_EMPTY"),
    ]
    assert vectors.errors == caught.value.errors
    assert not vectors[[1, 2, 4]].any()
    np.testing.assert_array_equal(vectors[5], vector(b"c", "v1"))


@pytest.mark.parametrize("items", [[], [3], 3, [["a"]], [np.zeros((2, 2), np.float32)]])
def test_wrong_input_is_refused_here(fake: FakeEncode, items: object) -> None:
    with Client(fake.address) as client, pytest.raises(InvalidArgument):
        client.encode(items)  # type: ignore[arg-type]  # what is tested
    assert not fake.requests


def test_typed_errors(fake: FakeEncode) -> None:
    fake.fail_next = [
        rich(code_pb2.FAILED_PRECONDITION, "SPACE_MISMATCH", "other space"),
        rich(code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT", "is odd", field="items[0].text"),
        rich(code_pb2.UNAVAILABLE, "QUEUE_FULL", "full", retry_s=1.5),
    ]
    with Client(fake.address, retries=False) as client:
        with pytest.raises(SpaceMismatch):
            client.encode("a")
        with pytest.raises(InvalidArgument) as invalid:
            client.encode("a")
        with pytest.raises(Unavailable) as full:
            client.encode("a")
    assert [(v.field, v.reason) for v in invalid.value.fields] == [("items[0].text", "is odd")]
    assert full.value.retry_after == 1.5
    assert full.value.reason == "QUEUE_FULL"


@pytest.mark.parametrize("size", [1, 1 << 20], ids=["small", "large"])
def test_overload_is_tried_again(fake: FakeEncode, size: int) -> None:
    fake.max_bytes = 2 << 20
    fake.fail_next = [rich(code_pb2.UNAVAILABLE, "QUEUE_FULL", "full")] * 3
    with Client(fake.address) as client:
        assert client.encode(b"a" * size).version == "v1"


def test_deadline_covers_the_call_and_cancels_it(fake: FakeEncode) -> None:
    fake.delay = 30.0
    with Client(fake.address) as client:
        client.server_info()
        with pytest.raises(DeadlineExceeded):
            client.encode("a", timeout=0.3)
        assert fake.cancelled.wait(10)


def test_threads_share_a_client(fake: FakeEncode) -> None:
    failed: list[HotclipError] = []

    def work() -> None:
        try:
            for i in range(20):
                assert client.encode([f"{i}"] * 5).shape == (5, DIM)
        except HotclipError as error:
            failed.append(error)

    with Client(fake.address) as client:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


def test_closed_client_and_nobody_there(fake: FakeEncode) -> None:
    client = Client(fake.address)
    client.encode("a")
    client.close()
    with pytest.raises(HotclipError, match="CLIENT_CLOSED"):
        client.encode("a")
    with Client("127.0.0.1:1", retries=False) as nobody:
        with pytest.raises(Unavailable):
            nobody.encode("a")
        assert not nobody.is_ready(timeout=0.5)


def test_closing_a_client_ends_its_calls(fake: FakeEncode) -> None:
    fake.delay = 30.0
    client = Client(fake.address)
    client.server_info()
    closing = threading.Thread(target=lambda: (fake.entered.wait(10), client.close()))
    closing.start()
    with pytest.raises(Cancelled, match="CLIENT_CLOSED"):
        client.encode("a")
    closing.join()
    assert fake.cancelled.wait(10)


def test_rank(fake: FakeEncode) -> None:
    with Client(fake.address) as client:
        ranking = client.rank("a", ["b", "c"])
        images = client.rank("a", np.zeros((3, 8, 8, 3), np.uint8))
    assert [s.index for s in ranking.scores] == [0, 1]
    assert ranking.version == "v1"
    assert [s.index for s in images.scores] == [0, 1, 2]


def test_an_interrupt_cancels_the_call(fake: FakeEncode) -> None:
    fake.delay = 30.0
    with Client(fake.address) as client:
        client.server_info()
        ended = threading.Event()

        def interrupt() -> None:
            # As a person does who sees nothing happen: once more after a second.
            while not ended.wait(1.0):
                _thread.interrupt_main()

        person = threading.Thread(target=interrupt)
        person.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                client.encode("a")
        finally:
            ended.set()
            person.join()
        assert fake.cancelled.wait(10)
