"""The read model and the control tables, declared once; and the views, the one surface that readers see.

``READ_MODEL`` has no schema of its own: each generation lives in ``rx_<generation>`` (docs/architecture.md).
``CONTROL`` is the schema ``rxstore``. Migrations build exactly these tables, and a test says so.

Rows hold plain values: codes, instants with zone, booleans, NULL where nothing is known. Texts for people are
dressed at the edge (``schemas.vocabulary``). No table carries the time of writing but ``checkpoint``, so that a
rebuild gives the same rows.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

NAMING_CONVENTION = {
    "ix": "%(table_name)s_%(column_0_N_name)s_ix",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "ck": "%(table_name)s_%(constraint_name)s_check",
    "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    "pk": "%(table_name)s_pkey",
}

CONTROL_SCHEMA = "rxstore"
READ_MODEL = MetaData(naming_convention=NAMING_CONVENTION)
CONTROL = MetaData(naming_convention=NAMING_CONVENTION, schema=CONTROL_SCHEMA)

INSTANT = DateTime(timezone=True)

# Keys compare byte by byte: the order in which workers lock rows is then the order in which Python sorts them.
KEY = Text(collation="C")

# Every event updates its prescription's row and its issue's row in place; room in the page lets PostgreSQL do that
# without touching an index.
ROOM_FOR_UPDATES = {"fillfactor": "80"}

generation = Table(
    "generation",
    CONTROL,
    Column("name", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("definition", Text, nullable=False),
    Column("hashes", JSONB, nullable=False),
    Column("settings", JSONB, nullable=False),
    Column("topic", Text, nullable=False),
    Column("topic_id", Text),
    Column("partitions", Integer),
    Column("registered_at", INSTANT, nullable=False, server_default=text("now()")),
    Column("promoted_at", INSTANT),
    # The views as the version that made it shows them: another version can then point back at it.
    Column("views", JSONB, nullable=False, server_default=text("'{}'")),
    # How fast it may be built: what was asked for (a number or auto), and what that is now, in events a second.
    Column("throttle", Text),
    Column("throttle_rate", Integer),
    Column("throttle_p99_ms", Double),
    # Of one that is built as of a time: that time, and where each partition ends for it.
    Column("until", INSTANT),
    Column("ends", JSONB),
    # Of the previous one: when the projectors let it go, and who planned that.
    Column("retire_at", INSTANT),
    Column("retire_by", Text),
    CheckConstraint("until IS NULL OR state NOT IN ('live', 'previous')", name="until_never_live"),
    Index("generation_live_ix", "state", unique=True, postgresql_where=text("state = 'live'")),
)

# What became of each generation: staged, ready, verified, accepted, promoted and so on, each with its evidence.
generation_history = Table(
    "generation_history",
    CONTROL,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("generation", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("done_by", Text, nullable=False),
    Column("done_at", INSTANT, nullable=False, server_default=text("clock_timestamp()")),
    Column("details", JSONB, nullable=False),
    Index("generation_history_generation_ix", "generation"),
)

# How far the workers of a build say that they are, about once a second. It is here and not in the generation's own
# checkpoint, whose shape is part of its definition: another column there would be another generation.
progress = Table(
    "progress",
    CONTROL,
    Column("generation", Text, primary_key=True),
    Column("partition_number", Integer, primary_key=True),
    Column("session", Integer, nullable=False),
    Column("folded_to", BigInteger, nullable=False),
    Column("event_time", INSTANT),
    Column("events_per_second", Double, nullable=False),
    Column("trouble", Text),
    Column("noted_at", INSTANT, nullable=False),
)

# What operators decided about set-aside records: the second truth beside the topic (docs/architecture.md). The
# position is that of the record; the stream's own partition gives the decision its number and its effect offset.
decision = Table(
    "decision",
    CONTROL,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("action", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("partition_number", Integer, nullable=False),
    Column("record_offset", BigInteger, nullable=False),
    Column("stream_key", Text, nullable=False),
    Column("stream_partition", Integer, nullable=False),
    Column("why", Text, nullable=False),
    Column("decided_by", Text, nullable=False),
    Column("decided_at", INSTANT, nullable=False, server_default=text("now()")),
    Column("number", BigInteger),
    Column("effect_offset", BigInteger),
    Column("revoked_at", INSTANT),
    Column("revoked_by", Text),
    # Offsets mean something in one log only: a topic that was made again under the same name is another one.
    Column("topic_id", Text),
    Index("decision_stream_partition_number_ix", "topic", "stream_partition", "number"),
)

# Who may ask the API what.
client = Table(
    "client",
    CONTROL,
    Column("asid", Text, primary_key=True),
    Column("contact", Text, nullable=False),
    Column("interactions", ARRAY(Text), nullable=False),
    Column("valid_from", INSTANT, nullable=False, server_default=text("now()")),
    Column("valid_to", INSTANT),
    Column("added_at", INSTANT, nullable=False, server_default=text("now()")),
    Column("added_by", Text, nullable=False),
    Column("revoked_at", INSTANT),
    Column("revoked_by", Text),
    Column("revoked_why", Text),
    Column("fingerprints", ARRAY(Text), nullable=False, server_default="{}"),
    Column("subject", Text),
    Column("issuer", Text),
    CheckConstraint("asid ~ '^[0-9]{12}$'", name="asid"),
    CheckConstraint("(subject IS NULL) = (issuer IS NULL)", name="identity"),
)

# One record for each request, in months (``audit_months``) and in one chain for each server process. What the columns
# hold, and what the hashes are made of, is said in docs/operators/audit.md.
audit = Table(
    "audit",
    CONTROL,
    Column("chain", UUID, primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("at", INSTANT, primary_key=True),
    Column("duration_us", BigInteger, nullable=False),
    Column("asid", Text),
    Column("certificate", Text),
    Column("user_id", Text),
    Column("role_profile_id", Text),
    Column("trace_id", Text),
    Column("interaction", Text),
    Column("patient", LargeBinary),
    Column("prescription", Text),
    Column("question", LargeBinary, nullable=False),
    Column("http_status", SmallInteger, nullable=False),
    Column("tracker_code", Text),
    Column("shown", ARRAY(Text), nullable=False),
    Column("refused_by", Text),
    Column("previous_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Index("audit_at_ix", "at", postgresql_using="brin"),
    Index("audit_patient_ix", "patient", postgresql_where=text("patient IS NOT NULL")),
    Index("audit_prescription_ix", "prescription", postgresql_where=text("prescription IS NOT NULL")),
    Index("audit_shown_ix", "shown", postgresql_using="gin"),
    postgresql_partition_by="RANGE (at)",
)

# Where each chain stood when its oldest months were let go.
audit_retired = Table(
    "audit_retired",
    CONTROL,
    Column("chain", UUID, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("retired_at", INSTANT, nullable=False, server_default=text("now()")),
)

# Who looked at what a set-aside record says. Where it stands, not what it says: this outlives a deletion.
payload_view = Table(
    "payload_view",
    CONTROL,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("topic", Text, nullable=False),
    Column("partition_number", Integer, nullable=False),
    Column("record_offset", BigInteger, nullable=False),
    Column("viewed_by", Text, nullable=False),
    Column("login", Text, nullable=False, server_default=text("session_user")),
    Column("viewed_at", INSTANT, nullable=False, server_default=text("clock_timestamp()")),
    Column("why", Text, nullable=False),
)

prescription = Table(
    "prescription",
    READ_MODEL,
    Column("stream_key", KEY, primary_key=True),
    Column("partition_number", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("prescription_id", Text),
    Column("nhs_number", Text),
    Column("treatment_type", Text),
    Column("prescription_type", Text),
    Column("prescribed_at", INSTANT),
    Column("signed_at", INSTANT),
    Column("days_supply", SmallInteger),
    Column("issues_authorised", SmallInteger),
    Column("dispense_window_low", Date),
    Column("dispense_window_high", Date),
    Column("prescriber_ods", Text),
    Column("prescriber_name", Text),
    Column("prescriber_telecom", Text),
    Column("prescriber_address", Text),
    Column("nominated_ods", Text),
    Column("nominated_name", Text),
    Column("nominated_telecom", Text),
    Column("nominated_address", Text),
    Column("current_issue", SmallInteger),
    Column("version", Integer, nullable=False),
    Column("last_event_at", INSTANT),
    Column("pending_cancellations", Boolean, nullable=False),
    Column("next_sequence", BigInteger),
    Column("passed_sequences", ARRAY(BigInteger), nullable=False, server_default=text("'{}'")),
    Column("folded_keys", LargeBinary, nullable=False),
    Column("folded_positions", LargeBinary, nullable=False),
    Index("prescription_nhs_number_prescribed_at_ix", "nhs_number", "prescribed_at"),
    postgresql_with=ROOM_FOR_UPDATES,
)

line_item = Table(
    "line_item",
    READ_MODEL,
    Column("stream_key", KEY, primary_key=True),
    Column("item_number", SmallInteger, primary_key=True),
    Column("item_id", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("quantity", Text, nullable=False),
    Column("unit", Text, nullable=False),
    Column("dosage", Text, nullable=False),
    Column("issues_authorised", SmallInteger, nullable=False),
)

issue = Table(
    "issue",
    READ_MODEL,
    Column("stream_key", KEY, primary_key=True),
    Column("issue_number", SmallInteger, primary_key=True),
    Column("status", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("item_statuses", ARRAY(Text), nullable=False),
    Column("released_at", INSTANT),
    Column("last_dispensed_at", INSTANT),
    Column("completed_at", INSTANT),
    Column("claimed_at", INSTANT),
    Column("nominated_download_date", Date),
    Column("dispenser_ods", Text),
    Column("dispenser_name", Text),
    Column("dispenser_telecom", Text),
    Column("dispenser_address", Text),
    Column("releasing_ods", Text),
    Column("releasing_name", Text),
    Column("releasing_telecom", Text),
    Column("releasing_address", Text),
    postgresql_with=ROOM_FOR_UPDATES,
)

dispense_notification = Table(
    "dispense_notification",
    READ_MODEL,
    Column("stream_key", KEY, primary_key=True),
    Column("issue_number", SmallInteger, primary_key=True),
    Column("notification_id", Text, primary_key=True),
    Column("number", SmallInteger, nullable=False),
    Column("dispensed_at", INSTANT, nullable=False),
    Column("status", Text, nullable=False),
    Column("item_statuses", ARRAY(Text), nullable=False),
    Column("dispenser_ods", Text, nullable=False),
    Column("amends", Text),
    Column("withdrawn", Boolean, nullable=False),
    Column("before", JSONB, nullable=False),
)

cancellation = Table(
    "cancellation",
    READ_MODEL,
    Column("stream_key", KEY, primary_key=True),
    Column("cancellation_id", Text, primary_key=True),
    Column("number", SmallInteger, nullable=False),
    Column("nhs_number", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("item_id", Text),
    Column("state", Text, nullable=False),
    Column("reason_code", Text, nullable=False),
    Column("reason_text", Text, nullable=False),
    Column("organisation_ods", Text),
    Column("first_issue", SmallInteger, nullable=False),
    Column("requested_at", INSTANT, nullable=False),
)

set_aside = Table(
    "set_aside",
    READ_MODEL,
    Column("topic", Text, primary_key=True),
    Column("partition_number", Integer, primary_key=True),
    Column("record_offset", BigInteger, primary_key=True),
    Column("stream_key", KEY),
    # Where the record stands in its stream: its own offset, or for a repair that of the record it repairs.
    Column("stands_at", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("errors", JSONB, nullable=False),
    Column("since", INSTANT, nullable=False),
    Column("sequence", BigInteger),
    Column("event_key", LargeBinary),
    Column("event_source", Text),
    Column("event_id", Text),
    Column("event_type", Text),
    Column("nhs_number", Text),
    Column("record_key", LargeBinary),
    Column("record_value", LargeBinary),
    Column("record_headers", LargeBinary),
    Index("set_aside_stream_key_ix", "stream_key"),
    Index("set_aside_open_ix", "stream_key", "stands_at", postgresql_where=text("state = 'open'")),
    Index("set_aside_parked_ix", "stream_key", "reason", postgresql_where=text("state = 'parked'")),
    Index(
        "set_aside_nhs_number_ix",
        "nhs_number",
        postgresql_where=text("nhs_number IS NOT NULL AND state IN ('open', 'parked')"),
    ),
    # What publishers ask: what became of this event of mine, and which of mine are set aside.
    Index("set_aside_event_key_ix", "event_key", postgresql_where=text("event_key IS NOT NULL")),
    Index(
        "set_aside_event_source_ix",
        "event_source",
        "state",
        "topic",
        "partition_number",
        "record_offset",
        postgresql_where=text("event_source IS NOT NULL"),
    ),
)

checkpoint = Table(
    "checkpoint",
    READ_MODEL,
    Column("topic", Text, primary_key=True),
    Column("partition_number", Integer, primary_key=True),
    Column("next_offset", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("decisions_applied", BigInteger, nullable=False, server_default=text("0")),
    Column("owner", Text),
    Column("topic_id", Text),
    Column("leader_epoch", Integer),
    Column("moved_at", INSTANT),
    Column("caught_up_at", INSTANT),
    # For a moment, and never past hold_until, no batch goes beyond hold_at: so that two generations can be compared.
    Column("hold_at", BigInteger),
    Column("hold_until", INSTANT),
)

# Promotion replaces the views in this order and every query names them in it: two transactions that lock the same
# views then never wait for each other in a circle.
VIEWS: dict[str, str] = {
    "prescription": """
        SELECT p.stream_key, p.prescription_id,
               CASE WHEN length(p.stream_key) = 36 THEN 'R1' ELSE 'R2' END AS release,
               p.nhs_number, p.treatment_type, p.prescription_type, p.prescribed_at, p.signed_at, p.days_supply,
               p.issues_authorised, p.current_issue, p.version, p.last_event_at, p.pending_cancellations,
               coalesce(
                   (SELECT s.reason FROM {schema}.set_aside s
                     WHERE s.stream_key = p.stream_key AND s.state = 'open'
                       AND s.reason NOT IN ('misrouted', 'deleted')
                     ORDER BY s.stands_at LIMIT 1),
                   (SELECT s.reason FROM {schema}.set_aside s
                     WHERE s.stream_key = p.stream_key AND s.state = 'open' AND s.reason = 'misrouted' LIMIT 1),
                   (SELECT s.reason FROM {schema}.set_aside s
                     WHERE s.stream_key = p.stream_key AND s.state = 'parked' AND s.reason = 'sequence_gap' LIMIT 1)
               ) AS blocked,
               p.prescriber_ods, p.prescriber_name, p.prescriber_telecom, p.prescriber_address,
               p.nominated_ods, p.nominated_name, p.nominated_telecom, p.nominated_address,
               p.kind, p.partition_number, p.dispense_window_low, p.dispense_window_high
          FROM {schema}.prescription p
         WHERE p.kind IN ('created', 'placeholder')
    """,
    "line_item": """
        SELECT stream_key, item_number, item_id, description, code, quantity::numeric AS quantity, unit, dosage,
               issues_authorised, quantity AS quantity_text
          FROM {schema}.line_item
    """,
    "issue": """
        SELECT stream_key, issue_number, status, version, item_statuses, released_at, last_dispensed_at,
               completed_at, claimed_at, nominated_download_date, dispenser_ods, dispenser_name, dispenser_telecom,
               dispenser_address, releasing_ods, releasing_name, releasing_telecom, releasing_address
          FROM {schema}.issue
    """,
    "issue_line_item": """
        SELECT i.stream_key, i.issue_number, l.item_number, i.item_statuses[l.item_number] AS status,
               l.item_id, l.description, l.code, l.quantity::numeric AS quantity, l.unit, l.dosage,
               l.issues_authorised
          FROM {schema}.issue i
          JOIN {schema}.line_item l ON l.stream_key = i.stream_key
    """,
    "dispense_notification": """
        SELECT stream_key, issue_number, notification_id, dispensed_at, status, item_statuses, dispenser_ods,
               amends, withdrawn, number
          FROM {schema}.dispense_notification
    """,
    "cancellation": """
        SELECT stream_key, cancellation_id, target, item_id, state, reason_code, reason_text, organisation_ods,
               first_issue, requested_at, number
          FROM {schema}.cancellation
    """,
    "set_aside": """
        SELECT s.topic, s.partition_number, s.record_offset, s.stream_key, s.state, s.reason,
               CASE WHEN s.state <> 'parked' THEN NULL
                    WHEN s.reason = 'not_created' THEN 'created'
                    WHEN s.reason = 'sequence_gap' THEN
                        'sequence ' || coalesce((SELECT p.next_sequence FROM {schema}.prescription p
                                                  WHERE p.stream_key = s.stream_key), 1)
                    ELSE (SELECT o.topic || ':' || o.partition_number || ':' || o.record_offset
                            FROM {schema}.set_aside o
                           WHERE o.stream_key = s.stream_key AND o.state = 'open'
                             AND o.reason NOT IN ('misrouted', 'deleted')
                           ORDER BY o.stands_at LIMIT 1)
               END AS waiting_for,
               s.errors, s.since, s.stands_at, s.sequence, s.event_source, s.event_id, s.event_type, s.nhs_number,
               s.stream_key IS NOT NULL
                   AND ((s.state = 'open' AND s.reason <> 'deleted')
                        OR (s.state = 'parked' AND s.reason IN ('sequence_gap', 'behind_block')))
                   AND (SELECT d.kind FROM {schema}.prescription d
                         WHERE d.stream_key = s.stream_key) IS DISTINCT FROM 'deleted' AS counts,
               s.event_key
          FROM {schema}.set_aside s
    """,
    "checkpoint": """
        SELECT topic, partition_number, next_offset, epoch, owner, moved_at, caught_up_at
          FROM {schema}.checkpoint
    """,
    # What a stream remembers of its events, one row each, in the order in which they folded. A deletion forgets where
    # they stand. To be asked by stream_key: each row is cut out of its prescription's.
    "event": """
        SELECT p.stream_key, n.version, substring(p.folded_keys FROM n.version * 16 - 15 FOR 16) AS event_key,
               CASE WHEN length(p.folded_positions) >= n.version * 12 THEN
                   ('x' || encode(substring(p.folded_positions FROM n.version * 12 - 11 FOR 4), 'hex'))::bit(32)::int
               END AS partition_number,
               CASE WHEN length(p.folded_positions) >= n.version * 12 THEN
                   ('x' || encode(substring(p.folded_positions FROM n.version * 12 - 7 FOR 8), 'hex'))::bit(64)::bigint
               END AS record_offset,
               p.kind = 'deleted' AS deleted
          FROM {schema}.prescription p
         CROSS JOIN LATERAL generate_series(1, length(p.folded_keys) / 16) AS n (version)
    """,
}
