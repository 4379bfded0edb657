"""How engines address points."""

from __future__ import annotations

from uuid import UUID, uuid5

# The caller's id is hashed into a UUID (SHA-1, RFC 9562).
_IDS = UUID("3f1a6dd6-5b0e-5d6f-8b6b-1d7c8f1f6c11")


def point_uuid(point_id: str) -> UUID:
    """The engine's id of a point, the same in every shard and engine."""
    return uuid5(_IDS, point_id)


def cursor_of(point_id: str) -> str:
    """Where a listing goes on that has this point next: points are listed in this order."""
    return str(point_uuid(point_id))
