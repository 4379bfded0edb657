"""The Qdrant store's own: whose shards it sees, what it does when the server fails, its secret."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import AsyncQdrantClient, models
from support.search import search_world, text_point, text_query

from hotclip_server.app import make_vectors
from hotclip_server.config import ConfigError, ServerConfig
from hotclip_server.errors import FailedPrecondition, ResourceExhausted, Unavailable
from hotclip_server.search import qdrant_store
from hotclip_server.search.edge import EdgeStore
from hotclip_server.search.filters import MAX_INDEXED_KEYS, FieldTest, PayloadFilter
from hotclip_server.search.qdrant_store import QdrantStore, connect
from hotclip_server.search.searcher import SearchOptions
from hotclip_server.testing import FakeLoader

from .vectors import clustered, points

# What the engine in memory lacks; a server has it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Local mode performs exact"),
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect"),
]

SECRET = "key-that-nobody-may-see"


class Server:
    """Answers as Qdrant does that has no collections, after some answers with other statuses."""

    def __init__(self) -> None:
        self.first: list[tuple[int, str]] = []
        self.asked: list[str] = []
        self.keys: set[str | None] = set()
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told.asked.append(self.path)
                told.keys.add(self.headers.get("api-key"))
                empty = {"result": {"collections": []}, "status": "ok", "time": 0.0}
                code, body = told.first.pop(0) if told.first else (200, json.dumps(empty))
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
                """Says nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(qdrant_store, "_PAUSES_S", (0.01, 0.01, 0.01))
    with Server() as running:
        yield running


async def test_two_servers_share_one_qdrant(tmp_path: Path) -> None:
    client = AsyncQdrantClient(":memory:")
    one = QdrantStore(client, tmp_path / "one" / "namespace")
    other = QdrantStore(client, tmp_path / "other" / "namespace")
    await one.start()
    await other.start()
    await one.create("s", 4)
    await other.create("t", 4)
    assert (await one.shards(), await other.shards()) == (["s"], ["t"])
    await other.drop("s")
    assert await one.shards() == ["s"]
    again = QdrantStore(client, tmp_path / "one" / "namespace")
    with pytest.raises(Unavailable):
        await again.shards()
    await again.start()
    assert await again.shards() == ["s"]
    await client.close()


async def test_collections_move_to_another_store(tmp_path: Path) -> None:
    """Their sources are kept, so that a store that has nothing is filled from them."""
    loader = FakeLoader()
    async with search_world(tmp_path, loader) as world:
        await world.collections.catalogue.create("c")
        points = [text_point(f"{i}", f"text {i}", n=i) for i in range(300)]
        await world.collections.writer.upsert("c", points)
        await world.collections.writer.delete("c", ["7"])
    store = QdrantStore(AsyncQdrantClient(":memory:"), tmp_path / "namespace")
    async with search_world(tmp_path, loader, store=store) as world:
        assert await world.collections.count("c") == 299
        search = world.collections.searcher.search
        found = await search("c", [text_query("text 123")], SearchOptions(limit=1))
        assert [(m.id, m.payload) for m in found.matches[0]] == [("123", {"n": 123})]
        await world.collections.writer.upsert("c", [text_point("new", "new")])
        version = await world.load("two")
        job = await world.reindex("c", version)
        async for _ in world.jobs.watch(job):
            pass
        await world.registry.activate("default", version, collections=["c"])
        found = await search("c", [text_query("new")], SearchOptions(limit=1))
        assert (found.version, found.matches[0][0].id) == (version, "new")
        assert await world.collections.count("c") == 300


async def test_it_is_asked_again_while_it_is_away(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = QdrantStore(connect(server.url, SECRET, 5.0), tmp_path / "namespace")
    server.first = [(503, "busy"), (429, "slower")]
    await store.start()
    assert (server.asked, server.keys) == (["/collections"] * 3, {SECRET})
    server.first = [(500, "broken")] * 4
    with pytest.raises(Unavailable, match="500"):
        await store.shards()
    server.first = [(401, "who are you?")]
    with pytest.raises(FailedPrecondition) as refused:
        await store.shards()
    assert refused.value.reason == "VECTORS_REFUSED"
    server.first = [(500, "Service internal error: No space left on device")]
    with pytest.raises(ResourceExhausted) as full:
        await store.shards()
    assert full.value.reason == "DISK_FULL"
    await store.close()
    assert SECRET not in caplog.text
    assert SECRET not in repr(store) + repr(refused.value) + repr(full.value)


async def test_nobody_there_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant_store, "_PAUSES_S", (0.01,))
    store = QdrantStore(connect("http://127.0.0.1:1", SECRET, 1.0), tmp_path / "namespace")
    with pytest.raises(Unavailable) as away:
        await store.start()
    assert SECRET not in str(away.value)
    await store.close()


def test_the_key_is_not_shown_and_not_sent_in_clear() -> None:
    config = ServerConfig(vectors_url="https://vectors.example:6333", vectors_api_key=SECRET)
    assert SECRET not in repr(config)
    ServerConfig(vectors_url="http://127.0.0.1:6333", vectors_api_key=SECRET)
    ServerConfig(vectors_url="http://[::1]:6333/qdrant", vectors_api_key=SECRET)
    ServerConfig(vectors_url="http://vectors.example:6333")
    with pytest.raises(ConfigError) as clear:
        ServerConfig(vectors_url="http://vectors.example:6333", vectors_api_key=SECRET)
    assert set(clear.value.problems) == {"vectors_api_key"}
    urls = ("vectors.example", f"https://me:{SECRET}@vectors.example", "http://a?b=c", "ftp://a")
    for url in urls:
        with pytest.raises(ConfigError) as bad:
            ServerConfig(vectors_url=url)
        assert set(bad.value.problems) == {"vectors_url"}
        assert SECRET not in str(bad.value)


async def test_the_url_chooses_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_vectors(ServerConfig(data_dir=tmp_path)), EdgeStore)
    remote = ServerConfig(data_dir=tmp_path, vectors_url="http://127.0.0.1:1")
    store = make_vectors(remote)
    assert isinstance(store, QdrantStore)
    await store.close()
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    monkeypatch.delitem(sys.modules, "hotclip_server.search.qdrant_store")
    with pytest.raises(ConfigError, match=r"pip install 'hotclip\[qdrant\]'"):
        make_vectors(remote)


class Recorder(AsyncQdrantClient):
    """Knows which payload indexes were asked for."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.indexes: list[tuple[str, object]] = []

    async def create_payload_index(
        self, collection_name: str, field_name: str, field_schema: Any = None, **options: Any
    ) -> Any:
        self.indexes.append((field_name, field_schema))
        return await super().create_payload_index(
            collection_name, field_name, field_schema, **options
        )


async def test_what_is_filtered_by_gets_an_index_once(tmp_path: Path) -> None:
    client = Recorder()
    store = QdrantStore(client, tmp_path / "namespace")
    await store.start()
    await store.create("s", 4)
    await store.upsert("s", points(20), clustered(20, 4))
    wanted = PayloadFilter(
        must=(FieldTest(key="n", gte=3), FieldTest(key="n", values=(7,))),
        should=(FieldTest(key="a b", values=("x", "y")), FieldTest(key="even", values=(False,))),
    )
    for _ in range(2):
        (hits,) = await store.search("s", clustered(1, 4), limit=9, payload_filter=wanted)
        assert [match.id for match in hits] == ["id 7"]
        assert await store.count("s", wanted) == 1
    schema = models.PayloadSchemaType
    made = [("p.n", schema.FLOAT), ('p."a b"', schema.KEYWORD), ("p.even", schema.BOOL)]
    assert client.indexes == made
    # Callers can't make any number of them.
    many = PayloadFilter(should=tuple(FieldTest(key=f"k{i}", values=("x",)) for i in range(40)))
    await store.count("s", many)
    assert len(client.indexes) == MAX_INDEXED_KEYS
    await store.drop("s")
    await store.create("s", 4)
    await store.count("s", wanted)
    assert client.indexes[MAX_INDEXED_KEYS:] == made
    await store.close()


class Unwell(AsyncQdrantClient):
    """Says at each look what a server would: an index is being built, then that it failed."""

    def __init__(self, *said: models.CollectionStatus) -> None:
        super().__init__(":memory:")
        self.left = list(said)

    async def get_collection(self, collection_name: str, **options: Any) -> models.CollectionInfo:
        told = await super().get_collection(collection_name, **options)
        told.status = self.left.pop(0)
        if told.status is models.CollectionStatus.RED:
            told.optimizer_status = models.OptimizersStatusOneOf1(error="no space in the segment")
        return told


async def test_an_index_that_failed_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant_store, "_POLL_S", 0.001)
    status = models.CollectionStatus
    client = Unwell(status.YELLOW, status.RED, status.YELLOW, status.GREEN)
    store = QdrantStore(client, tmp_path / "namespace")
    await store.start()
    await store.create("s", 4)
    with pytest.raises(FailedPrecondition, match="no space in the segment") as failed:
        await store.optimize("s")
    assert failed.value.reason == "INDEX_FAILED"
    await store.optimize("s")
    assert client.left == []
    await store.close()
