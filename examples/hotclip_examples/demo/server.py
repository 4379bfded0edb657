"""A server process of the demonstration's own, on loopback and in a folder of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hotclip

START_S = 120.0


@contextmanager
def running_server(data_dir: Path, log: Path, *, model: str, device: str) -> Iterator[str]:
    """Starts `python -m hotclip_server`, gives its address, ends it in order.

    Raises RuntimeError with the end of its log if it does not come up or does not end well.
    """
    address = f"127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", "hotclip_server", "--port", address.rpartition(":")[2]]
    command += ["--data-dir", str(data_dir), "--model", model, "--device", device]
    # Every answer is held to 1 % of plain open_clip's: what tells two like versions apart.
    command += ["--precision", "fp32"]
    # What somebody set for a server of their own must not change what is shown.
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("HOTCLIP_")}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=inherited)
        try:
            _wait_ready(address, process, log)
            yield address
        finally:
            process.terminate()
            try:
                code = process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
    if code != 0:
        raise RuntimeError(f"the server ended with code {code}:\n{_end_of(log)}")


def _wait_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    with hotclip.Client(address) as client:
        while not client.is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server does not come up:\n{_end_of(log)}")
            time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-20:])
