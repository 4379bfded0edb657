"""What a change of version changes, told before it is made: against numpy, and on a real model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.drawings import drawn_pairs
from support.moved import MovedEncoder, put_moved
from support.server import ServerProcess

from hotclip import AsyncClient, Client, CollectionNeed, Pair, Point, Vector
from hotclip.errors import FailedPrecondition, InvalidArgument, NotFound
from hotclip_server.drift.shift import cosines, overlap_of_queries, overlap_within
from hotclip_server.encoding.protocol import Tower
from hotclip_server.testing import FakeEncoder, RunningServer, running_server

TEXTS = [f"text {n}" for n in range(120)]
IMAGES = [b"\x89PNG" + bytes([n]) for n in range(80)]
QUERIES = ["a query", "another query", "a third"]


def texts_of(encoder: FakeEncoder, texts: list[str]) -> NDArray[np.float32]:
    return np.stack([encoder.vector(encoder.prepare_text(text)) for text in texts])


def images_of(encoder: FakeEncoder) -> NDArray[np.float32]:
    return np.stack([encoder.vector(encoder.prepare_image(image)) for image in IMAGES])


async def stage_moved(server: RunningServer, client: AsyncClient, **how: object) -> str:
    name = "fake:moved"
    put_moved(server.loader, name, MovedEncoder(server.encoder, name, **how))  # type: ignore[arg-type]  # as given
    return (await client.load_version(name)).id


async def test_a_report_says_what_moves_and_what_must_follow() -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        for name in ("pictures", "words", "given"):
            await client.create_collection(name)
        await client.upsert("pictures", [Point(f"i{n}", image) for n, image in enumerate(IMAGES)])
        await client.upsert("words", [Point(f"t{n}", text) for n, text in enumerate(TEXTS)])
        await client.create_collection("bare", keep_sources=False)
        await client.upsert("bare", [Point(f"i{n}", image) for n, image in enumerate(IMAGES[:9])])
        made = await client.get_collection("given")
        vector = Vector(np.eye(1, made.dim, dtype=np.float32)[0], made.space_id)
        await client.upsert("given", [Point("v", vector), Point("t", "a text")])
        await client.record_feedback("pictures", [(query, "i1") for query in QUERIES])
        version = await stage_moved(server, client, by=0.4, towers={Tower.TEXT})

        run = await client.compare_versions(version, texts=QUERIES[:1], sample=1000, k=5, name="d")
        assert (await run.wait(60)).name == "d"
        report = await client.drift_report("d")
        old, new = server.encoder, server.loader.encoders[version]
        assert (report.version, report.base_version) == (
            version,
            (await client.get_model()).live_version,
        )
        assert (report.space_id, report.base_space_id) == (new.spec.space_id, old.spec.space_id)

        assert report.towers["clip-vision"].unchanged
        moved = report.towers["clip-text"]
        # 120 stored words, three queries that were recorded or given, and one text of "given".
        every = [*QUERIES, *TEXTS, "a text"]
        shift = cosines(texts_of(old, every), texts_of(new, every))
        assert (moved.unchanged, moved.items) == (False, len(every))
        assert moved.cosine_mean == pytest.approx(shift.mean(), abs=1e-5)
        assert moved.cosine_quantiles[0.5] == pytest.approx(np.median(shift), abs=1e-5)
        assert 0.8 < shift.mean() < 0.97

        pictures, words = report.collections["pictures"], report.collections["words"]
        assert (pictures.need, pictures.images, pictures.to_encode) == (CollectionNeed.NONE, 80, 0)
        assert (pictures.overlap, pictures.reindex_s) == (1.0, 0.0)
        image_rows = images_of(old)
        found = overlap_of_queries(
            (texts_of(old, QUERIES), image_rows), (texts_of(new, QUERIES), image_rows), 5
        )
        assert found is not None
        assert (pictures.queries, pictures.query_overlap) == (3, pytest.approx(found.mean))
        assert (words.need, words.texts, words.to_encode) == (CollectionNeed.REINDEX, 120, 120)
        within = overlap_within(texts_of(old, TEXTS), texts_of(new, TEXTS), 5)
        assert within is not None
        assert words.overlap == pytest.approx(within.mean, abs=0.01)
        assert words.sampled == 120
        assert words.reindex_s is not None
        assert report.reindex_s == pytest.approx(words.reindex_s)
        assert words.reindex_s > 120 / (moved.items_per_s or 0) > 0
        assert report.collections["given"].need is CollectionNeed.SOURCES
        assert any("given" in remark for remark in report.remarks)
        # Nobody kept its sources, and nobody needs them: it held images alone.
        bare = report.collections["bare"]
        assert (bare.need, bare.points, bare.sampled) == (CollectionNeed.NONE, 9, 0)
        assert not any("bare" in remark for remark in report.remarks)

        lines = [line.message for line in await run.logs()]
        assert "clip-vision is unchanged" in lines
        assert any(
            line.startswith("collection words of 120 points needs: reindex") for line in lines
        )
        metrics = await run.metrics()
        assert metrics["clip-text_cosine_mean"] == pytest.approx(moved.cosine_mean)
        assert metrics["clip-vision_cosine_mean"] == 1.0
        assert metrics["overlap_at_k"] == pytest.approx(words.overlap)
        assert metrics["reindex_s"] == pytest.approx(report.reindex_s)
        # What was made resident for it, or stored to time it, is gone.
        assert (await client.get_version(version)).state.value == "STAGED"
        used = {
            s for c in server.app.parts.collections.catalogue.list() for s in c.targets().values()
        }
        assert set(await server.app.parts.vectors.shards()) == used

        job = await client.reindex("words", version)
        await job.wait(60)
        again = await client.compare_versions(version, collections=["words"])
        await again.wait(60)
        ready = await client.drift_report(again.id)
        assert list(ready.collections) == ["words"]
        assert ready.collections["words"].need is CollectionNeed.DONE


async def test_a_collection_that_is_deleted_meanwhile_is_left_out() -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        for name in ("kept", "lost"):
            await client.create_collection(name)
            await client.upsert(name, [Point(f"t{n}", text) for n, text in enumerate(TEXTS[:20])])
        version = await stage_moved(server, client, by=0.4, towers={Tower.TEXT})
        faults = server.loader.encoders[version].faults
        faults.hang = threading.Event()
        run = await client.compare_versions(version, texts=["a query"], name="d")
        async with asyncio.timeout(10):
            while (await run.job()).state != "RUNNING":  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        await client.delete_collection("lost")
        async with asyncio.timeout(10):
            while len(await server.app.parts.vectors.shards()) > 1:  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.02)
        faults.hang.set()
        await run.wait(60)
        report = await client.drift_report("d")
        assert list(report.collections) == ["kept"]
        assert any(remark.startswith("lost left out") for remark in report.remarks)


async def test_requests_are_checked_whole() -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        live = (await client.get_model()).live_version
        other = (await client.load_version("fake:other")).id
        with pytest.raises(FailedPrecondition) as nothing:
            await client.compare_versions(other)
        assert nothing.value.reason == "NOTHING_TO_COMPARE"
        with pytest.raises(InvalidArgument, match="compared with"):
            await client.compare_versions(live, texts=["a"])
        with pytest.raises(InvalidArgument) as bad:
            await client.compare_versions("", texts=[""], sample=1, k=0, name="no name")
        assert {f.field for f in bad.value.fields} == {"version", "texts[0]", "sample", "k", "name"}
        for unknown in (
            {"collections": ["nobody"]},
            {"data": "nobody"},
            {"base_version": "nobody"},
        ):
            with pytest.raises(NotFound):
                await client.compare_versions(other, texts=["a"], **unknown)  # type: ignore[arg-type]  # one of each
        run = await client.compare_versions(other, texts=["a", "b"])
        await run.wait(60)
        report = await client.drift_report(run.id)
        # Nothing is known of images, and two texts prove little: it says so.
        assert report.towers["clip-vision"].cosine_mean is None
        assert report.towers["clip-text"].items == 2
        assert len(report.remarks) == 2
        with pytest.raises(NotFound):
            await client.drift_report("nobody")


def test_a_tuned_model_its_page_and_its_command(server: ServerProcess, tmp_path: Path) -> None:
    drawn = [(text, image) for image, text in drawn_pairs()]
    with Client(server.address) as client:
        client.create_collection("drawn")
        client.upsert("drawn", [Point(text, image) for text, image in drawn])
        tuned = client.finetune(
            drawn[:24],
            val_split=0,
            max_steps=6,
            batch_size=8,
            learning_rate=1e-3,
            method="lit",
            activation="never",
        ).wait(120)
        version = tuned.result_version
        command = [sys.executable, "-m", "hotclip", "--server", server.address, "drift"]
        (tmp_path / "pairs.csv").write_text(
            "\n".join(
                ["text,image"] + [f"{text},{n}.png" for n, (text, _) in enumerate(drawn[16:])]
            )
        )
        for n, (_, image) in enumerate(drawn[16:]):
            (tmp_path / f"{n}.png").write_bytes(image)
        told = subprocess.run(
            [*command, version, "--data", "pairs.csv", "--name", "tuned", "--collections", "drawn"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert told.returncode == 0, told.stderr
        assert "nothing: vectors stay valid" in told.stdout
        assert "clip-text-to-clip-vision_reciprocal_rank" in told.stdout
        shown = subprocess.run(
            [*command, "--job", "tuned", "--json"], capture_output=True, text=True, check=True
        )
        report = client.drift_report("tuned")
        assert json.loads(shown.stdout)["reindex_s"] == report.reindex_s == 0.0
        assert report.towers["clip-vision"].unchanged
        assert report.collections["drawn"].overlap == 1.0
        assert report.towers["clip-text"].items == 16
        # The held-out figures are those that an evaluation gives.
        for which, held_out in ((version, report.after), (report.base_version, report.before)):
            pairs = [Pair(text, image) for text, image in drawn[16:]]
            measured = client.evaluate(pairs, version=which, k=10).wait(60).metrics
            assert held_out == pytest.approx(dict(measured))
        page = client.get_job("tuned").report(tmp_path).read_text("utf-8")
        for part in ("What changes", "the same encoder", "Search quality", "No collection needs"):
            assert part in page
        with pytest.raises(FailedPrecondition) as wrong:
            client.drift_report(tuned.id)
        assert wrong.value.reason == "NO_DRIFT_REPORT"
        client.delete_collection("drawn")
        client.delete_version(version)
