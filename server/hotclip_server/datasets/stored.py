"""A stored dataset, read: the trainer's set of pairs, and what a download sends."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from hotclip_server.datasets.upload import IMAGE_INDEX, IMAGES, MANIFEST, PAIRS
from hotclip_server.errors import DataLoss
from hotclip_server.training.flat import hash_of
from hotclip_server.training.lazy_pairs import LazyPairs, in_pieces
from hotclip_server.training.pairs import Pair


class StoredDataset:
    """One folder, of which nothing is in memory but where its pairs and images lie.

    Every byte is checked against the sha256 that it was stored under; rows, which are read again
    and again, after the first time against a CRC-32 of what was found good.

    Raises (all methods):
        DataLoss: files are missing or damaged; reason DATASET_DAMAGED.
    """

    def __init__(self, folder: Path) -> None:
        self.id = folder.name
        self._folder = folder
        with ExitStack() as stack:
            try:
                self._manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
                self._images = os.open(folder / IMAGES, os.O_RDONLY)
                stack.callback(os.close, self._images)
                self._rows = os.open(folder / PAIRS, os.O_RDONLY)
                stack.callback(os.close, self._rows)
            except (OSError, ValueError) as error:
                raise self._damaged(str(error)) from error
            self._files = stack.pop_all()

    def close(self) -> None:
        """Closes its files; no read may follow."""
        self._files.close()

    def locate(self, pause: Callable[[], None]) -> None:
        """Finds where its rows and images lie; else who asks for the first one does.

        Args:
            pause: Called between pieces of the work; may wait, or raise to end it.
        """
        lines = in_pieces(self._lines(PAIRS), pause)
        self.pairs = _StoredPairs(self._rows, lines, self._damaged)
        self._places = _Places(map(json.loads, in_pieces(self._lines(IMAGE_INDEX), pause)))

    @cached_property
    def pairs(self) -> Sequence[Pair]:
        """In stored order."""
        return _StoredPairs(self._rows, self._lines(PAIRS), self._damaged)

    @cached_property
    def _places(self) -> _Places:
        return _Places(map(json.loads, self._lines(IMAGE_INDEX)))

    @property
    def image_keys(self) -> Iterator[str]:
        """All of them, in stored order, read anew, each when it is asked for."""
        return (json.loads(line)["key"] for line in self._lines(IMAGE_INDEX))

    def image_bytes(self, image_key: str) -> bytes:
        """The image as it was uploaded. Any thread. Raises KeyError for an unknown key."""
        start, length = self._places[image_key]
        try:
            data = os.pread(self._images, length, start)
        except OSError as error:
            raise self._damaged(f"image {image_key}: {error}") from error
        if hashlib.sha256(data).hexdigest() != image_key:
            raise self._damaged(f"image {image_key}")
        return data

    def _lines(self, name: str) -> Iterator[bytes]:
        path = self._folder / name
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if digest != self._manifest["sha256"][name]:
                    raise self._damaged(name)
                file.seek(0)
                yield from file
        except (OSError, KeyError, TypeError) as error:
            raise self._damaged(repr(error)) from error

    def _damaged(self, what: str) -> DataLoss:
        return DataLoss(f"dataset {self.id} is damaged: {what}", reason="DATASET_DAMAGED")


class _StoredPairs(LazyPairs):
    """Rows of a file, read when they are asked for; any thread.

    Args:
        lines: All of the file, checked.
    """

    def __init__(
        self, file: int, lines: Iterable[bytes], damaged: Callable[[str], DataLoss]
    ) -> None:
        self._file, self._damaged = file, damaged
        ends, checks = array("q", (0,)), array("I")
        for line in lines:
            ends.append(ends[-1] + len(line))
            checks.append(crc32(line))
        self._ends, self._checks = np.array(ends), np.array(checks)

    def __len__(self) -> int:
        return len(self._checks)

    def read(self, number: int) -> Pair:
        """See `LazyPairs`. Raises DataLoss if it is not what was checked."""
        start, end = self._ends[number : number + 2].tolist()
        try:
            line = os.pread(self._file, end - start, start)
        except OSError as error:
            raise self._damaged(f"row {number} of {PAIRS}: {error}") from error
        if crc32(line) != self._checks[number]:
            raise self._damaged(f"row {number} of {PAIRS}")
        return _pair(json.loads(line))


class _Places:
    """Start and length of each image in the file of images, by the hash of its key."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        keys, starts, lengths = array("q"), array("q"), array("q")
        for row in rows:
            keys.append(hash_of(row["key"]))
            starts.append(row["start"])
            lengths.append(row["length"])
        order = np.argsort(np.array(keys))
        self._keys = np.array(keys)[order]
        self._starts = np.array(starts)[order]
        self._lengths = np.array(lengths)[order].astype(np.uint32)

    def __getitem__(self, key: str) -> tuple[int, int]:
        wanted = hash_of(key)
        place = int(np.searchsorted(self._keys, wanted))
        if place == len(self._keys) or self._keys[place] != wanted:
            raise KeyError(key)
        return int(self._starts[place]), int(self._lengths[place])


def _pair(row: dict[str, Any]) -> Pair:
    return Pair(
        row["image"],
        row["text"],
        row.get("group"),
        row.get("label"),
        row.get("score", 1.0),
        tuple(row.get("negative_texts", ())),
        tuple(row.get("negative_images", ())),
    )
