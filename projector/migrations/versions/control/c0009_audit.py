"""The audit trail: one record for each request that reached the tracker's paths or ours."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "c0009"
down_revision = "c0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("chain", postgresql.UUID(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("duration_us", sa.BigInteger(), nullable=False),
        sa.Column("asid", sa.Text(), nullable=True),
        sa.Column("certificate", sa.Text(), nullable=True),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("role_profile_id", sa.Text(), nullable=True),
        sa.Column("trace_id", sa.Text(), nullable=True),
        sa.Column("interaction", sa.Text(), nullable=True),
        sa.Column("patient", sa.LargeBinary(), nullable=True),
        sa.Column("prescription", sa.Text(), nullable=True),
        sa.Column("question", sa.LargeBinary(), nullable=False),
        sa.Column("http_status", sa.SmallInteger(), nullable=False),
        sa.Column("tracker_code", sa.Text(), nullable=True),
        sa.Column("shown", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("refused_by", sa.Text(), nullable=True),
        sa.Column("previous_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "sequence", "at", name="audit_pkey"),
        schema="rxstore",
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index("audit_at_ix", "audit", ["at"], schema="rxstore", postgresql_using="brin")
    for column in ("patient", "prescription"):
        op.create_index(
            f"audit_{column}_ix",
            "audit",
            [column],
            schema="rxstore",
            postgresql_where=sa.text(f"{column} IS NOT NULL"),
        )
    op.create_index("audit_shown_ix", "audit", ["shown"], schema="rxstore", postgresql_using="gin")
    op.create_table(
        "audit_retired",
        sa.Column("chain", postgresql.UUID(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("chain", name="audit_retired_pkey"),
        schema="rxstore",
    )
    # The months are tables apart, where no grant on all tables of the control schema reaches them.
    op.execute("CREATE SCHEMA IF NOT EXISTS rxstore_audit")
    op.execute("CREATE TABLE rxstore_audit.rest PARTITION OF rxstore.audit DEFAULT")


def downgrade() -> None:
    op.drop_table("audit_retired", schema="rxstore")
    op.drop_table("audit", schema="rxstore")
    op.execute("DROP SCHEMA rxstore_audit")
