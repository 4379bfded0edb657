"""Search against real server processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray
from safetensors.torch import save_file
from support.pictures import encoded, photograph
from support.search import text_point, text_query
from support.server import ServerProcess
from support.small_models import model_cfg, random_model

from hotclip_proto.v1 import (
    encode_pb2,
    encode_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
)
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.encoding.architecture import OpenClipConfig

StartServer = Callable[..., ServerProcess]
POINTS = 20_000
LONGEST_GAP_S = 0.05
"""What an index build may add to the longest gap between two answers of Encode."""


@pytest.fixture
def search(server: ServerProcess) -> Iterator[search_pb2_grpc.SearchServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield search_pb2_grpc.SearchServiceStub(channel)


def create(stub: search_pb2_grpc.SearchServiceStub, name: str) -> search_pb2.Collection:
    return stub.CreateCollection(search_pb2.CreateCollectionRequest(name=name), timeout=20)


def reason(error: grpc.RpcError) -> str:
    status: status_pb2.Status = rpc_status.from_call(error)
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return ""


def test_images_are_found_by_image_text_vector_and_id(
    search: search_pb2_grpc.SearchServiceStub, server: ServerProcess
) -> None:
    made = create(search, "mixed")
    pictures = [encoded(photograph(seed), "JPEG") for seed in range(8)]
    points = [
        search_pb2.Point(id=f"p{i}", item=EncodeItem(image=image))
        for i, image in enumerate(pictures)
    ]
    for i, point in enumerate(points):
        point.payload.update({"n": i, "even": i % 2 == 0, "o": {"name": f"p{i}"}})
    points.append(search_pb2.Point(id="bad", item=EncodeItem(image=b"no image")))
    done = search.Upsert(search_pb2.UpsertRequest(collection="mixed", points=points), timeout=30)
    assert (done.upserted, done.version, done.space_id) == (8, made.version, made.space_id)
    assert [(e.index, e.code, e.reason) for e in done.errors] == [(8, 3, "IMAGE_FORMAT")]

    with grpc.insecure_channel(server.address) as channel:
        items = [EncodeItem(image=pictures[3]), EncodeItem(text="a red fox")]
        vectors = (
            encode_pb2_grpc.EncodeServiceStub(channel)
            .Encode(encode_pb2.EncodeRequest(items=items), timeout=20)
            .vectors.data
        )
    vector = search_pb2.Vector(data=vectors[: 4 * made.dim], space_id=made.space_id)
    request = search_pb2.SearchRequest(
        collection="mixed",
        queries=[
            search_pb2.Query(item=items[0]),
            search_pb2.Query(vector=vector),
            search_pb2.Query(point_id="p3"),
            text_query("a red fox"),
        ],
        limit=8,
        exact=True,
        expected_space_id=made.space_id,
    )
    answer = search.Search(request, timeout=20)
    assert (answer.version, answer.space_id) == (made.version, made.space_id)
    by_image, by_vector, by_id, by_text = answer.results
    assert by_image.hits[0].id == by_vector.hits[0].id == "p3"
    assert by_image.hits[0].score == pytest.approx(1.0, abs=1e-4)
    assert by_image.hits[0].payload["o"]["name"] == "p3"
    assert [hit.id for hit in by_id.hits] == [hit.id for hit in by_image.hits[1:]]
    stored = np.frombuffer(vectors, "<f4").reshape(2, -1)
    similarity = {hit.id: hit.score for hit in by_text.hits}
    assert similarity["p3"] == pytest.approx(float(stored[0] @ stored[1]), abs=1e-4)

    must = [search_pb2.Condition(key="even", equals_bool=True)]
    must.append(search_pb2.Condition(key="n", range=search_pb2.Range(gt=2)))
    request.filter.must.extend(must)
    filtered = search.Search(request, timeout=20)
    assert {hit.id for hit in filtered.results[0].hits} == {"p4", "p6"}
    gone = search_pb2.DeleteRequest(collection="mixed", ids=["p4", "nobody"])
    assert search.Delete(gone, timeout=20).deleted == 1
    got = search.GetCollection(search_pb2.GetCollectionRequest(name="mixed"), timeout=20)
    assert (got.points, got.keep_sources, got.shadow_version) == (7, True, "")


def test_errors_carry_status_and_reason(search: search_pb2_grpc.SearchServiceStub) -> None:
    made = create(search, "errors")
    with pytest.raises(grpc.RpcError) as twice:
        create(search, "errors")
    assert twice.value.code() is grpc.StatusCode.ALREADY_EXISTS
    foreign = search_pb2.Vector(data=bytes(4 * made.dim), space_id="elsewhere")
    request = search_pb2.SearchRequest(
        collection="errors", queries=[search_pb2.Query(vector=foreign)]
    )
    with pytest.raises(grpc.RpcError) as mismatch:
        search.Search(request, timeout=20)
    assert mismatch.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason(mismatch.value) == "SPACE_MISMATCH"
    bad = search_pb2.SearchRequest(collection="errors", queries=[text_query("x")])
    bad.filter.must.add(key="a..b", equals_int=1)
    with pytest.raises(grpc.RpcError) as path:
        search.Search(bad, timeout=20)
    assert path.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "filter.must[0].key" in path.value.details()
    with pytest.raises(grpc.RpcError) as version:
        search.Reindex(search_pb2.ReindexRequest(collection="errors", version="x"), timeout=20)
    assert version.value.code() is grpc.StatusCode.NOT_FOUND
    search.DeleteCollection(search_pb2.DeleteCollectionRequest(name="errors"), timeout=20)
    with pytest.raises(grpc.RpcError) as absent:
        search.GetCollection(search_pb2.GetCollectionRequest(name="errors"), timeout=20)
    assert absent.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(
    search: search_pb2_grpc.SearchServiceStub, number: float
) -> None:
    name = f"finite-{number}"
    create(search, name)
    odd = search_pb2.SearchRequest(
        collection=name, queries=[text_query("x")], score_threshold=number
    )
    bounds = search_pb2.SearchRequest(collection=name, queries=[text_query("x")])
    bounds.filter.must.add(key="a", range=search_pb2.Range(gt=number))
    for request, field in ((odd, "score_threshold"), (bounds, "filter.must[0].range")):
        with pytest.raises(grpc.RpcError) as refused:
            search.Search(request, timeout=20)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in refused.value.details()


def test_reindex_names_every_bad_field(search: search_pb2_grpc.SearchServiceStub) -> None:
    bad = search_pb2.ReindexRequest(collection="any", name="a/b", request_id="x" * 129)
    with pytest.raises(grpc.RpcError) as refused:
        search.Reindex(bad, timeout=20)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for field in ("version", "name", "request_id"):
        assert f"{field}: " in refused.value.details()


def test_a_bad_item_among_points_has_its_own_index(
    search: search_pb2_grpc.SearchServiceStub,
) -> None:
    made = create(search, "index")
    vector = search_pb2.Vector(data=bytes(4 * made.dim), space_id=made.space_id)
    points = [
        search_pb2.Point(id="zero", vector=vector),
        search_pb2.Point(id="empty", item=EncodeItem(text="")),
    ]
    answer = search.Upsert(search_pb2.UpsertRequest(collection="index", points=points), timeout=20)
    assert [error.index for error in answer.errors] == [0, 1]
    assert answer.errors[1].message == "text: empty"


def test_collections_are_listed_in_pages(search: search_pb2_grpc.SearchServiceStub) -> None:
    names = [f"page-{i}" for i in range(5)]
    for name in names:
        create(search, name)
    found: list[str] = []
    token = ""
    while True:
        page = search.ListCollections(
            search_pb2.ListCollectionsRequest(page_size=2, page_token=token), timeout=20
        )
        found += [collection.name for collection in page.collections]
        token = page.next_page_token
        if not token:
            break
    assert [name for name in found if name.startswith("page-")] == names
    assert found == sorted(found)


def test_acknowledged_points_survive_kill_9_of_the_server(
    make_server: StartServer, tmp_path: Path
) -> None:
    server = make_server(data_dir=tmp_path / "data")
    acknowledged: list[int] = []
    with grpc.insecure_channel(server.address) as channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)
        create(stub, "c")

        def write() -> None:
            for i in range(10_000):
                points = [text_point(f"{i}", f"text {i}", n=i)]
                try:
                    stub.Upsert(search_pb2.UpsertRequest(collection="c", points=points), timeout=20)
                except grpc.RpcError:
                    return
                acknowledged.append(i)

        writer = threading.Thread(target=write)
        writer.start()
        while len(acknowledged) < 50 and writer.is_alive():
            time.sleep(0.005)
        server.kill()
        writer.join()
    again = make_server(data_dir=tmp_path / "data")
    with grpc.insecure_channel(again.address) as channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)
        got = stub.GetCollection(search_pb2.GetCollectionRequest(name="c"), timeout=20)
        assert len(acknowledged) <= got.points <= len(acknowledged) + 1
        queries = [text_query(f"text {i}") for i in acknowledged[-50:]]
        request = search_pb2.SearchRequest(collection="c", queries=queries, limit=1000)
        results = stub.Search(request, timeout=20).results
    assert len(acknowledged) >= 50
    assert {str(i) for i in acknowledged} <= {hit.id for hit in results[0].hits}


def test_a_reindex_outlives_kill_9_of_the_server(make_server: StartServer, tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_wide_model(models / "other")
    flags = ("--models-dir", str(models))
    server = make_server(*flags, data_dir=tmp_path / "data")
    texts = [f"text {i}" for i in range(3000)]
    with grpc.insecure_channel(server.address) as channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)
        create(stub, "c")
        for start in range(0, len(texts), 1000):
            points = [text_point(text, text) for text in texts[start : start + 1000]]
            stub.Upsert(search_pb2.UpsertRequest(collection="c", points=points), timeout=60)
        load = model_pb2.LoadVersionRequest(source="local:other")
        version = model_pb2_grpc.ModelServiceStub(channel).LoadVersion(load, timeout=60).id
        reindex = search_pb2.ReindexRequest(collection="c", version=version, request_id="once")
        job = stub.Reindex(reindex, timeout=20)
        assert stub.Reindex(reindex, timeout=20).id == job.id
        jobs = job_pb2_grpc.JobServiceStub(channel)
        while jobs.GetJob(job_pb2.GetJobRequest(job=job.id), timeout=20).progress == 0:
            time.sleep(0.005)
        server.kill()
    again = make_server(*flags, data_dir=tmp_path / "data")
    with grpc.insecure_channel(again.address) as channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)
        watch = job_pb2.WatchJobRequest(job=job.id)
        events = list(job_pb2_grpc.JobServiceStub(channel).WatchJob(watch, timeout=60))
        assert events[-1].state.state == job_pb2.JOB_STATE_SUCCEEDED
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        activate = model_pb2.ActivateVersionRequest(version=version, collections=["c"])
        model_pb2_grpc.ModelServiceStub(channel).ActivateVersion(activate, timeout=60)
        request = search_pb2.SearchRequest(collection="c", queries=[text_query("text 7")])
        answer = stub.Search(request, timeout=20)
        assert (answer.version, answer.results[0].hits[0].id) == (version, "text 7")
        got = stub.GetCollection(search_pb2.GetCollectionRequest(name="c"), timeout=20)
        assert (got.points, got.version) == (3000, version)


class EncodeLoad:
    """One caller that encodes a text after the other; remembers when each answer came."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self._ends: list[float] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> EncodeLoad:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def longest_gap(self, start: float, end: float) -> float:
        """Seconds between two answers in a window of time.perf_counter."""
        ends = np.array([t for t in self._ends if start <= t <= end])
        assert len(ends) > 50, "too few answers for a measurement"
        return float(np.diff(ends).max())

    def _run(self) -> None:
        with grpc.insecure_channel(self._address) as channel:
            stub = encode_pb2_grpc.EncodeServiceStub(channel)
            request = encode_pb2.EncodeRequest(items=[EncodeItem(text="a red fox")])
            while not self._stop.is_set():
                stub.Encode(request, timeout=60)
                self._ends.append(time.perf_counter())


@pytest.mark.alone
@pytest.mark.slow
def test_encode_gap_during_index_build(make_server: StartServer, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "wide"
    write_wide_model(folder)
    server = make_server("--model", "local:wide", "--models-dir", str(folder.parent))
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((100, 512))
    vectors = centres[rng.integers(0, 100, POINTS)] + 0.7 * rng.standard_normal((POINTS, 512))
    added: list[float] = []
    with grpc.insecure_channel(server.address) as channel, EncodeLoad(server.address) as load:
        stub = search_pb2_grpc.SearchServiceStub(channel)
        for attempt in range(3):
            time.sleep(1.0)
            idle = time.perf_counter(), time.sleep(4.0) or time.perf_counter()
            collection = create(stub, f"c{attempt}")
            upsert(stub, collection, vectors.astype("<f4"))
            began, ended = wait_for_build(server.data_dir)
            added.append(load.longest_gap(began, ended) - load.longest_gap(*idle))
            print(f"index build {ended - began:.2f} s, longest gap {1e3 * added[-1]:+.1f} ms")
            if added[-1] <= LONGEST_GAP_S:
                break
            stub.DeleteCollection(search_pb2.DeleteCollectionRequest(name=collection.name))
    assert min(added) <= LONGEST_GAP_S


def write_wide_model(folder: Path) -> None:
    """A small model of 512 dimensions."""
    folder.mkdir(parents=True)
    config = OpenClipConfig(
        model={**model_cfg(), "embed_dim": 512},
        preprocess={"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]},
    )
    (folder / "open_clip_config.json").write_bytes(config.to_json())
    weights = random_model(config, folder, seed=0).state_dict()
    save_file(weights, folder / "open_clip_model.safetensors")


def upsert(
    stub: search_pb2_grpc.SearchServiceStub,
    collection: search_pb2.Collection,
    vectors: NDArray[np.float32],
) -> None:
    """Stores given vectors, 1,000 a request."""
    for start in range(0, len(vectors), 1000):
        points = [
            search_pb2.Point(
                id=f"{start + at}",
                vector=search_pb2.Vector(data=row.tobytes(), space_id=collection.space_id),
            )
            for at, row in enumerate(vectors[start : start + 1000])
        ]
        request = search_pb2.UpsertRequest(collection=collection.name, points=points)
        assert stub.Upsert(request, timeout=60).upserted == len(points)


def wait_for_build(data_dir: Path) -> tuple[float, float]:
    """When the index build of the newest shard began and ended; it works on a copy."""

    def building() -> bool:
        return any(len(list(s.glob("gen-*"))) > 1 for s in (data_dir / "vectors").iterdir())

    def wait(state: bool) -> float:
        ends = time.monotonic() + 120
        while building() is not state:
            assert time.monotonic() < ends, "no index build"
            time.sleep(0.01)
        return time.perf_counter()

    return wait(True), wait(False)
