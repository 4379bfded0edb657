"""Frames between the server and its vector process. No pickle: JSON and raw float32.

A frame is two little-endian uint32 (length of the header, length of the body), the header
(a JSON object), the body (float32 vectors, row-major, little-endian, or empty).
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LENGTHS = struct.Struct("<II")
MAX_FRAME_BYTES = 1 << 30
"""Longest header or body; a longer one means that the two sides lost step."""


def pack(header: dict[str, Any], body: bytes = b"") -> bytes:
    """One frame."""
    head = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    return _LENGTHS.pack(len(head), len(body)) + head + body


def take(buffer: bytearray) -> tuple[dict[str, Any], bytes] | None:
    """Takes the first frame out of what came; None if it is not whole yet.

    Raises:
        ValueError: what came is no frame.
    """
    if len(buffer) < _LENGTHS.size:
        return None
    head_length, body_length = _LENGTHS.unpack_from(buffer)
    if max(head_length, body_length) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {head_length} + {body_length} bytes; this is a bug")
    body_at = _LENGTHS.size + head_length
    ends = body_at + body_length
    if len(buffer) < ends:
        return None
    with memoryview(buffer) as whole:
        head = json.loads(bytes(whole[_LENGTHS.size : body_at]))
        body = bytes(whole[body_at:ends])
    del buffer[:ends]
    return head, body


def vectors_to_bytes(vectors: NDArray[np.float32]) -> bytes:
    """(n, dim) float32 to little-endian rows."""
    return np.ascontiguousarray(vectors, dtype="<f4").tobytes()


def vectors_from_bytes(body: bytes, dim: int) -> NDArray[np.float32]:
    """Rows of `dim` float32; read-only, shape (n, dim).

    Raises:
        ValueError: not a whole number of rows.
    """
    return np.frombuffer(body, dtype="<f4").reshape(-1, dim)
