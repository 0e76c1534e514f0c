"""How fast a generation may be built, and how far its workers say that it is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c0005"
down_revision = "c0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("generation", sa.Column("throttle", sa.Text(), nullable=True), schema="rxstore")
    op.add_column("generation", sa.Column("throttle_rate", sa.Integer(), nullable=True), schema="rxstore")
    op.add_column("generation", sa.Column("throttle_p99_ms", sa.Double(), nullable=True), schema="rxstore")
    op.create_table(
        "progress",
        sa.Column("generation", sa.Text(), nullable=False),
        sa.Column("partition_number", sa.Integer(), nullable=False),
        sa.Column("session", sa.Integer(), nullable=False),
        sa.Column("folded_to", sa.BigInteger(), nullable=False),
        sa.Column("event_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("events_per_second", sa.Double(), nullable=False),
        sa.Column("trouble", sa.Text(), nullable=True),
        sa.Column("noted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("generation", "partition_number", name="progress_pkey"),
        schema="rxstore",
    )


def downgrade() -> None:
    op.drop_table("progress", schema="rxstore")
    for column in ("throttle_p99_ms", "throttle_rate", "throttle"):
        op.drop_column("generation", column, schema="rxstore")
