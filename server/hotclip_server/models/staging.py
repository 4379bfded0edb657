"""Brings a stored version into memory: load → warm up → verify. Touches nothing that serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from hotclip_server.encoding.protocol import Encoder
from hotclip_server.errors import HotclipError, ResourceExhausted
from hotclip_server.models import probes
from hotclip_server.models.engines import EngineSelector, Unmeasured
from hotclip_server.models.memory import host_free_bytes
from hotclip_server.models.probes import RunOnDevice, unfit
from hotclip_server.models.protocol import VersionLoader, VersionManifest
from hotclip_server.models.residents import Resident
from hotclip_server.models.state import VersionRecord

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StagingLimits:
    """Where versions go and what they may take."""

    device: str = "cpu"
    """E.g. "cpu" or "cuda:0"."""
    memory_factor: float = 2.0
    """Bytes that loading takes at its peak, a byte of the weights file: the module and the
    tensors that are copied into it."""
    memory_floor_bytes: int = 256 << 20
    """Bytes that must stay free."""
    free_bytes: Callable[[], int | None] = host_free_bytes
    """Free memory of the device; None if unknown."""


class Stager:
    """Owns the loader's thread, which begins with the first load: one load at a time.

    Args:
        run_on_device: Runs a batch in its turn between those of requests.
        engines: Chooses what runs a version; None: what the loader gave it.
    """

    def __init__(
        self,
        loader: VersionLoader,
        run_on_device: RunOnDevice,
        limits: StagingLimits,
        engines: EngineSelector | None = None,
    ) -> None:
        self._engines = engines
        self._loader = loader
        self._run = run_on_device
        self._limits = limits
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hotclip-load")

    def stop(self) -> None:
        """Waits for the work in hand; what waits behind it is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def blocking(self, work: Callable[[], T]) -> T:
        """Runs a blocking call of the loader on its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def import_source(self, source: str) -> VersionManifest:
        """Stores the weights that a source names.

        Raises:
            HotclipError: what `VersionLoader.import_source` raises; whatever else its
                libraries raise about the source is VERSION_UNFIT.
        """
        try:
            return await self.blocking(lambda: self._loader.import_source(source))
        except HotclipError:
            raise
        except Exception as error:
            _log.exception("a source can't be imported")
            raise unfit(f"reading the source failed with {type(error).__name__}") from error

    async def load(self, record: VersionRecord) -> Resident:
        """Loads, warms up and verifies a version.

        Raises:
            ResourceExhausted: it clearly does not fit; reason OUT_OF_MEMORY.
            FailedPrecondition: it may not serve; reason VERSION_UNFIT.
            HotclipError: what the device raises; it says nothing about the version.
            DataLoss: its files are damaged.
            NotFound: its files are gone.
        """
        self._require_memory(record)
        encoder = await self._load(record)
        try:
            unmeasured = await self._verify(record, encoder)
        except BaseException:
            await asyncio.shield(self.blocking(encoder.close))
            raise
        if self._engines is not None and unmeasured is not None:
            self._engines.measure(unmeasured)
        return Resident(version_id=record.id, model=record.model, encoder=encoder)

    def _require_memory(self, record: VersionRecord) -> None:
        free = self._limits.free_bytes()
        needed = int(record.manifest.size_bytes * self._limits.memory_factor)
        if free is not None and free - needed < self._limits.memory_floor_bytes:
            raise ResourceExhausted(
                f"version {record.id} needs about {needed} bytes, {free} are free; unload a "
                "version that is staged",
                reason="OUT_OF_MEMORY",
                metadata={"needed_bytes": str(needed), "free_bytes": str(free)},
            )

    async def _load(self, record: VersionRecord) -> Encoder:
        def load() -> Encoder:
            return self._loader.load(record.id, device=self._limits.device)

        try:
            return await self.blocking(load)
        except HotclipError:
            raise
        except Exception as error:
            # Whatever a model's code raises about its weights, the answer is the same.
            _log.exception("version %s can't be loaded", record.id)
            raise _refusal(record, "loading", error) from error

    async def _verify(self, record: VersionRecord, encoder: Encoder) -> Unmeasured | None:
        if encoder.spec != record.manifest.spec:
            raise unfit("the loaded weights are not what the manifest says")
        unmeasured = None
        try:
            if self._engines is not None:
                unmeasured = await self._engines.fit(record.id, encoder)
            inputs = await self.blocking(lambda: probes.prepare(encoder))
            rows = await probes.encode(encoder, inputs, self._run)
            probes.check_rows(rows, inputs, encoder.spec)
            await probes.check_alone(encoder, inputs, rows, self._run)
        except HotclipError:
            raise
        except Exception as error:
            _log.exception("version %s can't encode", record.id)
            raise _refusal(record, "encoding", error) from error
        return unmeasured


def _refusal(record: VersionRecord, step: str, error: Exception) -> HotclipError:
    # torch's own class can't be named here, and for host memory it raises a bare RuntimeError.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    ):
        return ResourceExhausted(
            f"version {record.id} does not fit in memory: {step} failed", reason="OUT_OF_MEMORY"
        )
    return unfit(f"{step} failed with {type(error).__name__}")
