"""What serving notices of a fine-tune that runs beside it, and what both get of the machine."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from benchmarks.corpus import write_corpus
from benchmarks.encode_model import START_S, note
from benchmarks.engines import wait_for_engines
from benchmarks.figures import Figure
from benchmarks.finetune_corpus import pairs
from benchmarks.server_process import running_server
from benchmarks.settings import Settings, label
from benchmarks.timing import paired_ratio
from benchmarks.worker import Worker
from hotclip import Client, Measurement, Run
from hotclip.errors import JobFailed

CONTENT = "tensor"
ITEMS = 128
LOAD_SHARE = 0.5
"""Of what one-item calls of many clients reach."""
CLIENTS, AT_A_TIME = 4, 16
"""Of the load that takes all there is."""
BATCH = 8
"""Of the training: a step of it is short beside a segment."""
WARM_STEPS = 2
IsolationName = Literal["in_process", "process"]


def measure_serving(source: str, settings: Settings, folder: Path) -> Iterator[Figure]:
    """Latency at half load with and without a training, in turn; then both at their most."""
    model = label(source)
    options = ("--model", source, "--device", settings.device, "--allow-random-weights")
    with (
        running_server(
            folder / "served",
            *options,
            *settings.server_options,
            program=settings.program,
            start_s=START_S,
        ) as server,
        Client(server.address, timeout=START_S) as client,
        Worker("benchmarks.load_generator") as generator,
    ):
        serving = wait_for_engines(client)
        corpus = folder / "items"
        items = 16 if settings.quick else ITEMS
        write_corpus(corpus, {CONTENT: items}, serving.image_size)
        generator.ask(
            "connect",
            {
                "address": server.address,
                "server_pid": server.pid,
                "corpus": str(corpus),
                "exact": None,
            },
        )
        known = [(caption, data) for caption, data in pairs(folder / "corpus")]
        bench = _Beside(client, generator, known, settings)
        yield from bench.latency(model)
        yield from bench.shares(model)


class _Beside:
    def __init__(
        self, client: Client, generator: Worker, known: list[tuple[str, bytes]], settings: Settings
    ) -> None:
        self._client = client
        self._generator = generator
        self._pairs = known
        self._settings = settings
        self._clients = 2 if settings.quick else CLIENTS
        self._at_a_time = 4 if settings.quick else AT_A_TIME
        self._batch = min(BATCH, len(known))

    def latency(self, model: str) -> Iterator[Figure]:
        """The median over rounds of p99 with a training over p99 without, at the same load; the
        training in the server's process, and in one of its own."""
        many = {"content": CONTENT, "items": 1, "clients": 4 if self._settings.quick else 32}
        most = self._generator.ask("closed", {**many, "seconds": self._settings.seconds})["rate"]
        told = {
            "content": CONTENT,
            "rate": LOAD_SHARE * most,
            "seconds": 2 * self._settings.seconds,
        }
        alone: list[float] = []
        beside: dict[IsolationName, list[float]] = {"in_process": [], "process": []}
        for turn in range(self._settings.rounds):
            alone.append(self._generator.ask("open", {**told, "seed": turn})["p99_ms"])
            for isolation, found in beside.items():
                with self._training(isolation):
                    found.append(self._generator.ask("open", {**told, "seed": turn})["p99_ms"])
            note(
                f"{model} at {told['rate']:.1f}/s {turn + 1}/{self._settings.rounds}:"
                f" p99 {alone[-1]:.1f} ms, beside a training {beside['in_process'][-1]:.1f} ms,"
                f" in a process of its own {beside['process'][-1]:.1f} ms"
            )
        for isolation, found in beside.items():
            place = model if isolation == "in_process" else f"{model}.process"
            yield Figure(
                name=f"training.p99_ratio.{place}",
                value=paired_ratio(found, alone),
                unit="ratio",
                baseline=statistics.median(alone),
            )

    def shares(self, model: str) -> Iterator[Figure]:
        """What both do together over what each does alone."""
        serving: list[float] = []
        training: list[float] = []
        for turn in range(self._settings.rounds):
            served = self._served()
            with self._training() as job:
                trained = self._trained(job, lambda: time.sleep(self._settings.seconds))
                together, also = self._both(job)
            serving.append(together / served)
            training.append(also / trained)
            note(
                f"{model} together {turn + 1}/{self._settings.rounds}:"
                f" serving {serving[-1]:.2f} of {served:.1f}/s,"
                f" training {training[-1]:.2f} of {trained:.1f}/s"
            )
        both = [one + other for one, other in zip(serving, training, strict=True)]
        yield Figure(name=f"training.shares_sum.{model}", value=statistics.median(both), unit="")
        for name, shares in (("serving", serving), ("training", training)):
            yield Figure(
                name=f"training.share.{name}.{model}", value=statistics.median(shares), unit=""
            )

    def _both(self, job: Run) -> tuple[float, float]:
        """Items and samples a second of the same time."""
        served: list[float] = []
        trained = self._trained(job, lambda: served.append(self._served()))
        return served[0], trained

    def _served(self) -> float:
        told = {"content": CONTENT, "items": self._at_a_time, "clients": self._clients}
        seconds = 2 * self._settings.seconds
        return float(self._generator.ask("closed", {**told, "seconds": seconds})["rate"])

    def _trained(self, job: Run, meanwhile: Callable[[], object]) -> float:
        """Samples a second of a job while `meanwhile` runs, by its steps and when they ended.

        From the first step that is told of after the beginning to the first after the end: whole
        steps in the time that they took.
        """
        first, began = self._next_step(job)
        meanwhile()
        last, ended = self._next_step(job)
        return (last - first) * self._batch / (ended - began)

    def _next_step(self, job: Run) -> tuple[int, float]:
        """The number of the next step that ends, and when that was."""
        for event in job.events(job.job().last_seq):
            if isinstance(event.detail, Measurement) and event.detail.stage == "STEP":
                return event.detail.step, time.perf_counter()
        raise RuntimeError("the training has ended")

    @contextmanager
    def _training(self, isolation: IsolationName = "in_process") -> Iterator[Run]:
        """A fine-tune that has taken its first steps; cancelled at the end."""
        job = self._client.finetune(
            self._pairs,
            batch_size=self._batch,
            max_steps=1_000_000,
            val_split=0.0,
            method="full",
            activation="never",
            isolation=isolation,
        )
        try:
            for _ in range(WARM_STEPS):
                self._next_step(job)
            yield job
        finally:
            job.cancel()
            with suppress(JobFailed):
                job.wait()
            job.delete()
