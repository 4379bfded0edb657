"""Items of a request to vectors, on the real batcher and device thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest

from hotclip_proto.v1.types_pb2 import EncodeItem, ImageTensor
from hotclip_server.batching.batcher import Batcher, BatchLimits
from hotclip_server.batching.budget import Budget
from hotclip_server.batching.cache import FeatureCache
from hotclip_server.batching.device import DeviceThread
from hotclip_server.batching.isolate import EncodeFailed
from hotclip_server.batching.ticket import Priority
from hotclip_server.contents import demand_of, key_of
from hotclip_server.encoding.engines.protocol import EAGER, EngineChoice
from hotclip_server.encoding.protocol import Prepared, Tower, Truncate
from hotclip_server.errors import InvalidArgument, Unavailable
from hotclip_server.models.residents import Pin, Resident, Residents
from hotclip_server.pipeline import EncodePipeline, ItemLimits
from hotclip_server.ranking import rank
from hotclip_server.testing import FakeEncoder

ROUGH = EngineChoice("torch", "bf16")
JPEG = b"\xff\xd8\xff" + b"picture" * 10


@dataclass
class Server:
    pipeline: EncodePipeline
    batcher: Batcher
    cache: FeatureCache
    encoder: FakeEncoder
    residents: Residents

    def pin(self, encoder: FakeEncoder | None = None) -> Pin:
        resident = Resident(version_id="v", model="default", encoder=encoder or self.encoder)
        return Pin(self.residents, resident)


@asynccontextmanager
async def serving(*, cache_bytes: int = 0, queue_items: int = 1000) -> AsyncIterator[Server]:
    device = DeviceThread()
    device.start()
    batcher = Batcher(device, BatchLimits(budget=Budget(items=queue_items, nbytes=1 << 24)))
    cache = FeatureCache(cache_bytes)
    pipeline = EncodePipeline(batcher, ItemLimits(), 2, cache)
    pipeline.start()
    try:
        yield Server(pipeline, batcher, cache, FakeEncoder(), Residents(lambda _: None))
    finally:
        await batcher.stop()
        pipeline.stop()
        assert device.stop(5)


def texts(*words: str) -> list[EncodeItem]:
    return [EncodeItem(text=word) for word in words]


async def test_timings_tell_the_wait_and_the_batches():
    async with serving() as server:
        server.encoder.faults.delay_s = 0.02
        with server.pin() as pin:
            encoded = await server.pipeline.encode_items(texts("a", "b"), pin)
        assert encoded.compute_us >= 20_000
        assert encoded.queue_us >= 0
        assert server.batcher.figures.device_s == pytest.approx(1e-6 * encoded.compute_us, abs=1e-5)


async def test_content_that_comes_again_is_not_computed_again():
    async with serving(cache_bytes=1 << 20) as server:
        items = [*texts("a", "b"), EncodeItem(image=JPEG)]
        with server.pin() as pin:
            first = await server.pipeline.encode_items(items, pin)
            ran = server.batcher.figures.items
            again = await server.pipeline.encode_items([items[2], *items], pin)
        assert (ran, server.batcher.figures.items) == (3, 3)
        np.testing.assert_array_equal(again.vectors, first.vectors[[2, 0, 1, 2]])
        assert (server.cache.figures.hits, server.cache.figures.misses) == (4, 3)
        assert again.compute_us == 0
        assert server.batcher.ledger.items == 0


async def test_another_version_computes_its_own():
    async with serving(cache_bytes=1 << 20) as server:
        other = FakeEncoder("other")
        with server.pin() as pin, server.pin(other) as pin_of_other:
            first = await server.pipeline.encode_items(texts("a"), pin)
            second = await server.pipeline.encode_items(texts("a"), pin_of_other)
        assert server.cache.figures.hits == 0
        assert not np.allclose(first.vectors, second.vectors)


async def test_nothing_is_more_like_a_thing_than_itself():
    async with serving() as server:
        with server.pin() as pin:
            for text in map(str, range(40)):
                ranked = await rank(server.pipeline, pin, EncodeItem(text=text), texts(text, "x"))
                best = ranked.scores[0]
                assert (best.index, best.cosine) == (0, pytest.approx(1.0))
                assert best.cosine <= 1.0


async def test_a_fault_of_the_server_is_no_bad_candidate():
    async with serving() as server:
        bad = server.encoder.prepare_text("bad").key
        server.encoder.faults.fails = lambda item: item.key == bad
        with server.pin() as pin:
            for query, candidate in (("bad", "x"), ("x", "bad")):
                with pytest.raises(EncodeFailed):
                    await rank(server.pipeline, pin, EncodeItem(text=query), texts("y", candidate))
            with pytest.raises(InvalidArgument, match=r"candidates\[1\]"):
                await rank(server.pipeline, pin, EncodeItem(text="x"), texts("y", ""))


class Slow(FakeEncoder):
    """Takes its time over images."""

    prepared = 0

    def prepare_image(self, data: bytes) -> Prepared:
        time.sleep(0.005)
        self.prepared += 1
        return super().prepare_image(data)


async def test_a_query_is_prepared_before_what_bulk_requests_brought():
    async with serving() as server:
        encoder = Slow()
        pictures = [[EncodeItem(image=JPEG + bytes([i, j])) for j in range(20)] for i in range(16)]
        with server.pin(encoder) as pin:
            encode = server.pipeline.encode_items
            bulk = [
                asyncio.create_task(encode(items, pin, priority=Priority.BULK))
                for items in pictures
            ]
            while not encoder.prepared:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)
            before = encoder.prepared
            await encode(texts("a"), pin)
            # On each of two threads one runs and one waits; a few more while the query runs.
            assert encoder.prepared - before < 12
            assert all(len(done.vectors) == 20 for done in await asyncio.gather(*bulk))
        assert encoder.prepared == 320


async def test_who_would_wait_too_long_for_a_decoder_is_refused_at_once():
    async with serving(cache_bytes=1 << 20) as server:
        encoder = Slow()
        pictures = [[EncodeItem(image=JPEG + b"%02d" % number)] for number in range(80)]
        with server.pin(encoder) as pin:
            encode = server.pipeline.encode_items
            await encode(pictures[0], pin)
            waiting = [asyncio.create_task(encode(items, pin)) for items in pictures[1:]]
            await asyncio.sleep(0)
            with pytest.raises(Unavailable) as refused:  # 79 pictures of 5 ms on two threads
                await encode([EncodeItem(image=JPEG)], pin, deadline=time.monotonic() + 0.1)
            assert refused.value.reason == "WAIT_TOO_LONG"
            known = await encode(pictures[0], pin, deadline=time.monotonic() + 0.1)
            assert not known.errors
            assert not all(task.done() for task in waiting)
            await asyncio.gather(*waiting)
            # Nobody is before it any more.
            await encode([EncodeItem(image=JPEG)], pin, deadline=time.monotonic() + 0.1)


class Switching(FakeEncoder):
    """Its other engine gives half of each feature. Batches switch to it by themselves when
    told, after they ran."""

    choice = EAGER
    switch_after_batch = False

    def engine(self, tower: Tower) -> EngineChoice:
        return self.choice

    def encode(self, tower: Tower, batch: Sequence[Prepared]) -> np.ndarray:
        rows = super().encode(tower, batch) * (1.0 if self.choice == EAGER else 0.5)
        if self.switch_after_batch:
            self.choice = ROUGH
        return rows.astype(np.float32)


async def test_another_engine_computes_its_own():
    async with serving(cache_bytes=1 << 20) as server:
        encoder = Switching()
        with server.pin(encoder) as pin:
            await server.pipeline.encode_items(texts("a"), pin)
            encoder.choice = ROUGH
            both = await server.pipeline.encode_items(texts("a", "b"), pin, normalize=False)
        np.testing.assert_allclose(np.linalg.norm(both.vectors, axis=1), 0.5, rtol=1e-5)


async def test_rows_of_the_engine_before_are_not_remembered_as_those_of_the_next():
    async with serving(cache_bytes=1 << 20) as server:
        encoder = Switching()
        encoder.switch_after_batch = True
        with server.pin(encoder) as pin:
            await server.pipeline.encode_items(texts("a"), pin)
            again = await server.pipeline.encode_items(texts("a"), pin, normalize=False)
            kept = await server.pipeline.encode_items(texts("a"), pin, normalize=False)
        np.testing.assert_allclose(np.linalg.norm(again.vectors, axis=1), 0.5, rtol=1e-5)
        np.testing.assert_array_equal(again.vectors, kept.vectors)
        assert server.cache.figures.hits == 1


async def test_a_full_queue_refuses_no_request_that_needs_no_device():
    async with serving(cache_bytes=1 << 20, queue_items=2) as server:
        items = [*texts("a"), EncodeItem(image=JPEG)]
        with server.pin() as pin:
            first = await server.pipeline.encode_items(items, pin)
            hang = server.encoder.faults.hang = threading.Event()
            filling = asyncio.create_task(server.pipeline.encode_items(texts("b", "c"), pin))
            try:
                await asyncio.sleep(0)
                assert server.batcher.ledger.items == 2
                again = await server.pipeline.encode_items(items, pin)
                np.testing.assert_array_equal(again.vectors, first.vectors)
                assert server.cache.figures.hits == 2
                with pytest.raises(Unavailable):
                    await server.pipeline.encode_items([*items[:1], *texts("d")], pin)
                with pytest.raises(Unavailable):
                    await server.pipeline.encode_items([*items[:1], *texts("")], pin)
                assert server.cache.figures.hits == 2
            finally:
                hang.set()
            await filling


async def test_without_a_cache_everything_is_computed():
    async with serving() as server:
        with server.pin() as pin:
            for _ in range(2):
                await server.pipeline.encode_items(texts("a"), pin)
        assert server.batcher.figures.items == 2
        assert server.cache.figures.misses == 0


async def test_errors_are_not_remembered():
    async with serving(cache_bytes=1 << 20) as server:
        items = [EncodeItem(image=b"no picture"), *texts("a")]
        with server.pin() as pin:
            for _ in range(2):
                encoded = await server.pipeline.encode_items(items, pin)
                assert list(encoded.errors) == [0]
                assert isinstance(encoded.errors[0], InvalidArgument)
        assert (server.cache.figures.hits, server.cache.figures.misses) == (1, 1)


async def test_raw_features_and_unit_vectors_share_what_is_remembered():
    async with serving(cache_bytes=1 << 20) as server:
        with server.pin() as pin:
            raw = await server.pipeline.encode_items(texts("a"), pin, normalize=False)
            unit = await server.pipeline.encode_items(texts("a"), pin)
        assert server.cache.figures.hits == 1
        np.testing.assert_allclose(
            unit.vectors, raw.vectors / np.linalg.norm(raw.vectors), rtol=1e-6
        )


def test_keys_tell_contents_apart():
    tensor = ImageTensor(data=b"abcdef" * 8, height=4, width=4)
    turned = ImageTensor(data=b"abcdef" * 8, height=8, width=2)
    other = ImageTensor(data=b"abcdef" * 8, height=4, width=4, preprocessing_id="x")
    contents = ["a", "ab", b"a", b"ab", tensor, turned, other]
    keys = {key_of(content, truncate, EAGER) for content in contents for truncate in Truncate}
    # How a text is cut is part of what becomes of it; an image is never cut.
    assert len(keys) == 2 * len(Truncate) + 5
    assert key_of("a", Truncate.END, EAGER) == key_of("a", Truncate.END, EAGER)
    assert key_of("a", Truncate.END, EAGER) != key_of("a", Truncate.END, ROUGH)


def test_demands_grow_with_the_text_up_to_the_context():
    encoder = FakeEncoder()
    lengths = [demand_of("word " * count, encoder).length for count in (1, 10, 1000)]
    assert lengths == [3, 14, encoder.spec.context_length]
    image = demand_of(JPEG, encoder)
    assert (image.tower, image.length) == (Tower.VISION, 1)
    assert image.nbytes == len(JPEG) + 3 * encoder.spec.image_size**2
