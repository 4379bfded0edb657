"""Servers of tests are forks of a process that has imported what they import: what allows it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from support.forked import ForkedProcess, ForkServer
from support.server import ServerProcess

from hotclip import Client

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere every server of a test is a new interpreter"
)
SLEEPER = """
import os, signal, sys
try:
    print(sys.argv[1:], os.environ["COLOUR"], os.environ.get("SHAPE"), flush=True)
    signal.pause()
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(3)
"""
STARTS_A_THREAD = """
import threading, time
threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
"""


def surroundings(server: ServerProcess) -> dict[str, object]:
    """What the kernel knows of a process that a test could meet."""
    pid = server.process.pid
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    log = (process / "fd/1").readlink()
    return {
        **{name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt", "Umask", "Uid")},
        "folder": (process / "cwd").readlink(),
        "input": (process / "fd/0").readlink(),
        "log": (log.suffix, (process / "fd/2").readlink() == log),
        "group": (os.getpgid(pid), os.getsid(pid)),
        "nice": os.getpriority(os.PRIO_PROCESS, pid),
    }


def test_a_fork_serves_as_a_new_interpreter_does(make_server, tmp_path: Path) -> None:
    found = []
    for kind in ("new", "fork"):
        # Plain open_clip: which engine is the fastest is no matter of starts.
        flags, fresh = ("--engine", "eager"), kind == "new"
        server = make_server(*flags, data_dir=tmp_path / kind, fresh=fresh)
        assert isinstance(server.process, ForkedProcess) is not fresh
        with Client(server.address) as client:
            vectors = client.encode(["a red circle", "ein grünes Dreieck"])
        found.append((vectors, surroundings(server)))
        assert server.stop() == 0
        assert server.process.returncode == 0
        assert "Traceback" not in server.log
    (new, of_new), (forked, of_forked) = found
    assert of_forked == of_new
    np.testing.assert_array_equal(np.asarray(forked), np.asarray(new))
    assert (forked.version, forked.space_id) == (new.version, new.space_id)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    (tmp_path / "starts_a_thread.py").write_text(STARTS_A_THREAD)
    monkeypatch.setenv("SHAPE", "round")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_fork_begins_and_ends_as_any_process_does(folder: Path) -> None:
    def start(*arguments: str) -> ForkedProcess:
        without = {name: value for name, value in os.environ.items() if name != "SHAPE"}
        environment = {**without, "COLOUR": "red"}
        log = folder / f"{arguments[-1]}.log"
        log.touch()
        return forks.start(*arguments, environment=environment, log=log)

    def sleeper(name: str) -> ForkedProcess:
        process = start("sleeper", name)
        while "None" not in (folder / f"{name}.log").read_text():
            assert process.poll() is None
        assert (folder / f"{name}.log").read_text() == f"['{name}'] red None\n"
        return process

    with ForkServer(environment=os.environ) as forks:
        asleep = [sleeper(name) for name in ("killed", "interrupted", "left")]
        asleep[0].kill()
        assert asleep[0].wait(30) == -signal.SIGKILL
        asleep[0].kill()  # nothing is there any more
        asleep[1].send_signal(signal.SIGINT)
        assert asleep[1].wait(30) == 3
        assert (folder / "interrupted.log").read_text().endswith("interrupted\n")
        assert start("hotclip_server", "--help").wait(30) == 0
        assert "--max-queue-items" in (folder / "--help.log").read_text()
        assert start("hotclip_server", "--portt").wait(30) == 2
        assert start("no_such_module").wait(30) == 1
        assert "Traceback" in (folder / "no_such_module.log").read_text()
        assert asleep[2].poll() is None
    with pytest.raises(ProcessLookupError):
        os.kill(asleep[2].pid, 0)


def test_a_module_that_starts_threads_is_not_forked(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    with (
        ForkServer("starts_a_thread", environment=environment) as forks,
        pytest.raises(RuntimeError, match="has started threads"),
    ):
        forks.start("sleeper", environment=environment, log=folder / "log")
