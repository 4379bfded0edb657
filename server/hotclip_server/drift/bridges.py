"""The bridges of collections, as they are stored and as searches use them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from sqlalchemy import Connection

from hotclip_proto.v1 import drift_pb2
from hotclip_server.drift.bridge import LinearMap
from hotclip_server.errors import FailedPrecondition, NotFound
from hotclip_server.search import records as search_records
from hotclip_server.search.catalogue import Catalogue
from hotclip_server.search.records import Binding, CollectionRecord
from hotclip_server.storage.database import Database
from hotclip_server.storage.schema import bridges

MOST_KEPT = 16
"""Maps in memory: 1 MiB each with 512 dimensions."""


@dataclass(frozen=True, kw_only=True)
class StoredBridge:
    """A bridge and what it is for."""

    facts: drift_pb2.Bridge
    shard: str
    """Whose vectors it maps."""
    map: LinearMap
    bound: Binding | None
    """Of what version those vectors are; None if it was deleted."""

    def serves(self, record: CollectionRecord) -> bool:
        """Whether a collection still holds the vectors that it maps, and no others: one that
        followed another version as it was takes points of that one into the same shard."""
        bound = self.bound
        return self.shard == record.shard and bound is not None and record.unchanged_by(bound)


def put(connection: Connection, bridge: StoredBridge) -> None:
    """Stores the bridge of a collection instead of the one that it has.

    Raises:
        NotFound: the collection or the version is gone.
        FailedPrecondition: the collection holds other vectors now; reason BRIDGE_OUTDATED.
    """
    facts = bridge.facts
    record = search_records.read(connection, facts.collection)
    search_records.read_binding(connection, record.model, facts.version)
    if not bridge.serves(record):
        raise FailedPrecondition(
            f"collection {facts.collection!r} was bound to version {record.version} meanwhile",
            reason="BRIDGE_OUTDATED",
        )
    remove(connection, facts.collection)
    connection.execute(
        sa.insert(bridges).values(
            collection=facts.collection,
            version=facts.version,
            dim=len(bridge.map.matrix),
            shard=bridge.shard,
            bridge=facts.SerializeToString(),
            matrix=bridge.map.matrix.astype("<f4").tobytes(),
        )
    )


def find(connection: Connection, collection: str) -> StoredBridge | None:
    """The bridge of a collection; None if it has none."""
    query = sa.select(bridges).where(bridges.c.collection == collection)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    facts = drift_pb2.Bridge.FromString(row.bridge)
    record = search_records.read(connection, collection)
    try:
        bound = search_records.read_binding(connection, record.model, facts.bound_version)
    except NotFound:
        bound = None
    matrix = np.frombuffer(row.matrix, "<f4").reshape(row.dim, -1).astype(np.float32)
    fitted = LinearMap(matrix, facts.method, facts.penalty)
    return StoredBridge(facts=facts, shard=row.shard, map=fitted, bound=bound)


def remove(connection: Connection, collection: str) -> int:
    """Removes the bridge of a collection; how many there were."""
    return connection.execute(sa.delete(bridges).where(bridges.c.collection == collection)).rowcount


class Bridges:
    """Finds the bridges of collections. Event loop only."""

    def __init__(self, database: Database, catalogue: Catalogue) -> None:
        self._database = database
        self._catalogue = catalogue
        self._kept: OrderedDict[str, StoredBridge] = OrderedDict()
        self._changes = 0

    async def get(self, collection: str) -> tuple[StoredBridge, bool]:
        """The bridge of a collection, and whether it still serves it.

        Raises:
            NotFound: no such collection, or it has none; reason NO_BRIDGE.
        """
        record = self._catalogue.get(collection)
        kept = self._kept.get(collection)
        if kept is None or not kept.serves(record):
            changes = self._changes
            kept = await self._database.run(lambda c: find(c, collection))
            if kept is None:
                raise NotFound(f"collection {collection!r} has no bridge", reason="NO_BRIDGE")
            if changes == self._changes:  # Else what was read may be another one by now.
                self._kept[collection] = kept
                while len(self._kept) > MOST_KEPT:
                    self._kept.popitem(last=False)
        return kept, kept.serves(self._catalogue.get(collection))

    async def delete(self, collection: str) -> None:
        """Raises NotFound as `get`."""
        await self.get(collection)
        await self._database.run(lambda c: remove(c, collection))
        self.forget(collection)

    def forget(self, collection: str) -> None:
        """The stored one is another now."""
        self._changes += 1
        self._kept.pop(collection, None)
