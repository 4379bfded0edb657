"""Copies of answered requests on their way from a front end to the device process, where shadow
traffic runs."""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from hotclip_proto.v1 import encode_pb2
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.drift.shadow import MOST_ITEMS
from hotclip_server.encoding.protocol import Truncate
from hotclip_server.errors import HotclipError
from hotclip_server.frontends.frames import Frames, Kind
from hotclip_server.models.residents import Resident
from hotclip_server.pipeline import Encoded

MOST_BYTES = 1 << 20
"""Of the items of a copy: what is larger would hold up requests on the same socket."""
_HEAD = struct.Struct("<II")  # bytes of the facts, of the items; rows fill the rest

FAILED = HotclipError("failed in the front end")
"""Stands for the error of an item, which the device process does not need."""


class Copies(Protocol):
    """Where copies go; `ShadowTraffic` is one."""

    changed: Callable[[], None]
    """Called when `shares` are other ones."""

    def shares(self) -> list[tuple[str, str, float]]:
        """Of what requests are copied: model, version that answers, share."""

    def drawn(
        self,
        model: str,
        version_id: str,
        requests: int,
        items: Sequence[EncodeItem],
        answer: Encoded,
        truncate: Truncate,
    ) -> None:
        """Takes a copy."""


class CopySender:
    """Draws copies in a front end and hands them over; a `Witness`. Event loop only.

    Args:
        frames: To the device process.
        draw: Gives numbers in [0, 1).
    """

    def __init__(self, frames: Frames, draw: Callable[[], float] = random.random) -> None:
        self._frames = frames
        self._draw = draw
        self._shares: dict[str, tuple[str, float]] = {}
        self._requests: Counter[str] = Counter()
        """By model, since the last copy."""

    def apply(self, told: dict[str, Any]) -> None:
        """Takes in what is to be copied from now on."""
        self._shares = {model: (version, share) for model, version, share in told["shares"]}
        self._requests.clear()

    def offer(
        self,
        resident: Resident,
        items: Sequence[EncodeItem],
        answer: Encoded,
        truncate: Truncate,
    ) -> Callable[[], None] | None:
        """See `Witness`."""
        model = resident.model
        version, share = self._shares.get(model, ("", 0.0))
        if version != resident.version_id:
            return None
        self._requests[model] += 1
        if self._draw() >= share:
            return None
        chosen = list(items[:MOST_ITEMS])
        whole = len(chosen) == len(items)
        return partial(self._send, model, version, chosen, answer, truncate, whole=whole)

    def _send(
        self,
        model: str,
        version: str,
        items: Sequence[EncodeItem],
        answer: Encoded,
        truncate: Truncate,
        *,
        whole: bool,
    ) -> None:
        fit = sum(item.ByteSize() for item in items) <= MOST_BYTES
        copy = Copy(
            model=model,
            version=version,
            requests=self._requests.pop(model, 0),
            items=items if fit else [],
            answer=answer,
            truncate=truncate,
            whole=whole and fit,
        )
        self._frames.send(Kind.COPY, copy.pack())


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A request that was drawn to be copied, and its answer."""

    model: str
    version: str
    """That answered."""
    requests: int
    """Of which it was drawn."""
    items: Sequence[EncodeItem]
    """None: they are too large."""
    answer: Encoded
    truncate: Truncate
    whole: bool = True
    """Whether these are all items of the request."""

    def pack(self) -> bytes:
        """To a body."""
        rows = np.ascontiguousarray(self.answer.vectors[: len(self.items)], "<f4")
        facts = {
            "model": self.model,
            "version": self.version,
            "requests": self.requests,
            "truncate": self.truncate.value,
            # Times are of the whole request: of a part of it they say nothing.
            "compute_us": self.answer.compute_us if self.whole else 0,
            "failed": [at for at in self.answer.errors if at < len(self.items)],
            "shape": rows.shape,
        }
        told = json.dumps(facts).encode()
        items = encode_pb2.EncodeRequest(items=self.items).SerializeToString()
        return _HEAD.pack(len(told), len(items)) + told + items + rows.tobytes()

    @classmethod
    def unpack(cls, body: bytes) -> Copy:
        """From a body."""
        told, items = _HEAD.unpack_from(body)
        start = _HEAD.size + told
        facts = json.loads(body[_HEAD.size : start])
        vectors = np.frombuffer(body, "<f4", offset=start + items).reshape(facts["shape"])
        return cls(
            model=facts["model"],
            version=facts["version"],
            requests=facts["requests"],
            items=encode_pb2.EncodeRequest.FromString(body[start : start + items]).items,
            answer=Encoded(
                vectors.astype(np.float32),
                dict.fromkeys(facts["failed"], FAILED),
                preprocess_us=0,
                queue_us=0,
                compute_us=facts["compute_us"],
            ),
            truncate=Truncate(facts["truncate"]),
        )
