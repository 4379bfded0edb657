"""Which blobs rows of sources name."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds an index of the rows that have a blob."""
    has_blob = sa.text("blob IS NOT NULL")
    op.create_index(
        "ix_sources_blob",
        "sources",
        ["blob"],
        unique=False,
        sqlite_where=has_blob,
        postgresql_where=has_blob,
    )
