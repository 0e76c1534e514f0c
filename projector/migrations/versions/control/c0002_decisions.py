"""Operators' decisions about set-aside records."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c0002"
down_revision = "c0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "decision",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition_number", sa.Integer(), nullable=False),
        sa.Column("record_offset", sa.BigInteger(), nullable=False),
        sa.Column("stream_key", sa.Text(), nullable=False),
        sa.Column("stream_partition", sa.Integer(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("effect_offset", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="decision_pkey"),
        schema="rxstore",
    )
    op.create_index(
        "decision_stream_partition_number_ix",
        "decision",
        ["topic", "stream_partition", "number"],
        schema="rxstore",
    )
    op.execute("CREATE SEQUENCE rxstore.decision_number")
    # They are part of a prescription's history, which the API tells.
    op.execute("GRANT SELECT ON rxstore.decision TO rxstore_reader")


def downgrade() -> None:
    op.execute("DROP SEQUENCE rxstore.decision_number")
    op.drop_table("decision", schema="rxstore")
