"""The first shape of the read model: one prescription is 1 row, n items, m issues, and what happened to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "r0001"
down_revision = None
branch_labels = ("read_model",)
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cancellation",
        sa.Column("stream_key", sa.Text(collation="C"), nullable=False),
        sa.Column("cancellation_id", sa.Text(), nullable=False),
        sa.Column("number", sa.SmallInteger(), nullable=False),
        sa.Column("nhs_number", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason_code", sa.Text(), nullable=False),
        sa.Column("reason_text", sa.Text(), nullable=False),
        sa.Column("organisation_ods", sa.Text(), nullable=True),
        sa.Column("first_issue", sa.SmallInteger(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("stream_key", "cancellation_id", name="cancellation_pkey"),
    )
    op.create_table(
        "checkpoint",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition_number", sa.Integer(), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("decisions_applied", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("topic_id", sa.Text(), nullable=True),
        sa.Column("leader_epoch", sa.Integer(), nullable=True),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("caught_up_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("hold_at", sa.BigInteger(), nullable=True),
        sa.Column("hold_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("topic", "partition_number", name="checkpoint_pkey"),
    )
    op.create_table(
        "dispense_notification",
        sa.Column("stream_key", sa.Text(collation="C"), nullable=False),
        sa.Column("issue_number", sa.SmallInteger(), nullable=False),
        sa.Column("notification_id", sa.Text(), nullable=False),
        sa.Column("number", sa.SmallInteger(), nullable=False),
        sa.Column("dispensed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("item_statuses", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("dispenser_ods", sa.Text(), nullable=False),
        sa.Column("amends", sa.Text(), nullable=True),
        sa.Column("withdrawn", sa.Boolean(), nullable=False),
        sa.Column("before", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("stream_key", "issue_number", "notification_id", name="dispense_notification_pkey"),
    )
    op.create_table(
        "issue",
        sa.Column("stream_key", sa.Text(collation="C"), nullable=False),
        sa.Column("issue_number", sa.SmallInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("item_statuses", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_dispensed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("nominated_download_date", sa.Date(), nullable=True),
        sa.Column("dispenser_ods", sa.Text(), nullable=True),
        sa.Column("dispenser_name", sa.Text(), nullable=True),
        sa.Column("dispenser_telecom", sa.Text(), nullable=True),
        sa.Column("dispenser_address", sa.Text(), nullable=True),
        sa.Column("releasing_ods", sa.Text(), nullable=True),
        sa.Column("releasing_name", sa.Text(), nullable=True),
        sa.Column("releasing_telecom", sa.Text(), nullable=True),
        sa.Column("releasing_address", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("stream_key", "issue_number", name="issue_pkey"),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_table(
        "line_item",
        sa.Column("stream_key", sa.Text(collation="C"), nullable=False),
        sa.Column("item_number", sa.SmallInteger(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("quantity", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("dosage", sa.Text(), nullable=False),
        sa.Column("issues_authorised", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("stream_key", "item_number", name="line_item_pkey"),
    )
    op.create_table(
        "prescription",
        sa.Column("stream_key", sa.Text(collation="C"), nullable=False),
        sa.Column("partition_number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("prescription_id", sa.Text(), nullable=True),
        sa.Column("nhs_number", sa.Text(), nullable=True),
        sa.Column("treatment_type", sa.Text(), nullable=True),
        sa.Column("prescription_type", sa.Text(), nullable=True),
        sa.Column("prescribed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("signed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("days_supply", sa.SmallInteger(), nullable=True),
        sa.Column("issues_authorised", sa.SmallInteger(), nullable=True),
        sa.Column("dispense_window_low", sa.Date(), nullable=True),
        sa.Column("dispense_window_high", sa.Date(), nullable=True),
        sa.Column("prescriber_ods", sa.Text(), nullable=True),
        sa.Column("prescriber_name", sa.Text(), nullable=True),
        sa.Column("prescriber_telecom", sa.Text(), nullable=True),
        sa.Column("prescriber_address", sa.Text(), nullable=True),
        sa.Column("nominated_ods", sa.Text(), nullable=True),
        sa.Column("nominated_name", sa.Text(), nullable=True),
        sa.Column("nominated_telecom", sa.Text(), nullable=True),
        sa.Column("nominated_address", sa.Text(), nullable=True),
        sa.Column("current_issue", sa.SmallInteger(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("last_event_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pending_cancellations", sa.Boolean(), nullable=False),
        sa.Column("next_sequence", sa.BigInteger(), nullable=True),
        sa.Column(
            "passed_sequences", postgresql.ARRAY(sa.BigInteger()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column("folded_keys", sa.LargeBinary(), nullable=False),
        sa.Column("folded_positions", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("stream_key", name="prescription_pkey"),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "prescription_nhs_number_prescribed_at_ix", "prescription", ["nhs_number", "prescribed_at"], unique=False
    )
    op.create_table(
        "set_aside",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition_number", sa.Integer(), nullable=False),
        sa.Column("record_offset", sa.BigInteger(), nullable=False),
        sa.Column("stream_key", sa.Text(collation="C"), nullable=True),
        sa.Column("stands_at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("errors", postgresql.JSONB(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("event_key", sa.LargeBinary(), nullable=True),
        sa.Column("event_source", sa.Text(), nullable=True),
        sa.Column("event_id", sa.Text(), nullable=True),
        sa.Column("event_type", sa.Text(), nullable=True),
        sa.Column("nhs_number", sa.Text(), nullable=True),
        sa.Column("record_key", sa.LargeBinary(), nullable=True),
        sa.Column("record_value", sa.LargeBinary(), nullable=True),
        sa.Column("record_headers", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("topic", "partition_number", "record_offset", name="set_aside_pkey"),
    )
    op.create_index(
        "set_aside_nhs_number_ix",
        "set_aside",
        ["nhs_number"],
        unique=False,
        postgresql_where=sa.text("nhs_number IS NOT NULL AND state IN ('open', 'parked')"),
    )
    op.create_index(
        "set_aside_event_key_ix",
        "set_aside",
        ["event_key"],
        unique=False,
        postgresql_where=sa.text("event_key IS NOT NULL"),
    )
    op.create_index(
        "set_aside_event_source_ix",
        "set_aside",
        ["event_source", "state", "topic", "partition_number", "record_offset"],
        unique=False,
        postgresql_where=sa.text("event_source IS NOT NULL"),
    )
    op.create_index("set_aside_stream_key_ix", "set_aside", ["stream_key"])
    op.create_index(
        "set_aside_open_ix",
        "set_aside",
        ["stream_key", "stands_at"],
        unique=False,
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "set_aside_parked_ix",
        "set_aside",
        ["stream_key", "reason"],
        unique=False,
        postgresql_where=sa.text("state = 'parked'"),
    )


def downgrade() -> None:
    for table in (
        "set_aside",
        "checkpoint",
        "cancellation",
        "dispense_notification",
        "issue",
        "line_item",
        "prescription",
    ):
        op.drop_table(table)
