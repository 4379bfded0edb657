"""A collection searched with a version that it was not made for: opt-in, labelled, as told."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from support.moved import MovedEncoder, put_moved

from hotclip import AsyncClient, Hits, PointId, Vector
from hotclip.errors import FailedPrecondition, InvalidArgument, NotFound, SpaceMismatch
from hotclip_server.encoding.protocol import Tower
from hotclip_server.testing import FakeEncoder, RunningServer, running_server

TEXTS = [f"text {n}" for n in range(400)]
QUERIES = [f"query {n}" for n in range(40)]
K = 10


def vectors(encoder: FakeEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    return np.stack([encoder.vector(encoder.prepare_text(text)) for text in texts])


def rotation(dim: int) -> NDArray[np.float64]:
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, dim)))
    return np.asarray(q)


async def stage_turned(server: RunningServer, client: AsyncClient, source: str, by: float) -> str:
    base = server.encoder
    turn = rotation(base.spec.dim)
    put_moved(
        server.loader, source, MovedEncoder(base, source, by=by, towers=set(Tower), rotation=turn)
    )
    return (await client.load_version(source)).id


def recall(found: Sequence[Hits], query: NDArray[np.float32], points: NDArray[np.float32]) -> float:
    exact = np.argsort(-(query @ points.T), axis=1)[:, :K]
    shares = [
        len({hit.id for hit in hits} & {f"p{at}" for at in best}) / K
        for hits, best in zip(found, exact, strict=True)
    ]
    return float(np.mean(shares))


async def test_searches_over_a_bridge_are_what_they_say() -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        made = await client.create_collection("c")
        await client.upsert("c", [(f"p{n}", text) for n, text in enumerate(TEXTS)])
        version = await stage_turned(server, client, "fake:turned", 0.15)
        new = server.loader.encoders[version]
        for call in (client.get_bridge("c"), client.search("c", "q", bridge=True)):
            with pytest.raises(NotFound) as none:
                await call
            assert none.value.reason == "NO_BRIDGE"
        await client.record_feedback("c", [(query, "p1") for query in QUERIES[:20]])
        run = await client.fit_bridge("c", version, texts=QUERIES, k=K, name="fit")
        ended = await run.wait(60)
        bridge = await client.get_bridge("c")
        assert (bridge.bound_version, bridge.version) == (made.version, version)
        assert (bridge.space_id, bridge.current) == (new.spec.space_id, True)
        assert (bridge.fitted_points, bridge.measured_points) == (400, 400)
        assert bridge.collection_points == 400
        assert (bridge.queries, bridge.k) == (40, K)
        assert ended.metrics["recall_at_k"] == pytest.approx(bridge.recall)
        assert ended.metrics["query_recall_at_k"] == pytest.approx(bridge.query_recall)
        assert bridge.cosine_mean > 0.95

        # Nobody who does not ask gets it.
        plain = await client.search("c", QUERIES, limit=K, exact=True)
        assert {(h.version, h.space_id, h.bridge) for h in plain} == {
            (made.version, made.space_id, None)
        }
        found = await client.search("c", QUERIES, limit=K, exact=True, bridge=True)
        assert {(h.version, h.space_id) for h in found} == {(version, new.spec.space_id)}
        assert found[0].bridge == bridge
        asked, points = vectors(new, QUERIES), vectors(new, TEXTS)
        reached = recall(found, asked, points)
        assert bridge.query_recall is not None
        # Measured among all that is searched, by maps that were fitted on fewer of them.
        assert reached == pytest.approx(bridge.query_recall, abs=0.1)
        assert reached > 0.6
        # Scores approximate the cosines that the version itself gives.
        for hits, query in zip(found, asked, strict=True):
            exact = [float(query @ points[int(hit.id[1:])]) for hit in hits]
            np.testing.assert_allclose([hit.score for hit in hits], exact, atol=0.15)
            assert [hit.score for hit in hits] == sorted((h.score for h in hits), reverse=True)

        # Vectors of the new space belong here, and nowhere else.
        vector = Vector(asked[0], new.spec.space_id)
        by_vector = await client.search("c", vector, limit=K, exact=True, bridge=True)
        assert [hit.id for hit in by_vector] == [hit.id for hit in found[0]]
        with pytest.raises(SpaceMismatch):
            await client.search("c", vector)
        with pytest.raises(SpaceMismatch):
            await client.search("c", Vector(asked[0], made.space_id), bridge=True)
        with pytest.raises(SpaceMismatch):
            await client.search("c", "q", expected_space_id=made.space_id, bridge=True)
        again = await client.search("c", "q", expected_space_id=bridge.space_id, bridge=True)
        assert again.space_id == bridge.space_id
        by_point = await client.search("c", PointId("p7"), limit=K, exact=True, bridge=True)
        assert "p7" not in {hit.id for hit in by_point}
        own = points[7] @ points.T
        assert own[[int(h.id[1:]) for h in by_point]].mean() > np.sort(own)[-30:-1].mean()
        least = found[0][4].score - 1e-6
        fewer = await client.search(
            "c", QUERIES[0], limit=K, exact=True, bridge=True, score_threshold=least
        )
        assert len(fewer) == 5

        await (await client.reindex("c", version)).wait(60)
        await client.activate(version, collections=["c"])
        exact_now = await client.search("c", QUERIES, limit=K, exact=True, bridge=True)
        assert {(h.version, h.bridge) for h in exact_now} == {(version, None)}
        assert recall(exact_now, asked, points) > 0.99
        assert not (await client.get_bridge("c")).current
        third = (await client.load_version("fake:third")).id
        await (await client.reindex("c", third)).wait(60)
        await client.activate(third, collections=["c"])
        with pytest.raises(FailedPrecondition) as outdated:
            await client.search("c", "q", bridge=True)
        assert outdated.value.reason == "BRIDGE_OUTDATED"
        await client.delete_bridge("c")
        with pytest.raises(NotFound):
            await client.delete_bridge("c")


async def test_what_can_not_be_bridged_says_why() -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        made = await client.create_collection("few")
        await client.upsert("few", [(f"p{n}", text) for n, text in enumerate(TEXTS[:63])])
        version = await stage_turned(server, client, "fake:turned", 0.1)
        with pytest.raises(FailedPrecondition) as bound:
            await client.fit_bridge("few", made.version)
        assert bound.value.reason == "ALREADY_BOUND"
        with pytest.raises(InvalidArgument) as bad:
            await client.fit_bridge("few", "", texts=[""], sample=63, k=101, name="no name")
        assert {f.field for f in bad.value.fields} == {"version", "texts[0]", "sample", "k", "name"}
        with pytest.raises(NotFound):
            await client.fit_bridge("nobody", version)
        run = await client.fit_bridge("few", version)
        async for _ in run.events():
            pass
        error = (await run.job()).error
        assert error is not None
        assert error.reason == "TOO_FEW_POINTS"

        await client.upsert("few", [("p63", "one more")])
        command = [sys.executable, "-m", "hotclip", "--server", server.address]

        async def shell(*arguments: str) -> str:
            done = await asyncio.to_thread(
                subprocess.run, [*command, *arguments], capture_output=True, text=True, check=True
            )
            return done.stdout

        assert "64 of 64" in await shell("bridge", "fit", "few", version)
        shown = json.loads(await shell("bridge", "show", "few", "--json"))
        assert (shown["version"], shown["current"]) == (version, True)
        assert (
            json.loads(await shell("search", "few", "q", "--bridge", "--json"))["version"]
            == version
        )
        # The version goes: so does the bridge.
        await client.unload_version(version)
        with pytest.raises(FailedPrecondition) as gone:
            await client.search("few", "q", bridge=True)
        assert gone.value.reason == "VERSION_NOT_RESIDENT"
        await client.delete_version(version)
        with pytest.raises(NotFound):
            await client.search("few", "q", bridge=True)
