"""Which versions stay in memory for which collections.

A collection holds the version that it is bound to and that of its shadow. One that can't be loaded
at the start is held as soon as somebody brings it back, as LoadVersion does; a shadow, which
Reindex can make again, is given up then, for without its version every write would fail.
"""

from __future__ import annotations

import logging
from contextlib import aclosing, suppress

from hotclip_server.errors import HotclipError, Unavailable
from hotclip_server.search.encoding import Versions
from hotclip_server.search.records import CollectionRecord

_log = logging.getLogger(__name__)


class Holdings:
    """Event loop only."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._lacking: dict[str, str] = {}

    @property
    def lacking(self) -> bool:
        """Whether a version that should be held is not in memory."""
        return bool(self._lacking)

    async def begin(self, record: CollectionRecord) -> CollectionRecord:
        """Makes the versions of a collection resident; gives it back, without its shadow if the
        version of that can't be."""
        for holder, version in _holds(record).items():
            try:
                await self._versions.bind(version, holder)
            except HotclipError as error:
                if version == record.shadow_version and not isinstance(error, Unavailable):
                    _log.error(
                        "the shadow of collection %s is given up, as its version %s can't serve; "
                        "Reindex makes it anew: %s",
                        *(record.name, version, error),
                    )
                    record = record.without_shadow()
                else:
                    # The server starts all the same; this collection says why it can't serve.
                    _log.exception("version %s of collection %s can't serve", version, record.name)
                    self._lacking[holder] = version
        return record

    def change(self, before: CollectionRecord | None, after: CollectionRecord | None) -> None:
        """A collection is another now; None: there was none, or is none any more."""
        old = {} if before is None else _holds(before)
        new = {} if after is None else _holds(after)
        for holder, version in new.items():
            if old.get(holder) != version:
                self._versions.retain(version, holder)
        for holder, version in old.items():
            if new.get(holder) != version:
                self._lacking.pop(holder, None)
                self._versions.release(version, holder)

    async def retain_lacking(self) -> None:
        """Holds what lacks as soon as it is in memory; returns when nothing does."""
        async with aclosing(self._versions.watch()) as changes:
            async for _ in changes:
                for holder, version in tuple(self._lacking.items()):
                    with suppress(HotclipError):  # It is not in memory.
                        self._versions.retain(version, holder)
                        del self._lacking[holder]
                        _log.info("version %s is in memory again, for %s", version, holder)
                if not self._lacking:
                    return


def _holds(record: CollectionRecord) -> dict[str, str]:
    """Versions that must stay resident, by holder."""
    holds = {f"collection:{record.name}": record.version}
    if record.shadow_version:
        holds[f"shadow:{record.name}"] = record.shadow_version
    return holds
