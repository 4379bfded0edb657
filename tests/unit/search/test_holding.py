"""Versions of collections that can't be loaded when the server starts."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from support.local_store import LocalStore
from support.reindexing import check_content, ended
from support.search import World, search_world, text_point

from hotclip_server.errors import DataLoss, FailedPrecondition, HotclipError, ResourceExhausted
from hotclip_server.search import records
from hotclip_server.testing import FakeEncoder, FakeLoader

TEXTS = {f"p{i}": f"text {i}" for i in range(3)}
DAMAGED = DataLoss("its files are damaged")
TOO_LARGE = ResourceExhausted("it does not fit in memory", reason="OUT_OF_MEMORY")


class Broken(FakeLoader):
    """Does not load some versions, for a reason each."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, HotclipError] = {}

    def load(self, version_id: str, *, device: str) -> FakeEncoder:
        if version_id in self.errors:
            raise self.errors[version_id]
        return super().load(version_id, device=device)


async def store(world: World, texts: dict[str, str]) -> None:
    points = [text_point(i, text, text=text) for i, text in texts.items()]
    assert not (await world.collections.writer.upsert("c", points)).errors


@pytest.mark.parametrize("error", [DAMAGED, TOO_LARGE])
async def test_a_shadow_is_given_up(
    tmp_path: Path, error: HotclipError, caplog: pytest.LogCaptureFixture
) -> None:
    loader = Broken()
    async with search_world(tmp_path, loader, store=LocalStore(tmp_path / "vectors")) as world:
        await world.collections.catalogue.create("c")
        await store(world, TEXTS)
        two = await world.load("two")
        await ended(world, await world.reindex("c", two))
    loader.errors[two] = error
    with caplog.at_level(logging.ERROR):
        again = LocalStore(tmp_path / "vectors")
        async with search_world(tmp_path, loader, store=again) as world:
            assert f"version {two} can't serve; Reindex makes it anew" in caplog.text
            record = world.collections.catalogue.get("c")
            assert record.shadow_version is None
            assert record == await world.database.run(lambda c: records.read(c, "c"))
            assert await world.store.shards() == [record.shard]
            await store(world, {"new": "a new one"})
            await check_content(world, TEXTS | {"new": "a new one"})
            # Once it can be loaded it is made again.
            del loader.errors[two]
            await ended(world, await world.reindex("c", two))
            assert world.collections.catalogue.get("c").shadow_complete


async def test_a_bound_version_is_held_once_it_is_brought_back(tmp_path: Path) -> None:
    loader = Broken()
    async with search_world(tmp_path, loader, store=LocalStore(tmp_path / "vectors")) as world:
        two = await world.load("two")
        await world.collections.catalogue.create("c", version=two)
        await store(world, TEXTS)
    loader.errors[two] = DAMAGED
    again = LocalStore(tmp_path / "vectors")
    async with search_world(tmp_path, loader, store=again) as world:
        with pytest.raises(FailedPrecondition) as absent:
            await store(world, {"new": "a new one"})
        assert absent.value.reason == "VERSION_NOT_RESIDENT"
        del loader.errors[two]
        assert await world.load("two") == two
        await asyncio.sleep(0.05)
        await world.load("three")  # It takes the place of whatever nobody holds.
        await asyncio.sleep(0.05)
        holders = {r.version_id: r.holders for r, _ in world.registry}
        assert holders[two] == {"collection:c"}
        await store(world, {"new": "a new one"})
        await check_content(world, TEXTS | {"new": "a new one"})
        # And let go with the collection.
        await world.collections.delete("c")
        assert two not in {r.version_id for r, _ in world.registry}


async def test_what_lacks_is_forgotten_with_the_collection(tmp_path: Path) -> None:
    loader = Broken()
    async with search_world(tmp_path, loader, store=LocalStore(tmp_path / "vectors")) as world:
        two = await world.load("two")
        await world.collections.catalogue.create("c", version=two)
    loader.errors[two] = DAMAGED
    again = LocalStore(tmp_path / "vectors")
    async with search_world(tmp_path, loader, store=again) as world:
        await world.collections.delete("c")
        del loader.errors[two]
        await world.load("two")
        await asyncio.sleep(0.05)
        await world.registry.unload(two)
