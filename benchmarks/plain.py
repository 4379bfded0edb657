"""Plain open_clip in fp32: what is right, and the loop that anybody writes first.

    load        {folder, device, corpus}
    references  {content, count}
    best_batch  {content, candidates, seconds, limit}  → batch, rate, cap, cap_s
    run         {content, batch, seconds}       → rate

Its own preprocessing, one picture after another, and texts padded to the whole context.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.corpus import Item, read_items, write_references
from benchmarks.loops import best_batch, run_loop
from benchmarks.reference import Reference
from benchmarks.worker import obey

CHUNK = 16
"""Items that are encoded together for references."""


class PlainLoop:
    """Implements `Loop` with open_clip alone."""

    overlap = False

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def prepare(self, items: Sequence[Item]) -> tuple[bool, Tensor]:
        texts = [item for item in items if isinstance(item, str)]
        if texts:
            return True, self._reference.tokens(texts)
        return False, self._reference.pixels([item for item in items if not isinstance(item, str)])

    def submit(self, prepared: tuple[bool, Tensor]) -> Callable[[], NDArray[np.float32]]:
        rows = self.encode(prepared)
        return lambda: rows

    def encode(self, prepared: tuple[bool, Tensor]) -> NDArray[np.float32]:
        """float32 (n, dim), rows of unit length."""
        is_text, tensor = prepared
        if is_text:
            return self._reference.encode_tokens(tensor)
        return self._reference.encode_pixels(tensor)


class Plain:
    """The commands."""

    def load(self, told: dict[str, Any]) -> dict[str, Any]:
        self._corpus = Path(told["corpus"])
        self._loop = PlainLoop(Reference(Path(told["folder"]), told["device"]))
        return {}

    def references(self, told: dict[str, Any]) -> dict[str, Any]:
        items = read_items(self._corpus, told["content"])[: told["count"]]
        rows = [
            self._loop.encode(self._loop.prepare(items[at : at + CHUNK]))
            for at in range(0, len(items), CHUNK)
        ]
        write_references(self._corpus, told["content"], np.concatenate(rows))
        return {}

    def best_batch(self, told: dict[str, Any]) -> dict[str, Any]:
        items = read_items(self._corpus, told["content"])
        sizes, seconds, limit = told["candidates"], told["seconds"], told["limit"]
        return best_batch(self._loop, items, sizes, seconds, limit)

    def run(self, told: dict[str, Any]) -> dict[str, Any]:
        items = read_items(self._corpus, told["content"])
        return {"rate": run_loop(self._loop, items, told["batch"], told["seconds"]).rate}


def main() -> None:
    worker = Plain()
    commands = {"load": worker.load, "references": worker.references}
    obey({**commands, "best_batch": worker.best_batch, "run": worker.run})


if __name__ == "__main__":
    main()
