"""Prepares items of an open_clip version without its weights. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotclip_server.config import ServerConfig
from hotclip_server.encoding.architecture import CONFIG_FILE, OpenClipConfig
from hotclip_server.encoding.engines.protocol import EAGER, EngineChoice, EngineFigures
from hotclip_server.encoding.image import ImageLimits, ImagePreparer
from hotclip_server.encoding.preprocessing import ImagePreprocessing
from hotclip_server.encoding.protocol import EncoderSpec, Prepared, Tower, Truncate
from hotclip_server.encoding.text_tower import Shortening, Trim
from hotclip_server.encoding.tokenizer import load_tokenizer
from hotclip_server.frontends.messages import Engines
from hotclip_server.frontends.table import images_from, spec_from


class Preparer:
    """Implements `Encoder` but for `encode`.

    Args:
        facts: What the device process says of the version.
        limits: Of images.

    Raises:
        OSError: its files are gone.
    """

    def __init__(self, facts: Mapping[str, Any], limits: ImageLimits) -> None:
        told = facts["preparation"]
        folder = Path(told["folder"])
        config = OpenClipConfig.from_json((folder / CONFIG_FILE).read_bytes())
        self._tokenizer = load_tokenizer(config, folder)
        self._images = ImagePreparer(told["images"], limits)
        shortening = told["shortening"]
        self._shortening = Shortening(**{**shortening, "trim": Trim(shortening["trim"])})
        self._spec = spec_from(facts)
        self._preprocessing = images_from(facts)
        self._logit_scale = float(facts["logit_scale"])
        self._engines: Engines = dict.fromkeys(Tower, EAGER)

    @property
    def spec(self) -> EncoderSpec:
        """What it is."""
        return self._spec

    @property
    def image_preprocessing(self) -> ImagePreprocessing:
        """How an image becomes the input."""
        return self._preprocessing

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine in the softmax of `Rank`."""
        return self._logit_scale

    def prepare_text(self, text: str, truncate: Truncate = Truncate.END) -> Prepared:
        """See `OpenClipEncoder.prepare_text`."""
        return Prepared(Tower.TEXT, self._shortening(self._tokenizer.ids(text, truncate)))

    def prepare_image(self, data: bytes) -> Prepared:
        """See `OpenClipEncoder.prepare_image`."""
        return Prepared(Tower.VISION, self._images.prepare(data))

    def prepare_tensor(self, data: bytes, height: int, width: int) -> Prepared:
        """See `OpenClipEncoder.prepare_tensor`."""
        return Prepared(Tower.VISION, self._images.from_tensor(data, height, width))

    def encode(self, tower: Tower, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        """There are no weights here."""
        raise RuntimeError("a front end has no weights; this is a bug")

    def engine(self, tower: Tower) -> EngineChoice:
        """What ran a tower when the device process answered last."""
        return self._engines[tower]

    def note_engines(self, engines: Engines) -> None:
        """See `RunsElsewhere`: what is remembered is remembered as their vectors."""
        self._engines = engines

    def figures(self, tower: Tower) -> EngineFigures | None:
        """Nothing is measured here."""
        return None

    def close(self) -> None:
        """Has nothing to free."""


def load(facts: Mapping[str, Any], config: ServerConfig) -> Preparer:
    """Reads tokenizer and preprocessing from the folder of a version; blocks."""
    limits = ImageLimits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
    return Preparer(facts, limits)
