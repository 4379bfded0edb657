"""A stored dataset, read: the trainer's set of pairs, and what a download sends."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hotclip_server.datasets.upload import IMAGE_INDEX, IMAGES, MANIFEST, PAIRS
from hotclip_server.errors import DataLoss
from hotclip_server.training.pairs import Pair


class StoredDataset:
    """One folder. Pairs and the places of the images are in memory, the images are not.

    Every byte that is read is checked against the sha256 that it was stored under.

    Raises (all methods):
        DataLoss: files are missing or damaged; reason DATASET_DAMAGED.
    """

    def __init__(self, folder: Path) -> None:
        self.id = folder.name
        self._folder = folder
        try:
            self._manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
            self._images = os.open(folder / IMAGES, os.O_RDONLY)
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from error

    def close(self) -> None:
        """Closes the file of images; no read may follow."""
        os.close(self._images)

    @cached_property
    def pairs(self) -> Sequence[Pair]:
        """In stored order."""
        return [_pair(row) for row in self._lines(PAIRS)]

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        return {row["key"]: (row["start"], row["length"]) for row in self._lines(IMAGE_INDEX)}

    @property
    def image_keys(self) -> Sequence[str]:
        """All of them, in stored order."""
        return list(self._places)

    def image_bytes(self, image_key: str) -> bytes:
        """The image as it was uploaded. Any thread. Raises KeyError for an unknown key."""
        start, length = self._places[image_key]
        data = os.pread(self._images, length, start)
        if hashlib.sha256(data).hexdigest() != image_key:
            raise self._damaged(f"image {image_key}")
        return data

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        path = self._folder / name
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if digest != self._manifest["sha256"][name]:
                    raise self._damaged(name)
                file.seek(0)
                for line in file:
                    yield json.loads(line)
        except (OSError, KeyError, TypeError) as error:
            raise self._damaged(repr(error)) from error

    def _damaged(self, what: str) -> DataLoss:
        return DataLoss(f"dataset {self.id} is damaged: {what}", reason="DATASET_DAMAGED")


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
