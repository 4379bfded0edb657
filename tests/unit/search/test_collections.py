"""Collections below gRPC, with a fake encoder and the real vector process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from support.search import World, search_world, text_point, text_query, text_vectors

from hotclip_proto.v1 import search_pb2
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from hotclip_server.search.records import CollectionRecord
from hotclip_server.search.searcher import SearchOptions
from hotclip_server.storage.schema import sources
from hotclip_server.testing import FakeLoader

PNG = b"\x89PNG"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with search_world(tmp_path) as world:
        yield world


async def ids(world: World, name: str, query: search_pb2.Query, limit: int = 10) -> list[str]:
    options = SearchOptions(limit=limit, exact=True)
    found = await world.collections.searcher.search(name, [query], options)
    return [match.id for match in found.matches[0]]


async def test_upsert_then_search_by_every_kind_of_query(world: World) -> None:
    record = await world.collections.catalogue.create("c")
    assert (record.version, record.model) == (world.live, "default")
    texts = [f"text {i}" for i in range(30)]
    points = [text_point(f"t{i}", text, i=i, odd=i % 2 == 1) for i, text in enumerate(texts)]
    points.append(search_pb2.Point(id="picture", item=EncodeItem(image=PNG + b"1")))
    large = PNG + bytes(100_000)
    points.append(search_pb2.Point(id="large", item=EncodeItem(image=large)))
    done = await world.collections.writer.upsert("c", points)
    assert (done.stored, done.errors, done.version) == (32, {}, world.live)
    assert await world.collections.count("c") == 32

    exact = await world.exact(world.live, "text 7", texts)
    assert (await ids(world, "c", text_query("text 7"), 1))[0] == "t7"
    order = [i for i in await ids(world, "c", text_query("text 7"), 32) if i.startswith("t")]
    assert order == [f"t{i}" for i in np.argsort(-np.array(exact))]
    assert (await ids(world, "c", search_pb2.Query(item=EncodeItem(image=large)), 1)) == ["large"]
    vector = text_vectors(world.loader.encoders[world.live], ["text 3"])[0]
    given = search_pb2.Vector(data=(vector * 5).astype("<f4").tobytes(), space_id=record.space_id)
    assert (await ids(world, "c", search_pb2.Query(vector=given), 1)) == ["t3"]
    like = await ids(world, "c", search_pb2.Query(point_id="t3"), 32)
    assert "t3" not in like
    assert len(like) == 31


async def test_a_bad_point_fails_alone(world: World) -> None:
    await world.collections.catalogue.create("c")
    big = search_pb2.Point(id="big", item=EncodeItem(text="x"))
    big.payload.update({"text": "y" * 70_000})
    nan = search_pb2.Point(id="nan", item=EncodeItem(text="x"))
    nan.payload.update({"n": [float("nan")]})
    done = await world.collections.writer.upsert(
        "c",
        [
            text_point("good", "x"),
            text_point("", "x"),
            text_point("é" * 257, "x"),
            search_pb2.Point(id="empty"),
            search_pb2.Point(id="gif", item=EncodeItem(image=b"GIF89a")),
            big,
            nan,
            search_pb2.Point(id="far", item=EncodeItem(text="x"), reference="x" * 2049),
            text_point("good too", "y"),
        ],
    )
    assert done.stored == 2
    reasons = {index: (type(e), e.reason) for index, e in done.errors.items()}
    assert reasons == {
        1: (InvalidArgument, "INVALID_ARGUMENT"),
        2: (InvalidArgument, "INVALID_ARGUMENT"),
        3: (InvalidArgument, "INVALID_ARGUMENT"),
        4: (InvalidArgument, "IMAGE_UNREADABLE"),
        5: (ResourceExhausted, "PAYLOAD_TOO_LARGE"),
        6: (InvalidArgument, "INVALID_ARGUMENT"),
        7: (InvalidArgument, "INVALID_ARGUMENT"),
    }
    assert set(await ids(world, "c", text_query("x"))) == {"good", "good too"}


async def test_vectors_of_another_space_are_refused(world: World) -> None:
    record = await world.collections.catalogue.create("c")
    good = search_pb2.Vector(data=np.ones(32, "<f4").tobytes(), space_id=record.space_id)
    other = search_pb2.Vector(data=good.data, space_id="elsewhere")
    short = search_pb2.Vector(data=b"1234", space_id=record.space_id)
    done = await world.collections.writer.upsert(
        "c", [search_pb2.Point(id="v", vector=good), search_pb2.Point(id="s", vector=short)]
    )
    assert (done.stored, list(done.errors)) == (1, [1])
    with pytest.raises(FailedPrecondition) as refused:
        await world.collections.writer.upsert("c", [search_pb2.Point(id="v", vector=other)])
    assert refused.value.reason == "SPACE_MISMATCH"
    with pytest.raises(FailedPrecondition) as refused:
        await ids(world, "c", search_pb2.Query(vector=other))
    assert refused.value.reason == "SPACE_MISMATCH"
    with pytest.raises(FailedPrecondition) as refused:
        await world.collections.searcher.search(
            "c", [text_query("x")], SearchOptions(expected_space_id="elsewhere")
        )
    assert refused.value.reason == "SPACE_MISMATCH"
    version = await world.load("two")
    with pytest.raises(FailedPrecondition) as refused:
        await world.collections.reindexer.check("c", version)
    assert refused.value.reason == "SOURCES_MISSING"


async def test_bad_queries_name_their_field(world: World) -> None:
    await world.collections.catalogue.create("c")
    search = world.collections.searcher.search
    with pytest.raises(InvalidArgument, match=r"queries\[1\]"):
        await search("c", [text_query("x"), search_pb2.Query()], SearchOptions())
    with pytest.raises(InvalidArgument, match=r"queries\[0\]"):
        await search("c", [search_pb2.Query(item=EncodeItem(image=b"GIF"))], SearchOptions())
    with pytest.raises(InvalidArgument, match="limit"):
        await search("c", [text_query("x")], SearchOptions(limit=1001))
    with pytest.raises(InvalidArgument, match="queries"):
        await search("c", [text_query("x")] * 257, SearchOptions())
    with pytest.raises(NotFound):
        await search("c", [search_pb2.Query(point_id="nobody")], SearchOptions())
    with pytest.raises(NotFound):
        await search("nothing", [text_query("x")], SearchOptions())


async def test_collections_come_and_go(world: World) -> None:
    catalogue = world.collections.catalogue
    await catalogue.create("b")
    await catalogue.create("a")
    with pytest.raises(AlreadyExists):
        await catalogue.create("a")
    for bad in ("", "a/b", "x" * 129):
        with pytest.raises(InvalidArgument):
            await catalogue.create(bad)
    with pytest.raises(NotFound):
        await catalogue.create("c", version="unknown")
    assert [record.name for record in catalogue.list()] == ["a", "b"]
    await world.collections.writer.upsert("a", [text_point("1", "x")])
    await catalogue.delete("a")
    with pytest.raises(NotFound):
        catalogue.get("a")
    # The same name again is another collection.
    await catalogue.create("a")
    assert await world.collections.count("a") == 0


async def test_a_lock_lasts_as_long_as_somebody_wants_it(world: World) -> None:
    """Also across a deletion: who waited, and who comes later, must not write side by side."""
    catalogue = world.collections.catalogue
    for number in range(20):
        await catalogue.create(f"c{number}")
        await world.collections.writer.upsert(f"c{number}", [text_point("1", "x")])
        await catalogue.delete(f"c{number}")
    with pytest.raises(NotFound):
        await world.collections.writer.settle("never made")
    assert len(catalogue._locks) == 0
    inside, most = 0, 0

    async def write() -> None:
        nonlocal inside, most
        async with catalogue.lock("a"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1

    await catalogue.create("a")
    async with catalogue.lock("a"):
        waiting = [asyncio.create_task(write()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting.append(asyncio.create_task(catalogue.delete("a")))
        await asyncio.sleep(0)
    await asyncio.gather(waiting[0], *[asyncio.create_task(write()) for _ in range(3)])
    await waiting.pop()
    await catalogue.create("a")
    await asyncio.gather(write(), *waiting)
    assert (most, len(catalogue._locks)) == (1, 0)


async def test_a_version_that_is_deleted_meanwhile_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await world.load("two")
    create = world.store.create

    async def deleted_first(shard: str, dim: int) -> None:
        await world.registry.delete(version)
        await create(shard, dim)

    monkeypatch.setattr(world.store, "create", deleted_first)
    with pytest.raises(NotFound, match=version) as gone:
        await world.collections.catalogue.create("c", version=version)
    assert gone.value.reason == "VERSION_NOT_FOUND"
    assert await world.store.shards() == []
    monkeypatch.undo()
    # The name is free, and only a name that is taken is told as one.
    first = asyncio.gather(
        *(world.collections.catalogue.create("c") for _ in range(2)), return_exceptions=True
    )
    made, taken = sorted(await first, key=lambda one: isinstance(one, Exception))
    assert isinstance(taken, AlreadyExists)
    assert isinstance(made, CollectionRecord)
    assert world.collections.catalogue.list() == [made]
    assert await world.store.shards() == [made.shard]


async def test_upsert_replaces_and_delete_removes(world: World) -> None:
    await world.collections.catalogue.create("c")
    upsert = world.collections.writer.upsert
    await upsert("c", [text_point("1", "old", n=1), text_point("2", "two")])
    await upsert("c", [text_point("1", "older"), text_point("1", "new", n=2)])
    assert await world.collections.count("c") == 2
    found = await world.collections.searcher.search("c", [text_query("new")], SearchOptions())
    assert (found.matches[0][0].id, found.matches[0][0].payload) == ("1", {"n": 2})
    assert found.matches[0][0].score == pytest.approx(1.0, abs=1e-5)
    assert await world.collections.writer.delete("c", ["1", "1", "nobody"]) == 1
    assert await ids(world, "c", text_query("new")) == ["2"]


async def test_of_points_with_the_same_id_the_last_good_one_counts(world: World) -> None:
    await world.collections.catalogue.create("c")
    broken = search_pb2.Point(id="1", item=EncodeItem(image=b"GIF89a"))
    points = [text_point("1", "old"), text_point("1", "new"), broken]
    done = await world.collections.writer.upsert("c", points)
    assert (done.stored, list(done.errors)) == (2, [2])
    found = await world.collections.searcher.search("c", [text_query("new")], SearchOptions())
    assert [match.id for match in found.matches[0]] == ["1"]
    assert found.matches[0][0].score == pytest.approx(1.0, abs=1e-5)


async def test_a_collection_is_there_after_a_restart(tmp_path: Path) -> None:
    loader = FakeLoader()
    async with search_world(tmp_path, loader) as world:
        await world.collections.catalogue.create("c")
        bound = world.live
        await world.collections.writer.upsert("c", [text_point("1", "one"), text_point("2", "two")])
        await world.registry.activate("default", await world.load("two"))
        assert world.collections.catalogue.get("c").version == bound
    async with search_world(tmp_path, loader) as world:
        assert world.live != bound
        found = await world.collections.searcher.search("c", [text_query("two")], SearchOptions())
        assert (found.matches[0][0].id, found.version) == ("2", bound)


async def test_shards_catch_up_after_a_crash_between_database_and_shard(tmp_path: Path) -> None:
    loader = FakeLoader()
    async with search_world(tmp_path, loader) as world:
        await world.collections.catalogue.create("c")
        await world.collections.writer.upsert("c", [text_point(f"{i}", f"t{i}") for i in range(9)])
        shard = world.collections.catalogue.get("c").shard

        def crash(connection: sa.Connection) -> None:
            # What SQLite holds when the server dies before the shard was written.
            row = connection.execute(sa.select(sources).where(sources.c.point_id == "3")).one()
            changed = {**row._mapping, "item": EncodeItem(text="new").SerializeToString()}
            connection.execute(sa.delete(sources).where(sources.c.point_id == "3"))
            connection.execute(sa.insert(sources), [{**changed, "revision": 10}])
            added = {**changed, "point_id": "added", "revision": 11, "payload": {"n": 1}}
            connection.execute(sa.insert(sources), [added])
            connection.execute(
                sa.update(sources)
                .where(sources.c.point_id == "5")
                .values(kind="deleted", item=None, payload={}, revision=12)
            )

        await world.database.run(crash)
        assert "5" in (await world.store.retrieve(shard, ["5"])).revisions
    async with search_world(tmp_path, loader) as world:
        stored = await world.store.retrieve(shard, ["3", "added", "5"])
        assert stored.revisions == {"3": 10, "added": 11}
        assert set(await ids(world, "c", text_query("new"), 2)) == {"3", "added"}
        # A lost shard is made anew from the sources.
        await world.store.drop(shard)
    async with search_world(tmp_path, loader) as world:
        assert await world.collections.count("c") == 9


async def test_a_write_that_broke_off_is_settled(world: World) -> None:
    await world.collections.catalogue.create("c")
    await world.collections.writer.upsert("c", [text_point("1", "one")])
    points = [text_point(f"{i}", f"t{i}") for i in range(600)]
    writing = asyncio.create_task(world.collections.writer.upsert("c", points))
    while not world.collections.catalogue.lock("c").locked():  # noqa: ASYNC110 - no event for it
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    assert world.store.pid is not None
    os.kill(world.store.pid, signal.SIGKILL)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await world.collections.writer.upsert("c", [text_point("last", "last")])

    def stored(connection: sa.Connection) -> int:
        return len(connection.execute(sa.select(sources.c.point_id)).all())

    assert await world.collections.count("c") == await world.database.run(stored)
    assert world.collections.catalogue.unsettled == set()


async def test_without_sources(world: World, tmp_path: Path) -> None:
    await world.collections.catalogue.create("c", keep_sources=False)
    version = await world.load("two")
    await world.collections.reindexer.check("c", version)
    await world.collections.writer.upsert("c", [text_point("1", "one")])
    assert await ids(world, "c", text_query("one")) == ["1"]
    assert await world.collections.writer.delete("c", ["2"]) == 0
    with pytest.raises(FailedPrecondition) as refused:
        await world.collections.reindexer.check("c", version)
    assert refused.value.reason == "SOURCES_MISSING"
    assert not list((tmp_path / "sources").glob("*"))


async def test_sources_are_given_to_vectors_alone(world: World) -> None:
    record = await world.collections.catalogue.create("c")
    upsert = world.collections.writer.upsert
    vector = search_pb2.Vector(data=np.ones(32, "<f4").tobytes(), space_id=record.space_id)
    given = [search_pb2.Point(id=f"v{i}", vector=vector) for i in range(12)]
    for point in given:
        point.payload.update({"name": point.id})
    await upsert("c", [*given, text_point("t", "text", name="t")])
    version = await world.load("two")
    with pytest.raises(FailedPrecondition, match=r"12 of 13 points .*'v0', 'v1', .*…") as refused:
        await world.collections.reindexer.check("c", version)
    ids_named = json.loads(refused.value.metadata["ids"])
    assert refused.value.metadata["points"] == "12"
    assert ids_named == sorted(point.id for point in given)[:10]

    sources = [text_point(f"v{i}", f"text {i}", name="another") for i in range(12)]
    other = [text_point("t", "changed"), text_point("gone", "x"), given[0]]
    done = await upsert("c", [*sources, *other], only_missing_sources=True)
    # A vector is no source; the text of its id that came before is one.
    assert (done.stored, {e.reason for e in done.errors.values()}) == (12, {"SOURCE_NEEDED"})
    done = await upsert("c", [*sources, *other[:2]], only_missing_sources=True)
    assert (done.stored, done.errors) == (0, {})
    found = await world.collections.searcher.search(
        "c", [text_query("text 3")], SearchOptions(limit=100)
    )
    names = {match.id: match.payload["name"] for match in found.matches[0]}
    assert names == {name: name for name in [*(f"v{i}" for i in range(12)), "t"]}
    assert found.matches[0][0].id == "v3"
    await world.collections.reindexer.check("c", version)
    await world.collections.catalogue.create("none", keep_sources=False)
    with pytest.raises(FailedPrecondition) as kept:
        await upsert("none", sources, only_missing_sources=True)
    assert kept.value.reason == "SOURCES_NOT_KEPT"
