"""After a start: every model answers with what was last activated, and can be rolled back.

Event loop only.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from hotclip_server.errors import DataLoss, FailedPrecondition, HotclipError, NotFound
from hotclip_server.models.catalog import Catalog
from hotclip_server.models.slots import Slots
from hotclip_server.models.state import ModelRow

_log = logging.getLogger(__name__)

_ITS_OWN_FAULT = (DataLoss, FailedPrecondition, NotFound)
"""Errors of a version that can't be loaded however often it is tried."""


class Resumption:
    """Puts back into memory what the last run of the server had there.

    Args:
        activate: Makes a version of a model live, as `ModelRegistry.activate`.
    """

    def __init__(
        self,
        catalog: Catalog,
        slots: Slots,
        activate: Callable[[str, str], Awaitable[object]],
    ) -> None:
        self._catalog = catalog
        self._slots = slots
        self._activate = activate

    async def live(self, required: str) -> None:
        """Loads the live version of every model.

        One whose files are damaged or gone, or that is unfit, is replaced by the previous one.
        What is wrong with the machine, as too little memory, changes nothing of what is live.

        Args:
            required: A model without which there is no point in starting.

        Raises:
            HotclipError: no version of `required` can serve.
        """
        for row in tuple(self._catalog.models.values()):
            if not row.live:
                continue
            try:
                await self._slots.resume(row)
            except HotclipError as error:
                _log.error("live version %s of model %s: %s", row.live, row.name, error.message)
                replaced = isinstance(error, _ITS_OWN_FAULT) and await self._fall_back(row)
                if not replaced and row.name == required:
                    raise

    async def previous(self) -> None:
        """Loads what a rollback returns to."""
        for row in tuple(self._catalog.models.values()):
            if row.previous and self._slots.residents.get(row.previous) is None:
                try:
                    await self._slots.stage(self._catalog.version(row.previous))
                except HotclipError as error:
                    _log.error(
                        "previous version %s of model %s: %s", row.previous, row.name, error.message
                    )

    async def _fall_back(self, row: ModelRow) -> bool:
        """Whether the previous version is live now."""
        if not row.previous:
            return False
        _log.error("model %s resumes its previous version %s", row.name, row.previous)
        try:
            await self._activate(row.name, row.previous)
            await self._slots.release_previous(row.name)
        except HotclipError as error:
            _log.error("model %s, version %s: %s", row.name, row.previous, error.message)
            return False
        return True
