"""Activations and rollbacks: what is checked before a flip, and what makes a call of it safe to
repeat. Event loop only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import partial

from hotclip_server.errors import FailedPrecondition
from hotclip_server.models import naming
from hotclip_server.models.background import Background
from hotclip_server.models.catalog import Catalog, RequestNote
from hotclip_server.models.gates import Gates, MetricGate
from hotclip_server.models.records import ACTIVATE_VERSION, ROLLBACK
from hotclip_server.models.residents import Resident
from hotclip_server.models.slots import Slots, check_etag
from hotclip_server.models.state import ModelRow, ModelState


class Flips:
    """Does what `ModelRegistry.activate` and `ModelRegistry.rollback` say.

    Args:
        background: Ends what a cancelled caller has begun.
        stage: Makes a version resident.
    """

    def __init__(
        self,
        catalog: Catalog,
        slots: Slots,
        background: Background,
        stage: Callable[[str], Awaitable[Resident]],
    ) -> None:
        self._catalog = catalog
        self._slots = slots
        self._background = background
        self._stage = stage

    async def activate(
        self,
        model: str,
        version_id: str,
        *,
        etag: str,
        validate_only: bool,
        collections: Sequence[str],
        gates: Sequence[MetricGate],
        request_id: str,
    ) -> ModelState:
        """See `ModelRegistry.activate`."""
        name = model or naming.DEFAULT_MODEL
        asked = [name, version_id, etag, list(collections), [asdict(gate) for gate in gates]]
        told = RequestNote.of(ACTIVATE_VERSION, request_id, asked)
        note = None if validate_only else told
        if await self._was_done(note):
            return self._slots.model_state(name)
        check_etag(self._catalog.model(name), etag)
        self._catalog.of_model(name, version_id)
        vetoes = [Gates(gates)] if gates else []
        for veto in vetoes:
            live = self._catalog.model(name).live
            await self._catalog.check(partial(veto.check, live=live, version=version_id))
        flipped = False
        while not flipped:
            # Another staging may push it out before its turn to flip comes; then again.
            if self._slots.residents.get(version_id) is None:
                await self._stage(version_id)
            flipped = await self._background.uninterrupted(
                self._slots.flip(
                    name,
                    lambda _: version_id,
                    etag,
                    collections,
                    trial=validate_only,
                    gates=vetoes,
                    note=note,
                )
            )
        return self._slots.model_state(name)

    async def rollback(self, model: str, *, etag: str, request_id: str) -> ModelState:
        """See `ModelRegistry.rollback`."""
        name = model or naming.DEFAULT_MODEL
        note = RequestNote.of(ROLLBACK, request_id, [name, etag])
        if await self._was_done(note):
            return self._slots.model_state(name)
        check_etag(self._catalog.model(name), etag)

        def target(row: ModelRow) -> str:
            if not row.previous:
                raise FailedPrecondition(
                    f"model {name!r} has no previous version", reason="NO_PREVIOUS_VERSION"
                )
            return row.previous

        if not await self._background.uninterrupted(
            self._slots.flip(name, target, etag, (), trial=False, note=note)
        ):
            raise FailedPrecondition(
                f"the previous version of model {name!r} could not be loaded after "
                "the restart: activate it to try again",
                reason="NO_PREVIOUS_VERSION",
            )
        return self._slots.model_state(name)

    async def _was_done(self, note: RequestNote | None) -> bool:
        return note is not None and await self._catalog.find_request(note) is not None
