"""What a shard's index does not know of.

The engine counts the vectors that its index covers as they were when it was built, also when they
are replaced or gone since; so what changed is counted here. The numbers lie on the disk while
the shard is closed; after a crash they are not known.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from hotclip_server.storage.atomic import write_atomically

_FILE = "CHANGES"
_FEWEST_REMOVED, _REMOVED_SHARE = 1000, 0.25
"""From how many, and which share of all, removed points are worth a build. The engine has 0.2."""


@dataclass
class Changes:
    """Points stored, and removed, since the index was built; at most so many."""

    stored: int = 0
    removed: int = 0

    @classmethod
    def take(cls, folder: Path, points: int) -> Changes:
        """What `keep` wrote, once; else any of so many points may have changed."""
        path = folder / _FILE
        if not path.exists():
            return cls(stored=points)
        kept = cls(**json.loads(path.read_bytes()))
        path.unlink()
        return kept

    def keep(self, folder: Path) -> None:
        """Writes them down."""
        write_atomically(folder / _FILE, json.dumps(asdict(self)).encode())

    def without(self, built: Changes) -> Changes:
        """Those that came after the others."""
        return Changes(self.stored - built.stored, self.removed - built.removed)

    def many_removed(self, points: int) -> bool:
        """Whether so many are gone that the index of the others is worth a build."""
        there_were = points + self.removed
        return self.removed >= max(_FEWEST_REMOVED, _REMOVED_SHARE * there_were)
