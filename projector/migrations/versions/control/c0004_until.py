"""Generations as of a time, which are never live; and the time at which the previous one is let go."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "c0004"
down_revision = "c0003"
branch_labels = None
depends_on = None

NEVER_LIVE = "generation_until_never_live_check"


def upgrade() -> None:
    op.add_column("generation", sa.Column("until", sa.DateTime(timezone=True), nullable=True), schema="rxstore")
    op.add_column("generation", sa.Column("ends", postgresql.JSONB(), nullable=True), schema="rxstore")
    op.add_column("generation", sa.Column("retire_at", sa.DateTime(timezone=True), nullable=True), schema="rxstore")
    op.add_column("generation", sa.Column("retire_by", sa.Text(), nullable=True), schema="rxstore")
    never_live = "until IS NULL OR state NOT IN ('live', 'previous')"
    op.create_check_constraint(NEVER_LIVE, "generation", never_live, schema="rxstore")


def downgrade() -> None:
    op.drop_constraint(NEVER_LIVE, "generation", schema="rxstore")
    for name in ("retire_by", "retire_at", "ends", "until"):
        op.drop_column("generation", name, schema="rxstore")
