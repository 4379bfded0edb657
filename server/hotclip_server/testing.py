"""For tests of the server and of its clients: an encoder without weights, and the real server
stack in the test's own process, on a free loopback port. Imports no torch.

    async with running_server() as server:
        channel = grpc.aio.insecure_channel(server.address)
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotclip_server.app import build
from hotclip_server.config import ServerConfig
from hotclip_server.encoding.engines.protocol import EAGER, EngineChoice, EngineFigures
from hotclip_server.encoding.preprocessing import ImagePreprocessing
from hotclip_server.encoding.protocol import EncoderSpec, Prepared, Tower, Truncate
from hotclip_server.encoding.spaces import space_id
from hotclip_server.errors import InvalidArgument, NotFound
from hotclip_server.lifecycle import App
from hotclip_server.models.protocol import VersionManifest

IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")


@dataclass(kw_only=True)
class Faults:
    """What a fake encoder does wrong; may be changed while it serves."""

    delay_s: float = 0.0
    """Seconds that every batch takes."""
    fails: Callable[[Prepared], bool] | None = None
    """Batches with such an item raise."""
    not_finite: Callable[[Prepared], bool] | None = None
    """Such items get a row of NaN."""
    hang: threading.Event | None = None
    """Batches wait until it is set."""


class FakeEncoder:
    """Vectors from a hash of the content: the same content gives the same vector, whatever
    batch it runs in. Takes any text, and images that start like a JPEG, PNG or WebP.

    Args:
        seed: Makes another version, of another space.
        dim: Elements of a vector.
        vision: Seed of clip-vision, if it is that of another version.
    """

    def __init__(
        self, seed: str = "fake", *, dim: int = 32, image_size: int = 8, vision: str = ""
    ) -> None:
        self._seeds = {Tower.TEXT: seed, Tower.VISION: vision or seed}
        encoders = [_digest(seed, tower.value) for tower, seed in self._seeds.items()]
        self._spec = EncoderSpec(
            architecture="fake",
            dim=dim,
            image_size=image_size,
            context_length=77,
            text_encoder_id=encoders[0],
            vision_encoder_id=encoders[1],
            space_id=space_id(*encoders),
        )
        self.faults = Faults()
        self.batches: list[tuple[Tower, int]] = []
        """Tower and size of every batch that ran."""

    @property
    def spec(self) -> EncoderSpec:
        """What it is."""
        return self._spec

    @property
    def preparation(self) -> dict[str, Any]:
        """Who makes it anew prepares the same."""
        spec = self._spec
        return {
            "seed": self._seeds[Tower.TEXT],
            "dim": spec.dim,
            "image_size": spec.image_size,
            "vision": self._seeds[Tower.VISION],
        }

    @property
    def image_preprocessing(self) -> ImagePreprocessing:
        """As most have it."""
        side = self._spec.image_size
        return ImagePreprocessing(
            height=side, width=side, resize_mode="shortest", interpolation="bicubic"
        )

    @property
    def logit_scale(self) -> float:
        """As in a trained CLIP."""
        return 100.0

    def prepare_text(self, text: str, truncate: Truncate = Truncate.END) -> Prepared:
        """The code points are the tokens."""
        tokens = np.array([ord(char) for char in text], np.int64)
        most = self._spec.context_length
        if len(tokens) > most and truncate is Truncate.NONE:
            problem = f"has {len(tokens)} tokens, the model takes {most}"
            raise InvalidArgument.field("text", problem, reason="TEXT_TOO_LONG")
        tokens = tokens[-most:] if truncate is Truncate.START else tokens[:most]
        return Prepared(Tower.TEXT, tokens)

    def prepare_image(self, data: bytes) -> Prepared:
        """The hash of the bytes are the pixels."""
        if not data.startswith(IMAGE_MAGIC):
            raise InvalidArgument("not a JPEG, PNG or WebP image", reason="IMAGE_UNREADABLE")
        side = self._spec.image_size
        return Prepared(Tower.VISION, _noise(data, side * side * 3).reshape(side, side, 3))

    def prepare_tensor(self, data: bytes, height: int, width: int) -> Prepared:
        """Takes pixels as they are."""
        side = self._spec.image_size
        if (height, width) != (side, side) or len(data) != side * side * 3:
            raise InvalidArgument(f"must be {side}x{side} RGB pixels", reason="TENSOR_SIZE")
        return Prepared(Tower.VISION, np.frombuffer(data, np.uint8).reshape(side, side, 3))

    def encode(self, tower: Tower, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        """Unit rows, after the faults."""
        if not batch:
            return np.empty((0, self._spec.dim), np.float32)
        faults = self.faults
        if faults.hang is not None:
            faults.hang.wait()
        if faults.delay_s:
            time.sleep(faults.delay_s)
        self.batches.append((tower, len(batch)))
        if faults.fails is not None and any(faults.fails(item) for item in batch):
            raise RuntimeError("the fake encoder fails on this batch")
        rows = np.stack([self.vector(item) for item in batch])
        if faults.not_finite is not None:
            rows[[faults.not_finite(item) for item in batch]] = np.nan
        return rows

    def vector(self, item: Prepared) -> NDArray[np.float32]:
        """The vector of one item, float32 of shape (dim,)."""
        content = f"{self._seeds[item.tower]}/{item.tower.value}/".encode() + item.array.tobytes()
        row = _noise(content, self._spec.dim).astype(np.float32) - 127.5
        unit: NDArray[np.float32] = row / np.linalg.norm(row)
        return unit

    def engine(self, tower: Tower) -> EngineChoice:
        """Says that it is the reference."""
        return EAGER

    def figures(self, tower: Tower) -> EngineFigures | None:
        """Nothing was measured."""
        return None

    def close(self) -> None:
        """Has nothing to free."""


class FakeLoader:
    """Versions by name: the source "fake:<seed>" is a version whose encoder has that seed; that of
    "fake:<seed>@<other>" has the clip-vision of "fake:<other>", as if it was locked.

    Keeps everything in memory: two servers one after the other on the same data need the same
    loader.
    """

    def __init__(self) -> None:
        self.encoders: dict[str, FakeEncoder] = {}
        """The encoder of each version that was loaded, by id."""
        self._sources: dict[str, str] = {}

    def fetch(self, source: str) -> None:
        """Nothing is elsewhere."""

    def import_source(self, source: str) -> VersionManifest:
        """Any source is a version of its own."""
        version_id = _digest("version", source)
        self._sources[version_id] = source
        return self.read_manifest(version_id)

    def load(self, version_id: str, *, device: str) -> FakeEncoder:
        """Makes the encoder, or gives the one that was put into `encoders` before."""
        source = self._source(version_id)
        return self.encoders.setdefault(version_id, _encoder_of(source))

    def read_manifest(self, version_id: str) -> VersionManifest:
        """What the version is."""
        source = self._source(version_id)
        encoder = self.encoders.get(version_id) or _encoder_of(source)
        return VersionManifest(
            id=version_id,
            spec=encoder.spec,
            parent="",
            source=source,
            size_bytes=1,
            sha256=hashlib.sha256(source.encode()).hexdigest(),
        )

    def delete(self, version_id: str) -> None:
        """Forgets the version."""
        self.encoders.pop(version_id, None)
        self._sources.pop(version_id, None)

    def note_recorded(self, version_id: str, *, recorded: bool) -> None:
        """Nothing outlives this loader."""

    def remove_unrecorded(self, recorded: Collection[str]) -> None:
        """As `note_recorded`."""

    def _source(self, version_id: str) -> str:
        if version_id not in self._sources:
            raise NotFound(f"no version {version_id!r}")
        return self._sources[version_id]


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A server in this process."""

    address: str
    """ "127.0.0.1:<port>"."""
    app: App
    loader: FakeLoader

    @property
    def encoder(self) -> FakeEncoder:
        """Of the live version of model "default"."""
        return self.loader.encoders[self.app.parts.registry.model_state().live_version]


@asynccontextmanager
async def running_server(
    config: ServerConfig | None = None, *, loader: FakeLoader | None = None
) -> AsyncIterator[RunningServer]:
    """Runs the real server stack around fake encoders, until the block ends.

    Args:
        config: Port 0 takes a free one, which `RunningServer.address` names. None: a free
            port, and a data directory that is removed afterwards.
        loader: Makes the encoders.
    """
    loader = loader or FakeLoader()
    with TemporaryDirectory(prefix="hotclip-") as folder:
        default = ServerConfig(port=0, device="cpu", model="fake:default", data_dir=Path(folder))
        app = build(config or default, loader=loader, frontend="hotclip_server.testing_frontend")
        try:
            await app.start()
            yield RunningServer(address=app.address, app=app, loader=loader)
        finally:
            await app.stop()


def _digest(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


def _noise(content: bytes, count: int) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.shake_128(content).digest(count), np.uint8)


def _encoder_of(source: str) -> FakeEncoder:
    scheme, _, seed = source.partition(":")
    other = seed.partition("@")[2]
    return FakeEncoder(source, vision=f"{scheme}:{other}" if other else "")
