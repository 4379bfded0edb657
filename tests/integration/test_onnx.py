"""A server that is asked for ONNX Runtime: the same embeddings, also in 8 bits nearly."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.pictures import encoded, photograph
from support.server import start_server

from hotclip import Client
from hotclip_server.models.probes import parity

TEXTS = [f"number {n} of the photos of {what}" for n in range(32) for what in ("a cat", "Köln")]
IMAGES = [encoded(photograph(seed, 96, 72)) for seed in range(64)]


def vectors(client: Client) -> list[NDArray[np.float32]]:
    return [np.asarray(client.encode(TEXTS)), np.asarray(client.encode(IMAGES))]


def settle(client: Client) -> set[tuple[str, str]]:
    """Waits until nothing is measured; engines and precisions of both towers."""
    ends = time.monotonic() + 200  # graphs are exported, beside other tests
    while client.server_info().measuring:
        assert time.monotonic() < ends, "the engines are never settled"
        time.sleep(0.05)
    (version,) = client.server_info().versions
    return {(engine.engine, engine.precision) for engine in version.engines}


@pytest.mark.slow
def test_onnx_serves_in_full_precision_and_in_8_bits(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with start_server(data, "--engine", "onnx") as server, Client(server.address) as client:
        eager = vectors(client)  # plain open_clip answers while graphs are exported
        assert settle(client) == {("onnx", "fp32")}
        for ours, theirs in zip(vectors(client), eager, strict=True):
            assert parity(theirs, ours).holds_in("fp32")
    graphs = sorted((data / "graphs").iterdir())
    assert len(graphs) == 2
    written = [path.stat().st_mtime_ns for path in graphs]

    flags = ("--engine", "onnx", "--precision", "int8")
    with start_server(data, *flags) as server, Client(server.address) as client:
        assert settle(client) == {("onnx", "int8")}
        for ours, theirs in zip(vectors(client), eager, strict=True):
            found = parity(theirs, ours)
            assert found.holds_in("int8")
            assert found.min_cosine > 0.999
            assert not found.holds_in("fp32")
    assert [path.stat().st_mtime_ns for path in graphs] == written
