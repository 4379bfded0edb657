"""The suite encode on one model: a server, its engine in process and plain open_clip in turn."""

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.corpus import SIZES, tower_of, write_corpus
from benchmarks.encode_plan import ONE, Compared, Plan, Shape, plan_of
from benchmarks.engines import Serving, wait_for_engines
from benchmarks.figures import Figure
from benchmarks.server_process import running_server
from benchmarks.settings import Settings, label
from benchmarks.timing import paired_ratio
from benchmarks.worker import Worker
from hotclip import Client

START_S = 600.0
"""Making random weights of a large model and writing them takes minutes."""
LOAD_SHARE = 0.7
"""Of saturation, when requests come at random."""
CALIBRATION_SHARE = 0.05
"""Of a segment, for each size of batch in each pass over the sizes."""
CALIBRATION_SEGMENTS = 4
"""Segments that the passes over all sizes may take together."""
SERVER_DEFAULTS = {"OMP_WAIT_POLICY": "passive"}
"""Variables that the server sets for itself, unless they are set: its engine in a loop has them
too. Plain open_clip has what everybody has, who sets nothing."""
FIGURE_OF = {"jpeg_small": "jpeg", "tensor": "tensor", "text": "text"}
"""Contents by their name in served_over_raw; others go by their own."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes of one measurement, but for the server."""

    generator: Worker
    engine: Worker
    plain: Worker


def measure_model(
    source: str, settings: Settings, folder: Path, environment: dict[str, str]
) -> Iterator[Figure]:
    """Measures one model.

    Args:
        source: Of LoadVersion.
        folder: For data, items and references; empty.
        environment: Variables of every process.

    Raises:
        WorkerFailed: a call failed, or an answer was wrong.
    """
    plan, data_dir = plan_of(source, settings), folder / "data"
    options = ("--model", source, "--device", settings.device, "--allow-random-weights")
    with (
        running_server(
            data_dir,
            *options,
            *settings.server_options,
            program=settings.program,
            environment=environment,
            start_s=START_S,
        ) as server,
        Client(server.address, timeout=START_S) as client,
        Worker("benchmarks.load_generator", environment) as generator,
        Worker("benchmarks.in_process", environment, defaults=SERVER_DEFAULTS) as engine,
        Worker("benchmarks.plain", environment) as plain,
    ):
        serving = wait_for_engines(client)
        note(f"{label(source)}: {serving}")
        corpus = folder / "corpus"
        write_corpus(corpus, plan.counts, serving.image_size)
        plain.ask(
            "load",
            {
                "folder": str(data_dir / "versions" / serving.version),
                "device": settings.device,
                "corpus": str(corpus),
            },
        )
        for content in plan.contents:
            plain.ask("references", {"content": content, "count": plan.references})
        engine.ask(
            "load",
            {
                "data_dir": str(data_dir),
                "corpus": str(corpus),
                "device": settings.device,
                "version": serving.version,
                "engines": serving.engines,
                "exact": serving.exact,
            },
        )
        generator.ask(
            "connect",
            {
                "address": server.address,
                "server_pid": server.pid,
                "corpus": str(corpus),
                "exact": serving.exact,
            },
        )
        workers = Workers(generator=generator, engine=engine, plain=plain)
        yield from ModelBench(label(source), plan, workers, serving).figures()


class ModelBench:
    """Asks the processes in turn and makes figures of their answers."""

    def __init__(self, model: str, plan: Plan, workers: Workers, serving: Serving) -> None:
        self._model = model
        self._plan = plan
        self._workers = workers
        self._serving = serving
        self._knees_s: dict[str, float] = {}
        """Seconds of the smallest batch at nearly the best rate, by content."""

    def figures(self) -> Iterator[Figure]:
        """Comparisons, then more rates, then latency."""
        for compared in self._plan.compared:
            yield from self._compare(compared)
        for content, shapes in self._plan.rates.items():
            for shape in shapes:
                yield self._rate(content, shape, [self._serve(content, shape)])
        for content in self._plan.latency:
            yield from self._latency(content)

    def _compare(self, compared: Compared) -> Iterator[Figure]:
        """Served, raw and plain segments in turn, so that all meet the same machine."""
        content, workers = compared.content, self._workers
        self._serve(content, compared.shape, CALIBRATION_SHARE * self._plan.seconds)  # warms up
        found = self._best_batch(workers.engine, compared)
        batch, self._knees_s[content] = found["batch"], found["cap_s"]
        plain_batch = 0
        if compared.open_clip:
            plain_batch = self._best_batch(workers.plain, compared)["batch"]
        served: list[dict[str, Any]] = []
        raw: list[dict[str, Any]] = []
        plain: list[float] = []
        told = {"content": content, "seconds": self._plan.seconds}
        for turn in range(self._plan.rounds):
            served.append(self._serve(content, compared.shape, self._plan.seconds))
            raw.append(workers.engine.ask("run", {**told, "batch": batch}))
            if compared.open_clip:
                plain.append(workers.plain.ask("run", {**told, "batch": plain_batch})["rate"])
            note(
                f"{self._model} {content} {turn + 1}/{self._plan.rounds}:"
                f" served {served[-1]['rate']:.1f}/s, raw {raw[-1]['rate']:.1f}/s"
                + (f", open_clip {plain[-1]:.1f}/s" if plain else "")
            )
        raw_rates = [one["rate"] for one in raw]
        engine = self._serving.engine(tower_of(content))
        cosine = min(one["min_cosine"] for one in (*served, *raw))
        if compared.raw:
            yield Figure(
                name=f"served_over_raw.{FIGURE_OF.get(content, content)}.{self._model}",
                value=paired_ratio([one["rate"] for one in served], raw_rates),
                unit="ratio",
                baseline=statistics.median(raw_rates),
                min_cosine=cosine,
                engine=engine,
                generator_cpu=statistics.median(one["generator_cpu"] for one in served),
                server_cpu=statistics.median(one["server_cpu"] for one in served),
            )
        if compared.open_clip:
            yield Figure(
                name=f"over_open_clip.{content}.{self._model}",
                value=paired_ratio(raw_rates, plain),
                unit="ratio",
                baseline=statistics.median(plain),
                min_cosine=min(one["min_cosine"] for one in raw),
                engine=engine,
            )
        yield self._rate(content, compared.shape, served)

    def _latency(self, content: str) -> Iterator[Figure]:
        """Calls of one item that come at random, at a share of what was the most."""
        like = "tensor" if content in SIZES and "tensor" in self._knees_s else content
        batch_s = self._knees_s[like]
        unloaded = self._serve(content, ONE)
        most = self._serve(content, self._plan.most)
        seconds = 2 * self._plan.seconds
        told = {"content": content, "rate": LOAD_SHARE * most["rate"], "seconds": seconds}
        at_random = self._workers.generator.ask("open", {**told, "seed": 1})
        note(
            f"{self._model} {content} at {told['rate']:.1f}/s: p99 {at_random['p99_ms']:.1f} ms,"
            f" unloaded p50 {unloaded['p50_ms']:.1f} ms, batch {1000 * batch_s:.1f} ms,"
            f" generator late by {at_random['lag_ms']:.1f} ms at most"
        )
        load = {
            "engine": self._serving.engine(tower_of(content)),
            "min_cosine": at_random["min_cosine"],
            "generator_cpu": at_random["generator_cpu"],
            "server_cpu": at_random["server_cpu"],
        }
        # The content of the pair of names without one is the image.
        place = f"{self._model}" if content == "jpeg_small" else f"{content}.{self._model}"
        yield Figure(
            name=f"latency.p99_added_over_batch.{place}",
            value=(at_random["p99_ms"] - unloaded["p50_ms"]) / (1000 * batch_s),
            unit="batches",
            baseline=batch_s,
            **load,
        )
        for share in (50, 95, 99):
            yield Figure(
                name=f"latency.p{share}_ms.{content}.{self._model}",
                value=at_random[f"p{share}_ms"],
                unit="ms",
                baseline=unloaded[f"p{share}_ms"],
                **load,
            )

    def _serve(self, content: str, shape: Shape, seconds: float | None = None) -> dict[str, Any]:
        told = {
            "content": content,
            "items": shape.items,
            "seconds": seconds or self._plan.seconds / 2,
        }
        if not shape.clients:
            return self._workers.generator.ask("stream", told)
        command = "public" if shape.public else "closed"
        return self._workers.generator.ask(command, {**told, "clients": shape.clients})

    def _best_batch(self, worker: Worker, compared: Compared) -> dict[str, Any]:
        found = worker.ask(
            "best_batch",
            {
                "content": compared.content,
                "candidates": self._plan.batches_of(compared),
                "seconds": CALIBRATION_SHARE * self._plan.seconds,
                "limit": CALIBRATION_SEGMENTS * self._plan.seconds,
            },
        )
        note(
            f"{self._model} {compared.content}: best batch {found['batch']}, {found['rate']:.1f}/s,"
            f" knee at {found['cap']}"
        )
        return found

    def _rate(self, content: str, shape: Shape, segments: list[dict[str, Any]]) -> Figure:
        figure = Figure(
            name=f"rate.{content}.{shape}.{self._model}",
            value=statistics.median(one["rate"] for one in segments),
            unit="items/s",
            min_cosine=min(one["min_cosine"] for one in segments),
            generator_cpu=statistics.median(one["generator_cpu"] for one in segments),
            server_cpu=statistics.median(one["server_cpu"] for one in segments),
            engine=self._serving.engine(tower_of(content)),
        )
        note(f"{figure.name}: {figure.value:.1f}/s")
        return figure


def note(line: str) -> None:
    """Progress, for whoever waits."""
    print(line, file=sys.stderr, flush=True)
