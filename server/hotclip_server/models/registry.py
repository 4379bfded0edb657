"""Models, the versions that are resident, and which of them answers.

Stage (`Stager`) → flip → drain. A flip is one transaction in the database, then one
reference on the event loop (`Slots.flip`): requests admitted before it keep the version that
they pinned, those after it get the new one. It never imports torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence

from hotclip_server.errors import FailedPrecondition, HotclipError, NotFound, Unavailable
from hotclip_server.models import naming
from hotclip_server.models.audience import Audience
from hotclip_server.models.background import Background
from hotclip_server.models.catalog import Catalog, RequestNote, another_models
from hotclip_server.models.closing import Closer
from hotclip_server.models.engines import EngineSelector
from hotclip_server.models.flip import FlipParticipant
from hotclip_server.models.flips import Flips
from hotclip_server.models.gates import MetricGate
from hotclip_server.models.golden import GoldenProbes
from hotclip_server.models.probes import RunOnDevice
from hotclip_server.models.protocol import VersionLoader, VersionManifest
from hotclip_server.models.records import LOAD_VERSION
from hotclip_server.models.residents import Pin, Resident
from hotclip_server.models.resuming import Resumption
from hotclip_server.models.revisions import watch_models
from hotclip_server.models.slots import Slots
from hotclip_server.models.staging import Stager, StagingLimits
from hotclip_server.models.state import ModelState, VersionRecord, VersionState
from hotclip_server.models.watch import Changes
from hotclip_server.storage.database import Database, now

STOP_S = 10.0
"""Longest wait for what is being loaded when the server stops."""
_ATTEMPTS = 3


class ModelRegistry:
    """Owner of every resident version. Every method belongs to the event loop.

    Three slots a model: live, previous (warm for a rollback) and staged; versions that
    somebody retains stay besides them. `start` starts it, `stop` ends it.

    Args:
        run_on_device: Runs a batch in its turn between those of requests.
    """

    def __init__(
        self,
        database: Database,
        loader: VersionLoader,
        run_on_device: RunOnDevice,
        limits: StagingLimits | None = None,
        engines: EngineSelector | None = None,
        golden: GoldenProbes | None = None,
    ) -> None:
        limits = limits or StagingLimits()
        self._stager = Stager(loader, run_on_device, limits, engines, golden)
        self._closer = Closer(run_on_device, self._stager.blocking)
        self._catalog = Catalog(database)
        self._changes = Changes()
        self._slots = Slots(
            self._catalog, self._stager, self._changes, self._close, limits.pressure_s
        )
        self._importing = asyncio.Lock()
        self._background = Background()
        self._flips = Flips(self._catalog, self._slots, self._background, self.stage)
        self._resumption = Resumption(self._catalog, self._slots, self.activate)
        self._restored: asyncio.Task[None] | None = None

    def add_flip_participant(self, participant: FlipParticipant) -> None:
        """From now on `participant` takes part in every flip, in the order of adding."""
        self._slots.participants.append(participant)

    def set_audience(self, audience: Audience) -> None:
        """From now on `audience` is told of every version that comes, goes or goes live."""
        self._slots.audience = audience

    async def start(self, model: str, source: str) -> None:
        """Makes every model answer with its last activated version.

        If `model` has none, `source` is imported and activated; see `Resumption`. Rollback
        targets are loaded in the background.

        Raises:
            HotclipError: `model` has no version that can serve.
        """
        await self._catalog.open()
        await self._stager.remove_unrecorded(frozenset(self._catalog.versions))
        await self._resumption.live(model)
        if model not in self._slots.live:
            record = await self.load_version(model, source)
            await self.activate(model, record.id)
        self._restored = self._background.spawn(self._resumption.previous())

    async def stop(self, grace_s: float = STOP_S) -> bool:
        """Ends watchers, waits for what is under way, closes every version that no request pins.

        Returns:
            Whether all has ended. False: a download or a load goes on after `grace_s` seconds, and
            the process must be ended without waiting for its threads; the next start clears up.
        """
        self._changes.close()
        self._closer.stop()
        for resident in self._slots.residents:
            self._slots.residents.retire(resident)
        loop = asyncio.get_running_loop()
        ends = loop.time() + grace_s
        settled = await self._background.settle(grace_s)
        stopping = asyncio.ensure_future(asyncio.to_thread(self._stager.stop))
        await asyncio.wait({stopping}, timeout=max(0.1, ends - loop.time()))
        return settled and stopping.done()

    def pin(
        self,
        model: str = "",
        version: str = "",
        expected_space_id: str = "",
        dimensions: int = 0,
    ) -> Pin:
        """Admits a request: the version that answers it stays until the pin is released.

        Args:
            model: Empty: the one of `version`, else "default".
            version: Any resident version instead of the live one.
            expected_space_id: The answer must be of this space: the live version if it is,
                else any resident version of the model that is.
            dimensions: Of that space; 0: as many as the version gives.

        Raises:
            InvalidArgument: more dimensions than the version gives.
            NotFound: no such model or version.
            FailedPrecondition: reasons VERSION_NOT_RESIDENT, SPACE_MISMATCH, NO_LIVE_VERSION.
            Unavailable: the server is starting; reason MODEL_NOT_READY.
        """
        return self._slots.selection.pin(model, version, expected_space_id, dimensions)

    async def load_version(self, model: str, source: str, request_id: str = "") -> VersionRecord:
        """Imports a source as a version of `model` and stages it.

        A source that can't serve leaves nothing behind. The same `request_id` again returns
        what the first call made.

        Raises:
            InvalidArgument: a name, the source or a request_id that meant another request.
            FailedPrecondition: reasons VERSION_UNFIT, VERSION_OF_ANOTHER_MODEL.
            HotclipError: what `VersionLoader.import_source` and `stage` raise.
        """
        model = naming.check_model(model)
        naming.check_source(source)
        note = RequestNote.of(LOAD_VERSION, request_id, [model, source])
        return await self._background.uninterrupted(self._load_version(model, source, note))

    async def register(
        self, model: str, manifest: VersionManifest, metrics: Mapping[str, float] | None = None
    ) -> VersionRecord:
        """Records a version that is in the store already, e.g. the result of a job."""
        return await self._background.uninterrupted(
            self._record(naming.check_model(model), manifest, metrics)
        )

    async def make(self, model: str, make: Callable[[], VersionManifest]) -> VersionRecord:
        """Records the version that `make` stores; it blocks, off the event loop."""

        async def work() -> VersionRecord:
            async with self._importing:
                return await self._record(model, await self._stager.blocking(make))

        return await self._background.uninterrupted(work())

    async def stage(self, version_id: str) -> Resident:
        """Makes a stored version resident, warm and verified, in its model's staging slot.

        The version that was in the slot drains unless it is retained. A failure leaves every
        slot as it was.

        Raises:
            NotFound: no such version.
            FailedPrecondition: it may not serve; reason VERSION_UNFIT.
            ResourceExhausted: it does not fit in memory; reason OUT_OF_MEMORY.
            DataLoss: its files are damaged.
        """
        return await self._background.uninterrupted(
            self._slots.stage(self._catalog.version(version_id))
        )

    async def bind(self, version_id: str, holder: str) -> Resident:
        """Like `stage`, but retained for `holder` instead of placed in the staging slot."""
        return await self._background.uninterrupted(
            self._slots.stage(self._catalog.version(version_id), holder=holder)
        )

    def retain(self, version_id: str, holder: str) -> None:
        """Keeps a resident version until `release`, e.g. for "collection:photos".

        Raises:
            NotFound: no such version.
            FailedPrecondition: it is not resident; reason VERSION_NOT_RESIDENT.
        """
        self._catalog.version(version_id)
        # Whoever pins it may find it draining: another staging has pushed it out of its slot.
        resident = self._slots.residents.adopt(version_id)
        if resident is None:
            raise FailedPrecondition(
                f"version {version_id} is not in memory", reason="VERSION_NOT_RESIDENT"
            )
        resident.holders.add(holder)
        self._changes.notify(resident.model)

    def release(self, version_id: str, holder: str) -> None:
        """Ends `retain` or `bind`; does nothing if there was none."""
        resident = self._slots.residents.get(version_id)
        if resident is not None and holder in resident.holders:
            resident.holders.discard(holder)
            self._slots.trim(resident.model)

    async def activate(
        self,
        model: str,
        version_id: str,
        *,
        etag: str = "",
        validate_only: bool = False,
        collections: Sequence[str] = (),
        gates: Sequence[MetricGate] = (),
        request_id: str = "",
    ) -> ModelState:
        """Makes a version live, staging it first if it is not resident.

        Requests admitted after this returns are answered by it.

        Args:
            etag: If given, the model must still have it.
            validate_only: Checks everything, stages, changes nothing.
            collections: Given to the flip participants.
            gates: What the version must have reached; looked at before it is staged, and again in
                the transaction that makes it live.
            request_id: The same id again within 24 hours changes nothing and returns the model
                as it is then.

        Raises:
            InvalidArgument: a request_id that meant another request.
            NotFound: no such model, version or dataset of a gate.
            Aborted: the model has another etag; reason ETAG_MISMATCH.
            FailedPrecondition: a gate; reasons GATE_NOT_MEASURED, GATE_NOT_REACHED.
            HotclipError: what `stage` raises, or a participant's veto.
        """
        return await self._flips.activate(
            model,
            version_id,
            etag=etag,
            validate_only=validate_only,
            collections=collections,
            gates=gates,
            request_id=request_id,
        )

    async def rollback(self, model: str, *, etag: str = "", request_id: str = "") -> ModelState:
        """Makes the previous version live again; loads nothing. Rolling back twice is as if
        never.

        Args:
            etag: If given, the model must still have it.
            request_id: The same id again within 24 hours changes nothing and returns the model
                as it is then.

        Raises:
            InvalidArgument: a request_id that meant another request.
            NotFound: no such model.
            Aborted: the model has another etag; reason ETAG_MISMATCH.
            FailedPrecondition: reason NO_PREVIOUS_VERSION.
            HotclipError: a participant's veto.
        """
        if self._restored is not None:
            # After a restart the target is on its way into memory.
            await asyncio.shield(self._restored)
        return await self._flips.rollback(model, etag=etag, request_id=request_id)

    async def unload(self, version_id: str, *, keep_rollback: bool = False) -> VersionRecord:
        """Frees the memory of a version. Of the previous one, it also ends the rollback target.

        Args:
            keep_rollback: Refuse the previous one.

        Raises:
            NotFound: no such version.
            FailedPrecondition: live, retained, or previous and to be kept; reason VERSION_IN_USE.
        """
        record = self._catalog.version(version_id)
        await self._background.uninterrupted(
            self._slots.unload(record, keep_rollback=keep_rollback)
        )
        return record

    async def delete(self, version_id: str) -> None:
        """Removes a version and its files.

        Raises:
            NotFound: no such version.
            FailedPrecondition: live, previous or retained; reason VERSION_IN_USE.
        """
        await self._background.uninterrupted(self._slots.remove(self._catalog.version(version_id)))

    def get_version(self, version_id: str) -> VersionRecord:
        """Raises NotFound."""
        return self._catalog.version(version_id)

    def list_versions(self, model: str = "") -> list[VersionRecord]:
        """Versions of a model, newest first. Raises NotFound."""
        name = self._catalog.model(model or naming.DEFAULT_MODEL).name
        found = [record for record in self._catalog.versions.values() if record.model == name]
        return sorted(found, key=lambda record: (-record.create_time.timestamp(), record.id))

    def list_models(self) -> list[ModelState]:
        """All models, by name."""
        return [self.model_state(name) for name in sorted(self._catalog.models)]

    def __iter__(self) -> Iterator[tuple[Resident, bool]]:
        """Every version that a request may pin, and whether it is live."""
        for resident in self._slots.residents:
            yield resident, resident is self._slots.live.get(resident.model)

    def version_state(self, version_id: str) -> VersionState:
        """Where a version is. Raises NotFound."""
        return self._slots.version_state(self._catalog.version(version_id))

    def model_state(self, model: str = "") -> ModelState:
        """A model as it is now. Raises NotFound."""
        return self._slots.model_state(model or naming.DEFAULT_MODEL)

    def watch(
        self, model: str = "", after: Mapping[str, int] | None = None
    ) -> AsyncGenerator[ModelState, None]:
        """Yields each model's state now, then its state after each change; "" for all.

        No revision is left out: one that went by unseen comes as it was, without what was staged
        then. Of what changes between two revisions, as staging, only the newest state comes.

        Args:
            after: The last revision, by model, that the caller has seen: what came after it comes
                first. Where all are watched and it names one, what the others were comes too.

        Raises:
            NotFound: no such model.
            Unavailable: the server stops.
        """
        return watch_models(self._catalog, self._changes, self.model_state, model, after or {})

    async def _load_version(
        self, model: str, source: str, note: RequestNote | None
    ) -> VersionRecord:
        async with self._importing:
            if note is not None:
                made = await self._catalog.find_request(note)
                if made is not None and made in self._catalog.versions:
                    return self._catalog.version(made)
            for _ in range(_ATTEMPTS):
                record = await self._import(model, source, note)
                if record is not None:
                    return record
            raise Unavailable("the version is deleted whenever it is loaded", reason="DELETED")

    async def _import(
        self, model: str, source: str, note: RequestNote | None
    ) -> VersionRecord | None:
        """None: somebody has deleted the same version since it was stored."""
        manifest = await self._stager.import_source(source)
        record = self._catalog.versions.get(manifest.id) or VersionRecord(
            manifest=manifest, model=model, create_time=now(), metrics={}
        )
        if record.model != model:
            raise another_models(record)
        try:
            await self._slots.stage(record, commit=lambda: self._slots.add(record, note))
        except HotclipError as error:
            if manifest.id in self._catalog.versions:
                raise
            if isinstance(error, NotFound):
                return None
            await self._stager.delete(manifest.id)
            raise
        return self._catalog.version(manifest.id)

    async def _record(
        self, model: str, manifest: VersionManifest, metrics: Mapping[str, float] | None = None
    ) -> VersionRecord:
        record = VersionRecord(
            manifest=manifest, model=model, create_time=now(), metrics=dict(metrics or {})
        )
        added = await self._slots.record(record)
        await self._slots.audience.told()
        return added

    def _close(self, resident: Resident) -> None:
        self._background.spawn(self._closer.close(resident.encoder))
