"""The first schema. There is no way down: restore a copy of the database instead."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates every table."""
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("description", sa.String(length=4096), nullable=False),
        sa.Column("pairs", sa.BigInteger(), nullable=False),
        sa.Column("images", sa.BigInteger(), nullable=False),
        sa.Column("texts", sa.BigInteger(), nullable=False),
        sa.Column("groups", sa.BigInteger(), nullable=False),
        sa.Column("labels", sa.BigInteger(), nullable=False),
        sa.Column("uncaptioned_pairs", sa.BigInteger(), nullable=False),
        sa.Column("pairs_with_negatives", sa.BigInteger(), nullable=False),
        sa.Column("duplicate_pairs", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("name", name=op.f("uq_datasets_name")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("description", sa.String(length=4096), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("start_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("end_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", sa.Float(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("result_version", sa.String(length=64), nullable=False),
        sa.Column("activated", sa.Boolean(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("name", name=op.f("uq_jobs_name")),
    )
    op.create_index(op.f("ix_jobs_state"), "jobs", ["state"], unique=False)
    op.create_table(
        "requests",
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("resource", sa.String(length=128), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("method", "request_id", name=op.f("pk_requests")),
    )
    op.create_index(op.f("ix_requests_create_time"), "requests", ["create_time"], unique=False)
    op.create_table(
        "versions",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("parent", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=512), nullable=False),
        sa.Column("architecture", sa.String(length=256), nullable=False),
        sa.Column("space_id", sa.String(length=64), nullable=False),
        sa.Column("text_encoder_id", sa.String(length=64), nullable=False),
        sa.Column("vision_encoder_id", sa.String(length=64), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=False),
        sa.Column("image_size", sa.Integer(), nullable=False),
        sa.Column("context_length", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("lineage", sa.JSON(), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
    )
    op.create_index(op.f("ix_versions_model"), "versions", ["model"], unique=False)
    op.create_index(op.f("ix_versions_space_id"), "versions", ["space_id"], unique=False)
    op.create_table(
        "collections",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("space_id", sa.String(length=64), nullable=False),
        sa.Column("text_encoder_id", sa.String(length=64), nullable=False),
        sa.Column("vision_encoder_id", sa.String(length=64), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=False),
        sa.Column("keep_sources", sa.Boolean(), nullable=False),
        sa.Column("shard", sa.String(length=64), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("shadow_version", sa.String(length=64), nullable=True),
        sa.Column("shadow_shard", sa.String(length=64), nullable=True),
        sa.Column("shadow_complete", sa.Boolean(), nullable=False),
        sa.Column("previous_version", sa.String(length=64), nullable=True),
        sa.Column("previous_shard", sa.String(length=64), nullable=True),
        sa.Column("shadow_revision", sa.BigInteger(), nullable=False),
        sa.Column("has_texts", sa.Boolean(), nullable=False),
        sa.Column("has_images", sa.Boolean(), nullable=False),
        sa.Column("has_vectors", sa.Boolean(), nullable=False),
        sa.Column("deleted_revision", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["previous_version"],
            ["versions.id"],
            name=op.f("fk_collections_previous_version_versions"),
        ),
        sa.ForeignKeyConstraint(
            ["shadow_version"], ["versions.id"], name=op.f("fk_collections_shadow_version_versions")
        ),
        sa.ForeignKeyConstraint(
            ["version"], ["versions.id"], name=op.f("fk_collections_version_versions")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_collections")),
    )
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("event", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_job_events")),
    )
    op.create_table(
        "models",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("live_version", sa.String(length=64), nullable=True),
        sa.Column("previous_version", sa.String(length=64), nullable=True),
        sa.Column("etag", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("change_time", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["live_version"], ["versions.id"], name=op.f("fk_models_live_version_versions")
        ),
        sa.ForeignKeyConstraint(
            ["previous_version"], ["versions.id"], name=op.f("fk_models_previous_version_versions")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_models")),
    )
    op.create_table(
        "model_changes",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("live_version", sa.String(length=64), nullable=False),
        sa.Column("previous_version", sa.String(length=64), nullable=False),
        sa.Column("etag", sa.String(length=64), nullable=False),
        sa.Column("space_id", sa.String(length=64), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["model"], ["models.name"], name=op.f("fk_model_changes_model_models")
        ),
        sa.PrimaryKeyConstraint("model", "revision", name=op.f("pk_model_changes")),
    )
    op.create_table(
        "sources",
        sa.Column("collection", sa.String(length=128), nullable=False),
        sa.Column("point_id", sa.String(length=512), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("item", sa.LargeBinary(), nullable=True),
        sa.Column("blob", sa.String(length=64), nullable=True),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("reference", sa.String(length=2048), nullable=False),
        sa.ForeignKeyConstraint(
            ["collection"],
            ["collections.name"],
            name=op.f("fk_sources_collection_collections"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("collection", "point_id", name=op.f("pk_sources")),
    )
    op.create_index(
        "ix_sources_collection_revision", "sources", ["collection", "revision"], unique=False
    )
    op.create_table(
        "feedback",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("collection", sa.String(length=128), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("point_id", sa.String(length=512), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=True),
        sa.ForeignKeyConstraint(
            ["collection"],
            ["collections.name"],
            name=op.f("fk_feedback_collection_collections"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_feedback")),
        sa.UniqueConstraint(
            "collection", "request_id", name=op.f("uq_feedback_collection_request_id")
        ),
    )
    op.create_index("ix_feedback_collection_time", "feedback", ["collection", "time"], unique=False)
    op.create_table(
        "drift_reports",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("report", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_drift_reports_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_drift_reports")),
    )
    op.create_table(
        "bridges",
        sa.Column("collection", sa.String(length=128), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=False),
        sa.Column("shard", sa.String(length=64), nullable=False),
        sa.Column("bridge", sa.LargeBinary(), nullable=False),
        sa.Column("matrix", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["collection"],
            ["collections.name"],
            name=op.f("fk_bridges_collection_collections"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["version"],
            ["versions.id"],
            name=op.f("fk_bridges_version_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("collection", name=op.f("pk_bridges")),
    )
