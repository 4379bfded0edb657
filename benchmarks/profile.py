"""Where a saturated server's processor time goes: the model, preparing, the event loop.

    python -m benchmarks.profile --model ViT-B-32:: --content jpeg_small

py-spy tells which thread is whose, the kernel tells how long each ran. Threads without Python
are those that the model's products run on (OpenMP) and gRPC's own; the latter have names.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.corpus import CONTENTS, write_corpus
from benchmarks.encode_model import START_S
from benchmarks.encode_plan import CLOSED
from benchmarks.engines import wait_for_engines
from benchmarks.server_process import running_server
from benchmarks.worker import Worker
from hotclip import Client

ITEMS = 256
MODEL, PREPARING, LOOP, OTHER = "the model", "preparing items", "event loop and gRPC", "other"
KIND_OF = {
    "hotclip-device": MODEL,
    "hotclip-prepare": PREPARING,
    "MainThread": LOOP,
    "grpc": LOOP,
    "event_engine": LOOP,
    "python": MODEL,
}
"""Kinds by how a thread's name begins; "python": one that Python did not start."""


def thread_seconds(pid: int) -> dict[int, tuple[str, float]]:
    """Name and processor time of each thread of a process, by the kernel's id (Linux)."""
    ticks = os.sysconf("SC_CLK_TCK")
    found: dict[int, tuple[str, float]] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            line = (task / "stat").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        name = line[line.index("(") + 1 : line.rindex(")")]
        fields = line[line.rindex(")") + 2 :].split()
        found[int(task.name)] = (name, (int(fields[11]) + int(fields[12])) / ticks)
    return found


def python_threads(pid: int) -> dict[int, str]:
    """Python's names of its threads, by the kernel's id."""
    command = [_py_spy(), "dump", "--json", "--nonblocking", "--pid", str(pid)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    threads: list[dict[str, Any]] = json.loads(run.stdout)
    return {thread["os_thread_id"]: str(thread["thread_name"]) for thread in threads}


def shares(
    before: Mapping[int, tuple[str, float]],
    after: Mapping[int, tuple[str, float]],
    names: Mapping[int, str],
) -> dict[str, float]:
    """Part of the processor time between two looks that went to each kind of work."""
    spent: dict[str, float] = defaultdict(float)
    for thread, (kernel_name, seconds) in after.items():
        name = names.get(thread, kernel_name)
        kind = next((kind for begin, kind in KIND_OF.items() if name.startswith(begin)), OTHER)
        spent[kind] += seconds - before.get(thread, ("", 0.0))[1]
    total = sum(spent.values())
    if not total:
        return {}
    ordered = sorted(spent.items(), key=lambda pair: -pair[1])
    return {kind: seconds / total for kind, seconds in ordered}


def _py_spy() -> str:
    found = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if not found:
        raise FileNotFoundError("py-spy is not installed: pip install py-spy")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="builtin:mini", help="a source of LoadVersion")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--content", default="jpeg_small", choices=CONTENTS)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--flame", type=Path, help="also write py-spy's flame graph here (SVG)")
    told = parser.parse_args(arguments)
    options = ("--model", told.model, "--device", told.device, "--allow-random-weights")
    with (
        tempfile.TemporaryDirectory(prefix="hotclip-profile-") as name,
        running_server(Path(name, "data"), *options, start_s=START_S) as server,
        Client(server.address, timeout=START_S) as client,
        Worker("benchmarks.load_generator") as generator,
    ):
        serving = wait_for_engines(client)
        corpus = Path(name, "corpus")
        write_corpus(corpus, {told.content: ITEMS}, serving.image_size)
        generator.ask(
            "connect",
            {
                "address": server.address,
                "server_pid": server.pid,
                "corpus": str(corpus),
                "exact": None,
            },
        )
        load = {"content": told.content, "clients": CLOSED.clients, "items": CLOSED.items}
        generator.ask("closed", {**load, "seconds": 1.0})  # warms up
        answers: list[dict[str, Any]] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                generator.ask("closed", {**load, "seconds": told.seconds + 2.0})
            )
        )
        asking.start()
        time.sleep(1.0)
        names, before = python_threads(server.pid), thread_seconds(server.pid)
        if told.flame:
            record = ["record", "--output", str(told.flame), "--duration", f"{told.seconds:.0f}"]
            subprocess.run([_py_spy(), *record, "--pid", str(server.pid)], check=True)
        else:
            time.sleep(told.seconds)
        found = shares(before, thread_seconds(server.pid), names)
        asking.join()
    print(f"{told.model}, {told.content}, {CLOSED}: {serving}")
    print(f"{answers[0]['rate']:.1f} items/s, server {answers[0]['server_cpu']:.2f} cores")
    for kind, share in found.items():
        print(f"{share:6.1%}  {kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
