"""Rows of collections and of sources. Every function runs in the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from hotclip_server.errors import NotFound
from hotclip_server.models.residents import Resident
from hotclip_server.storage.schema import collections, models, sources, versions

DELETED = "deleted"
"""Kind of a row whose point is being removed from the shards."""
_IDS_AT_ONCE = 500  # SQLite bounds the variables of a statement.


@dataclass(frozen=True, kw_only=True)
class CollectionRecord:
    """One row of the table of collections; times are aware, in UTC."""

    name: str
    model: str
    version: str
    space_id: str
    text_encoder_id: str
    vision_encoder_id: str
    dim: int
    keep_sources: bool
    shard: str
    create_time: datetime
    shadow_version: str | None = None
    shadow_shard: str | None = None
    shadow_complete: bool = False
    previous_version: str | None = None
    previous_shard: str | None = None
    shadow_revision: int = 0
    """Rows up to here are in the growing shadow."""
    has_texts: bool = False
    has_images: bool = False
    has_vectors: bool = False
    """Given by callers: of which tower, nobody said."""
    generation: int = 0
    """Grows with every change of the row."""

    @property
    def sides(self) -> tuple[bool, bool, bool]:
        """Whether it ever held points of texts, of images and of given vectors."""
        return (self.has_texts, self.has_images, self.has_vectors)

    @property
    def binding(self) -> Binding:
        """What it has of its version."""
        return Binding(**{field.name: getattr(self, field.name) for field in fields(Binding)})

    def targets(self) -> dict[str, str]:
        """Shards that every write goes to, by the version that encodes for them."""
        pairs = (
            (self.version, self.shard),
            (self.shadow_version, self.shadow_shard),
            (self.previous_version, self.previous_shard),
        )
        return {version: shard for version, shard in pairs if version and shard}

    def holding(self, kinds: Collection[str]) -> CollectionRecord:
        """Points of these kinds of source are stored from now on."""
        return replace(
            self,
            has_texts=self.has_texts or "text" in kinds,
            has_images=self.has_images or "image" in kinds or "tensor" in kinds,
            has_vectors=self.has_vectors or "vector" in kinds,
        )

    def with_sides(self, sides: tuple[bool, bool, bool]) -> CollectionRecord:
        """Holds, or held, points of texts, of images and of given vectors."""
        texts, images, vectors = sides
        return replace(self, has_texts=texts, has_images=images, has_vectors=vectors)

    def unchanged_by(self, binding: Binding) -> bool:
        """Whether every stored vector is what the encoders of `binding` make too: then the
        collection can be bound to that version as it is. True of one that never held a point."""
        return (
            self.dim == binding.dim
            and (not self.has_texts or self.text_encoder_id == binding.text_encoder_id)
            and (not self.has_images or self.vision_encoder_id == binding.vision_encoder_id)
            and (not self.has_vectors or self.space_id == binding.space_id)
        )

    def without_previous(self) -> CollectionRecord:
        """The rollback target is gone."""
        return replace(self, previous_version=None, previous_shard=None)

    def without_shadow(self) -> CollectionRecord:
        """The shadow is gone."""
        return replace(
            self,
            shadow_version=None,
            shadow_shard=None,
            shadow_complete=False,
            shadow_revision=0,
        )

    def bound_to(self, binding: Binding) -> CollectionRecord:
        """Puts the shadow or the previous shard of that version live; the old one is previous."""
        shard = self.targets()[binding.version]
        record = replace(
            self,
            **asdict(binding),
            shard=shard,
            previous_version=self.version,
            previous_shard=self.shard,
        )
        return record.without_shadow() if self.shadow_version == binding.version else record

    def followed_to(self, binding: Binding) -> CollectionRecord:
        """Binds it to a version that changes none of its vectors: the shard stays."""
        record = replace(self, **asdict(binding))
        return record.without_shadow() if self.shadow_version == binding.version else record


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What a collection copies from its version."""

    version: str
    space_id: str
    text_encoder_id: str
    vision_encoder_id: str
    dim: int


def binding_of(resident: Resident) -> Binding:
    """What a collection copies from a version in memory."""
    spec = resident.spec
    return Binding(
        version=resident.version_id,
        space_id=spec.space_id,
        text_encoder_id=spec.text_encoder_id,
        vision_encoder_id=spec.vision_encoder_id,
        dim=spec.dim,
    )


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """What a point was made of.

    kind: "text", "image", "tensor", "vector" or "deleted".
    item: Serialised EncodeItem; of a vector its float32 bytes; None if it lies in a blob.
    reference: Where the caller keeps the original; may be empty.
    """

    point_id: str
    revision: int
    kind: str
    item: bytes | None
    blob: str | None
    payload: dict[str, Any]
    reference: str = ""


def read_all(connection: Connection) -> list[CollectionRecord]:
    """All collections."""
    return [_record(row) for row in connection.execute(sa.select(collections))]


def read(connection: Connection, name: str) -> CollectionRecord:
    """One collection. Raises NotFound."""
    row = connection.execute(sa.select(collections).where(collections.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"no collection {name!r}", reason="COLLECTION_NOT_FOUND")
    return _record(row)


def insert(connection: Connection, record: CollectionRecord) -> None:
    """Adds a collection. Raises sqlalchemy's IntegrityError if there is one of that name."""
    connection.execute(sa.insert(collections).values(asdict(record)))


def update(connection: Connection, record: CollectionRecord) -> CollectionRecord:
    """Replaces the row of a collection; gives it back with its new generation."""
    record = replace(record, generation=record.generation + 1)
    connection.execute(
        sa.update(collections).where(collections.c.name == record.name).values(asdict(record))
    )
    return record


def delete(connection: Connection, name: str) -> None:
    """Removes a collection and its sources."""
    connection.execute(sa.delete(collections).where(collections.c.name == name))


def read_binding(connection: Connection, model: str, version: str) -> Binding:
    """What a collection of `model` copies from `version`. Raises NotFound."""
    row = connection.execute(
        sa.select(versions).where(versions.c.id == version, versions.c.model == model)
    ).one_or_none()
    if row is None:
        raise NotFound(f"model {model!r} has no version {version!r}", reason="VERSION_NOT_FOUND")
    return Binding(
        version=row.id,
        space_id=row.space_id,
        text_encoder_id=row.text_encoder_id,
        vision_encoder_id=row.vision_encoder_id,
        dim=row.dim,
    )


def read_model(connection: Connection, model: str) -> tuple[str, str]:
    """Live and previous version of a model; empty if none."""
    row = connection.execute(sa.select(models).where(models.c.name == model)).one_or_none()
    return ("", "") if row is None else (row.live_version or "", row.previous_version or "")


def last_revision(connection: Connection, collection: str) -> int:
    """The greatest revision of a write with sources; 0 if there was none."""
    of_rows = sa.select(sa.func.max(sources.c.revision)).where(sources.c.collection == collection)
    of_deletions = sa.select(collections.c.deleted_revision).where(collections.c.name == collection)
    found = [connection.execute(query).scalar() for query in (of_rows, of_deletions)]
    return max(int(revision or 0) for revision in found)


def put_sources(connection: Connection, collection: str, rows: Sequence[SourceRow]) -> None:
    """Adds rows, or replaces those of the same points."""
    remove_sources(connection, collection, [row.point_id for row in rows])
    connection.execute(
        sa.insert(sources), [{"collection": collection, **asdict(row)} for row in rows]
    )


def mark_deleted(
    connection: Connection, collection: str, ids: Sequence[str], revision: int
) -> None:
    """Turns the rows of points into tombstones, until their vectors are gone."""
    connection.execute(
        sa.update(collections)
        .where(collections.c.name == collection)
        .values(deleted_revision=revision)
    )
    for start in range(0, len(ids), _IDS_AT_ONCE):
        connection.execute(
            sa.update(sources)
            .where(
                sources.c.collection == collection,
                sources.c.point_id.in_(ids[start : start + _IDS_AT_ONCE]),
            )
            .values(kind=DELETED, revision=revision, item=None, blob=None, payload={}, reference="")
        )


def remove_sources(connection: Connection, collection: str, ids: Sequence[str]) -> None:
    """Removes the rows of points."""
    for start in range(0, len(ids), _IDS_AT_ONCE):
        connection.execute(
            sa.delete(sources).where(
                sources.c.collection == collection,
                sources.c.point_id.in_(ids[start : start + _IDS_AT_ONCE]),
            )
        )


def remove_tombstones(connection: Connection, collection: str, ids: Sequence[str]) -> None:
    """Removes the rows of those of the points that have a tombstone."""
    for start in range(0, len(ids), _IDS_AT_ONCE):
        connection.execute(
            sa.delete(sources).where(
                sources.c.collection == collection,
                sources.c.point_id.in_(ids[start : start + _IDS_AT_ONCE]),
                sources.c.kind == DELETED,
            )
        )


def deleted_ids(connection: Connection, collection: str) -> list[str]:
    """Points that have a tombstone."""
    query = sa.select(sources.c.point_id).where(
        sources.c.collection == collection, sources.c.kind == DELETED
    )
    return list(connection.execute(query).scalars())


def without_source(connection: Connection, collection: str, limit: int) -> tuple[int, list[str]]:
    """How many points were given as vectors, and the ids of the first `limit`."""
    given = (sources.c.collection == collection) & (sources.c.kind == "vector")
    count = connection.execute(sa.select(sa.func.count()).where(given)).scalar() or 0
    ids = sa.select(sources.c.point_id).where(given).order_by(sources.c.point_id).limit(limit)
    return count, list(connection.execute(ids).scalars())


def given_vectors(
    connection: Connection, collection: str, ids: Sequence[str]
) -> dict[str, SourceRow]:
    """Rows of those of the points that were given as vectors, by id."""
    found: dict[str, SourceRow] = {}
    for start in range(0, len(ids), _IDS_AT_ONCE):
        query = sa.select(sources).where(
            sources.c.collection == collection,
            sources.c.point_id.in_(ids[start : start + _IDS_AT_ONCE]),
            sources.c.kind == "vector",
        )
        found.update((row.point_id, _source(row)) for row in connection.execute(query))
    return found


def ids_of_kind(connection: Connection, collection: str, kind: str) -> list[str]:
    """Points of that kind, by id."""
    query = (
        sa.select(sources.c.point_id)
        .where(sources.c.collection == collection, sources.c.kind == kind)
        .order_by(sources.c.point_id)
    )
    return list(connection.execute(query).scalars())


def sources_after(
    connection: Connection, collection: str, revision: int, limit: int
) -> list[SourceRow]:
    """Rows with a greater revision, oldest first, without tombstones."""
    query = (
        sa.select(sources)
        .where(
            sources.c.collection == collection,
            sources.c.revision > revision,
            sources.c.kind != DELETED,
        )
        .order_by(sources.c.revision)
        .limit(limit)
    )
    return [_source(row) for row in connection.execute(query)]


def revisions_after(
    connection: Connection, collection: str, revision: int, limit: int
) -> dict[str, int]:
    """Points of the rows with a greater revision, oldest first, without tombstones."""
    query = (
        sa.select(sources.c.point_id, sources.c.revision)
        .where(
            sources.c.collection == collection,
            sources.c.revision > revision,
            sources.c.kind != DELETED,
        )
        .order_by(sources.c.revision)
        .limit(limit)
    )
    return {row.point_id: row.revision for row in connection.execute(query)}


def revisions_before(
    connection: Connection, collection: str, revision: int | None, limit: int
) -> dict[str, int]:
    """Points of the rows with a smaller revision (None: any), newest first, without tombstones."""
    query = (
        sa.select(sources.c.point_id, sources.c.revision)
        .where(sources.c.collection == collection, sources.c.kind != DELETED)
        .order_by(sources.c.revision.desc())
        .limit(limit)
    )
    if revision is not None:
        query = query.where(sources.c.revision < revision)
    return {row.point_id: row.revision for row in connection.execute(query)}


def revisions_of(connection: Connection, collection: str, ids: Sequence[str]) -> dict[str, int]:
    """Revision of each point that has a row."""
    found: dict[str, int] = {}
    for start in range(0, len(ids), _IDS_AT_ONCE):
        query = sa.select(sources.c.point_id, sources.c.revision).where(
            sources.c.collection == collection,
            sources.c.point_id.in_(ids[start : start + _IDS_AT_ONCE]),
            sources.c.kind != DELETED,
        )
        found.update((row.point_id, row.revision) for row in connection.execute(query))
    return found


def sources_of(connection: Connection, collection: str, ids: Sequence[str]) -> Iterator[SourceRow]:
    """Rows of points, without tombstones; in no order."""
    for start in range(0, len(ids), _IDS_AT_ONCE):
        query = sa.select(sources).where(
            sources.c.collection == collection,
            sources.c.point_id.in_(ids[start : start + _IDS_AT_ONCE]),
            sources.c.kind != DELETED,
        )
        yield from map(_source, connection.execute(query))


def _record(row: Any) -> CollectionRecord:
    values = {field.name: getattr(row, field.name) for field in fields(CollectionRecord)}
    # SQLite forgets the time zone; everything is stored in UTC.
    return CollectionRecord(**{**values, "create_time": row.create_time.replace(tzinfo=UTC)})


def _source(row: Any) -> SourceRow:
    return SourceRow(**{field.name: getattr(row, field.name) for field in fields(SourceRow)})
