"""Run as a script by `support.forked`: imports modules once and forks a process for each order.

Arguments: the descriptor of a socket, then modules. Every message on the socket is a JSON object:

- order: {"number", "module", "arguments", "environment", "folder", "log"}
- answers to it: {"number", "pid"} at once, {"number", "status"} when the process has ended

A child returns from `next_order` and becomes what `python -m <module> <arguments>` is: it has the
variables, the working folder and the signal handlers of a new process, writes into the log, and
ends with this interpreter. When the other end of the socket is closed, this process kills the
children that are left and ends.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

LARGEST = 1 << 20
"""Bytes of a message."""
Running = dict[int, tuple[int, int]]
"""Number of the order and pid of a child, by its pidfd."""


def import_all(modules: list[str]) -> None:
    """Raises RuntimeError if one of them starts a thread: a fork would not have it."""
    for name in modules:
        importlib.import_module(name)
    tasks = Path("/proc/self/task").iterdir()
    threads = [task.joinpath("comm").read_text().strip() for task in tasks]
    if len(threads) != 1:
        raise RuntimeError(f"an import has started threads: {threads}")


def next_order(connection: socket.socket, running: Running) -> dict[str, Any] | None:
    """Forks for each order; returns it in the child, and None in the parent at the end."""
    while True:
        ready, _, _ = select.select([connection.fileno(), *running], [], [])
        for descriptor in ready:
            if descriptor != connection.fileno():
                number, pid = running.pop(descriptor)
                os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                answer = {"number": number, "status": os.waitstatus_to_exitcode(status)}
            elif message := connection.recv(LARGEST):
                order: dict[str, Any] = json.loads(message)
                pid = os.fork()
                if pid == 0:
                    connection.close()
                    for other in running:
                        os.close(other)
                    return order
                running[os.pidfd_open(pid)] = (order["number"], pid)
                answer = {"number": order["number"], "pid": pid}
            else:
                return None
            connection.send(json.dumps(answer).encode())


def become(order: dict[str, Any]) -> None:
    """Gives this process the surroundings of a new one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    with Path(os.devnull).open("rb") as nothing, Path(order["log"]).open("wb") as log:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.path.insert(0, order["folder"])
    sys.argv = [order["module"], *order["arguments"]]
    sys.orig_argv = [sys.executable, "-m", *sys.argv]
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # else every child would draw the same numbers


def kill(children: Running) -> None:
    """Nobody is left who would."""
    for pidfd, (_, pid) in children.items():
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: children are told of it first
    del sys.path[0]  # the folder of this script, which `python -m` would not have
    import_all(sys.argv[2:])
    gc.collect()
    children: Running = {}
    try:
        order = next_order(socket.socket(fileno=int(sys.argv[1])), children)
    except (BrokenPipeError, ConnectionResetError):
        order = None
    if order is None:
        kill(children)
    else:
        become(order)
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
