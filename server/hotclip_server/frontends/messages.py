"""Bodies of the frames that carry requests. Little-endian; offsets are into the arena."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotclip_server.batching.ticket import Demand, Priority
from hotclip_server.encoding.engines.protocol import ENGINES, PRECISIONS, EngineChoice
from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    HotclipError,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)

Engines = Mapping[Tower, EngineChoice]

NOWHERE = -1
"""Instead of an offset: the content is in the frame itself."""

_OPEN = struct.Struct("<IIqdBI")  # request, version, rows, deadline, class, items
_COUNT = struct.Struct("<II")  # request, number
_PART = struct.Struct("<III")  # request, start, stop
_ITEM = struct.Struct("<I16sBIIq")  # index, key, tower, tokens or height, width, offset
# Request, queue_s, compute_s, engine and precision of each tower, bytes of the errors, of the rows.
_ANSWER = struct.Struct("<Idd4BII")
_TOWERS = (Tower.TEXT, Tower.VISION)
_DEMANDS = np.dtype([("tower", "u1"), ("length", "<u4"), ("nbytes", "<u8")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A request that asks to be admitted."""

    number: int
    """Of the request; each front end counts its own."""
    version: int
    """Number of a version, as it was announced to this front end."""
    rows: int
    """Where its rows go; NOWHERE: into the answer."""
    deadline: float | None
    """On time.monotonic, which is one clock for all processes of a machine."""
    priority: Priority
    demands: Sequence[Demand]

    def pack(self) -> bytes:
        """To a body."""
        told = np.array([(_TOWERS.index(d[0]), d[1], d[2]) for d in self.demands], dtype=_DEMANDS)
        deadline = math.inf if self.deadline is None else self.deadline
        head = (self.number, self.version, self.rows, deadline, self.priority, len(told))
        return _OPEN.pack(*head) + told.tobytes()

    @classmethod
    def unpack(cls, body: bytes) -> Opening:
        """From a body."""
        number, version, rows, deadline, priority, count = _OPEN.unpack_from(body)
        told = np.frombuffer(body, _DEMANDS, count, _OPEN.size).tolist()
        return cls(
            number=number,
            version=version,
            rows=rows,
            deadline=None if deadline == math.inf else deadline,
            priority=Priority(priority),
            demands=[Demand(_TOWERS[tower], length, nbytes) for tower, length, nbytes in told],
        )


def pack_items(number: int, items: Iterable[tuple[int, Prepared, int]]) -> bytes:
    """Items of a request.

    Args:
        items: Index in the part that was admitted, the item, where its pixels lie; NOWHERE and
            texts go into the frame.
    """
    heads, contents = [], []
    for index, item, offset in items:
        array = item.array
        text = item.tower is Tower.TEXT
        height, width = (len(array), 0) if text else array.shape[:2]
        heads.append(_ITEM.pack(index, item.key, 0 if text else 1, height, width, offset))
        if offset == NOWHERE:
            contents.append(array.tobytes())
    return b"".join((_COUNT.pack(number, len(heads)), *heads, *contents))


def unpack_items(
    body: bytes, look: Callable[[int, int], NDArray[np.uint8]]
) -> tuple[int, list[tuple[int, Prepared]]]:
    """Items of a request.

    Args:
        look: Gives the bytes at an offset of the arena, by their number.

    Returns:
        The request, and index and item of each.
    """
    number, count = _COUNT.unpack_from(body)
    at = _COUNT.size + count * _ITEM.size
    # Copied once so that token ids are aligned; pixels in the frame are rare.
    rest = np.frombuffer(body, np.uint8, offset=at).copy()
    used = 0
    items = []
    for head in range(_COUNT.size, at, _ITEM.size):
        index, key, kind, height, width, offset = _ITEM.unpack_from(body, head)
        tower = _TOWERS[kind]
        text = tower is Tower.TEXT
        nbytes = 8 * height if text else 3 * height * width
        if offset == NOWHERE:
            content = rest[used : used + nbytes]
            used += nbytes
        else:
            content = look(offset, nbytes)
        # Made of the very array of `look`: the place is free again when nobody has it any more.
        array: NDArray[Any] = content.view(np.int64) if text else content.reshape(height, width, 3)
        items.append((index, Prepared.keyed(tower, array, key)))
    return number, items


def pack_indices(number: int, indices: Sequence[int]) -> bytes:
    """Numbers that belong to a request, or by themselves to request 0."""
    return _COUNT.pack(number, len(indices)) + np.array(indices, "<u8").tobytes()


def unpack_indices(body: bytes) -> tuple[int, list[int]]:
    """The request and the numbers."""
    number, count = _COUNT.unpack_from(body)
    found: list[int] = np.frombuffer(body, "<u8", count, _COUNT.size).tolist()
    return number, found


def pack_part(number: int, part: range) -> bytes:
    """Positions of a request."""
    return _PART.pack(number, part.start, part.stop)


def unpack_part(body: bytes) -> tuple[int, range]:
    """The request and the positions."""
    number, start, stop = _PART.unpack(body)
    return number, range(start, stop)


def pack_answer(
    number: int,
    queue_s: float,
    compute_s: float,
    engines: Engines,
    errors: dict[int, HotclipError],
    rows: bytes,
) -> bytes:
    """What came of a request; `rows` is empty if they lie in the arena."""
    told = json.dumps({at: describe(e) for at, e in errors.items()}).encode() if errors else b""
    ran = [
        found
        for tower in _TOWERS
        for found in (
            ENGINES.index(engines[tower].engine),
            PRECISIONS.index(engines[tower].precision),
        )
    ]
    return _ANSWER.pack(number, queue_s, compute_s, *ran, len(told), len(rows)) + told + rows


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of a request; no rows: they lie in the arena."""

    queue_s: float
    compute_s: float
    engines: Engines
    """What runs the towers of its version now."""
    errors: dict[int, HotclipError]
    rows: bytes


def unpack_answer(body: bytes) -> tuple[int, Answered]:
    """The request and what came of it."""
    number, queue_s, compute_s, *ran, told, rows = _ANSWER.unpack_from(body)
    engines = {
        tower: EngineChoice(ENGINES[ran[2 * at]], PRECISIONS[ran[2 * at + 1]])
        for at, tower in enumerate(_TOWERS)
    }
    at = _ANSWER.size + told
    found = json.loads(body[_ANSWER.size : at]) if told else {}
    errors = {int(index): restore(error) for index, error in found.items()}
    return number, Answered(queue_s, compute_s, engines, errors, body[at : at + rows])


def pack_failure(number: int, error: HotclipError) -> bytes:
    """Why a request failed as a whole."""
    return _COUNT.pack(number, 0) + json.dumps(describe(error)).encode()


def unpack_failure(body: bytes) -> tuple[int, HotclipError]:
    """The request and why it failed."""
    return _COUNT.unpack_from(body)[0], restore(json.loads(body[_COUNT.size :]))


_CLASSES: dict[str, type[HotclipError]] = {
    kind.code.name: kind
    for kind in (
        InvalidArgument,
        OutOfRange,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        Aborted,
        ResourceExhausted,
        DeadlineExceeded,
        Unimplemented,
        DataLoss,
    )
}


def describe(error: HotclipError) -> dict[str, Any]:
    """An error as JSON: all that its status says."""
    told: dict[str, Any] = {
        "code": error.code.name,
        "message": error.message,
        "reason": error.reason,
        "violations": [[violation.field, violation.reason] for violation in error.violations],
        "metadata": error.metadata,
    }
    if isinstance(error, Unavailable):
        told["retry_after_s"] = error.retry_after_s
    return told


def restore(told: dict[str, Any]) -> HotclipError:
    """An error with the same status."""
    if "retry_after_s" in told:
        delay = float(told["retry_after_s"])
        return Unavailable(told["message"], retry_after_s=delay, reason=told["reason"])
    return _CLASSES.get(told["code"], HotclipError)(
        told["message"],
        reason=told["reason"],
        violations=[FieldViolation(*violation) for violation in told["violations"]],
        metadata=told["metadata"],
    )
