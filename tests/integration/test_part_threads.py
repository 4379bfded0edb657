"""A server on two cores computes large batches in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.pictures import photograph

from benchmarks.engines import wait_for_engines
from hotclip import Client


def test_large_batches_are_what_single_images_are(make_server, tmp_path: Path) -> None:
    flags = ("--engine", "torch", "--precision", "fp32", "--threads", "2")
    server = make_server(*flags, data_dir=tmp_path / "data")
    with Client(server.address) as client:
        wait_for_engines(client)
        images = [photograph(number, 96, 96) for number in range(40)]
        together = client.encode(images)
        alone = np.concatenate([client.encode([image]) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-4)
