"""Streams of the client live through a restart of the server; split calls through swaps."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support.pictures import photograph
from support.server import start_server

from hotclip import Client, JobState
from hotclip.errors import HotclipError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_streams_live_through_a_restart(tmp_path: Path) -> None:
    flags = ("--device", "cpu", "--port", str(free_port()))
    pairs = [(f"thing {i}", photograph(i, 64, 64)) for i in range(16)]
    with start_server(tmp_path / "data", *flags) as first, Client(first.address) as client:
        run = client.finetune(pairs, epochs=1000, batch_size=8, activation="never")
        events = run.events()
        seen = [next(events).seq for _ in range(10)]
        stream = client.encode_stream((f"thing {i}" for i in range(300)), batch_size=8)
        vectors = [next(stream) for _ in range(50)]
        command = [sys.executable, "-m", "hotclip", "jobs", "watch", run.id, "-s", first.address]
        watching = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert watching.stderr is not None
        assert "QUEUED" in watching.stderr.readline()
        first.kill()
        with start_server(tmp_path / "data", *flags):
            vectors += stream
            state = None
            for event in events:
                seen.append(event.seq)
                if state is None and len(seen) > 12:
                    state = run.cancel().state
            assert [v.index for v in vectors] == list(range(300))
            assert len({v.version for v in vectors}) == 1
            assert seen == list(range(1, len(seen) + 1))
            assert run.status() in (JobState.CANCELLED, JobState.INTERRUPTED)
            told = watching.communicate(timeout=30)[1]
            assert watching.returncode == 1
            assert "INTERRUPTED: the server stopped" in told
            assert "QUEUED" in told.partition("INTERRUPTED")[2]


@pytest.mark.slow
def test_split_calls_are_of_one_version_while_versions_swap(tmp_path: Path) -> None:
    flags = ("--device", "cpu", "--max-items-per-request", "8")
    pairs = [(f"thing {i}", photograph(i, 64, 64)) for i in range(16)]
    texts = [f"thing {i}" for i in range(60)]
    with start_server(tmp_path / "data", *flags) as server, Client(server.address) as client:
        run = client.finetune(
            pairs, max_steps=2, batch_size=8, learning_rate=1e-2, activation="never"
        )
        tuned = run.wait(120).result_version
        base = client.get_model().live_version
        client.activate(tuned)
        golden = {v: client.encode(texts, version=v) for v in (base, tuned)}
        assert np.abs(golden[base] - golden[tuned]).max() > 1e-2
        stop, failed, seen = threading.Event(), list[HotclipError](), set[str]()

        def swap() -> None:
            try:
                while not stop.is_set():
                    client.rollback()
            except HotclipError as error:
                failed.append(error)

        thread = threading.Thread(target=swap)
        thread.start()
        try:
            for _ in range(25):
                vectors = client.encode(texts)
                seen.add(vectors.version)
                np.testing.assert_allclose(vectors, golden[vectors.version], atol=1e-4)
        finally:
            stop.set()
            thread.join()
        assert not failed
        assert seen == {base, tuned}
