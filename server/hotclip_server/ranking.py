"""Scores candidates against a query: cosine, and the softmax that CLIP was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.errors import FieldViolation, InvalidArgument, ResourceExhausted
from hotclip_server.models.residents import Pin
from hotclip_server.pipeline import EncodePipeline, content_of


@dataclass(frozen=True, slots=True)
class Score:
    """One candidate: its position, its cosine with the query, its share of the softmax."""

    index: int
    cosine: float
    probability: float


async def rank(
    pipeline: EncodePipeline,
    pin: Pin,
    query: EncodeItem,
    candidates: Sequence[EncodeItem],
    deadline: float | None,
) -> list[Score]:
    """Scores candidates, best first.

    `probability` is softmax(logit_scale * cosine) over the candidates, as in CLIP (Radford et
    al. 2021, arXiv:2103.00020, figure 3).

    Raises:
        InvalidArgument: the query or a candidate is bad; names it.
        ResourceExhausted: too many candidates.
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
    encoded_query = await pipeline.encode_items([query], pin, deadline=deadline, field="query")
    encoded = await pipeline.encode_items(candidates, pin, deadline=deadline, field="candidates")
    bad = [FieldViolation("query", e.message) for e in encoded_query.errors.values()]
    bad += [FieldViolation(f"candidates[{i}]", e.message) for i, e in encoded.errors.items()]
    if bad:
        raise InvalidArgument.fields(bad)
    cosines = encoded.vectors @ encoded_query.vectors[0]
    logits = pin.resident.encoder.logit_scale * cosines
    weights = np.exp(logits - logits.max())
    probabilities = weights / weights.sum()
    return [
        Score(int(index), float(cosines[index]), float(probabilities[index]))
        for index in np.argsort(-cosines, kind="stable")
    ]
