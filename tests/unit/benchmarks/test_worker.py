"""Processes that do what they are told."""

import pytest

from benchmarks.worker import Worker, WorkerFailed


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


CONNECT = {"address": "127.0.0.1:1", "corpus": "none", "exact": None, "server_pid": 1}
