"""The suite search: how right, how fast and how undisturbing stored vectors are searched."""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.encode_model import SERVER_DEFAULTS, START_S, note
from benchmarks.engines import wait_for_engines
from benchmarks.figures import Figure
from benchmarks.load import Load
from benchmarks.search_corpus import Corpus, make_corpus, tenth_nearest
from benchmarks.segment import Busy
from benchmarks.server_process import ServerProcess, running_server
from benchmarks.settings import Settings
from benchmarks.timing import paired_ratio
from benchmarks.wide_model import write_wide_model
from benchmarks.worker import Worker, WorkerFailed
from hotclip import Client, Vector

MINI, WIDE = "builtin:mini", "local:wide"
COLLECTION, OTHER = "emoji", "other"
BATCH = 64
PATIENCE_S = 900.0
POLL_S, SETTLED_S = 0.2, 3.0
"""How often it is asked whether an index is built, and for how long the answer must be no."""
FILTERS: dict[str, dict[str, str | int]] = {"half": {"style": "openmoji"}, "few": {"variant": 1}}
EXACT_QUERIES = 100
"""Queries whose exact answers are checked."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much there is."""

    points: int
    queries: int
    other_points: int
    """Of the collection that is indexed while Encode is called."""
    dim: int = 512
    concepts: int = 0
    """Emoji that are drawn; 0: all."""


FULL = Plan(points=100_000, queries=1000, other_points=25_000)
QUICK = Plan(points=1500, queries=128, other_points=1500, dim=2048, concepts=60)
"""An index is built from ten megabytes of vectors on: fewer, longer ones are quicker made."""


def search(settings: Settings) -> Iterator[Figure]:
    """Every figure, of one server with one collection.

    Raises:
        WorkerFailed: a call failed, or exact search did not find the nearest.
    """
    plan = QUICK if settings.quick else FULL
    with tempfile.TemporaryDirectory(prefix="hotclip-bench-") as name:
        folder = Path(name)
        write_wide_model(folder / "models" / "wide", plan.dim)
        options = (
            *("--model", MINI, "--models-dir", str(folder / "models")),
            *("--device", settings.device, *settings.server_options),
        )
        with (
            running_server(
                folder / "data", *options, program=settings.program, start_s=START_S
            ) as server,
            Client(server.address, timeout=PATIENCE_S) as client,
        ):
            bench = _Bench(settings, plan, folder, server, client)
            yield from bench.fill()
            yield from bench.right()
            yield from bench.fast()
            yield from bench.undisturbed()
            query = bench.query
        yield _reopened(folder / "data", options, settings, query)


class _Bench:
    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        folder: Path,
        server: ServerProcess,
        client: Client,
    ) -> None:
        self._settings = settings
        self._plan = plan
        self._folder = folder
        self._server = server
        self._client = client
        serving = wait_for_engines(client)
        began = time.perf_counter()
        self._corpus: Corpus = make_corpus(
            client,
            serving.image_size,
            points=plan.points,
            queries=plan.queries,
            concepts=plan.concepts,
            dim=plan.dim,
        )
        note(f"{plan.points} drawings encoded in {time.perf_counter() - began:.0f} s")
        self._version = client.load_version(WIDE)
        wait_for_engines(client)

    @property
    def query(self) -> Vector:
        """The first one."""
        return Vector(self._corpus.queries[0], self._version.space_id)

    def fill(self) -> Iterator[Figure]:
        """Insert rate, then the time until the index is built."""
        seconds, busy = self._insert(COLLECTION, self._plan.points)
        yield Figure(
            name="search.insert_per_s",
            value=self._plan.points / seconds,
            unit="points/s",
            generator_cpu=busy[0],
            server_cpu=busy[1],
        )
        built_s = self._wait_for_index(COLLECTION)
        indexed = self._client.get_collection(COLLECTION).indexed_points
        note(f"{self._plan.points} inserted in {seconds:.0f} s; index after {built_s:.0f} s more")
        if not indexed:
            raise WorkerFailed("no index was built")
        yield Figure(name="search.index_build_s", value=built_s, unit="s", baseline=seconds)

    def right(self) -> Iterator[Figure]:
        """Recall against comparing everything here."""
        nearest = {"all": tenth_nearest(self._corpus)}
        for name, wanted in FILTERS.items():
            chosen = [
                at
                for at, payload in enumerate(self._corpus.payloads)
                if wanted.items() <= payload.items()
            ]
            nearest[name] = tenth_nearest(self._corpus, chosen)
        for name, truth in nearest.items():
            np.save(self._folder / f"{name}.npy", truth)
        np.save(self._folder / "exact.npy", nearest["all"][:EXACT_QUERIES])
        np.save(self._folder / "queries.npy", self._corpus.queries)
        with self._searches() as searches:
            exact, _ = self._recall(searches, "exact", exact=True)
            if exact < 1.0:
                raise WorkerFailed(f"exact search found {exact:.4f} of the nearest")
            recall, halves = self._recall(searches, "all")
            yield Figure(name="search.recall_at_10", value=recall, unit="share")
            for kind, half in zip(("pictures", "names"), halves, strict=True):
                yield Figure(name=f"search.recall_at_10.{kind}", value=half, unit="share")
            for name, wanted in FILTERS.items():
                yield Figure(
                    name=f"search.recall_at_10.filtered.{name}",
                    value=self._recall(searches, name, wanted)[0],
                    unit="share",
                )

    def fast(self) -> Iterator[Figure]:
        """Searches in turn with those of the engine called directly on a copy of the index."""
        self._wait_for_index(COLLECTION)  # Of what was filtered by.
        copy = self._folder / "engine"
        _copy_index(self._folder / "data" / "vectors", copy)
        told = {"seconds": self._settings.seconds / 2}
        plain = {**told, "filter": None, "exact": False}
        sizes = {"single": 1, "batch": BATCH}
        served: dict[str, list[dict[str, Any]]] = {name: [] for name in sizes}
        direct: dict[str, list[dict[str, Any]]] = {name: [] for name in sizes}
        with (
            self._searches() as searches,
            Worker("benchmarks.search_engine", defaults=SERVER_DEFAULTS) as engine,
        ):
            opened = {"folder": str(copy), "queries": str(self._folder / "queries.npy")}
            open_s = engine.ask("open", opened)["seconds"]
            for turn in range(self._settings.rounds):
                for name, size in sizes.items():
                    served[name].append(searches.ask(name, {**plain, "size": size}))
                    direct[name].append(engine.ask(name, {**told, "size": size}))
                    note(
                        f"{name} {turn + 1}/{self._settings.rounds}: served p50"
                        f" {served[name][-1]['p50_ms']:.2f} ms,"
                        f" engine {direct[name][-1]['p50_ms']:.2f} ms"
                    )
            engine.ask("close")
            yield from _speed(served, direct)
            yield Figure(name="search.engine_open_s", value=open_s, unit="s")
            for name, wanted in FILTERS.items():
                found = searches.ask("single", {**plain, "filter": wanted})
                yield from _percentiles(f"search.filtered.{name}", [found])
            found = searches.ask("single", {**plain, "exact": True})
            yield from _percentiles("search.exact", [found])

    def undisturbed(self) -> Iterator[Figure]:
        """The longest gap between two answers of Encode while an index is built, and while
        nothing is."""
        self._insert(OTHER, self._plan.other_points)
        with Load(self._server.address) as load:
            began = time.monotonic()
            seconds = max(self._wait_for_index(OTHER), 1.0)
            building = _longest_gap_ms(load, began, began + seconds)
        if not self._client.get_collection(OTHER).indexed_points:
            raise WorkerFailed("no index was built beside Encode")
        with Load(self._server.address) as control:
            began = time.monotonic()
            time.sleep(seconds)
            idle = _longest_gap_ms(control, began, began + seconds)
        if failures := load.failures + control.failures:
            raise WorkerFailed(f"Encode failed: {failures[0]}")
        self._client.delete_collection(OTHER)
        note(f"longest gap {building:.1f} ms beside a build of {seconds:.0f} s, idle {idle:.1f} ms")
        yield Figure(
            name="search.encode_gap_added_ms", value=building - idle, unit="ms", baseline=idle
        )

    def _insert(self, name: str, count: int) -> tuple[float, tuple[float, float | None]]:
        """Seconds, and the cores that client and server kept busy."""
        space = self._version.space_id
        rows = zip(self._corpus.ids, self._corpus.vectors, self._corpus.payloads, strict=True)
        points = [(i, Vector(row, space), payload) for i, row, payload in rows][:count]
        self._client.create_collection(name, version=self._version.id)
        busy, began = Busy(psutil.Process(self._server.pid)), time.perf_counter()
        self._client.upsert(name, points)
        return time.perf_counter() - began, busy.cores()

    def _wait_for_index(self, name: str) -> float:
        """Seconds from now until the last build of an index ended."""
        began = last = time.monotonic()
        while (now := time.monotonic()) - last < SETTLED_S:
            if now - began > PATIENCE_S:
                raise WorkerFailed(f"the index was not built within {PATIENCE_S:.0f} s")
            if self._client.get_collection(name).indexing:
                last = time.monotonic()
            time.sleep(POLL_S)
        return last - began

    def _searches(self) -> Worker:
        """A client in a process of its own."""
        worker = Worker("benchmarks.search_load")
        worker.ask(
            "connect",
            {
                "address": self._server.address,
                "collection": COLLECTION,
                "queries": str(self._folder / "queries.npy"),
                "space_id": self._version.space_id,
            },
        )
        return worker

    def _recall(
        self,
        searches: Worker,
        truth: str,
        wanted: dict[str, str | int] | None = None,
        *,
        exact: bool = False,
    ) -> tuple[float, list[float]]:
        """Of all queries, and of those by picture and those by name."""
        told = {
            "truth": str(self._folder / f"{truth}.npy"),
            "filter": wanted,
            "exact": exact,
            "by_picture": self._corpus.by_picture,
        }
        found = searches.ask("recall", told)
        return float(found["recall"]), list(found["halves"])


def _speed(
    served: dict[str, list[dict[str, Any]]], direct: dict[str, list[dict[str, Any]]]
) -> Iterator[Figure]:
    """Of one query and of a batch, alone and against the engine."""

    def medians(found: list[dict[str, Any]]) -> list[float]:
        return [one["p50_ms"] for one in found]

    yield from _percentiles("search", served["single"])
    added = [
        one - other
        for one, other in zip(medians(served["single"]), medians(direct["single"]), strict=True)
    ]
    yield Figure(
        name="search.added_ms.single",
        value=statistics.median(added),
        unit="ms",
        baseline=statistics.median(medians(direct["single"])),
    )
    yield from _percentiles(f"search.batch{BATCH}", served["batch"])
    yield Figure(
        name=f"search.over_engine.batch{BATCH}",
        value=paired_ratio(medians(served["batch"]), medians(direct["batch"])),
        unit="ratio",
        baseline=statistics.median(medians(direct["batch"])),
    )


def _percentiles(name: str, found: list[dict[str, Any]]) -> Iterator[Figure]:
    for share in (50, 99):
        value = statistics.median(one[f"p{share}_ms"] for one in found)
        yield Figure(name=f"{name}.p{share}_ms", value=value, unit="ms")


def _longest_gap_ms(load: Load, began: float, ended: float) -> float:
    """Between answers within a window of the monotonic clock."""
    times = [at for at in load.times if began <= at <= ended]
    if len(times) < 2:
        raise WorkerFailed("Encode was hardly answered")
    return 1000 * max(late - early for early, late in pairwise(times))


def _copy_index(vectors: Path, copy: Path) -> None:
    """Copies what the server has on disk for its one collection, while nobody writes to it."""
    (current,) = vectors.glob("*/CURRENT")
    generation = json.loads(current.read_bytes())["generation"]
    shutil.copytree(current.parent / generation, copy)


def _reopened(
    data_dir: Path, options: tuple[str, ...], settings: Settings, query: Vector
) -> Figure:
    """Seconds from the start of a server until it answers a search of what is on its disk,
    beside those of a server that has no collection until it encodes."""

    def started(folder: Path) -> float:
        began = time.perf_counter()
        with (
            running_server(folder, *options, program=settings.program, start_s=START_S) as server,
            Client(server.address, timeout=PATIENCE_S) as client,
        ):
            if folder == data_dir:
                client.search(COLLECTION, query)
            else:
                client.encode("a photo")
            return time.perf_counter() - began

    found = started(data_dir)
    return Figure(
        name="search.reopen_s",
        value=found,
        unit="s",
        baseline=started(data_dir.with_name("empty")),
    )
