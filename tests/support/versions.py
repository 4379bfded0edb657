"""A store of fake versions: what a source gives, and what is wrong with it, a test says."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hotclip_server.encoding.protocol import Encoder, EncoderSpec, Prepared, Tower
from hotclip_server.errors import DataLoss, NotFound
from hotclip_server.models.protocol import VersionManifest
from hotclip_server.testing import FakeEncoder


class CountedEncoder(FakeEncoder):
    """Knows whether it was closed, and refuses work after that."""

    closed = 0

    def encode(self, tower: Tower, batch: list[Prepared]) -> NDArray[np.float32]:  # type: ignore[override]  # narrower for brevity
        assert not self.closed, "encode after close"
        return super().encode(tower, batch)

    def close(self) -> None:
        self.closed += 1


@dataclass
class FakeLoader:
    """Versions by id; a source "fake:<seed>" makes version "v-<seed>"."""

    defects: dict[str, str] = field(default_factory=dict)
    """By version id: "nan", "zero", "dim", "raise", "corrupt", "random", "other"."""
    stored: dict[str, VersionManifest] = field(default_factory=dict)
    loaded: list[CountedEncoder] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    """Loading waits until it is set, as it is at first."""
    loading: threading.Event = field(default_factory=threading.Event)
    """Set by the first load, also while it waits."""
    size_bytes: int = 1000
    fetching: threading.Event = field(default_factory=threading.Event)
    """Fetching waits until it is set, as it is at first."""
    unrecorded: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.gate.set()
        self.fetching.set()

    def fetch(self, source: str) -> None:
        self.fetching.wait()

    def import_source(self, source: str) -> VersionManifest:
        if not source.startswith("fake:"):
            raise NotFound(f"no source {source!r}")
        seed = source.removeprefix("fake:")
        version_id = f"v-{seed}"
        manifest = VersionManifest(
            id=version_id,
            spec=FakeEncoder(seed).spec,
            parent="",
            source=source,
            size_bytes=self.size_bytes,
            sha256="0" * 64,
        )
        if version_id not in self.stored:
            self.unrecorded.add(version_id)
        self.stored[version_id] = manifest
        return manifest

    def load(self, version_id: str, *, device: str) -> Encoder:
        self.loading.set()
        self.gate.wait()
        self.read_manifest(version_id)
        self.loads.append(version_id)
        defect = self.defects.get(version_id, "")
        if defect == "corrupt":
            raise DataLoss("a checksum does not match")
        if defect == "raise":
            raise RuntimeError("size mismatch")
        if defect == "memory":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        seed = version_id.removeprefix("v-")
        encoder = _DEFECTIVE.get(defect, CountedEncoder)(seed)
        if defect == "dim":
            encoder._spec = self.stored[version_id].spec
        self.loaded.append(encoder)
        return encoder

    def read_manifest(self, version_id: str) -> VersionManifest:
        if version_id not in self.stored:
            raise NotFound(f"no version {version_id}")
        return self.stored[version_id]

    def delete(self, version_id: str) -> None:
        self.stored.pop(version_id, None)
        self.unrecorded.discard(version_id)

    def note_recorded(self, version_id: str, *, recorded: bool) -> None:
        if version_id in self.stored:
            (self.unrecorded.discard if recorded else self.unrecorded.add)(version_id)

    def remove_unrecorded(self, recorded: Collection[str]) -> None:
        for version_id in self.unrecorded - set(recorded):
            self.delete(version_id)
        self.unrecorded.clear()

    @property
    def open_encoders(self) -> int:
        return sum(not encoder.closed for encoder in self.loaded)


class NanEncoder(CountedEncoder):
    def vector(self, item: Prepared) -> NDArray[np.float32]:
        return super().vector(item) * np.float32(np.nan)


class ZeroEncoder(CountedEncoder):
    def vector(self, item: Prepared) -> NDArray[np.float32]:
        return np.zeros(self.spec.dim, np.float32)


class LongEncoder(CountedEncoder):
    """Fit: features need not have unit length."""

    def vector(self, item: Prepared) -> NDArray[np.float32]:
        return super().vector(item) * np.float32(1.5)


class WideEncoder(CountedEncoder):
    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self._width = FakeEncoder(seed, dim=48)

    def vector(self, item: Prepared) -> NDArray[np.float32]:
        return self._width.vector(item)


class OtherEncoder(CountedEncoder):
    """Gives the vectors of other weights than it says."""

    def vector(self, item: Prepared) -> NDArray[np.float32]:
        return FakeEncoder("other").vector(item)


class RandomEncoder(CountedEncoder):
    def vector(self, item: Prepared) -> NDArray[np.float32]:
        row = np.random.default_rng().standard_normal(self.spec.dim).astype(np.float32)
        return row / np.linalg.norm(row)


_DEFECTIVE: dict[str, type[CountedEncoder]] = {
    "nan": NanEncoder,
    "zero": ZeroEncoder,
    "long": LongEncoder,
    "dim": WideEncoder,
    "random": RandomEncoder,
    "other": OtherEncoder,
}


async def run_inline(encoder: Encoder, tower: Tower, batch: list[Prepared]) -> NDArray[np.float32]:
    """A device of no thread."""
    return encoder.encode(tower, batch)


def spec_of(seed: str) -> EncoderSpec:
    """What `v-<seed>` is."""
    return FakeEncoder(seed).spec
