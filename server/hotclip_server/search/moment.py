"""Whether all that a read saw of a collection was made by one version.

A shard takes points of the version that owns it. Where a collection follows a version as it is,
the shard stays and its owner changes: points of a kind that it did not hold come from another
encoder then, and may be gone again before the read ends.
"""

from __future__ import annotations

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
        self._flips = self._revision()

    def moved(self) -> bool:
        """Whether its row is another one by now."""
        return self._catalogue.get(self.record.name) != self.record

    def holds(self, version: str, shard: str) -> bool:
        """Whether all that the shard held since then is as this version makes it, as what it held
        then was; False where that is not known."""
        now = self._catalogue.get(self.record.name)
        if now == self.record:  # Points of another kind would have changed it.
            return True
        # Owners change in flips alone: one that is the same before and after at most one flip was
        # the owner all the time. A reindex changes the row again and again, but flips nothing.
        owned = _owner(self.record, shard) == version == _owner(now, shard)
        return owned and self._revision() <= self._flips + 1

    def _revision(self) -> int:
        return self._versions.model_state(self.record.model).revision


def _owner(record: CollectionRecord, shard: str) -> str:
    """The version whose points a shard takes; empty if it takes none."""
    owners = {taken: version for version, taken in record.targets().items()}
    return owners.get(shard, "")
