"""An open_clip model that serves: what prepares its items, and an engine a tower."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg
from torch import nn

from hotclip_server.encoding.engines.eager import EagerEngine
from hotclip_server.encoding.engines.protocol import (
    Engine,
    EngineChoice,
    EngineFigures,
    OverlappingEngine,
    PendingBatch,
)
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.image import ImageLimits, ImagePreparer
from hotclip_server.encoding.preprocessing import ImagePreprocessing
from hotclip_server.encoding.protocol import EncoderSpec, Prepared, Tower, Truncate
from hotclip_server.encoding.text_tower import TextTower
from hotclip_server.encoding.tokenizer import TextTokenizer
from hotclip_server.errors import InvalidArgument
from hotclip_server.heap import trim_heap

TRIMMED_BYTES = 64 << 20
"""Least weights that the heap is trimmed of: who asks for memory may wait for that, and batches of
a small model are short."""


class OpenClipEncoder:
    """Implements `Encoder`. Plain open_clip runs both towers until another engine is put in place.

    Args:
        model: In fp32; moved to `device` and put into evaluation mode.
        shape: What the architecture is, apart from weights: versions of equal shape run equally
            fast on the same engine.
        folder: Where the version lies, for engines that keep what they make of it.

    Raises:
        InvalidArgument: no such device.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TextTokenizer,
        spec: EncoderSpec,
        *,
        shape: str = "",
        device: str = "cpu",
        limits: ImageLimits | None = None,
        folder: Path | None = None,
    ) -> None:
        try:
            self.device = torch.device(device)
            self.model = model.to(self.device).eval().requires_grad_(False)
        except (RuntimeError, AssertionError) as error:
            raise InvalidArgument.field("device", f"{device!r} cannot be used: {error}") from error
        if self.device.type == "cuda":
            # fp32 means fp32: cuDNN would else round what convolutions multiply to 10 bits.
            torch.backends.cudnn.allow_tf32 = False
        self.tokenizer = tokenizer
        self.shape = shape or spec.architecture
        self._spec = spec
        self._folder = folder
        visual: Any = model.visual
        described: dict[str, Any] = visual.preprocess_cfg
        self.preprocess = PreprocessCfg(**described)
        self._images = ImagePreparer(described, limits or ImageLimits())
        self._text = TextTower(model, tokenizer.context_length)
        self._sources = {
            tower: TowerSource(
                model=self.model,
                tower=tower,
                text=self._text,
                preprocess=self.preprocess,
                device=self.device,
                context_length=tokenizer.context_length,
                folder=folder,
            )
            for tower in Tower
        }
        self._engines: dict[Tower, Engine] = {
            tower: EagerEngine(source) for tower, source in self._sources.items()
        }
        self._figures: dict[Tower, EngineFigures | None] = dict.fromkeys(Tower)
        self._place: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
        self._installing = threading.Lock()
        self._nbytes = sum(weight.nbytes for weight in model.parameters())
        scale: Any = model.logit_scale
        self._logit_scale = float(scale.detach().exp().mean())

    @property
    def spec(self) -> EncoderSpec:
        """What it is."""
        return self._spec

    @property
    def image_preprocessing(self) -> ImagePreprocessing:
        """How an image becomes the input."""
        config = self.preprocess
        return ImagePreprocessing(
            height=self._images.height,
            width=self._images.width,
            resize_mode=config.resize_mode or "shortest",
            interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
            fill_color=config.fill_color,
        )

    @property
    def preparation(self) -> dict[str, Any]:
        """What another process needs to prepare items, as JSON.

        Raises:
            ValueError: it was not loaded from a folder.
        """
        if self._folder is None:
            raise ValueError("an encoder without a folder can't be prepared for elsewhere")
        shortening = self._text.shortening
        return {
            "folder": str(self._folder.resolve()),
            "images": asdict(self.preprocess),
            "shortening": {**asdict(shortening), "trim": shortening.trim.value},
        }

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine in the softmax of `Rank`."""
        return self._logit_scale

    def engine(self, tower: Tower) -> EngineChoice:
        """What runs a tower now."""
        engine = self._engines[tower]
        return EngineChoice(engine.name, engine.precision)

    def figures(self, tower: Tower) -> EngineFigures | None:
        """What was measured of it; None: nothing yet."""
        return self._figures[tower]

    def source(self, tower: Tower) -> TowerSource | None:
        """What an engine can be built from; None once `release_model` was called."""
        return self._sources.get(tower)

    def install(self, tower: Tower, engine: Engine, figures: EngineFigures | None) -> None:
        """Puts an engine in place and closes the one before; device thread only."""
        with self._installing:
            old = self._engines.get(tower)
            if old is not None:
                self._engines[tower] = engine
                self._figures[tower] = figures
                if tower is Tower.VISION:
                    self._place = engine.place if isinstance(engine, OverlappingEngine) else None
        if old is None:  # closed meanwhile
            engine.close()
        elif old is not engine:
            old.close()

    def note(self, tower: Tower, figures: EngineFigures | None) -> None:
        """Keeps what was measured of the engine in place."""
        self._figures[tower] = figures

    def release_model(self) -> None:
        """Frees open_clip's own weights unless it runs a tower; no engine can be built any more."""
        if any(engine.name == "eager" for engine in self._engines.values()):
            return
        self._sources.clear()
        self._text.release()
        self.model = nn.Module()

    def prepare_text(self, text: str, truncate: Truncate = Truncate.END) -> Prepared:
        """int64 (length,), without the padding that the tower does not look at."""
        ids = self._text.shorten(self.tokenizer.ids(text, truncate))
        return Prepared(Tower.TEXT, ids)

    def prepare_image(self, data: bytes) -> Prepared:
        """uint8 RGB (height, width, 3); see `ImagePreparer.prepare` for the errors."""
        return self._placed(self._images.prepare(data))

    def prepare_tensor(self, data: bytes, height: int, width: int) -> Prepared:
        """uint8 RGB (height, width, 3); see `ImagePreparer.from_tensor` for the errors."""
        return self._placed(self._images.from_tensor(data, height, width))

    def encode(self, tower: Tower, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        """Features, float32 (len(batch), dim), not normalised; blocks."""
        if not batch:
            return np.empty((0, self._spec.dim), np.float32)
        return self._engines[tower].run([item.array for item in batch])

    def submit(self, tower: Tower, batch: Sequence[Prepared]) -> PendingBatch:
        """See `Overlapping.submit`; an engine whose batches don't overlap runs it at once."""
        engine = self._engines[tower]
        if batch and isinstance(engine, OverlappingEngine):
            return engine.submit([item.array for item in batch])
        return _Done(self.encode(tower, batch))

    def close(self) -> None:
        """Frees the weights; no call may follow."""
        with self._installing:
            engines, self._engines = [*self._engines.values()], {}
            self._place = None
        while engines:  # none is held by the time of the trim
            engines.pop().close()
        self.release_model()
        if self._nbytes >= TRIMMED_BYTES:
            trim_heap()

    def _placed(self, pixels: NDArray[np.uint8]) -> Prepared:
        """Where the engine has memory for images that wait, they wait there."""
        place = self._place
        return Prepared(Tower.VISION, pixels if place is None else place(pixels))


class _Done:
    """A batch that was run at once."""

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self._rows = rows

    def wait(self) -> NDArray[np.float32]:
        """See `PendingBatch.wait`."""
        return self._rows
