"""What a call costs apart from any model, and whether front ends lift that: calls a second with
an encoder that is free."""

import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.corpus import write_corpus
from benchmarks.encode_plan import MANY, Shape
from benchmarks.figures import Figure
from benchmarks.server_process import ServerProcess
from benchmarks.settings import Settings
from benchmarks.timing import paired_ratio
from benchmarks.worker import Worker

TEXTS = 1024
CALLS = "frontend.calls_per_s"
FRONTENDS = 2
SHAPES = {
    CALLS: (MANY, "calls/s"),
    "frontend.texts_per_s.4x64": (Shape(4, 64), "items/s"),
    "frontend.stream_messages_per_s": (Shape(0, 1), "messages/s"),
}


def measure_frontend(settings: Settings, folder: Path) -> Iterator[Figure]:
    """Short texts, one a call, many a call, and one a message of a stream; then calls to a server
    of one process and to one with front ends, in turn."""
    write_corpus(folder, {"text": TEXTS}, image_size=0)
    with free_server() as server, connected(server, folder) as generator:
        for name, (shape, unit) in SHAPES.items():
            yield figure_of(name, unit, [run(generator, shape, settings)])
        with free_server(FRONTENDS) as other, connected(other, folder) as of_other:
            alone, with_frontends = [], []
            for _ in range(settings.rounds):
                alone.append(run(generator, MANY, settings))
                with_frontends.append(run(of_other, MANY, settings))
    yield figure_of(f"{CALLS}.frontends_{FRONTENDS}", "calls/s", with_frontends)
    rates = [one["rate"] for one in alone]
    yield Figure(
        name=f"frontend.lift.frontends_{FRONTENDS}",
        value=paired_ratio([one["rate"] for one in with_frontends], rates),
        unit="ratio",
        baseline=statistics.median(rates),
    )


def run(generator: Worker, shape: Shape, settings: Settings) -> dict[str, Any]:
    """One segment."""
    told = {"content": "text", "items": shape.items}
    told["seconds"] = 0.3 if settings.quick else settings.seconds / 2
    if shape.clients:
        return generator.ask("closed", {**told, "clients": shape.clients})
    return generator.ask("stream", told)


def figure_of(name: str, unit: str, segments: list[dict[str, Any]]) -> Figure:
    """The median of segments alike."""
    rate, generator_cpu, server_cpu = (
        statistics.median(one[key] for one in segments)
        for key in ("rate", "generator_cpu", "server_cpu")
    )
    return Figure(
        name=name, value=rate, unit=unit, generator_cpu=generator_cpu, server_cpu=server_cpu
    )


@contextmanager
def connected(server: ServerProcess, corpus: Path) -> Iterator[Worker]:
    """A load generator for a server."""
    with Worker("benchmarks.load_generator") as generator:
        told = {"address": server.address, "server_pid": server.pid, "corpus": str(corpus)}
        generator.ask("connect", {**told, "exact": None})
        yield generator


@contextmanager
def free_server(frontends: int = 0) -> Iterator[ServerProcess]:
    """`benchmarks.free_server` in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.free_server", str(frontends)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the server has no pipes; this is a bug")
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"the free server ended ({process.wait()})")
        yield ServerProcess(address=address, pid=process.pid)
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()
