"""The slots of each model and the three moves between them: stage, flip, drain.

    load ──▶ staged ──flip──▶ live ──flip──▶ previous ──next flip──▶ drain ──▶ closed

Event loop only. Two locks: one for loading (one version at a time), one for flips. Reading
the slots takes none: every move that a request can see is one step of the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from hotclip_server.errors import Aborted, FailedPrecondition
from hotclip_server.models.audience import Alone, Audience
from hotclip_server.models.catalog import Catalog, RequestNote
from hotclip_server.models.directory import Selection
from hotclip_server.models.flip import FlipParticipant
from hotclip_server.models.quiet import quietest_moment
from hotclip_server.models.residents import Pin, Resident, Residents
from hotclip_server.models.staging import Stager
from hotclip_server.models.state import ModelRow, ModelState, VersionRecord, VersionState
from hotclip_server.models.watch import Changes

LULL_S = 0.25
"""Longest that a flip waits for a moment in which no item, or few, waits for the device. Those
that wait while versions change are of another version than those that come next, and run in
batches of their own: a flip then costs others up to a batch a tower."""


class Slots:
    """Who is resident and why.

    Args:
        close: Called once with each version that nobody needs any more.
        pressure_s: Predicted seconds of what waits for the device; above 0 while anything is not
            answered.
    """

    def __init__(
        self,
        catalog: Catalog,
        stager: Stager,
        changes: Changes,
        close: Callable[[Resident], None],
        pressure_s: Callable[[], float],
    ) -> None:
        self.residents = Residents(close)
        self._pressure_s = pressure_s
        self._close = close
        self.live: dict[str, Resident] = {}
        self.selection = Selection(catalog, self.residents, self.live)
        self.staged: dict[str, str] = {}
        self.audience: Audience = Alone()
        self.participants: list[FlipParticipant] = []
        self._catalog = catalog
        self._stager = stager
        self._changes = changes
        self._loading = asyncio.Lock()
        self._flipping = asyncio.Lock()

    def version_state(self, record: VersionRecord) -> VersionState:
        """Where a version is."""
        if (resident := self.residents.get(record.id)) is None:
            return VersionState.STORED
        if resident is self.live.get(record.model):
            return VersionState.LIVE
        if record.id == self._catalog.model(record.model).previous:
            return VersionState.PREVIOUS
        if record.id == self.staged.get(record.model):
            return VersionState.STAGED
        return VersionState.BOUND

    def model_state(self, model: str) -> ModelState:
        """A model as it is now. Raises NotFound."""
        row = self._catalog.model(model)
        live = self.live.get(model)
        others = sorted(
            resident.version_id
            for resident in self.residents
            if resident.model == model and resident.version_id not in (row.live, row.previous)
        )
        return ModelState(
            name=model,
            live_version=row.live,
            previous_version=row.previous,
            staged_versions=tuple(others),
            etag=row.etag,
            space_id=live.spec.space_id if live is not None else "",
            revision=row.revision,
            change_time=row.change_time,
        )

    async def stage(
        self,
        record: VersionRecord,
        *,
        holder: str = "",
        commit: Callable[[], Awaitable[object]] | None = None,
    ) -> Resident:
        """Loads a version if it is not resident, for `holder` or else for the staging slot.

        Args:
            commit: Awaited when it has proved fit, before anybody can see it.
        """
        async with self._loading:
            if commit is None:
                self._catalog.version(record.id)  # Not deleted while this waited.
            resident = self.residents.adopt(record.id)
            fresh = resident is None
            if resident is None:
                resident = await self._stager.load(record)
            if commit is not None:
                try:
                    await commit()
                except BaseException:
                    if fresh:
                        self._close(resident)
                    else:
                        self.trim(record.model)  # What it was adopted for has failed.
                    raise
            if fresh:
                self.residents.add(resident)
            if holder:
                resident.holders.add(holder)
            else:
                row = self._catalog.model(record.model)
                if record.id not in (row.live, row.previous):
                    self.staged[record.model] = record.id
            self.trim(record.model)
            await self.audience.told()
            return resident

    async def resume(self, row: ModelRow) -> None:
        """After a restart: puts the recorded live version back."""
        async with self._loading:
            resident = await self._stager.load(self._catalog.version(row.live))
            self.residents.add(resident)
            self.live[row.name] = resident
            self._changes.notify(row.name)

    async def flip(
        self,
        model: str,
        target: Callable[[ModelRow], str],
        etag: str,
        collections: Sequence[str],
        *,
        trial: bool,
        gates: Sequence[FlipParticipant] = (),
        note: RequestNote | None = None,
    ) -> bool:
        """Makes `target(row)` live; must not be cancelled between its commit and its end.

        Args:
            gates: Take part in this flip only, before all others.
            note: Of the caller's request; if it was done before, nothing happens.

        Returns:
            False if the target is not resident: nothing has changed.
        """
        async with self._flipping:
            row = self._catalog.model(model)
            if note is not None and await self._catalog.find_request(note) is not None:
                return True
            check_etag(row, etag)
            version_id = target(row)
            resident = self.residents.adopt(version_id)
            if resident is None:
                return False
            new = row
            if version_id != row.live:
                new = row.changed(live=version_id, previous=row.live)
            # A staging meanwhile may push it out of its slot; the pin keeps it from closing.
            with Pin(self.residents, resident):
                if resident is not self.live.get(model) and not trial:
                    await quietest_moment(self._pressure_s, LULL_S)
                actions = await self._catalog.write_flip(
                    row, new, (*gates, *self.participants), collections, trial=trial, note=note
                )
                if trial:
                    return True
                async with self.audience.held():
                    # One step of the loop in here: no request sees a half of it.
                    self.residents.adopt(version_id)
                    self._catalog.models[model] = new
                    self.live[model] = resident
                    try:
                        for action in actions:
                            action()
                    finally:
                        if self.staged.get(model) in (new.live, new.previous):
                            del self.staged[model]
                        self.trim(model)
            return True

    async def unload(self, record: VersionRecord, *, keep_rollback: bool) -> None:
        """Lets a version drain that is neither live nor retained.

        Args:
            keep_rollback: Nor previous.
        """
        async with self._loading, self._flipping:
            self._require_unused(record)
            row = self._catalog.model(record.model)
            if row.previous == record.id:
                if keep_rollback:
                    raise _in_use(record.id, "a rollback returns to it")
                await self._catalog.release_previous(row, self.participants)
            self._forget(record)
            await self.audience.told()

    async def release_previous(self, model: str) -> None:
        """From now on there is no version to roll back to."""
        async with self._flipping:
            await self._catalog.release_previous(self._catalog.model(model), self.participants)
            self.trim(model)

    async def remove(self, record: VersionRecord) -> None:
        """Forgets a version that is neither live, previous nor retained, and its files."""
        async with self._loading:  # To the end: nobody loads what is half gone.
            self._require_removable(record)
            await self._stager.note_recorded(record.id, recorded=False)
            try:
                async with self._flipping:
                    self._require_removable(record)  # It may have gone live meanwhile.
                    await self._catalog.remove(record.id)
                    self.residents.discard(record.id)
                    self._forget(record)
            except FailedPrecondition:
                await self._stager.note_recorded(record.id, recorded=True)
                raise
            await self.audience.told()
            await self._stager.delete(record.id)

    async def record(self, record: VersionRecord) -> VersionRecord:
        """Records a stored version that is not loaded.

        Raises:
            NotFound: its files are gone, because it was deleted since they were stored.
        """
        async with self._loading:
            await self._stager.require_files(record.id)
            return await self.add(record)

    async def add(self, record: VersionRecord, note: RequestNote | None = None) -> VersionRecord:
        """As `Catalog.add`; its files are to stay from then on."""
        added = await self._catalog.add(record, note)
        await self._stager.note_recorded(record.id, recorded=True)
        return added

    def trim(self, model: str) -> None:
        """Lets every version drain that no slot and no holder wants; tells watchers."""
        row = self._catalog.model(model)
        wanted = (row.live, row.previous, self.staged.get(model))
        for resident in self.residents:
            if (
                resident.model == model
                and resident.version_id not in wanted
                and not resident.holders
            ):
                self.residents.retire(resident)
        self._changes.notify(model)

    def _require_unused(self, record: VersionRecord) -> None:
        self._catalog.version(record.id)  # Not deleted while this waited.
        if self._catalog.model(record.model).live == record.id:
            raise _in_use(record.id, "it is live")
        resident = self.residents.get(record.id)
        if resident is not None and resident.holders:
            held = f"held by {', '.join(sorted(resident.holders))}"
            if any(holder.startswith("shadow:") for holder in resident.holders):
                held += " (DropShadow gives a complete shadow up)"
            raise _in_use(record.id, held)

    def _require_removable(self, record: VersionRecord) -> None:
        self._require_unused(record)
        if self._catalog.model(record.model).previous == record.id:
            raise _in_use(record.id, "a rollback returns to it")

    def _forget(self, record: VersionRecord) -> None:
        if self.staged.get(record.model) == record.id:
            del self.staged[record.model]
        self.trim(record.model)


def check_etag(row: ModelRow, etag: str) -> None:
    """Raises Aborted if the caller has seen another state than `row`; "" for any."""
    if etag and etag != row.etag:
        raise Aborted(
            f"model {row.name!r} has etag {row.etag}, not {etag}", metadata={"etag": row.etag}
        )


def _in_use(version_id: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(f"version {version_id} is in use: {why}", reason="VERSION_IN_USE")
