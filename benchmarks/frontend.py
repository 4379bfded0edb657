"""What a call costs apart from any model: calls a second with an encoder that is free."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.corpus import write_corpus
from benchmarks.encode_plan import MANY, Shape
from benchmarks.figures import Figure
from benchmarks.server_process import ServerProcess
from benchmarks.settings import Settings
from benchmarks.worker import Worker

TEXTS = 1024
SHAPES = {
    "frontend.calls_per_s": (MANY, "calls/s"),
    "frontend.texts_per_s.4x64": (Shape(4, 64), "items/s"),
    "frontend.stream_messages_per_s": (Shape(0, 1), "messages/s"),
}


def measure_frontend(settings: Settings, folder: Path) -> Iterator[Figure]:
    """Short texts, one a call, many a call, and one a message of a stream."""
    write_corpus(folder, {"text": TEXTS}, image_size=0)
    with free_server() as server, Worker("benchmarks.load_generator") as generator:
        generator.ask(
            "connect",
            {
                "address": server.address,
                "server_pid": server.pid,
                "corpus": str(folder),
                "exact": None,
            },
        )
        for name, (shape, unit) in SHAPES.items():
            told = {"content": "text", "items": shape.items}
            told["seconds"] = 0.3 if settings.quick else settings.seconds / 2
            if shape.clients:
                found = generator.ask("closed", {**told, "clients": shape.clients})
            else:
                found = generator.ask("stream", told)
            yield Figure(
                name=name,
                value=found["rate"],
                unit=unit,
                generator_cpu=found["generator_cpu"],
                server_cpu=found["server_cpu"],
            )


@contextmanager
def free_server() -> Iterator[ServerProcess]:
    """`benchmarks.free_server` in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.free_server"],
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
