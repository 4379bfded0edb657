"""A real server process on a free loopback port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = re.compile(r"hotclip serving on (\S+): ")


class ServerProcess:
    """`python -m hotclip_server`, started by `start_server`."""

    def __init__(self, process: subprocess.Popen[bytes], log_file: Path, data_dir: Path) -> None:
        self.process = process
        self.data_dir = data_dir
        self.address = ""
        self._log_file = log_file

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log_file.read_text()

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Waits until it says where it serves and the health service agrees."""
        ends = time.monotonic() + timeout_s
        while (found := SERVING.search(self.log)) is None:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log}")
            if time.monotonic() > ends:
                raise TimeoutError(f"the server does not serve:\n{self.log}")
            time.sleep(0.02)
        self.address = found[1]
        with grpc.insecure_channel(self.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=True)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def wait(self, timeout_s: float = 30.0) -> int:
        """Its exit status."""
        return self.process.wait(timeout_s)

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, then the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


def spawn_server(
    data_dir: Path, *flags: str, env: Mapping[str, str] | None = None
) -> ServerProcess:
    """Starts the process and does not wait for it; the caller stops it.

    In fp32 unless a flag says otherwise: answers then stay the same within rounding when an
    engine takes the place of plain open_clip.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HOTCLIP_")}
    log_file = data_dir.with_name(f"{data_dir.name}-{time.monotonic_ns()}.log")
    command = [sys.executable, "-m", "hotclip_server", "--port", "0", "--data-dir", str(data_dir)]
    command += ["--precision", "fp32"]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*command, *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**clean, "OMP_NUM_THREADS": "1", **(env or {})},
        )
    return ServerProcess(process, log_file, data_dir)


@contextmanager
def start_server(
    data_dir: Path, *flags: str, env: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """A server that serves; stopped at the end, killed if it does not stop."""
    server = spawn_server(data_dir, *flags, env=env)
    try:
        server.wait_ready()
        yield server
    finally:
        try:
            server.stop()
        except subprocess.TimeoutExpired:
            server.kill()
            raise
