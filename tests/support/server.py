"""A real server process on a free loopback port."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.forked import ForkedProcess, ForkServer
from support.once import made_once

from hotclip import Client

ENGINES = "engines.json"
SERVING = re.compile(r"hotclip serving on (\S+): ")
IMPORTS = (
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.WebPImagePlugin",
    "asyncio",
    "ftfy",
    "google.rpc.error_details_pb2",
    "grpc.aio",
    "grpc_health.v1.health_pb2_grpc",
    "grpc_reflection.v1alpha.reflection",
    "grpc_status.rpc_status",
    "jinja2",
    "logging.config",
    "open_clip",
    "pytorch_metric_learning.losses",
    "pytorch_metric_learning.miners",
    "safetensors.torch",
    "simplejpeg",
    "sqlalchemy.dialects.sqlite",
    "torchvision.transforms",
    "transformers.models.auto.configuration_auto",
    "uvloop",
)
"""What a server imports of others' code and what takes long; none of ours."""


class ServerProcess:
    """`python -m hotclip_server`, started by `start_server`."""

    def __init__(
        self, process: subprocess.Popen[bytes] | ForkedProcess, log_file: Path, data_dir: Path
    ) -> None:
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
    data_dir: Path, *flags: str, fresh: bool = False, knows_engines: bool = True
) -> ServerProcess:
    """Starts the process and does not wait for it; the caller stops it.

    In fp32 unless a flag says otherwise: answers then stay the same within rounding when an
    engine takes the place of plain open_clip.

    Args:
        fresh: As a new interpreter, not as a fork of one that has imported torch and its like:
            for what such variables as OMP_NUM_THREADS or the time of a start mean.
        knows_engines: What another server has found to be the fastest for the built-in model,
            as if it had been started here before; measuring takes seconds of every core.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    if knows_engines and not (data_dir / ENGINES).exists():
        shutil.copyfile(made_once("engines", measure_engines) / ENGINES, data_dir / ENGINES)
    log_file = data_dir.with_name(f"{data_dir.name}-{time.monotonic_ns()}.log")
    arguments = ("--port", "0", "--data-dir", str(data_dir), "--precision", "fp32", *flags)
    process: subprocess.Popen[bytes] | ForkedProcess
    if fresh or sys.platform != "linux":
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "hotclip_server", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables(),
            )
    else:
        log_file.touch()
        process = fork_server().start(
            "hotclip_server", *arguments, environment=variables(), log=log_file
        )
    return ServerProcess(process, log_file, data_dir)


def measure_engines(folder: Path) -> None:
    """Has a server measure the engines of the built-in model, and keeps what it found."""
    flags = ("--device", "cpu")
    with (
        start_server(folder / "data", *flags, knows_engines=False) as server,
        Client(server.address) as client,
    ):
        while client.server_info().measuring:
            assert server.process.poll() is None, server.log
            time.sleep(0.1)
    shutil.copyfile(folder / "data" / ENGINES, folder / ENGINES)


def variables() -> dict[str, str]:
    """Of a server."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HOTCLIP_")}
    return {**clean, "OMP_NUM_THREADS": "1"}


@functools.cache
def fork_server() -> ForkServer:
    """The one of this process, for all its servers."""
    # What a server sets before it imports grpc and torch.
    early = {"GRPC_ENABLE_FORK_SUPPORT": "false", "OMP_WAIT_POLICY": "passive"}
    server = ForkServer(*IMPORTS, environment={**early, **variables()})
    atexit.register(server.close)
    return server


@contextmanager
def start_server(
    data_dir: Path, *flags: str, fresh: bool = False, knows_engines: bool = True
) -> Iterator[ServerProcess]:
    """A server that serves; stopped at the end, killed if it does not stop."""
    server = spawn_server(data_dir, *flags, fresh=fresh, knows_engines=knows_engines)
    try:
        server.wait_ready()
        yield server
    finally:
        try:
            server.stop()
        except subprocess.TimeoutExpired:
            server.kill()
            raise
