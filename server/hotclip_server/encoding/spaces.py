"""Which vectors may be compared, also when only their first elements are kept. No torch here."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from hotclip_server.encoding.protocol import EncoderSpec
from hotclip_server.errors import InvalidArgument


def space_id(text_encoder_id: str, vision_encoder_id: str) -> str:
    """sha256, 32 hex digits, of the two encoders whose vectors may be compared."""
    return _digest(f"{text_encoder_id}:{vision_encoder_id}")


def truncated(spec: EncoderSpec, dimensions: int) -> EncoderSpec:
    """What the encoders are whose vectors are the first `dimensions` elements of these.

    Their ids depend on the ids of the whole encoders and on `dimensions` alone, so vectors of
    a tower that two versions share stay comparable when both are cut.

    Args:
        dimensions: 1 to spec.dim; 0: all.

    Raises:
        InvalidArgument: `dimensions` is more than there are.
    """
    if not 0 <= dimensions <= spec.dim:
        raise InvalidArgument.field(
            "dimensions", f"{dimensions} is not 1 to {spec.dim}, which the model gives"
        )
    if dimensions in (0, spec.dim):
        return spec
    text = _digest(f"{spec.text_encoder_id}:{dimensions}")
    vision = _digest(f"{spec.vision_encoder_id}:{dimensions}")
    return replace(
        spec,
        dim=dimensions,
        text_encoder_id=text,
        vision_encoder_id=vision,
        space_id=space_id(text, vision),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
