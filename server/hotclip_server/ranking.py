"""Scores candidates against a query: cosine, and the softmax that CLIP was trained with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.batching.ticket import Priority
from hotclip_server.contents import content_of
from hotclip_server.encoding.protocol import Truncate
from hotclip_server.errors import (
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    ResourceExhausted,
)
from hotclip_server.models.residents import Pin
from hotclip_server.pipeline import Encoded, EncodePipeline


@dataclass(frozen=True, slots=True)
class Score:
    """One candidate: its position, its cosine with the query, its share of the softmax."""

    index: int
    cosine: float
    probability: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """Scores, best first, and what encoding the query and the candidates took."""

    scores: list[Score]
    encoded: tuple[Encoded, Encoded]


async def rank(
    pipeline: EncodePipeline,
    pin: Pin,
    query: EncodeItem,
    candidates: Sequence[EncodeItem],
    *,
    deadline: float | None = None,
    priority: Priority = Priority.INTERACTIVE,
    truncate: Truncate = Truncate.END,
) -> Ranked:
    """Scores candidates; the query is encoded along with them.

    `probability` is softmax(logit_scale * cosine) over the candidates, as in CLIP (Radford et
    al. 2021, arXiv:2103.00020, figure 3).

    Raises:
        InvalidArgument: the query or a candidate is bad; names it.
        ResourceExhausted: too many candidates.
        HotclipError: the server failed on one of them.
    """
    if content_of(query) is None:
        raise InvalidArgument.field("query", "must hold a text, an image or a tensor")
    if not candidates:
        raise InvalidArgument.field("candidates", "must hold at least one item")
    if len(candidates) > pipeline.limits.max_items:
        raise ResourceExhausted(
            f"candidates: {len(candidates)} items, at most {pipeline.limits.max_items} are allowed",
            reason="TOO_MANY_ITEMS",
        )

    async def encode(items: Sequence[EncodeItem], field: str) -> Encoded:
        return await pipeline.encode_items(
            items, pin, deadline=deadline, priority=priority, truncate=truncate, field=field
        )

    try:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(encode([query], "query"))
            others = group.create_task(encode(candidates, "candidates"))
    except BaseExceptionGroup as failed:  # one of the two; the other was cancelled with it
        raise failed.exceptions[0] from failed
    encoded_query, encoded = first.result(), others.result()
    for error in (*encoded_query.errors.values(), *encoded.errors.values()):
        if not isinstance(error, InvalidArgument | FailedPrecondition):
            raise error  # a fault of the server is none of the caller's items
    bad = [FieldViolation("query", e.message) for e in encoded_query.errors.values()]
    bad += [FieldViolation(f"candidates[{i}]", e.message) for i, e in encoded.errors.items()]
    if bad:
        raise InvalidArgument.fields(bad)
    # Rounding must not make more than 1 of a vector and itself: an angle would be NaN.
    cosines = (encoded.vectors @ encoded_query.vectors[0]).clip(-1, 1)
    logits = pin.resident.encoder.logit_scale * cosines
    weights = np.exp(logits - logits.max())
    probabilities = weights / weights.sum()
    scores = [
        Score(int(index), float(cosines[index]), float(probabilities[index]))
        for index in np.argsort(-cosines, kind="stable")
    ]
    return Ranked(scores, (encoded_query, encoded))
