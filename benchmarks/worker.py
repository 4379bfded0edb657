"""A process of our own that does what it is told, one JSON line in, one out.

What loads the machine and what is measured run apart, so that the processor time of each can
be told and none waits for another's interpreter lock.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

Command = Callable[[dict[str, Any]], dict[str, Any]]


class WorkerFailed(RuntimeError):
    """A command raised, or the process ended; the message holds its trace."""


class Worker:
    """A running `python -m <module>` that calls `obey`.

    Args:
        module: E.g. "benchmarks.load_generator".
        environment: More variables.
        defaults: More variables, where nobody has set them.
    """

    def __init__(
        self,
        module: str,
        environment: Mapping[str, str] | None = None,
        *,
        defaults: Mapping[str, str] | None = None,
    ) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=surroundings(environment, defaults),
            text=True,
            encoding="utf-8",
        )

    def ask(self, command: str, told: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Has a command done and waits for its answer.

        Raises:
            WorkerFailed: it raised, or the process ended.
        """
        source, sink = self._process.stdout, self._process.stdin
        if source is None or sink is None:
            raise RuntimeError("a worker has no pipes; this is a bug")
        try:
            sink.write(json.dumps({"command": command, "told": dict(told or {})}) + "\n")
            sink.flush()
        except BrokenPipeError as error:
            raise WorkerFailed(f"{self._module} has ended ({self._process.wait()})") from error
        line = source.readline()
        if not line:
            raise WorkerFailed(f"{self._module} ended ({self._process.wait()}) at {command!r}")
        reply: dict[str, Any] = json.loads(line)
        if "failed" in reply:
            raise WorkerFailed(f"{self._module}, {command!r}: {reply['failed']}")
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def surroundings(
    environment: Mapping[str, str] | None, defaults: Mapping[str, str] | None
) -> dict[str, str]:
    """Variables of a process: ours, more in their place, and `defaults` where there are none."""
    return {**(defaults or {}), **os.environ, **(environment or {})}


def obey(commands: Mapping[str, Command]) -> None:
    """Answers commands from standard input until it is closed."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    for line in sys.stdin:
        order = json.loads(line)
        try:
            reply = commands[order["command"]](order["told"])
        except Exception:  # noqa: BLE001 - whatever it is, the one who asked reports it
            reply = {"failed": traceback.format_exc()}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
