"""What an item of a request holds, and how it is made ready for the device."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotclip_proto.v1.types_pb2 import EncodeItem, ImageTensor
from hotclip_server.batching.cache import FeatureCache
from hotclip_server.batching.isolate import EncodeFailed
from hotclip_server.batching.ticket import Demand
from hotclip_server.encoding.engines.protocol import EngineChoice
from hotclip_server.encoding.protocol import Encoder, Prepared, Tower, Truncate
from hotclip_server.errors import FailedPrecondition, HotclipError

log = logging.getLogger(__name__)

Content = str | bytes | ImageTensor
"""A text, an encoded image, or pixels."""

BYTES_PER_TOKEN = 4
"""Of a text, about: English has 4 to 5, Chinese 3."""


@dataclass(frozen=True, slots=True)
class Made:
    """What preparing an item gave: it is ready, it can't be encoded, or its features are known.

    key: Names the content; empty if nothing is remembered.
    """

    result: Prepared | HotclipError | NDArray[np.float32]
    key: bytes


def content_of(item: EncodeItem) -> Content | None:
    """What an item holds, copied once: each look at a field of a message copies it anew."""
    match item.WhichOneof("content"):
        case "text":
            return item.text
        case "image":
            return item.image
        case "tensor":
            return item.tensor
        case _:
            return None


def demand_of(content: Content, encoder: Encoder) -> Demand:
    """What an item will take: bytes as it came and prepared, and its length, which of a text is
    a guess."""
    if isinstance(content, str):
        context = encoder.spec.context_length
        length = min(context, 2 + len(content.encode()) // BYTES_PER_TOKEN)
        return Demand(Tower.TEXT, length, len(content) + 8 * context)
    pixels = 3 * encoder.spec.image_size**2
    # A tensor that is not of this size is refused when it is prepared.
    held = len(content) if isinstance(content, bytes) else pixels
    return Demand(Tower.VISION, 1, pixels + held)


def tower_of(content: Content) -> Tower:
    """What it runs through."""
    return Tower.TEXT if isinstance(content, str) else Tower.VISION


def key_of(content: Content, truncate: Truncate, engine: EngineChoice) -> bytes:
    """16 bytes that name a content, what becomes of it, and the engine that runs it."""
    if isinstance(content, str):
        parts = (b"text", truncate.value.encode(), content.encode())
    elif isinstance(content, bytes):
        parts = (b"image", b"", content)
    else:
        sizes = f"{content.height} {content.width} {content.preprocessing_id}"
        parts = (b"tensor", sizes.encode(), content.data)
    digest = hashlib.blake2b(digest_size=16)
    for part in (str(engine).encode(), *parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def known_features(
    encoder: Encoder,
    contents: Sequence[Content],
    truncate: Truncate,
    engines: Mapping[Tower, EngineChoice],
    cache: FeatureCache,
) -> list[tuple[bytes, NDArray[np.float32]]] | None:
    """The key and the features of every content; None as soon as one is not known."""
    known: list[tuple[bytes, NDArray[np.float32]]] = []
    for content in contents:
        key = key_of(content, truncate, engines[tower_of(content)])
        row = cache.peek(encoder, key)
        if row is None:
            return None
        known.append((key, row))
    return known


def prepare_contents(
    encoder: Encoder,
    contents: Sequence[Content],
    truncate: Truncate,
    engines: Mapping[Tower, EngineChoice],
    cache: FeatureCache | None = None,
) -> tuple[list[Made], float]:
    """Decodes and tokenises on the calling thread; a bad item fails alone.

    Args:
        engines: Whose features are looked for.
        cache: Where to look first.

    Returns:
        What came of each, and the seconds that it took.
    """
    started = time.perf_counter()
    made: list[Made] = []
    for content in contents:
        key = b"" if cache is None else key_of(content, truncate, engines[tower_of(content)])
        known = None if cache is None else cache.peek(encoder, key)
        made.append(Made(_prepare(encoder, content, truncate) if known is None else known, key))
    return made, time.perf_counter() - started


def _prepare(encoder: Encoder, content: Content, truncate: Truncate) -> Prepared | HotclipError:
    try:
        if isinstance(content, str):
            return encoder.prepare_text(content, truncate)
        if isinstance(content, bytes):
            return encoder.prepare_image(content)
        made_for = content.preprocessing_id
        if made_for and made_for != encoder.image_preprocessing.id:
            raise FailedPrecondition(
                "tensor: made as another version preprocesses images",
                reason="PREPROCESSING_CHANGED",
            )
        return encoder.prepare_tensor(content.data, content.height, content.width)
    except HotclipError as error:
        return error
    except Exception:
        # A decoder's own fault is this item's answer; the others of the request go on.
        log.exception("preparing one item (%s) failed", type(content).__name__)
        return EncodeFailed("preparing this item failed", reason="PREPARE_FAILED")
