"""What becomes of a collection whose shadow is complete."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from hotclip_server.search import records
from hotclip_server.search.records import CollectionRecord


def completed_shadow(
    connection: Connection, record: CollectionRecord, version: str
) -> CollectionRecord:
    """Marks the shadow; if its version is live already, it goes live at once."""
    if record.shadow_version != version:
        return record
    # A shadow is made of sources alone, and while there is one no vector is taken.
    record = replace(record, has_vectors=False)
    live, previous = records.read_model(connection, record.model)
    if live != version:
        return replace(record, shadow_complete=True)
    flipped = record.bound_to(records.read_binding(connection, record.model, version))
    return flipped if flipped.previous_version == previous else flipped.without_previous()
