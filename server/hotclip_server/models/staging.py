"""Brings a stored version into memory: load → warm up → verify. Touches nothing that serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from hotclip_server.encoding.protocol import Encoder
from hotclip_server.errors import HotclipError, ResourceExhausted
from hotclip_server.models import probes
from hotclip_server.models.engines import EngineSelector, Unmeasured
from hotclip_server.models.golden import GoldenProbes
from hotclip_server.models.memory import host_free_bytes
from hotclip_server.models.probes import Probes, Rows, RunOnDevice, unfit
from hotclip_server.models.protocol import VersionLoader, VersionManifest
from hotclip_server.models.quiet import QuietMoments
from hotclip_server.models.residents import Resident
from hotclip_server.models.state import VersionRecord

T = TypeVar("T")
_log = logging.getLogger(__name__)


def _nothing_waits() -> float:
    return 0.0


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
    pressure_s: Callable[[], float] = _nothing_waits
    """Predicted seconds of what waits for the device; above 0 while anything is not answered."""

    def require(self, size_bytes: int, what: str) -> None:
        """Refuses weights that clearly do not fit, before anything of them is read.

        Args:
            size_bytes: Of their file.
            what: For people, e.g. "version 0123".

        Raises:
            ResourceExhausted: reason OUT_OF_MEMORY.
        """
        free = self.free_bytes()
        needed = int(size_bytes * self.memory_factor)
        if free is not None and free - needed < self.memory_floor_bytes:
            raise ResourceExhausted(
                f"{what} needs about {needed} bytes, {free} are free; unload a version that is "
                "staged",
                reason="OUT_OF_MEMORY",
                metadata={"needed_bytes": str(needed), "free_bytes": str(free)},
            )


class Stager:
    """Owns the loader's thread, which begins with the first load: one load at a time. Downloads
    have a thread of their own: nothing that is on this machine waits for the network.

    Args:
        run_on_device: Runs a batch in its turn between those of requests.
        engines: Chooses what runs a version; None: what the loader gave it.
        golden: What the loader's own gave for the probes of a version; None: nothing is kept.
    """

    def __init__(
        self,
        loader: VersionLoader,
        run_on_device: RunOnDevice,
        limits: StagingLimits,
        engines: EngineSelector | None = None,
        golden: GoldenProbes | None = None,
    ) -> None:
        self._engines = engines
        self._golden = golden
        self._loader = loader
        self._run = run_on_device
        self._limits = limits
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hotclip-load")
        self._fetching = ThreadPoolExecutor(1, thread_name_prefix="hotclip-fetch")

    def stop(self) -> None:
        """Waits for the work in hand; what waits behind it is dropped."""
        for thread in (self._fetching, self._thread):
            thread.shutdown(wait=True, cancel_futures=True)

    async def blocking(self, work: Callable[[], T]) -> T:
        """Runs a blocking call of the loader on its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def import_source(self, source: str) -> VersionManifest:
        """Downloads and stores the weights that a source names.

        Raises:
            HotclipError: what `VersionLoader.import_source` raises; whatever else its
                libraries raise about the source is VERSION_UNFIT.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._fetching, self._loader.fetch, source)
            return await self.blocking(lambda: self._loader.import_source(source))
        except HotclipError:
            raise
        except Exception as error:
            _log.exception("a source can't be imported")
            raise unfit(f"reading the source failed with {type(error).__name__}") from error

    async def delete(self, version_id: str) -> None:
        """Removes the files of a version."""

        def work() -> None:
            self._loader.delete(version_id)
            if self._golden is not None:
                self._golden.forget(version_id)

        await self.blocking(work)

    async def note_recorded(self, version_id: str, *, recorded: bool) -> None:
        """The database has a row of a version, or is about to lose it."""
        await self.blocking(lambda: self._loader.note_recorded(version_id, recorded=recorded))

    async def remove_unrecorded(self, recorded: Collection[str]) -> None:
        """Removes what a crash left of versions without a row."""
        await self.blocking(lambda: self._loader.remove_unrecorded(recorded))

    async def require_files(self, version_id: str) -> None:
        """Raises NotFound if a version is not stored, DataLoss if its manifest is damaged."""
        await self.blocking(lambda: self._loader.read_manifest(version_id))

    async def load(self, record: VersionRecord) -> Resident:
        """Loads, warms up and verifies a version.

        Raises:
            ResourceExhausted: it clearly does not fit; reason OUT_OF_MEMORY.
            FailedPrecondition: it may not serve; reason VERSION_UNFIT.
            HotclipError: what the device raises; it says nothing about the version.
            DataLoss: its files are damaged.
            NotFound: its files are gone.
        """
        encoder = await self._load(record)
        try:
            unmeasured = await self._verify(record, encoder)
        except BaseException:
            await asyncio.shield(self.blocking(encoder.close))
            raise
        if self._engines is not None and unmeasured is not None:
            self._engines.measure(unmeasured)
        return Resident(version_id=record.id, model=record.model, encoder=encoder)

    async def _load(self, record: VersionRecord) -> Encoder:
        def load() -> Encoder:
            # Here, when its turn has come: what ran before has taken its memory by now.
            self._limits.require(record.manifest.size_bytes, f"version {record.id}")
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
            prepared = inputs = await self.blocking(lambda: probes.prepare(encoder))
            known = await self._known_golden(record, inputs)
            run = QuietMoments(self._run, self._limits.pressure_s)
            golden = known or await self._reference(encoder, inputs, run)
            if self._engines is not None:
                unmeasured = await self._engines.fit(record.id, encoder)
                # An engine may want images elsewhere in memory.
                inputs = await self.blocking(lambda: probes.prepare(encoder))
            rows = await probes.encode(encoder, inputs, run)
            probes.check_rows(rows, inputs, encoder.spec)
            if golden is not None:
                probes.check_golden(golden, rows, encoder)
            await probes.check_alone(encoder, inputs, rows, run)
            if golden is not None and known is None:
                await self._keep_golden(record, prepared, golden)
        except HotclipError:
            raise
        except Exception as error:
            _log.exception("version %s can't encode", record.id)
            raise _refusal(record, "encoding", error) from error
        return unmeasured

    async def _known_golden(self, record: VersionRecord, inputs: Probes) -> Rows | None:
        golden = self._golden
        if golden is None:
            return None
        return await self.blocking(lambda: golden.read(record.id, inputs))

    async def _reference(self, encoder: Encoder, inputs: Probes, run: RunOnDevice) -> Rows | None:
        """What plain open_clip gives, which still runs a version that was just loaded."""
        if self._golden is None:
            return None
        rows = await probes.encode(encoder, inputs, run, probes.ALONE)
        probes.check_rows(rows, inputs, encoder.spec)
        return rows

    async def _keep_golden(self, record: VersionRecord, inputs: Probes, rows: Rows) -> None:
        if self._golden is None:
            raise RuntimeError("nobody keeps references. This is a bug.")
        keep = partial(self._golden.write, record.id, inputs, rows)
        try:
            await self.blocking(keep)
        except ResourceExhausted as error:
            # It serves all the same; the next staging makes the reference anew.
            _log.warning("no reference of version %s is kept: %s", record.id, error.message)


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
