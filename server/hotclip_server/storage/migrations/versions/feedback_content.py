"""What the point of a choice held."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the hash of the image to choices; of those that are there nobody knows it."""
    op.add_column("feedback", sa.Column("content", sa.String(length=64), nullable=True))
