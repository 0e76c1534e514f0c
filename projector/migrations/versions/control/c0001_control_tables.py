"""The register of generations, and the role that reads the views."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "c0001"
down_revision = None
branch_labels = ("control",)
depends_on = None

# Roles belong to the whole server: another database of it may have made this one, perhaps at this moment.
CREATE_READER = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'rxstore_reader') THEN
        CREATE ROLE rxstore_reader NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "generation",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.Column("hashes", postgresql.JSONB(), nullable=False),
        sa.Column("settings", postgresql.JSONB(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("topic_id", sa.Text(), nullable=True),
        sa.Column("partitions", sa.Integer(), nullable=True),
        sa.Column("registered_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("promoted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name="generation_pkey"),
        schema="rxstore",
    )
    op.create_index(
        "generation_live_ix",
        "generation",
        ["state"],
        unique=True,
        postgresql_where=sa.text("state = 'live'"),
        schema="rxstore",
    )
    op.execute(CREATE_READER)
    op.execute("GRANT USAGE ON SCHEMA rxstore TO rxstore_reader")


def downgrade() -> None:
    op.drop_table("generation", schema="rxstore")
