"""What a caller sees of versions and models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from secrets import token_hex

from hotclip_server.models.lineage import Lineage
from hotclip_server.models.protocol import VersionManifest


class VersionState(Enum):
    """Where a version is."""

    STORED = "stored"
    """On disk only."""
    STAGED = "staged"
    """Resident and warm, not live."""
    LIVE = "live"
    """Answers requests."""
    PREVIOUS = "previous"
    """Was live before; resident for a rollback."""
    BOUND = "bound"
    """Resident because somebody holds it, e.g. a collection."""


@dataclass(frozen=True, kw_only=True)
class VersionRecord:
    """A version and what is known of it."""

    manifest: VersionManifest
    model: str
    create_time: datetime
    metrics: Mapping[str, float]
    lineage: Lineage | None = None
    """None: no job made it."""

    @property
    def id(self) -> str:
        """Content address."""
        return self.manifest.id


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """The durable part of a model's state."""

    name: str
    live: str
    """Version id; empty if none."""
    previous: str
    """Version id; empty if none."""
    etag: str
    revision: int = 0
    """How often `live` or `previous` has changed."""
    change_time: datetime | None = None
    """When they last did."""

    def changed(self, *, live: str, previous: str) -> ModelRow:
        """The next revision."""
        return replace(
            self,
            live=live,
            previous=previous,
            etag=token_hex(8),
            revision=self.revision + 1,
            change_time=datetime.now(UTC),
        )


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """A model at one moment."""

    name: str
    live_version: str
    """Empty if none was ever activated."""
    previous_version: str
    """What a rollback returns to; empty if none."""
    staged_versions: tuple[str, ...]
    """Resident versions that are neither, in order of id."""
    etag: str
    """Changes whenever `live_version` or `previous_version` does."""
    space_id: str
    """Space of the live version; empty if none."""
    revision: int = 0
    """How often `live_version` or `previous_version` has changed: the changes have these
    numbers, without gaps."""
    change_time: datetime | None = None
    """When they last did; None: never."""
