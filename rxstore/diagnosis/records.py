"""What waits for people: blocked prescriptions, events without an owner, decisions that were not applied."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from projector.generations import Generation
from rxstore.diagnosis.findings import Finding
from rxstore.report import PARKED_TOO_LONG

DECISION_WAITS_SECONDS = 10

BLOCKED = """
SELECT s.reason, count(DISTINCT s.stream_key) AS prescriptions, min(s.since) AS since
  FROM {schema}.set_aside s
  LEFT JOIN {schema}.prescription p ON p.stream_key = s.stream_key
 WHERE (s.state = 'open' AND s.reason <> 'deleted' OR s.state = 'parked' AND s.reason = 'sequence_gap')
   AND s.stream_key IS NOT NULL AND p.kind IS DISTINCT FROM 'deleted'
 GROUP BY s.reason ORDER BY 2 DESC, 1
"""

OTHERS = """
SELECT count(*) FILTER (WHERE s.state = 'open' AND s.stream_key IS NULL AND s.since > now() - interval '1 day')
           AS without_prescription,
       count(*) FILTER (WHERE s.state = 'parked' AND s.reason = 'not_created'
                          AND s.since < now() - make_interval(secs => :too_long)) AS parked,
       min(s.since) FILTER (WHERE s.state = 'parked' AND s.reason = 'not_created') AS parked_since
  FROM {schema}.set_aside s
 WHERE s.state IN ('open', 'parked')
"""

WAITING = """
SELECT d.id FROM rxstore.decision d
  LEFT JOIN {schema}.checkpoint c ON c.topic = d.topic AND c.partition_number = d.stream_partition
 WHERE d.topic = :topic AND d.revoked_at IS NULL AND (d.number IS NULL OR d.number > c.decisions_applied)
   AND d.decided_at < now() - make_interval(secs => :grace)
 ORDER BY d.id
"""

VOID = "SELECT id FROM rxstore.decision WHERE topic <> :topic AND revoked_at IS NULL ORDER BY id"


def blocked(connection: Connection, generation: Generation) -> Iterator[Finding]:
    """Find prescriptions that are not shown, reason by reason."""
    for row in connection.execute(text(BLOCKED.format(schema=generation.schema))):
        yield Finding(
            "prescriptions_blocked",
            f"{_are(row.prescriptions, 'prescription')} blocked by {row.reason}, the first since "
            f"{row.since:%Y-%m-%d %H:%M} UTC: whoever asks for one is told that it cannot be shown (status code "
            f"{2 if row.reason == 'duplicate_prescription' else 4})",
            f"rxstore quarantine list --reason {row.reason}",
            reason=row.reason,
        )


def waiting(connection: Connection, generation: Generation) -> Iterator[Finding]:
    """Find events that belong to nobody, or wait for a prescription that does not come."""
    found = connection.execute(
        text(OTHERS.format(schema=generation.schema)), {"too_long": PARKED_TOO_LONG.total_seconds()}
    ).one()
    if found.without_prescription:
        yield Finding(
            "events_without_prescription",
            f"{_are(found.without_prescription, 'event')} of the last day without a readable prescription id: some "
            "prescriptions lack an event, are shown all the same, and nobody can say which. Their publishers can",
            "rxstore quarantine list --state open",
        )
    if found.parked:
        yield Finding(
            "parked_too_long",
            f"{_are(found.parked, 'event')} waiting for over an hour for a created that has not come, the first since "
            f"{found.parked_since:%Y-%m-%d %H:%M} UTC: these prescriptions are not found by anybody",
            "rxstore quarantine list --reason not_created",
        )


def decisions(connection: Connection, generation: Generation) -> Iterator[Finding]:
    """Find decisions of operators that have no effect."""
    waits = (
        connection.execute(
            text(WAITING.format(schema=generation.schema)),
            {"topic": generation.topic, "grace": DECISION_WAITS_SECONDS},
        )
        .scalars()
        .all()
    )
    if waits:
        yield Finding(
            "decision_waiting",
            f"{_are(len(waits), 'decision')} recorded and not applied (the first is {waits[0]}): a projector that "
            "holds the partition applies it, and until then its prescription stays blocked",
            "rxstore project",
        )
    void = connection.execute(text(VOID), {"topic": generation.topic}).scalars().all()
    if void:
        yield Finding(
            "decision_void",
            f"{_are(len(void), 'decision')} about records of another topic than {generation.topic} (the first is "
            f"{void[0]}): no fold applies them here, so what was settled there may be open again",
            f"rxstore quarantine undo {void[0]}",
        )


def _are(count: int, thing: str) -> str:
    return f"{count:,} {thing} is" if count == 1 else f"{count:,} {thing}s are"
