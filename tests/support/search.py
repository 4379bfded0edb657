"""Collections on the real stack below gRPC: registry, batcher, database, vector process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotclip_proto.v1 import search_pb2
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.batching.batcher import Batcher, BatchLimits
from hotclip_server.batching.budget import Budget
from hotclip_server.batching.device import DeviceThread
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.pipeline import EncodePipeline, ItemLimits
from hotclip_server.search.blobs import SourceBlobs
from hotclip_server.search.collections import Collections
from hotclip_server.search.edge import EdgeStore
from hotclip_server.search.protocol import VectorStore
from hotclip_server.storage.database import Database
from hotclip_server.testing import FakeEncoder, FakeLoader


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that search stands on."""

    database: Database
    loader: FakeLoader
    registry: ModelRegistry
    pipeline: EncodePipeline
    store: Any
    """An EdgeStore, or what the test gave."""
    collections: Collections
    jobs: JobRunner

    @property
    def live(self) -> str:
        """Live version of model "default"."""
        return self.registry.model_state().live_version

    async def load(self, seed: str) -> str:
        """Stages a version; its id."""
        return (await self.registry.load_version("default", f"fake:{seed}")).id

    async def reindex(self, collection: str, version: str) -> str:
        """Queues a job; its id."""
        await self.collections.reindexer.check(collection, version)
        spec = {"collection": collection, "version": version}
        return (await self.jobs.submit(NewJob(kind=JobKind.REINDEX, spec=spec))).id

    async def exact(self, version: str, query: str, texts: Sequence[str]) -> list[float]:
        """Cosine of a query with each text by a version, computed here."""
        encoder = self.loader.encoders[version]
        return list(text_vectors(encoder, texts) @ text_vectors(encoder, [query])[0])


@asynccontextmanager
async def search_world(
    folder: Path,
    loader: FakeLoader | None = None,
    *,
    max_items: int = 1024,
    store: VectorStore | None = None,
    run_jobs: bool = True,
) -> AsyncIterator[World]:
    """Starts the stack on a data folder; stops it at the end.

    Args:
        max_items: Of one request.
        store: Instead of one with a process of its own, which is the default.
        run_jobs: False: a test does the steps of jobs itself.
    """
    loader = loader or FakeLoader()
    database = Database(f"sqlite:///{folder / 'hotclip.db'}")
    device = DeviceThread()
    batcher = Batcher(
        device, BatchLimits(budget=Budget(items=20_000, nbytes=512 << 20), max_batch=32)
    )
    pipeline = EncodePipeline(batcher, ItemLimits(max_items=max_items), 2)
    registry = ModelRegistry(database, loader, device.run)
    store = store or EdgeStore(folder / "vectors", timeout_s=30)
    blobs = SourceBlobs(folder / "sources")
    collections = Collections(database, store, registry, pipeline, blobs, max_items=max_items)
    registry.add_flip_participant(collections.catalogue)
    jobs = JobRunner(database, [collections.reindexer], left=collections.sweep_shadows)
    database.open()
    device.start()
    pipeline.start()
    await registry.start("default", "fake:one")
    await store.start()
    await collections.start()
    if run_jobs:
        await jobs.start()
    try:
        yield World(
            database=database,
            loader=loader,
            registry=registry,
            pipeline=pipeline,
            store=store,
            collections=collections,
            jobs=jobs,
        )
    finally:
        await jobs.stop()
        await collections.stop()
        await store.close()
        await batcher.stop()
        pipeline.stop()
        await registry.stop()
        device.stop(timeout_s=5.0)
        database.close()


def text_vectors(encoder: FakeEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """float32 (texts, dim), straight from the encoder."""
    return np.stack([encoder.vector(encoder.prepare_text(text)) for text in texts])


def text_point(point_id: str, item_text: str, /, **payload: object) -> search_pb2.Point:
    point = search_pb2.Point(id=point_id, item=EncodeItem(text=item_text))
    point.payload.update(payload)
    return point


def text_query(text: str) -> search_pb2.Query:
    return search_pb2.Query(item=EncodeItem(text=text))


def picture(number: int) -> EncodeItem:
    """An image that the fake encoder takes."""
    return EncodeItem(image=b"\x89PNG" + number.to_bytes(4, "big"))


def item_vector(encoder: FakeEncoder, item: EncodeItem) -> NDArray[np.float32]:
    """float32 (dim,), straight from the encoder."""
    if item.HasField("text"):
        return encoder.vector(encoder.prepare_text(item.text))
    return encoder.vector(encoder.prepare_image(item.image))
