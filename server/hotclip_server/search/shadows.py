"""What a shadow is filled with, and what becomes of a collection whose shadow is complete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from hotclip_server.batching.ticket import Priority
from hotclip_server.errors import DataLoss
from hotclip_server.search import records
from hotclip_server.search.protocol import VectorStore
from hotclip_server.search.records import Binding, CollectionRecord, SourceRow
from hotclip_server.search.reindex_errors import source_damaged, source_unfit
from hotclip_server.search.sources import Sources


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


async def shadow_vectors(
    store: VectorStore,
    sources: Sources,
    record: CollectionRecord,
    binding: Binding,
    rows: Sequence[SourceRow],
) -> NDArray[np.float32]:
    """float32 (rows, dim) by the version of `binding`; copied where its tower is the bound one's.

    Raises:
        FailedPrecondition: sources that it can't encode; reason SOURCE_UNFIT.
        DataLoss: sources that are lost; reason SOURCE_DAMAGED. Both name the points: metadata
            `points` and `ids`.
        Unavailable: the encoder takes nothing.
    """
    vectors = np.zeros((len(rows), binding.dim), np.float32)
    same = {
        "text": binding.text_encoder_id == record.text_encoder_id,
        "image": binding.vision_encoder_id == record.vision_encoder_id,
        "tensor": binding.vision_encoder_id == record.vision_encoder_id,
    }
    copied = [row.point_id for row in rows if same.get(row.kind)]
    live = await store.retrieve(record.shard, copied, with_vectors=True)
    make: list[int] = []
    for at, row in enumerate(rows):
        if same.get(row.kind) and live.revisions.get(row.point_id) == row.revision:
            vectors[at] = live.vectors[row.point_id]
        else:
            make.append(at)
    if make:
        made, errors = await sources.encode(
            record.model, binding.version, [rows[at] for at in make], Priority.BULK, patient=False
        )
        if errors:
            named = {rows[make[at]].point_id: error for at, error in errors.items()}
            if damaged := {i: error for i, error in named.items() if isinstance(error, DataLoss)}:
                raise source_damaged(damaged)
            raise source_unfit(named, binding.version)
        vectors[make] = made
    return vectors
