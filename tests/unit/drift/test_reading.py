"""A comparison that reads a dataset gives way to serving, and ends when it is asked to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.local_store import LocalStore
from support.search import search_world

from hotclip_server.datasets.stored import StoredDataset
from hotclip_server.drift.job import DriftHandler
from hotclip_server.drift.spec import DriftSpec
from hotclip_server.jobs.context import Cancelled
from hotclip_server.jobs.waiting import LoopWait
from hotclip_server.training.lazy_pairs import PIECE
from tests.unit.training.test_preparing import ROWS, Watched
from tests.unit.training.tiny import stored_pairs


class Pictured(StoredDataset):
    """One with images that the fake encoder takes."""

    def image_bytes(self, image_key: str) -> bytes:
        return b"\x89PNG" + image_key.encode()


class Shelf:
    """Knows which of its datasets are open."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.read: list[StoredDataset] = []
        self.closed: list[StoredDataset] = []

    def load(self, dataset_id: str) -> StoredDataset:
        dataset = Pictured(self._root / dataset_id)
        close = dataset.close

        def closing() -> None:
            self.closed.append(dataset)
            close()

        dataset.close = closing  # type: ignore[method-assign]  # to be seen here
        self.read.append(dataset)
        return dataset


async def test_it_ends_at_any_piece_and_gives_way_before_each(tmp_path: Path) -> None:
    stored_pairs(tmp_path / "pairs", ROWS).close()
    shelf, wait = Shelf(tmp_path), LoopWait()
    wait.start()
    async with search_world(tmp_path, store=LocalStore(tmp_path / "vectors")) as world:
        spec = DriftSpec(
            model="default",
            version=await world.load("two"),
            base_version=world.live,
            collections=(),
            dataset="pairs",
            sample=16,
        )
        handler = DriftHandler(
            world.database,
            wait,
            world.registry,
            world.collections,
            world.store,
            shelf,
            held_out=None,
        )
        whole = Watched(world.database)
        report = await asyncio.to_thread(handler._compare, whole, spec)
        assert [tower.items for tower in report.towers] == [16, 16]
        # Where rows lie, where images lie, what the rows are and which images there are.
        assert whole.asked >= whole.gave_way >= 4 * ROWS // PIECE
        for at in (1, whole.gave_way // 3, whole.gave_way // 2, whole.gave_way - 1):
            job = Watched(world.database, at)
            with pytest.raises(Cancelled):
                await asyncio.to_thread(handler._compare, job, spec)
            assert job.asked == at
        assert shelf.read == shelf.closed
        assert len(shelf.read) == 5
