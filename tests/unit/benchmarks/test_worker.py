"""Processes that do what they are told."""

import pytest

from benchmarks.worker import Worker, WorkerFailed, surroundings


def test_what_a_command_raises_comes_back() -> None:
    with Worker("benchmarks.load_generator") as worker:
        assert worker.ask("connect", {**CONNECT}) == {}
        with pytest.raises(WorkerFailed, match="No such file"):
            worker.ask("closed", {"content": "text", "clients": 1, "items": 1, "seconds": 0.1})
        with pytest.raises(WorkerFailed, match="KeyError"):
            worker.ask("unknown")
        assert worker.ask("connect", {**CONNECT}) == {}  # it goes on


def test_a_process_that_ended_is_an_error() -> None:
    with Worker("benchmarks.nothing") as worker, pytest.raises(WorkerFailed, match="ended"):
        worker.ask("connect")


def test_defaults_hold_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine waits as the server does; plain open_clip as PyTorch does by itself."""
    name = "OMP_WAIT_POLICY"
    monkeypatch.delenv(name, raising=False)
    assert surroundings(None, {name: "passive"}).get(name) == "passive"
    assert name not in surroundings({"HF_HUB_OFFLINE": "1"}, None)
    monkeypatch.setenv(name, "active")
    assert surroundings(None, {name: "passive"})[name] == "active"
    assert surroundings({name: "passive"}, None)[name] == "passive"


CONNECT = {"address": "127.0.0.1:1", "corpus": "none", "exact": None, "server_pid": 1}
