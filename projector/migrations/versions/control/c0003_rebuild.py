"""What a rebuild beside live needs: each generation's views, what became of it, and the topic a decision is about."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "c0003"
down_revision = "c0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "generation",
        sa.Column("views", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        schema="rxstore",
    )
    op.add_column("decision", sa.Column("topic_id", sa.Text(), nullable=True), schema="rxstore")
    op.create_table(
        "generation_history",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("generation", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("done_by", sa.Text(), nullable=False),
        sa.Column("done_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("details", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="generation_history_pkey"),
        schema="rxstore",
    )
    op.create_index("generation_history_generation_ix", "generation_history", ["generation"], schema="rxstore")


def downgrade() -> None:
    op.drop_table("generation_history", schema="rxstore")
    op.drop_column("decision", "topic_id", schema="rxstore")
    op.drop_column("generation", "views", schema="rxstore")
