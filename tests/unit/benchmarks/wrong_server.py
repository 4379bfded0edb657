"""A server that gives each item of a request its neighbour's vector."""

import dataclasses
import sys
from typing import Any

import numpy as np

from hotclip_server.__main__ import main
from hotclip_server.pipeline import Encoded, EncodePipeline

encode_items = EncodePipeline.encode_items


async def encode_wrongly(self: EncodePipeline, *arguments: Any, **options: Any) -> Encoded:
    encoded = await encode_items(self, *arguments, **options)
    return dataclasses.replace(encoded, vectors=np.roll(encoded.vectors, 1, axis=0))


if __name__ == "__main__":
    EncodePipeline.encode_items = encode_wrongly  # type: ignore[method-assign]  # that is the fault
    sys.exit(main())
