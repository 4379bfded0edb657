"""Tables of the metadata database (SQLAlchemy Core)."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

versions = Table(
    "versions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("model", String(128), nullable=False, index=True),
    Column("parent", String(64), nullable=False, default=""),
    Column("source", String(512), nullable=False),
    Column("architecture", String(256), nullable=False),
    Column("space_id", String(64), nullable=False, index=True),
    Column("text_encoder_id", String(64), nullable=False),
    Column("vision_encoder_id", String(64), nullable=False),
    Column("dim", Integer, nullable=False),
    Column("image_size", Integer, nullable=False),
    Column("context_length", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("metrics", JSON, nullable=False, default=dict),
    # What the job that made it was told; null if no job did.
    Column("lineage", JSON),
    Column("create_time", DateTime(timezone=True), nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("live_version", String(64), ForeignKey("versions.id"), nullable=True),
    Column("previous_version", String(64), ForeignKey("versions.id"), nullable=True),
    Column("etag", String(64), nullable=False),
    # Counts the rows of `model_changes`.
    Column("revision", BigInteger, nullable=False, default=0),
    Column("change_time", DateTime(timezone=True)),
)

# What was live when: a row for each change of a row of `models`, from revision 1, gapless.
model_changes = Table(
    "model_changes",
    metadata,
    Column("model", String(128), ForeignKey("models.name"), primary_key=True),
    Column("revision", BigInteger, primary_key=True),
    # Versions that may be gone; empty if there was none.
    Column("live_version", String(64), nullable=False),
    Column("previous_version", String(64), nullable=False),
    Column("etag", String(64), nullable=False),
    Column("space_id", String(64), nullable=False),
    Column("time", DateTime(timezone=True), nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("kind", String(32), nullable=False),
    Column("state", String(32), nullable=False, index=True),
    Column("model", String(128), nullable=False, default=""),
    Column("description", String(4096), nullable=False, default=""),
    Column("spec", JSON, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("start_time", DateTime(timezone=True)),
    Column("end_time", DateTime(timezone=True)),
    Column("progress", Float, nullable=False, default=0.0),
    Column("last_seq", BigInteger, nullable=False, default=0),
    Column("error", JSON),
    Column("result_version", String(64), nullable=False, default=""),
    Column("activated", Boolean, nullable=False, default=False),
    Column("metrics", JSON, nullable=False, default=dict),
    # Ids of rows of `artifacts`, which may be gone.
    Column("artifacts", JSON, nullable=False, default=list, server_default="[]"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("time", DateTime(timezone=True), nullable=False),
    # A serialised hotclip.v1.JobEvent.
    Column("event", LargeBinary, nullable=False),
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("description", String(4096), nullable=False, default=""),
    Column("pairs", BigInteger, nullable=False),
    Column("images", BigInteger, nullable=False),
    Column("texts", BigInteger, nullable=False),
    Column("groups", BigInteger, nullable=False),
    Column("labels", BigInteger, nullable=False),
    Column("uncaptioned_pairs", BigInteger, nullable=False),
    Column("pairs_with_negatives", BigInteger, nullable=False),
    Column("duplicate_pairs", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    # What its upload was found to hold.
    Column("report", JSON, nullable=False),
)

collections = Table(
    "collections",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("model", String(128), nullable=False),
    Column("version", String(64), ForeignKey("versions.id"), nullable=False),
    Column("space_id", String(64), nullable=False),
    Column("text_encoder_id", String(64), nullable=False),
    Column("vision_encoder_id", String(64), nullable=False),
    Column("dim", Integer, nullable=False),
    Column("keep_sources", Boolean, nullable=False),
    # Folder of the live vectors below <data_dir>/vectors.
    Column("shard", String(64), nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    # A shadow is being built or is complete for this version.
    Column("shadow_version", String(64), ForeignKey("versions.id")),
    Column("shadow_shard", String(64)),
    Column("shadow_complete", Boolean, nullable=False, default=False),
    # After a flip: the shard of the rollback target, which still gets every write.
    Column("previous_version", String(64), ForeignKey("versions.id")),
    Column("previous_shard", String(64)),
    # Rows up to this revision are in the growing shadow.
    Column("shadow_revision", BigInteger, nullable=False, default=0),
    # What made the stored vectors: which of them another version leaves as they are.
    Column("has_texts", Boolean, nullable=False, default=False),
    Column("has_images", Boolean, nullable=False, default=False),
    Column("has_vectors", Boolean, nullable=False, default=False),
    # The greatest revision of a deletion: no later write has it.
    Column("deleted_revision", BigInteger, nullable=False, default=0),
    # Grows with every change of the row.
    Column("generation", BigInteger, nullable=False, default=0),
)

# Sources of points, kept so that reindexing needs nobody. One row a point.
sources = Table(
    "sources",
    metadata,
    Column(
        "collection",
        String(128),
        ForeignKey("collections.name", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("point_id", String(512), primary_key=True),
    # Grows with every write of the collection: the order in which a reindex reads.
    Column("revision", BigInteger, nullable=False),
    # "text", "image", "tensor" or "vector" (given by the caller: can't be made anew).
    Column("kind", String(16), nullable=False),
    # A serialised hotclip.v1.EncodeItem, or the float32 bytes of a given vector; items
    # above 32 KiB are files, named by `blob`.
    Column("item", LargeBinary),
    Column("blob", String(64)),
    Column("payload", JSON, nullable=False),
    # Where the caller keeps the original; may be empty.
    Column("reference", String(2048), nullable=False, default=""),
)
Index("ix_sources_collection_revision", sources.c.collection, sources.c.revision)
# Which blobs are in use is looked at while the server runs.
Index(
    "ix_sources_blob",
    sources.c.blob,
    sqlite_where=sources.c.blob.is_not(None),
    postgresql_where=sources.c.blob.is_not(None),
)

# What people searched with and which point they took.
feedback = Table(
    "feedback",
    metadata,
    # SQLite numbers rows by itself only if the column is an INTEGER.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column(
        "collection",
        String(128),
        ForeignKey("collections.name", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("query", Text, nullable=False),
    Column("point_id", String(512), nullable=False),
    # Of the point when it was taken: it holds the same as long as it has this one.
    Column("revision", BigInteger, nullable=False),
    # sha256 of the image that the point held then: it may be written again with the same one. Null:
    # it held none, or that was not known.
    Column("content", String(64)),
    Column("time", DateTime(timezone=True), nullable=False),
    # The caller's, so that recording may be tried again; null: none.
    Column("request_id", String(128)),
    UniqueConstraint("collection", "request_id"),
)
Index("ix_feedback_collection_time", feedback.c.collection, feedback.c.time)

# What jobs of kind DRIFT have found.
drift_reports = Table(
    "drift_reports",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    # A serialised hotclip.v1.DriftReport.
    Column("report", LargeBinary, nullable=False),
)

# Linear maps from the space of a collection to that of another version.
bridges = Table(
    "bridges",
    metadata,
    Column(
        "collection",
        String(128),
        ForeignKey("collections.name", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("version", String(64), ForeignKey("versions.id", ondelete="CASCADE"), nullable=False),
    # Elements of the vectors that it maps.
    Column("dim", Integer, nullable=False),
    # Their shard: it is of no use for another one.
    Column("shard", String(64), nullable=False),
    # A serialised hotclip.v1.Bridge.
    Column("bridge", LargeBinary, nullable=False),
    # Little-endian float32, (dim, dim of the version), row-major.
    Column("matrix", LargeBinary, nullable=False),
)

# Files below <data_dir>/artifacts.
artifacts = Table(
    "artifacts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("format", String(32), nullable=False),
    # Exported version; it may be gone. Empty if the file was uploaded.
    Column("version", String(64), nullable=False, default="", index=True),
    Column("base_version", String(64), nullable=False, default=""),
    Column("model", String(128), nullable=False, default=""),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
)

# Idempotent creation: what a request_id made, for a day (request_notes.py).
requests = Table(
    "requests",
    metadata,
    Column("method", String(64), primary_key=True),
    Column("request_id", String(128), primary_key=True),
    # sha256 of the request; the same id with another request is refused.
    Column("fingerprint", String(64), nullable=False),
    Column("resource", String(128), nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False, index=True),
)
