"""A version that is near another one, as a fine-tune is: fake towers, moved a little."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.encoding.spaces import space_id
from hotclip_server.testing import FakeEncoder, FakeLoader


class MovedEncoder(FakeEncoder):
    """Gives the vectors of `base`, those of some towers with noise of the length `by` added, and
    turned by `rotation`, (dim, dim), if there is one."""

    def __init__(
        self,
        base: FakeEncoder,
        seed: str,
        *,
        by: float,
        towers: Collection[Tower],
        rotation: NDArray[np.float64] | None = None,
    ) -> None:
        super().__init__(seed, dim=base.spec.dim, image_size=base.spec.image_size)
        self._base, self._by, self._towers, self._rotation = base, by, towers, rotation
        text, vision = self._spec.text_encoder_id, self._spec.vision_encoder_id
        text = text if Tower.TEXT in towers else base.spec.text_encoder_id
        vision = vision if Tower.VISION in towers else base.spec.vision_encoder_id
        self._spec = replace(
            self._spec,
            text_encoder_id=text,
            vision_encoder_id=vision,
            space_id=space_id(text, vision),
        )

    def vector(self, item: Prepared) -> NDArray[np.float32]:
        old = self._base.vector(item)
        if item.tower not in self._towers:
            return old
        moved = old + self._by * super().vector(item).astype(np.float64)
        if self._rotation is not None:
            moved = moved @ self._rotation
        unit: NDArray[np.float32] = (moved / np.linalg.norm(moved)).astype(np.float32)
        return unit


def put_moved(loader: FakeLoader, source: str, encoder: MovedEncoder) -> str:
    """Makes `source` a version with this encoder; its id."""
    version = loader.import_source(source).id
    loader.encoders[version] = encoder
    return version
