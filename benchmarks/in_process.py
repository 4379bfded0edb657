"""The server's own engine without the server: the loop that serving is compared with.

    load        {data_dir, version, device, engines, corpus, exact}
    best_batch  {content, candidates, seconds, limit}  → batch, rate, cap, cap_s
    run         {content, batch, seconds}       → rate, min_cosine

In a process of its own. Images are decoded on as many threads as there are cores, as the
server does it; on a GPU the next batch is prepared and copied while one is computed.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.answers import compare_rows
from benchmarks.corpus import Item, read_items, read_references, tower_of
from benchmarks.loops import best_batch, run_loop
from benchmarks.worker import obey
from hotclip_server.app import (
    make_cuda_engines,
    make_factory,
    make_onnx_engines,
    make_part_threads,
    make_store,
)
from hotclip_server.config import ServerConfig
from hotclip_server.encoding.engines.protocol import EAGER, EngineChoice
from hotclip_server.encoding.overlapping import Overlapping
from hotclip_server.encoding.protocol import Encoder, Prepared, Tower


class EngineLoop:
    """Implements `Loop` with the public surface of an `Encoder`."""

    def __init__(self, encoder: Encoder, *, overlap: bool) -> None:
        self.overlap = overlap
        self._encoder = encoder
        self._pool = ThreadPoolExecutor(os.cpu_count())

    def prepare(self, items: Sequence[Item]) -> list[Prepared]:
        if isinstance(items[0], bytes):
            return list(self._pool.map(self._prepare, items))
        return [self._prepare(item) for item in items]

    def submit(self, prepared: list[Prepared]) -> Callable[[], NDArray[np.float32]]:
        tower = prepared[0].tower
        if self.overlap and isinstance(self._encoder, Overlapping):
            pending = self._encoder.submit(tower, prepared)
            return lambda: _unit(pending.wait())
        rows = _unit(self._encoder.encode(tower, prepared))
        return lambda: rows

    def _prepare(self, item: Item) -> Prepared:
        if isinstance(item, str):
            return self._encoder.prepare_text(item)
        if isinstance(item, bytes):
            return self._encoder.prepare_image(item)
        height, width, _ = item.shape
        return self._encoder.prepare_tensor(item.tobytes(), height, width)


class InProcess:
    """The commands."""

    def load(self, told: dict[str, Any]) -> dict[str, Any]:
        self._corpus, self._exact = Path(told["corpus"]), told["exact"]
        encoder = load_encoder(told)
        self._loop = EngineLoop(encoder, overlap=told["device"] != "cpu")
        return {}

    def best_batch(self, told: dict[str, Any]) -> dict[str, Any]:
        items = read_items(self._corpus, told["content"])
        sizes, seconds, limit = told["candidates"], told["seconds"], told["limit"]
        return best_batch(self._loop, items, sizes, seconds, limit)

    def run(self, told: dict[str, Any]) -> dict[str, Any]:
        content = told["content"]
        items = read_items(self._corpus, content)
        looped = run_loop(self._loop, items, told["batch"], told["seconds"])
        references = read_references(self._corpus, content)
        parity = compare_rows(looped.rows, references, exact=self._exact[tower_of(content)])
        return {"rate": looped.rate, **parity}


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


def load_encoder(told: dict[str, Any]) -> Encoder:
    """The version with the engines that the server named."""
    config = ServerConfig(data_dir=Path(told["data_dir"]))
    encoder = make_store(config).load(told["version"], device=told["device"])
    part_threads = make_part_threads(told["device"])
    if part_threads is not None:
        part_threads.start()
    factory = make_factory(
        make_cuda_engines(told["device"]), make_onnx_engines(config), part_threads=part_threads
    )
    for tower in Tower:
        choice = EngineChoice(**told["engines"][tower.value])
        source = encoder.source(tower)
        if choice != EAGER and source is not None:
            encoder.install(tower, factory.build(choice, source), None)
    encoder.release_model()
    return encoder


def main() -> None:
    worker = InProcess()
    obey({"load": worker.load, "best_batch": worker.best_batch, "run": worker.run})


if __name__ == "__main__":
    main()
