"""What a front end hands over of an answered request arrives as it was."""

from __future__ import annotations

import asyncio
import socket

import numpy as np

from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.drift.shadow import MOST_ITEMS
from hotclip_server.encoding.protocol import Truncate
from hotclip_server.errors import InvalidArgument
from hotclip_server.frontends.copies import MOST_BYTES, Copy, CopySender
from hotclip_server.frontends.frames import Frames, Kind
from hotclip_server.models.residents import Resident
from hotclip_server.pipeline import Encoded
from hotclip_server.testing import FakeEncoder


def answered(count: int) -> Encoded:
    rows = np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)
    failed = {1: InvalidArgument("bad")} if count > 1 else {}
    return Encoded(rows, failed, preprocess_us=1, queue_us=2, compute_us=3)


def test_a_copy_arrives_as_it_was() -> None:
    items = [EncodeItem(text="a"), EncodeItem(image=b"no image"), EncodeItem(text="ü")]
    answer = answered(3)
    sent = Copy(
        model="m", version="v", requests=7, items=items, answer=answer, truncate=Truncate.START
    )
    got = Copy.unpack(sent.pack())
    assert (got.model, got.version, got.requests, got.truncate) == ("m", "v", 7, Truncate.START)
    assert list(got.items) == items
    np.testing.assert_array_equal(got.answer.vectors, answer.vectors)
    assert set(got.answer.errors) == {1}
    assert got.answer.compute_us == 3


async def test_a_sender_counts_draws_and_keeps_to_the_sizes() -> None:
    came: list[Copy] = []
    ours, theirs = await _pair(came)
    draws = iter([0.9, 0.1, 0.1, 0.1])
    sender = CopySender(ours, lambda: next(draws))
    resident = Resident(version_id="live", model="m", encoder=FakeEncoder())
    other = Resident(version_id="other", model="m", encoder=FakeEncoder())
    text = [EncodeItem(text="a")]
    # Nothing is to be copied yet.
    assert sender.offer(resident, text, answered(1), Truncate.END) is None
    sender.apply({"shares": [["m", "live", 0.5]]})
    assert sender.offer(other, text, answered(1), Truncate.END) is None
    for items in (text, text, [EncodeItem(image=bytes(MOST_BYTES))], text * (MOST_ITEMS + 1)):
        if later := sender.offer(resident, items, answered(len(items)), Truncate.END):
            later()
    sender.apply({"shares": []})
    assert sender.offer(resident, text, answered(1), Truncate.END) is None
    async with asyncio.timeout(5):
        while len(came) < 3:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.001)
    assert [(copy.requests, len(copy.items)) for copy in came] == [(2, 1), (1, 0), (1, MOST_ITEMS)]
    # Of a part of a request its time says nothing.
    assert [copy.answer.compute_us for copy in came] == [3, 0, 0]
    ours.close()
    theirs.close()


async def _pair(came: list[Copy]) -> tuple[Frames, Frames]:
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()

    def on_frame(kind: int, body: bytes) -> None:
        assert kind == Kind.COPY
        came.append(Copy.unpack(body))

    ours = Frames(lambda kind, body: None, lambda error: None)
    theirs = Frames(on_frame, lambda error: None)
    await loop.create_connection(lambda: ours, sock=left)
    await loop.create_connection(lambda: theirs, sock=right)
    return ours, theirs
