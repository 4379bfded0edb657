"""The running checksum of an upload, as dataset.proto defines it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence

from hotclip_server.datasets.report import BadRow
from hotclip_server.datasets.rows import Row

START = bytes(32)


def after_image(digest: bytes, key: str) -> bytes:
    """The checksum with one image more."""
    return hashlib.sha256(digest + _text(key)).digest()


def after_rows(digest: bytes, rows: Iterable[Row]) -> bytes:
    """The checksum with the rows of one message more."""
    return hashlib.sha256(digest + b"".join(map(_row, rows))).digest()


def after_rejected(digest: bytes, rows: Iterable[BadRow]) -> bytes:
    """The checksum with the rejected rows of one message more."""
    told = (_text(text) for row in rows for text in (row.where, row.field, row.reason))
    return hashlib.sha256(digest + b"".join(told)).digest()


def _row(row: Row) -> bytes:
    texts = b"".join(map(_text, (row.image_key, row.text, row.group, row.label)))
    score = struct.pack("<d", row.score)
    negatives = _texts(row.negative_texts) + _texts(row.negative_images)
    return texts + score + negatives + _text(row.where)


def _texts(texts: Sequence[str]) -> bytes:
    return struct.pack("<I", len(texts)) + b"".join(map(_text, texts))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data
