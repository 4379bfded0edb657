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

import grpc

PROGRAM = (sys.executable, "-m", "hotclip_server")
HEALTH = "/grpc.health.v1.Health/Check"
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 10),
    ("grpc.min_reconnect_backoff_ms", 10),
    ("grpc.max_reconnect_backoff_ms", 50),
)
"""A server that starts is asked at once again."""


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
        with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            while not serves(channel):
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


def serves(channel: grpc.Channel) -> bool:
    """Whether the server at the other end says that it serves.

    By the bytes of grpc.health.v1: an empty request asks for the whole server; the answer is
    field 1, which is 1.

    Raises:
        grpc.RpcError: it answers, but not that question.
    """
    health: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(HEALTH)
    try:
        return health(b"", timeout=1.0) == b"\x08\x01"
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise
        return False
