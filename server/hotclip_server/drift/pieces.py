"""A copied request in pieces small enough that none holds up a request for long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.encoding.protocol import Tower

TEXTS_AT_ONCE = 16
"""Of a piece; images run one by one."""


def pieces_of(items: Sequence[EncodeItem]) -> Iterator[list[int]]:
    """Positions that run together: texts a few at a time, images one by one."""
    texts = [at for at, item in enumerate(items) if tower_of(item) is Tower.TEXT]
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        yield texts[start : start + TEXTS_AT_ONCE]
    for at, item in enumerate(items):
        if tower_of(item) is Tower.VISION:
            yield [at]


def tower_of(item: EncodeItem) -> Tower:
    """That encodes an item."""
    return Tower.TEXT if item.WhichOneof("content") == "text" else Tower.VISION
