"""A point that was removed does not come back when the machine loses its power."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.local_store import LocalStore
from support.reindexing import ended
from support.search import World, search_world, text_point

from hotclip_server.errors import Unavailable
from hotclip_server.search import records, settling
from hotclip_server.testing import FakeLoader


class Forgetful(LocalStore):
    """Loses removals that were not flushed when it is told to; keeps count of flushes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.flushes = 0
        self.away = False
        self._removed: list[tuple[str, dict[str, object], bytes]] = []

    async def _call(
        self, op: str, *, body: bytes = b"", timeout_s: float | None = None, **header: object
    ) -> tuple[Any, bytes]:
        shard = str(header.get("shard"))
        if op == "flush":
            self.flushes += 1
            if self.away:
                raise Unavailable("away")
            self._removed = [lost for lost in self._removed if lost[0] != shard]
        if op == "delete":
            ids = list(header["ids"])  # type: ignore[call-overload]  # as `delete` gives them
            told, vectors = await super()._call(
                "retrieve", shard=shard, ids=ids, with_vectors=True, with_payloads=True
            )
            points = [{"i": i, "r": revision, "p": {}} for i, revision in told["rows"]]
            self._removed.append((shard, {"points": points}, vectors[: told["vectors"]]))
        return await super()._call(op, body=body, timeout_s=timeout_s, **header)

    async def lose_power(self) -> None:
        for shard, header, body in self._removed:
            await super()._call("upsert", body=body, shard=shard, **header)


async def fill(world: World) -> None:
    """Six points in two shards."""
    await world.collections.catalogue.create("c")
    points = [text_point(f"p{i}", f"text {i}") for i in range(6)]
    await world.collections.writer.upsert("c", points)
    await ended(world, await world.reindex("c", await world.load("two")))


async def tombstones(world: World) -> set[str]:
    return set(await world.database.run(lambda c: records.deleted_ids(c, "c")))


async def until_none(world: World) -> None:
    async with asyncio.timeout(30):
        while await tombstones(world):  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)


async def there(world: World) -> list[set[str]]:
    ids = [f"p{i}" for i in range(6)]
    shards = world.collections.catalogue.get("c").targets().values()
    return [set((await world.store.retrieve(shard, ids)).revisions) for shard in shards]


LEFT = [{"p2", "p3", "p4", "p5"}] * 2


async def test_removals_that_the_disk_lost_are_done_again(tmp_path: Path) -> None:
    loader, store = FakeLoader(), Forgetful(tmp_path / "vectors")
    async with search_world(tmp_path, loader, store=store) as world:
        await fill(world)
        assert await world.collections.writer.delete("c", ["p0", "p1"]) == 2
        assert await there(world) == LEFT
        await store.lose_power()
        assert await there(world) == [{f"p{i}" for i in range(6)}] * 2
    again = Forgetful(tmp_path / "vectors")
    async with search_world(tmp_path, loader, store=again) as world:
        assert await there(world) == LEFT


async def test_one_flush_serves_the_deletions_of_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "_FLUSH_S", 0.5)
    loader, store = FakeLoader(), Forgetful(tmp_path / "vectors")
    async with search_world(tmp_path, loader, store=store) as world:
        await fill(world)
        before = store.flushes
        for point in ("p0", "p1"):
            await world.collections.writer.delete("c", [point])
        assert await tombstones(world) == {"p0", "p1"}
        await until_none(world)
        assert store.flushes == before + 2  # One a shard.
        await store.lose_power()
        assert await there(world) == LEFT


async def test_what_came_anew_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "_FLUSH_S", 0.1)
    store = Forgetful(tmp_path / "vectors")
    async with search_world(tmp_path, store=store) as world:
        await fill(world)
        await world.collections.writer.delete("c", ["p0", "p1", "p2"])
        await world.collections.writer.upsert("c", [text_point("p2", "again")])
        await until_none(world)
        rows = await world.database.run(lambda c: list(records.sources_of(c, "c", ["p1", "p2"])))
        assert [row.point_id for row in rows] == ["p2"]


async def test_flushing_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "_FLUSH_S", 0.01)
    monkeypatch.setattr(settling, "_RETRY_S", 0.01)
    store = Forgetful(tmp_path / "vectors")
    async with search_world(tmp_path, store=store) as world:
        await fill(world)
        store.away = True
        before = store.flushes
        await world.collections.writer.delete("c", ["p0", "p1"])
        async with asyncio.timeout(30):
            while store.flushes < before + 3:  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.01)
        assert await tombstones(world) == {"p0", "p1"}
        store.away = False
        await until_none(world)
        assert await there(world) == LEFT


async def test_a_lost_shadow_is_given_up_although_points_are_to_be_removed(tmp_path: Path) -> None:
    loader, store = FakeLoader(), Forgetful(tmp_path / "vectors")
    async with search_world(tmp_path, loader, store=store) as world:
        await fill(world)
        await world.collections.writer.delete("c", ["p0", "p1"])
        await world.store.drop(world.collections.catalogue.get("c").shadow_shard)
    async with search_world(tmp_path, loader, store=Forgetful(tmp_path / "vectors")) as world:
        assert world.collections.catalogue.get("c").shadow_version is None
        assert world.collections.catalogue.unsettled == set()
        assert await there(world) == LEFT[:1]


async def test_a_collection_made_anew_under_the_name_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "_FLUSH_S", 0.05)
    store = Forgetful(tmp_path / "vectors")
    async with search_world(tmp_path, store=store) as world:
        await fill(world)
        await world.collections.writer.delete("c", ["p0"])
        await world.collections.delete("c")
        await asyncio.sleep(0.2)
        await fill(world)
        await world.collections.writer.delete("c", ["p0"])
        await until_none(world)
