"""Calls of more bytes than a message may have, and streams of many items."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hotclip import AsyncClient, Image
from hotclip_server.testing import FakeEncoder, FakeLoader, running_server

SIDE = 224
SOURCE = "fake:default"


def pixels(number: int) -> np.ndarray:
    """uint8 (224, 224, 3), 150 KB, different for each number."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[0, 0] = (number >> 8, number & 255, 7)
    return image


def loader() -> FakeLoader:
    """Of a version whose images have the usual size."""
    made = FakeLoader()
    version = made.import_source(SOURCE).id
    made.encoders[version] = FakeEncoder(SOURCE, image_size=SIDE)
    return made


async def test_a_list_of_45_mb_is_one_call() -> None:
    images = [Image.from_pixels(pixels(number)) for number in range(300)]
    async with running_server(loader=loader()) as server:
        async with AsyncClient(server.address) as client:
            limits = (await client.server_info()).limits
            assert 2 * limits.max_message_bytes < 300 * SIDE * SIDE * 3
            vectors = await client.encode(images, timeout=60)
        encoder = server.encoder
        for number in (0, 111, 299):
            item = encoder.prepare_tensor(pixels(number).tobytes(), SIDE, SIDE)
            np.testing.assert_allclose(vectors[number], encoder.vector(item), atol=1e-6)
    assert len(np.unique(np.asarray(vectors), axis=0)) == 300
    assert vectors.version
    assert not vectors.errors


async def test_a_stream_of_10_000_items_keeps_order_and_reads_little_ahead() -> None:
    taken = furthest = 0

    def items() -> Iterator[str]:
        nonlocal taken
        for number in range(10_000):
            taken = number + 1
            yield f"{number}"

    async with running_server() as server, AsyncClient(server.address) as client:
        in_flight = (await client.server_info()).limits.max_stream_in_flight
        position = -1
        async for item in client.encode_stream(items(), dtype="int8"):
            position += 1
            assert item.index == position
            furthest = max(furthest, taken - position)
            if position % 997 == 0:
                text = server.encoder.prepare_text(f"{position}")
                expected = server.encoder.vector(text)
                np.testing.assert_allclose(item.vector.dequantize(), expected, atol=0.01)
    assert position == 9999
    assert furthest <= 32 * (in_flight + 3)


async def test_large_tensors_of_a_stream_are_bounded_in_bytes() -> None:
    taken = furthest = 0

    def items() -> Iterator[Image]:
        nonlocal taken
        for number in range(1_200):
            taken = number + 1
            yield Image.from_pixels(pixels(number))

    async with running_server(loader=loader()) as server, AsyncClient(server.address) as client:
        position = -1
        async for item in client.encode_stream(items(), batch_size=64):
            position += 1
            assert item.index == position
            furthest = max(furthest, taken - position)
    assert position == 1_199
    # 64 MiB that are unanswered, a group in hand and an answer that is being handed out
    assert furthest * SIDE * SIDE * 3 <= (64 << 20) + 3 * 64 * SIDE * SIDE * 3
