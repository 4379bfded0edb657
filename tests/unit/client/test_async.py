"""The asyncio client through real gRPC against the small server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from hotclip import AsyncClient
from hotclip.errors import Cancelled, DeadlineExceeded, InvalidArgument, ItemsFailed, Unavailable

from .conftest import DIM, FakeEncode, vector


async def test_encode_splits_pins_and_reads_files(fake: FakeEncode, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(b"image")
    fake.swap_after = 2
    async with AsyncClient(fake.address) as client:
        vectors = await client.encode([file, *[f"{i}" for i in range(9)]])
        ranking = await client.rank("a", [file])
    assert vectors.version == "v2"
    assert vectors.shape == (10, DIM)
    np.testing.assert_array_equal(vectors[0], vector(b"image", "v2"))
    assert len(ranking.scores) == 1


async def test_stream_of_either_kind_of_iterable(fake: FakeEncode) -> None:
    async def items() -> AsyncIterator[str]:
        for i in range(200):
            yield f"{i}"

    fake.break_stream_after = 3
    async with AsyncClient(fake.address) as client:
        got = [e async for e in client.encode_stream(items(), batch_size=4)]
        again = [e async for e in client.encode_stream([f"{i}" for i in range(200)])]
    assert [e.index for e in got] == list(range(200)) == [e.index for e in again]
    np.testing.assert_array_equal(got[150].vector, vector(b"150", "v1"))
    assert fake.streams == 3


async def test_stream_of_files_keeps_bad_ones(fake: FakeEncode, tmp_path: Path) -> None:
    async with AsyncClient(fake.address) as client:
        stream = client.encode_stream([tmp_path / "a", "b", "bad"], on_error="return")
        got = [e async for e in stream]
        with pytest.raises(ItemsFailed):
            _ = [e async for e in client.encode_stream(["bad"])]
    assert [e.error is None for e in got] == [False, True, False]


async def test_cancelling_the_task_cancels_the_call(fake: FakeEncode) -> None:
    fake.delay = 30.0
    async with AsyncClient(fake.address) as client:
        await client.server_info()
        task = asyncio.create_task(client.encode("a"))
        assert await asyncio.to_thread(fake.entered.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(fake.cancelled.wait, 10)


async def test_closing_ends_calls_with_an_error_of_the_client(fake: FakeEncode) -> None:
    fake.delay = 30.0
    client = AsyncClient(fake.address)
    await client.server_info()
    task = asyncio.create_task(client.encode("a"))
    assert await asyncio.to_thread(fake.entered.wait, 10)
    await client.close()
    with pytest.raises(Cancelled):
        await task
    with pytest.raises(Cancelled):
        await client.encode("a")


async def test_abandoned_stream_is_cancelled(fake: FakeEncode) -> None:
    async with AsyncClient(fake.address) as client:
        stream = client.encode_stream([f"{i}" for i in range(10_000)], batch_size=1)
        await anext(stream)
        await stream.aclose()
        assert await asyncio.to_thread(fake.cancelled.wait, 10)


async def test_typed_errors(fake: FakeEncode) -> None:
    async with AsyncClient(fake.address) as client:
        with pytest.raises(InvalidArgument):
            await client.encode([])
        fake.delay = 5.0
        with pytest.raises(DeadlineExceeded):
            await client.encode("a", timeout=0.2)
    async with AsyncClient("127.0.0.1:1", retries=False) as nobody:
        with pytest.raises(Unavailable):
            await nobody.encode("a")
        assert not await nobody.is_ready(timeout=0.5)
