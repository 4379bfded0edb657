"""Processes that begin with everything imported: forks of one that has imported it.

A new interpreter takes seconds for torch and its like, more than what most tests do with a
server. `support.forking` is the other side.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LARGEST = 1 << 20
START_S = 120.0
POLL_S = 0.01


class ForkServer:
    """Forks processes that have imported `modules`, which must not start threads.

    Variables that libraries read when they are imported are those of `environment`. Its children
    are killed when it is closed, and when the process that made it ends.
    """

    def __init__(self, *modules: str, environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._orders = 0
        self._statuses: dict[int, int] = {}
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - see close
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = str(Path(__file__).with_name("forking.py"))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, script, str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def start(
        self, module: str, *arguments: str, environment: Mapping[str, str], log: Path
    ) -> ForkedProcess:
        """Runs `python -m <module> <arguments>`, which writes into `log`.

        Raises:
            RuntimeError: the process that forks has ended; with what it wrote.
        """
        with self._lock:
            self._orders += 1
            number = self._orders
            order = {
                "number": number,
                "module": module,
                "arguments": arguments,
                "environment": dict(environment),
                "folder": str(Path.cwd()),
                "log": str(log),
            }
            with suppress(BrokenPipeError, ConnectionResetError):  # then there is no answer
                self._connection.send(json.dumps(order).encode())
            while "pid" not in (answer := self._answer(START_S)):
                self._statuses[answer["number"]] = answer["status"]
        return ForkedProcess(self, number, answer["pid"])

    def status_of(self, number: int) -> int | None:
        """How the process of an order ended: its exit status, or minus a signal."""
        with self._lock:
            while number not in self._statuses and self._readable(0):
                answer = self._answer(0)
                self._statuses[answer["number"]] = answer["status"]
            return self._statuses.get(number)

    def close(self) -> None:
        """Kills what it has started."""
        self._connection.close()
        self._process.wait()
        self._output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _readable(self, seconds: float) -> bool:
        waiting = select.poll()
        waiting.register(self._connection, select.POLLIN)
        return bool(waiting.poll(1000 * seconds))

    def _answer(self, seconds: float) -> dict[str, Any]:
        message = b""
        if self._readable(seconds):
            with suppress(ConnectionResetError):
                message = self._connection.recv(LARGEST)
        if not message:
            self._output.seek(0)
            said = self._output.read().decode(errors="replace")
            raise RuntimeError(f"no answer of what forks ({self._process.poll()}):\n{said}")
        answer: dict[str, Any] = json.loads(message)
        return answer


class ForkedProcess:
    """What `subprocess.Popen` is of a child."""

    def __init__(self, parent: ForkServer, number: int, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._parent = parent
        self._number = number

    def poll(self) -> int | None:
        """Its exit status, if it has ended."""
        if self.returncode is None:
            self.returncode = self._parent.status_of(self._number)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises TimeoutExpired."""
        ends = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (status := self.poll()) is None:
            if timeout is not None and time.monotonic() > ends:
                raise subprocess.TimeoutExpired(["fork", str(self.pid)], timeout)
            time.sleep(POLL_S)
        return status

    def send_signal(self, number: int) -> None:
        """Does nothing if it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)
