"""Whether all that a read saw of a collection was made by one version.

A shard takes points of the version that owns it. Where a collection follows a version as it is,
the shard stays and its owner changes: points of a kind that it did not hold come from another
encoder then, and may be gone again before the read ends.
"""

from __future__ import annotations

from hotclip_server.models.state import ModelState
from hotclip_server.search.catalogue import Catalogue
from hotclip_server.search.encoding import Versions
from hotclip_server.search.records import CollectionRecord


class Moment:
    """A collection when a read of it begins. Event loop only.

    Raises:
        NotFound: no such collection; also of its methods.
        Unavailable: the server starts.
    """

    def __init__(self, catalogue: Catalogue, versions: Versions, name: str) -> None:
        self._catalogue = catalogue
        self._versions = versions
        self.record = catalogue.get(name)
        """Its row."""
        self._model = self._state()

    def moved(self) -> bool:
        """Whether its row is another one by now."""
        return self._catalogue.get(self.record.name) != self.record

    def holds(self, version: str, shard: str) -> bool:
        """Whether all that the shard held since then is as this version makes it, as what it held
        then was; False where that is not known."""
        now = self._catalogue.get(self.record.name)
        if now == self.record:  # Points of another kind would have changed it.
            return True
        # Who owns it now as then may have been away: a live version goes in one flip and comes
        # back in another; any other version can go without one, when a reindex lets the
        # collection catch up. What a reindex else changes in the row, again and again, is no flip.
        flips = self._state().revision - self._model.revision
        stayed = flips == 0 or (flips == 1 and version == self._model.live_version)
        return stayed and _owner(self.record, shard) == version == _owner(now, shard)

    def _state(self) -> ModelState:
        return self._versions.model_state(self.record.model)


def _owner(record: CollectionRecord, shard: str) -> str:
    """The version whose points a shard takes; empty if it takes none."""
    owners = {taken: version for version, taken in record.targets().items()}
    return owners.get(shard, "")
