"""A real server in a process of its own, for measurements and end-to-end checks."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hotclip_server.healthcheck import check


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(
    data_dir: Path,
    *options: str,
    program: Sequence[str] = (sys.executable, "-m", "hotclip_server"),
    start_s: float = 120.0,
) -> Iterator[str]:
    """Starts `program` with `options`; yields its address; stops it with SIGTERM.

    Raises:
        RuntimeError: it ended, or did not serve within `start_s` seconds; with its log's end.
    """
    address = f"127.0.0.1:{free_port()}"
    command = [*program, "--port", address.rpartition(":")[2], "--data-dir", str(data_dir)]
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "server.log"
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("HOTCLIP_")}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*command, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**inherited, "HF_HUB_OFFLINE": "1"},
        )
        try:
            until = time.monotonic() + start_s
            while check(address, 1.0) != "SERVING":
                if process.poll() is not None or time.monotonic() > until:
                    end = log.read_text(encoding="utf-8")[-4000:]
                    raise RuntimeError(f"the server did not come up ({process.poll()}):\n{end}")
                time.sleep(0.1)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
