"""The server's trainer without the server: what is compared with open_clip's own training loop.

    load      {source, data_dir, corpus, batch, chunk_size}  → folder, side
    check     {count}               → min_cosine of what it trains to open_clip's own features
    decoded   {seconds}             → rate; images are decoded before the first time
    jpeg      {epochs}              → rate; each time all over from the files

In a process of its own.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.finetune_corpus import pairs, read_features
from benchmarks.worker import obey
from hotclip_server.app import make_store
from hotclip_server.config import ServerConfig
from hotclip_server.training.clip import Clip, load_clip
from hotclip_server.training.config import CROPS, TrainConfig
from hotclip_server.training.events import Step, TrainEvent
from hotclip_server.training.images import ImageStore
from hotclip_server.training.pairs import MemoryPairs, Pair
from hotclip_server.training.towers import Towers
from hotclip_server.training.trainer import Trainer

ENDLESS = 10_000_000


class Ours:
    """The commands."""

    def load(self, told: dict[str, Any]) -> dict[str, Any]:
        store = make_store(ServerConfig(data_dir=Path(told["data_dir"]), allow_random_weights=True))
        self._folder = store.folder(store.import_source(told["source"]).id)
        self._corpus = Path(told["corpus"])
        clip = load_clip(self._folder)
        size = clip.preprocess.size
        self._device = told["device"]
        self._config = TrainConfig(
            method="full",
            max_steps=ENDLESS,
            batch_size=told["batch"],
            chunk_size=told["chunk_size"],
            scheduler="constant",
            precision="fp32",
            augment=CROPS,  # as open_clip's transform for training
        )
        self._run: Iterator[TrainEvent] | None = None
        return {"folder": str(self._folder), "side": size if isinstance(size, int) else size[0]}

    def check(self, told: dict[str, Any]) -> dict[str, Any]:
        clip, data = self._clip(), self._data()
        some = data.pairs[: told["count"]]
        towers = Towers(clip, self._config)
        store = ImageStore(clip, [pair.image_key for pair in some], data.image_bytes)
        tokens = clip.tokenizer([pair.text for pair in some])
        with torch.no_grad():
            image = towers.image(store.batch(range(len(some))).to(clip.device).float() / 255)
            text = towers.text(towers.shorten(tokens))
        cosines = [
            torch.nn.functional.cosine_similarity(ours.cpu(), torch.from_numpy(theirs)).min()
            for ours, theirs in zip((image, text), read_features(self._corpus), strict=True)
        ]
        return {"min_cosine": float(min(cosines))}

    def decoded(self, told: dict[str, Any]) -> dict[str, Any]:
        if self._run is None:
            data = self._data()
            self._run = Trainer(self._clip(), data, self._config).run()
            batches = -(-len(data.pairs) // self._config.batch_size)
            for _ in range(batches + 1):  # now all images are decoded
                _next_step(self._run)
        return {"rate": _rate(self._run, told["seconds"], self._config.batch_size)}

    def jpeg(self, told: dict[str, Any]) -> dict[str, Any]:
        data, clip = self._data(), self._clip()
        config = replace(self._config, max_steps=None, epochs=told["epochs"])
        run = Trainer(clip, data, config).run()
        next(run)
        began = time.perf_counter()
        for _ in run:
            pass
        return {"rate": told["epochs"] * len(data.pairs) / (time.perf_counter() - began)}

    def _clip(self) -> Clip:
        clip = load_clip(self._folder)
        clip.model.to(self._device)
        return clip

    def _data(self) -> MemoryPairs:
        known = pairs(self._corpus)
        return MemoryPairs(
            [Pair(str(at), caption) for at, (caption, _) in enumerate(known)],
            {str(at): data for at, (_, data) in enumerate(known)},
        )


def _next_step(run: Iterator[TrainEvent]) -> None:
    while not isinstance(next(run), Step):
        pass


def _rate(run: Iterator[TrainEvent], seconds: float, batch: int) -> float:
    """Samples a second over whole steps."""
    began, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds or not steps:
        _next_step(run)
        steps += 1
    passed = time.perf_counter() - began
    return steps * batch / passed


def main() -> None:
    worker = Ours()
    commands = {"load": worker.load, "check": worker.check}
    obey({**commands, "decoded": worker.decoded, "jpeg": worker.jpeg})


if __name__ == "__main__":
    main()
