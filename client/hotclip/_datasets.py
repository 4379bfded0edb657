"""Datasets: what an upload sends, what a download writes, and what the server tells."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from hotclip._inputs import encoded_of
from hotclip._jobs import when
from hotclip._pairs import ImagePair
from hotclip._server import Limits
from hotclip.errors import DataLoss, FieldViolation, InvalidArgument
from hotclip_proto.v1 import dataset_pb2

PAIRS_FILE = "pairs.jsonl"
# Pairs in one message of an upload: few messages, each far below any limit.
_PAIRS_A_MESSAGE = 64
# Left of a message for everything but the image itself.
_MESSAGE_MARGIN = 64 << 10
# Errors named one by one before the rest is only counted.
_MAX_NAMED = 20
# How the server names what came: pairs and images in the order of their sending.
_PLACE = re.compile(r"(pairs|images)\[(\d+)\](.*)", re.DOTALL)
DATASET_INVALID = "DATASET_INVALID"


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


class Upload:
    """The messages of an upload, and where what they hold came from."""

    def __init__(
        self, name: str, description: str, pairs: Sequence[ImagePair], limits: Limits
    ) -> None:
        self._open = dataset_pb2.DatasetOpen(name=name, description=description)
        self._pairs = pairs
        self._largest = min(limits.max_image_bytes, limits.max_message_bytes - _MESSAGE_MARGIN)
        self._sent: list[str] = []

    def requests(self) -> Iterator[dataset_pb2.UploadDatasetRequest]:
        """Reads one image at a time and sends each content once.

        Raises:
            InvalidArgument: An image that can't be read or sent, named by its pair.
        """
        yield dataset_pb2.UploadDatasetRequest(open=self._open)
        self._sent = []
        sent: set[str] = set()
        known: dict[int, str] = {}  # by identity of the Image: one object is read once
        for start in range(0, len(self._pairs), _PAIRS_A_MESSAGE):
            block = dataset_pb2.DatasetPairs()
            for pair in self._pairs[start : start + _PAIRS_A_MESSAGE]:
                key = known.get(id(pair.image))
                if key is None:
                    data = _bytes_of(pair)
                    key = known[id(pair.image)] = hashlib.sha256(data).hexdigest()
                    if key not in sent:
                        self._check_size(pair, len(data))
                        sent.add(key)
                        self._sent.append(pair.where)
                        image = dataset_pb2.DatasetImage(key=key, data=data)
                        yield dataset_pb2.UploadDatasetRequest(image=image)
                block.pairs.add(image_key=key, text=pair.text, group=pair.group)
            yield dataset_pb2.UploadDatasetRequest(pairs=block)
        close = dataset_pb2.DatasetClose(pairs=len(self._pairs), images=len(self._sent))
        yield dataset_pb2.UploadDatasetRequest(close=close)

    def _check_size(self, pair: ImagePair, size: int) -> None:
        if size > self._largest:
            problem = f"image of {size} bytes, {self._largest} are allowed"
            raise InvalidArgument.field(pair.where, problem, reason="IMAGE_TOO_LARGE")

    def located(self, error: InvalidArgument) -> InvalidArgument:
        """The server's error, with the lines or positions that the caller knows."""
        fields = [FieldViolation(self._where(v.field), v.reason) for v in error.fields]
        named = "; ".join(f"{v.field}: {v.reason}" for v in fields[:_MAX_NAMED])
        more = f"; and {len(fields) - _MAX_NAMED} more" if len(fields) > _MAX_NAMED else ""
        return InvalidArgument(
            f"{named}{more}" if fields else error.message,
            reason=error.reason,
            fields=fields,
            request_id=error.request_id,
            metadata=error.metadata,
        )

    def _where(self, field: str) -> str:
        found = _PLACE.match(field)
        if found is None:
            return field
        kind, index, rest = found[1], int(found[2]), found[3]
        if kind == "pairs" and index < len(self._pairs):
            return f"{self._pairs[index].where}{rest}"
        if kind == "images" and index < len(self._sent):
            return f"{self._sent[index]}.image"
        return field


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
