"""A real server in a process of its own, for measurements and end-to-end checks."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hotclip_server.healthcheck import check

PROGRAM = (sys.executable, "-m", "hotclip_server")


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    """A server that serves."""

    address: str
    pid: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(
    data_dir: Path,
    *options: str,
    program: Sequence[str] = PROGRAM,
    environment: Mapping[str, str] | None = None,
    start_s: float = 120.0,
) -> Iterator[ServerProcess]:
    """Starts `program` with `options` and waits until it serves; stops it with SIGTERM.

    Args:
        environment: More variables; by default the hub is not asked for anything.

    Raises:
        RuntimeError: it ended, or did not serve within `start_s` seconds; with its log's end.
    """
    with started_server(data_dir, *options, program=program, environment=environment) as started:
        address, process = started
        until = time.monotonic() + start_s
        while check(address, 1.0) != "SERVING":
            if process.poll() is not None or time.monotonic() > until:
                end = (data_dir / "server.log").read_text(encoding="utf-8")[-4000:]
                raise RuntimeError(f"the server did not come up ({process.poll()}):\n{end}")
            time.sleep(0.1)
        yield ServerProcess(address=address, pid=process.pid)


@contextmanager
def started_server(
    data_dir: Path,
    *options: str,
    program: Sequence[str] = PROGRAM,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """As `running_server`, but does not wait: yields where it will serve, and the process."""
    address = f"127.0.0.1:{free_port()}"
    command = [*program, "--port", address.rpartition(":")[2], "--data-dir", str(data_dir)]
    data_dir.mkdir(parents=True, exist_ok=True)
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("HOTCLIP_")}
    with (data_dir / "server.log").open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*command, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**inherited, "HF_HUB_OFFLINE": "1", **(environment or {})},
            text=True,
        )
        try:
            yield address, process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
