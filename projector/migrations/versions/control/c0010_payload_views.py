"""Who looked at the payload of a record that was set aside."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c0010"
down_revision = "c0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "payload_view",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition_number", sa.Integer(), nullable=False),
        sa.Column("record_offset", sa.BigInteger(), nullable=False),
        sa.Column("viewed_by", sa.Text(), nullable=False),
        sa.Column("login", sa.Text(), server_default=sa.text("session_user"), nullable=False),
        sa.Column("viewed_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="payload_view_pkey"),
        schema="rxstore",
    )


def downgrade() -> None:
    op.drop_table("payload_view", schema="rxstore")
