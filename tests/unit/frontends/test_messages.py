"""What is packed comes out the same."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hotclip_server.batching.isolate import EncodeFailed
from hotclip_server.batching.ticket import Demand, Priority
from hotclip_server.boundary import status_of
from hotclip_server.encoding.engines.protocol import EAGER, EngineChoice
from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.errors import (
    DeviceLost,
    FailedPrecondition,
    HotclipError,
    InvalidArgument,
    OutOfRange,
    Unavailable,
)
from hotclip_server.frontends import messages
from hotclip_server.frontends.messages import NOWHERE, Opening


@pytest.mark.parametrize("deadline", [None, 12.25])
def test_openings(deadline: float | None) -> None:
    opening = Opening(
        number=7,
        version=3,
        rows=1 << 33,
        deadline=deadline,
        priority=Priority.BULK,
        demands=[Demand(Tower.TEXT, 77, 700), Demand(Tower.VISION, 1, 1 << 34)],
    )
    assert Opening.unpack(opening.pack()) == opening


def test_items_in_the_frame_and_in_the_arena() -> None:
    arena = np.random.default_rng(0).integers(0, 256, 4096, np.uint8)
    text = Prepared(Tower.TEXT, np.array([1, 5, 9, 2], np.int64))
    inside = Prepared(Tower.VISION, arena[64 : 64 + 48].reshape(4, 4, 3))
    outside = Prepared(Tower.VISION, arena[:48].reshape(4, 4, 3))
    packed = messages.pack_items(5, [(0, text, NOWHERE), (3, inside, 64), (1, outside, NOWHERE)])

    def look(offset: int, nbytes: int) -> NDArray[np.uint8]:
        return arena[offset : offset + nbytes]

    number, items = messages.unpack_items(packed, look)
    assert number == 5
    assert [index for index, _ in items] == [0, 3, 1]
    for (_, found), made in zip(items, (text, inside, outside), strict=True):
        assert (found.tower, found.key, found.nbytes) == (made.tower, made.key, made.nbytes)
        np.testing.assert_array_equal(found.array, made.array)
    assert np.shares_memory(items[1][1].array, arena)


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument.field("items[3].image", "empty", reason="IMAGE_UNREADABLE"),
        OutOfRange("past the end"),
        FailedPrecondition("no", reason="SPACE_MISMATCH", metadata={"space_id": "a"}),
        Unavailable("full", retry_after_s=1.25, reason="QUEUE_FULL"),
        DeviceLost(),
        EncodeFailed("the encoder failed on this item"),
        HotclipError("internal error", metadata={"request_id": "1"}),
    ],
)
def test_errors_have_the_same_status(error: HotclipError) -> None:
    number, found = messages.unpack_failure(messages.pack_failure(9, error))
    assert number == 9
    assert status_of(found) == status_of(error)
    rows = np.ones((2, 3), np.float32).tobytes()
    engines = {Tower.TEXT: EngineChoice("torch", "bf16"), Tower.VISION: EAGER}
    packed = messages.pack_answer(4, 0.5, 0.25, engines, {1: error}, rows)
    number, answer = messages.unpack_answer(packed)
    assert (number, answer.queue_s, answer.compute_s, answer.rows) == (4, 0.5, 0.25, rows)
    assert answer.engines == engines
    assert status_of(answer.errors[1]) == status_of(error)
