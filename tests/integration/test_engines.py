"""A server that is asked for nothing: plain open_clip at first, then the fastest that passes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.pictures import encoded, photograph
from support.server import start_server

from hotclip import Client, EngineInfo
from hotclip_server.models.probes import parity

TEXTS = [f"number {n} of the photos of {what}" for n in range(12) for what in ("a cat", "Köln")]
IMAGES = [encoded(photograph(seed, 96, 72)) for seed in range(24)]


def vectors(client: Client) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.asarray(client.encode(TEXTS)), np.asarray(client.encode(IMAGES))


def settled(client: Client) -> tuple[EngineInfo, ...]:
    ends = time.monotonic() + 200  # it measures, beside other tests
    while client.server_info().measuring:
        assert time.monotonic() < ends, "the engines are never settled"
        time.sleep(0.05)
    (version,) = client.server_info().versions
    return version.engines


@pytest.mark.slow
def test_engines_take_over_under_load_and_are_remembered(tmp_path: Path) -> None:
    flags = ("--engine", "eager")
    with (
        start_server(tmp_path / "exact", *flags, knows_engines=False) as server,
        Client(server.address) as client,
    ):
        settled(client)
        reference = vectors(client)
        (version,) = client.server_info().versions
        assert {(e.engine, e.precision) for e in version.engines} == {("eager", "fp32")}
        assert all(engine.items_per_s > 0 for engine in version.engines)

    answers: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    failures: list[Exception] = []
    stop = threading.Event()
    flags = ("--precision", "auto")
    with (
        start_server(tmp_path / "data", *flags, knows_engines=False) as server,
        Client(server.address) as client,
    ):

        def load() -> None:
            while not stop.is_set():
                try:
                    answers.append(vectors(client))
                except Exception as error:  # noqa: BLE001 - the test fails on any
                    failures.append(error)

        worker = threading.Thread(target=load)
        worker.start()
        try:
            chosen = settled(client)
            time.sleep(0.2)
        finally:
            stop.set()
            worker.join()
        assert [engine.tower for engine in chosen] == ["clip-text", "clip-vision"]
        assert all(engine.engine in ("torch", "onnx") for engine in chosen)
        assert all(engine.best_batch >= 1 for engine in chosen)
        last = vectors(client)
    assert failures == []
    assert len(answers) >= 2
    for given in (answers[0], last):
        for ours, theirs in zip(given, reference, strict=True):
            assert parity(theirs, ours).holds_in("bf16")
    for given in answers:
        for ours, theirs in zip(given, reference, strict=True):
            distance = np.linalg.norm(ours[:, None] - theirs[None], axis=2)
            assert distance.argmin(1).tolist() == list(range(len(theirs)))

    with start_server(tmp_path / "data", *flags) as server, Client(server.address) as client:
        assert not client.server_info().measuring
        (version,) = client.server_info().versions
        assert [(e.engine, e.precision, e.best_batch) for e in version.engines] == [
            (e.engine, e.precision, e.best_batch) for e in chosen
        ]
        for ours, before in zip(vectors(client), last, strict=True):
            np.testing.assert_allclose(ours, before, atol=0.01)
