"""Datasets: what an upload sends, what a download writes, and what the server tells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from hotclip._inputs import encoded_of
from hotclip._jobs import when
from hotclip._pairs import ImagePair
from hotclip.errors import DataLoss, InvalidArgument
from hotclip_proto.v1 import dataset_pb2

PAIRS_FILE = "pairs.jsonl"
# Pairs in one message of an upload: few messages, each far below any limit.
_PAIRS_A_MESSAGE = 64


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
    duplicate_pairs: int
    """Pairs that were given more than once and are kept once."""


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
        duplicate_pairs=message.duplicate_pairs,
    )


def content_name(pairs: Sequence[ImagePair]) -> str:
    """A name that the same pairs always get: "pairs-" and 32 hex digits. Reads every image."""
    rows = sorted(f"{key_of(p)}\0{p.group}\0{p.text}" for p in pairs)
    digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    return f"pairs-{digest[:32]}"


def key_of(pair: ImagePair) -> str:
    """How the server refers to the pair's image: sha256 of its bytes, hex."""
    return hashlib.sha256(_bytes_of(pair)).hexdigest()


def _bytes_of(pair: ImagePair) -> bytes:
    try:
        return encoded_of(pair.image.load())
    except InvalidArgument as error:
        told = error.fields[0].reason if error.fields else error.message
        raise InvalidArgument.field(pair.where, told, reason="IMAGE_UNREADABLE") from error


def upload_requests(
    name: str, description: str, pairs: Sequence[ImagePair]
) -> Iterator[dataset_pb2.UploadDatasetRequest]:
    """The messages of an upload; reads one image at a time and sends each content once."""
    opening = dataset_pb2.DatasetOpen(name=name, description=description)
    yield dataset_pb2.UploadDatasetRequest(open=opening)
    sent: set[str] = set()
    known: dict[int, str] = {}  # by identity of the Image: one object is read once
    for start in range(0, len(pairs), _PAIRS_A_MESSAGE):
        block = dataset_pb2.DatasetPairs()
        for pair in pairs[start : start + _PAIRS_A_MESSAGE]:
            key = known.get(id(pair.image))
            if key is None:
                data = _bytes_of(pair)
                key = known[id(pair.image)] = hashlib.sha256(data).hexdigest()
                if key not in sent:
                    sent.add(key)
                    image = dataset_pb2.DatasetImage(key=key, data=data)
                    yield dataset_pb2.UploadDatasetRequest(image=image)
            block.pairs.add(image_key=key, text=pair.text, group=pair.group)
        yield dataset_pb2.UploadDatasetRequest(pairs=block)


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
            row = {"text": pair.text, "image": name}
            if pair.group:
                row["group"] = pair.group
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
