"""The running checksum of an upload, as dataset.proto defines it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from hotclip_proto.v1 import dataset_pb2

START = bytes(32)


def after(digest: bytes, part: dataset_pb2.UploadDatasetRequest) -> bytes:
    """The checksum with one part more."""
    if part.HasField("image"):
        return hashlib.sha256(digest + _text(part.image.key)).digest()
    rows = [_pair(pair) for pair in part.pairs.pairs]
    rows += [_texts((row.where, row.field, row.reason)) for row in part.rejected.rows]
    return hashlib.sha256(digest + b"".join(rows)).digest()


def _pair(pair: dataset_pb2.DatasetPair) -> bytes:
    score = pair.score if pair.HasField("score") else 1.0
    return b"".join(
        (
            _texts((pair.image_key, pair.text, pair.group, pair.label)),
            struct.pack("<d", score),
            struct.pack("<I", len(pair.negative_texts)) + _texts(pair.negative_texts),
            struct.pack("<I", len(pair.negative_image_keys)) + _texts(pair.negative_image_keys),
            _text(pair.where),
        )
    )


def _texts(texts: Iterable[str]) -> bytes:
    return b"".join(map(_text, texts))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data
