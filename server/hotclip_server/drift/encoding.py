"""Encodes samples by several versions on the job thread, a few at a time, and times it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.batching.ticket import Priority
from hotclip_server.encoding.protocol import Tower
from hotclip_server.jobs.waiting import LoopWait
from hotclip_server.search.records import SourceRow
from hotclip_server.search.sources import Sources

AT_ONCE = 64
"""Rows of one step, as many as of a reindex: bounds how long a cancellation waits, and gives the
speed of one."""
TOWERS = {"text": Tower.TEXT, "image": Tower.VISION, "tensor": Tower.VISION}
"""By kind of a row; others have no source to encode."""


@dataclass
class Rate:
    """Items and the seconds that they took."""

    items: int = 0
    seconds: float = 0.0

    @property
    def per_s(self) -> float | None:
        """None if nothing was timed."""
        return self.items / self.seconds if self.items and self.seconds > 0 else None


class SampleEncoder:
    """Job thread only; every version it is asked for must be resident.

    Args:
        sources: Encodes rows at bulk priority, however long serving goes first.
        model: Of the versions.
        step: Called before each step; raises to end the job.
    """

    def __init__(
        self, sources: Sources, wait: LoopWait, model: str, step: Callable[[], None]
    ) -> None:
        self._sources = sources
        self._wait = wait
        self._model = model
        self._step = step
        self._first: dict[tuple[str, Tower], Rate] = {}
        self._later: dict[tuple[str, Tower], Rate] = {}

    def rate(self, version: str, tower: Tower) -> Rate:
        """Of what a version has encoded after its first step, which warms up, if there was more."""
        later = self._later.get((version, tower), Rate())
        return later if later.items else self._first.get((version, tower), Rate())

    def encode(
        self, version: str, rows: Sequence[SourceRow]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Encodes rows that have a source.

        Returns:
            float32 (rows, dim) of unit rows, and which of them could be encoded.
        """
        parts: list[tuple[list[int], NDArray[np.float32]]] = []
        good = np.ones(len(rows), np.bool_)
        for tower, chunk in _chunks(rows):
            self._step()
            started = time.perf_counter()
            vectors, errors = self._wait(
                self._sources.encode(
                    self._model, version, [rows[at] for at in chunk], Priority.BULK
                )
            )
            self._took(version, tower, len(chunk), time.perf_counter() - started)
            good[[chunk[which] for which in errors]] = False
            parts.append((chunk, vectors))
        if not parts:
            return np.zeros((0, 0), np.float32), good
        found = np.zeros((len(rows), parts[0][1].shape[1]), np.float32)
        for chunk, vectors in parts:
            found[chunk] = vectors
        return found, good

    def _took(self, version: str, tower: Tower, items: int, seconds: float) -> None:
        rates = self._later if (version, tower) in self._first else self._first
        rate = rates.setdefault((version, tower), Rate())
        rate.items += items
        rate.seconds += seconds


def text_row(text: str) -> SourceRow:
    """A text as if it were stored."""
    return _row("text", EncodeItem(text=text))


def image_row(image: bytes) -> SourceRow:
    """An encoded image as if it were stored."""
    return _row("image", EncodeItem(image=image))


def _row(kind: str, item: EncodeItem) -> SourceRow:
    return SourceRow(
        point_id="", revision=0, kind=kind, item=item.SerializeToString(), blob=None, payload={}
    )


def _chunks(rows: Sequence[SourceRow]) -> Iterator[tuple[Tower, list[int]]]:
    """Positions of the rows of one tower that are encoded together."""
    for tower in Tower:
        places = [at for at, row in enumerate(rows) if TOWERS[row.kind] is tower]
        for start in range(0, len(places), AT_ONCE):
            yield tower, places[start : start + AT_ONCE]
