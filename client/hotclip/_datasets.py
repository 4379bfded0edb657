"""Datasets: what the server tells of them, how their content is named, what a download writes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from hotclip._dataset_report import DatasetReport, report_of
from hotclip._inputs import Image, encoded_of
from hotclip._jobs import when
from hotclip._pairs import BadRow, ImagePair, Rows
from hotclip.errors import DataLoss, InvalidArgument
from hotclip_proto.v1 import dataset_pb2

PAIRS_FILE = "pairs.jsonl"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A stored, immutable set of pairs."""

    id: str
    """Content address."""
    name: str
    description: str
    pairs: int
    images: int
    texts: int
    groups: int
    size_bytes: int
    create_time: datetime | None
    labels: int
    """Number of different labels."""
    uncaptioned_pairs: int
    """With a label and without a text."""
    pairs_with_negatives: int
    duplicate_pairs: int
    """Pairs that were given more than once and are kept once."""
    report: DatasetReport | None = None
    """Of the upload; None in lists. str(report) is for people."""


def dataset(message: dataset_pb2.Dataset) -> Dataset:
    """Parses a dataset."""
    return Dataset(
        id=message.id,
        name=message.name or message.id,
        description=message.description,
        pairs=message.pairs,
        images=message.images,
        texts=message.texts,
        groups=message.groups,
        size_bytes=message.size_bytes,
        create_time=when(message.create_time),
        labels=message.labels,
        uncaptioned_pairs=message.uncaptioned_pairs,
        pairs_with_negatives=message.pairs_with_negatives,
        duplicate_pairs=message.duplicate_pairs,
        report=report_of(message.report) if message.HasField("report") else None,
    )


def no_dataset(name: str) -> InvalidArgument:
    """There is none of this name, but a file that was perhaps meant."""
    problem = f"there is no dataset {name!r}, and the file of this name is Path({name!r})"
    return InvalidArgument.field("data", problem)


def content_name(rows: Rows) -> str:
    """A name that the same pairs always get: "pairs-" and 32 hex digits. Reads every image.

    Raises:
        InvalidArgument: An image that can't be read; named by its row.
    """
    # A sum does not depend on the order, and needs no memory.
    total = 0
    for row in rows:
        if not isinstance(row, BadRow):
            total += int.from_bytes(_row_digest(row))
    return f"pairs-{total % (1 << 256):064x}"[: len("pairs-") + 32]


def _row_digest(row: ImagePair) -> bytes:
    keys = [_key_of(image, row.where) for image in (row.image, *row.negative_images)]
    told = [row.text, row.group, row.label, row.score, row.negative_texts, keys]
    return hashlib.sha256(json.dumps(told).encode()).digest()


def _key_of(image: Image, where: str) -> str:
    """How the server refers to an image: sha256 of its bytes, hex."""
    try:
        return hashlib.sha256(encoded_of(image.load())).hexdigest()
    except InvalidArgument as error:
        told = error.fields[0].reason if error.fields else error.message
        raise InvalidArgument.field(where, told, reason="IMAGE_UNREADABLE") from error


class DatasetWriter:
    """Writes a downloaded dataset as images/ and pairs.jsonl, which can be uploaded again.

    Args:
        directory: Made with the first message if it does not exist; must be empty.
    """

    def __init__(self, directory: Path) -> None:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise InvalidArgument.field("directory", f"{directory} is not an empty folder")
        self._images = directory / "images"
        self.file = directory / PAIRS_FILE
        self._out: IO[str] | None = None
        self._names: dict[str, str] = {}
        self._early: list[dataset_pb2.DatasetPair] = []

    def accept(self, message: dataset_pb2.DownloadDatasetResponse) -> None:
        """Writes a message; raises DataLoss if an image is not what its key says."""
        if self._out is None:
            self._images.mkdir(parents=True)
            self._out = self.file.open("w", encoding="utf-8")
        if message.HasField("image"):
            image = message.image
            if hashlib.sha256(image.data).hexdigest() != image.key:
                raise DataLoss(f"image {image.key!r} is damaged", reason="CHECKSUM")
            name = f"images/{image.key}.{_extension(image.data)}"
            (self._images.parent / name).write_bytes(image.data)
            self._names[image.key] = name
        self._early += message.pairs.pairs
        waiting = []
        for pair in self._early:
            name = self._names.get(pair.image_key, "")
            if not name:
                waiting.append(pair)
                continue
            others = [self._names.get(key, "") for key in pair.negative_image_keys]
            if not all(others):
                waiting.append(pair)
                continue
            row: dict[str, object] = {"text": pair.text, "image": name}
            row |= {"group": pair.group} if pair.group else {}
            row |= {"label": pair.label} if pair.label else {}
            row |= {"score": pair.score} if pair.HasField("score") else {}
            row |= {"negative_texts": list(pair.negative_texts)} if pair.negative_texts else {}
            row |= {"negative_images": others} if others else {}
            self._out.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._early = waiting

    def close(self) -> None:
        """Ends the file, if there is one."""
        if self._out is not None:
            self._out.close()

    def finish(self) -> Path:
        """The file of pairs; raises DataLoss if anything never came."""
        if self._out is None:
            raise DataLoss("the dataset came without a pair", reason="PAIRS_MISSING")
        if self._early:
            raise DataLoss(f"{len(self._early)} pairs lack their image", reason="IMAGE_MISSING")
        return self.file


def _extension(data: bytes) -> str:
    if data.startswith(b"\x89PNG"):
        return "png"
    return "webp" if data[8:12] == b"WEBP" else "jpg"
