"""One function per question, one SELECT each, all of it in one round trip and one snapshot.

Every statement names the views in the order of ``projector.tables.VIEWS`` and only in its FROM clause: PostgreSQL
then locks them in that order both when it parses a statement and when it plans a prepared one again, and a promotion,
which replaces the views in the same order, never waits for a reader that waits for it. An answer over all partitions is
only as fresh as the one that lags most; while one has no checkpoint yet, nobody knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, text

from schemas.outgoing import FoundIssue, FoundPrescription, IssueDetail, PrescriptionDetail

PRESCRIPTION = text("""
    SELECT p.stream_key, p.prescription_id, p.blocked, p.prescription_type, p.treatment_type, p.signed_at,
           p.last_event_at, p.current_issue, p.days_supply, p.pending_cancellations, p.nhs_number, p.prescriber_ods,
           p.prescriber_name, p.prescriber_telecom, p.nominated_ods, p.nominated_name,
           item.ids AS item_ids,
           i.issue_number, i.status, i.item_statuses, i.last_dispensed_at, i.dispenser_ods, i.dispenser_name,
           i.dispenser_telecom,
           applied.cancellations > 0 AS has_applied_cancellation,
           unseen.records > 0 AS is_unseen,
           fresh.as_of, fresh.generation
      FROM (VALUES (CAST(:stream_key AS text))) AS asked (stream_key)
      LEFT JOIN rxstore.prescription p ON p.stream_key = asked.stream_key
     CROSS JOIN LATERAL (
               SELECT coalesce(array_agg(l.item_id ORDER BY l.item_number), '{}') AS ids
                 FROM rxstore.line_item l
                WHERE l.stream_key = p.stream_key
           ) item
      LEFT JOIN rxstore.issue i
             ON i.stream_key = p.stream_key
            AND i.issue_number = coalesce(CAST(:issue_number AS smallint), p.current_issue)
     CROSS JOIN LATERAL (
               SELECT count(*) AS cancellations
                 FROM rxstore.cancellation c
                WHERE c.stream_key = i.stream_key AND c.state = 'applied' AND c.first_issue <= i.issue_number
           ) applied
     CROSS JOIN LATERAL (
               SELECT count(*) AS records
                 FROM rxstore.set_aside s
                WHERE p.stream_key IS NULL AND s.stream_key = asked.stream_key AND s.counts
           ) unseen
     CROSS JOIN LATERAL (
               SELECT CASE WHEN bool_and(k.caught_up_at IS NOT NULL)
                            AND (p.stream_key IS NOT NULL OR count(*) >= max(g.partitions))
                           THEN min(k.caught_up_at) END AS as_of,
                      max(g.name) AS generation
                 FROM rxstore.checkpoint k
                 LEFT JOIN rxstore.generation g ON g.state = 'live'
                WHERE p.stream_key IS NULL OR k.partition_number = p.partition_number
           ) fresh
""")

# One row per issue. What no prescription shows stands in every row: the ids of prescriptions that are not created
# because a record of theirs is set aside, and how fresh the answer is.
PRESCRIPTIONS = text("""
    SELECT p.stream_key, p.prescription_id, p.blocked, p.treatment_type, p.prescribed_at, p.last_event_at,
           p.pending_cancellations, p.current_issue, p.nhs_number,
           i.issue_number, i.status, i.item_statuses, i.released_at,
           unseen.ids AS unseen_ids,
           fresh.as_of, fresh.generation
      FROM (VALUES (CAST(:nhs_number AS text))) AS asked (nhs_number)
      LEFT JOIN rxstore.prescription p
             ON p.nhs_number = asked.nhs_number
            AND p.prescribed_at BETWEEN :earliest AND :latest
            AND p.release = coalesce(CAST(:release AS text), p.release)
      LEFT JOIN rxstore.issue i ON i.stream_key = p.stream_key
     CROSS JOIN LATERAL (
               SELECT coalesce(array_agg(DISTINCT coalesce(known.prescription_id, s.stream_key)), '{}') AS ids
                 FROM rxstore.set_aside s
                 LEFT JOIN rxstore.prescription known ON known.stream_key = s.stream_key
                WHERE s.nhs_number = asked.nhs_number
                  AND s.counts
                  AND coalesce(known.kind, 'placeholder') = 'placeholder'
                  AND CASE WHEN length(s.stream_key) = 36 THEN 'R1' ELSE 'R2' END
                      = coalesce(CAST(:release AS text), CASE WHEN length(s.stream_key) = 36 THEN 'R1' ELSE 'R2' END)
           ) unseen
     CROSS JOIN (
               SELECT CASE WHEN bool_and(k.caught_up_at IS NOT NULL) AND count(*) >= max(g.partitions)
                           THEN min(k.caught_up_at) END AS as_of,
                      max(g.name) AS generation
                 FROM rxstore.checkpoint k
                 LEFT JOIN rxstore.generation g ON g.state = 'live'
           ) fresh
     ORDER BY p.prescribed_at DESC, p.stream_key, i.issue_number
""")

LIVE_GENERATION = text("SELECT g.name FROM rxstore.generation g WHERE g.state = 'live'")

FRESHNESS = text("""
    SELECT CASE WHEN bool_and(k.caught_up_at IS NOT NULL) AND count(*) >= max(g.partitions)
                THEN CAST(extract(epoch FROM now() - min(k.caught_up_at)) AS double precision) END AS age
      FROM rxstore.checkpoint k
      LEFT JOIN rxstore.generation g ON g.state = 'live'
""")


# What became of one event: where it folded, if its stream is named, and every record of it that was set aside.
EVENT = text("""
    SELECT folded.version, folded.partition_number, folded.record_offset, g.topic, aside.found AS records,
           passed.next_offset > asked.record_offset AS has_passed, fresh.as_of
      FROM (VALUES (CAST(:event_key AS bytea), CAST(:stream_key AS text), CAST(:topic AS text),
                    CAST(:partition AS integer), CAST(:offset AS bigint)))
           AS asked (event_key, stream_key, topic, partition_number, record_offset)
     CROSS JOIN LATERAL (
               SELECT coalesce(jsonb_agg(to_jsonb(kept)), '[]') AS found
                 FROM (SELECT s.topic, s.partition_number, s.record_offset, s.stream_key, s.state, s.reason,
                              s.waiting_for, s.errors, s.since, s.event_id, s.event_type
                         FROM rxstore.set_aside s
                        WHERE s.event_key = asked.event_key
                          AND (asked.stream_key IS NULL OR coalesce(s.stream_key, asked.stream_key) = asked.stream_key)
                        ORDER BY s.topic, s.partition_number, s.record_offset
                        LIMIT 100) kept
           ) aside
      LEFT JOIN rxstore.checkpoint passed
             ON passed.topic = asked.topic AND passed.partition_number = asked.partition_number
     CROSS JOIN (
               SELECT CASE WHEN bool_and(k.caught_up_at IS NOT NULL) THEN min(k.caught_up_at) END AS as_of
                 FROM rxstore.checkpoint k
           ) fresh
      LEFT JOIN LATERAL (
               SELECT e.version, e.partition_number, e.record_offset
                 FROM rxstore.event e
                WHERE e.stream_key = asked.stream_key AND e.event_key = asked.event_key
                LIMIT 1
           ) folded ON true
      LEFT JOIN rxstore.generation g ON g.state = 'live'
""")

# A publisher's records in one state, in the order of the log.
EVENTS = text("""
    SELECT s.topic, s.partition_number, s.record_offset, s.stream_key, s.state, s.reason, s.waiting_for, s.errors,
           s.since, s.event_id, s.event_type, fresh.as_of
      FROM (VALUES (CAST(:source AS text), CAST(:state AS text))) AS asked (source, state)
      LEFT JOIN LATERAL (
               SELECT kept.*
                 FROM rxstore.set_aside kept
                WHERE kept.event_source = asked.source
                  AND kept.state = asked.state
                  AND (kept.topic, kept.partition_number, kept.record_offset)
                      > (CAST(:topic AS text), CAST(:partition AS integer), CAST(:offset AS bigint))
                ORDER BY kept.topic, kept.partition_number, kept.record_offset
                LIMIT CAST(:limit AS integer)
           ) s ON true
     CROSS JOIN (
               SELECT CASE WHEN bool_and(k.caught_up_at IS NOT NULL) THEN min(k.caught_up_at) END AS as_of
                 FROM rxstore.checkpoint k
           ) fresh
     ORDER BY s.topic, s.partition_number, s.record_offset
""")

VIEWS_STATUS = text("""
    SELECT g.name, g.definition, g.topic, waiting.quarantined, waiting.parked, waiting.blocked, read.partitions,
           CASE WHEN read.seen AND read.claimed >= g.partitions THEN read.as_of END AS as_of,
           CASE WHEN read.seen AND read.claimed >= g.partitions
                THEN CAST(extract(epoch FROM now() - read.as_of) AS double precision) END AS age
      FROM (
               SELECT count(*) FILTER (WHERE s.state = 'open') AS quarantined,
                      count(*) FILTER (WHERE s.state = 'parked') AS parked,
                      count(DISTINCT s.stream_key) FILTER (WHERE s.counts) AS blocked
                 FROM rxstore.set_aside s
                WHERE s.state IN ('open', 'parked')
           ) waiting
     CROSS JOIN (
               SELECT coalesce(jsonb_agg(jsonb_build_array(k.partition_number, k.next_offset, k.moved_at,
                                                           k.caught_up_at) ORDER BY k.partition_number), '[]')
                          AS partitions,
                      min(k.caught_up_at) AS as_of, bool_and(k.caught_up_at IS NOT NULL) AS seen, count(*) AS claimed
                 FROM rxstore.checkpoint k
           ) read
      LEFT JOIN rxstore.generation g ON g.state = 'live'
""")

HAS_PASSED = text("""
    SELECT k.next_offset > :offset FROM rxstore.checkpoint k WHERE k.topic = :topic AND k.partition_number = :partition
""")


@dataclass(frozen=True, slots=True)
class LogPosition:
    """A place in the log, as ``rxstore publish --json`` prints it."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Block:
    """A prescription that must not be shown: its full id, or its stream key where no more is known, and why."""

    prescription_id: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What is known of one prescription. Blocked, there is nothing to show; without issue, there is no such issue."""

    prescription: PrescriptionDetail | None
    issue: IssueDetail | None
    block: Block | None
    as_of: datetime | None
    generation: str | None = None


@dataclass(frozen=True, slots=True)
class Searched:
    """The prescriptions that match, newest first, and the ids of those that may match and are blocked."""

    found: tuple[FoundPrescription, ...]
    blocked_ids: tuple[str, ...]
    as_of: datetime | None
    generation: str | None = None


@dataclass(frozen=True, slots=True)
class SearchCriteria:
    """The window is inclusive at both ends; no status and no release means any."""

    nhs_number: str
    earliest: datetime
    latest: datetime
    status: str | None = None
    release: str | None = None


@dataclass(frozen=True, slots=True)
class SetAsideRecord:
    """A record that did not fold, or not at once; ``errors`` have paths and what was expected there, no values."""

    position: LogPosition
    stream_key: str | None
    state: str
    reason: str
    waiting_for: str | None
    errors: list[dict[str, str]]
    since: datetime
    event_id: str | None
    event_type: str | None


@dataclass(frozen=True, slots=True)
class EventFate:
    """Where an event folded, as which version, and its records that were set aside.

    ``position`` is None where it did not fold or a deletion took its place; ``has_passed`` says whether the read model
    has passed the position that was asked about.
    """

    version: int | None
    position: LogPosition | None
    records: list[SetAsideRecord]
    has_passed: bool
    as_of: datetime | None


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """Where a partition of the live generation is read next, and when that moved and was the end."""

    partition: int
    next_offset: int
    moved_at: datetime | None
    caught_up_at: datetime | None


@dataclass(frozen=True, slots=True)
class ViewsStatus:
    """How far the live generation is, and how much of it is set aside."""

    generation: str | None
    definition: str | None
    topic: str | None
    quarantined: int
    parked: int
    blocked: int
    as_of: datetime | None
    age_seconds: float | None
    partitions: list[PartitionStatus]


def prescription(connection: Connection, stream_key: str, issue_number: int | None) -> Retrieved:
    """One prescription with one issue, the current one when none is named."""
    row = connection.execute(PRESCRIPTION, {"stream_key": stream_key, "issue_number": issue_number}).one()
    if row.stream_key is None:
        return Retrieved(None, None, Block(stream_key, None) if row.is_unseen else None, row.as_of, row.generation)
    if row.blocked is not None:
        return Retrieved(None, None, Block(row.prescription_id, row.blocked), row.as_of, row.generation)
    issue = None if row.issue_number is None else _issue(row)
    return Retrieved(_prescription(row), issue, None, row.as_of, row.generation)


def prescriptions(connection: Connection, criteria: SearchCriteria) -> Searched:
    """A patient's prescriptions in a window.

    The status of a blocked one is in doubt, so the status filter is for the others: it is asked here, of the issues
    that every match shows anyway.
    """
    rows = connection.execute(
        PRESCRIPTIONS,
        {
            "nhs_number": criteria.nhs_number,
            "earliest": criteria.earliest,
            "latest": criteria.latest,
            "release": criteria.release,
        },
    ).all()
    matches = [row for row in rows if row.stream_key is not None]
    blocked = [row.prescription_id for row in matches if row.blocked is not None]
    healthy = _found(row for row in matches if row.blocked is None)
    return Searched(
        found=tuple(each for each in healthy if criteria.status is None or _has_issue_at(each, criteria.status)),
        blocked_ids=tuple(dict.fromkeys([*blocked, *rows[0].unseen_ids])),
        as_of=rows[0].as_of,
        generation=rows[0].generation,
    )


def live_generation(connection: Connection) -> str | None:
    """The name of the generation behind the views."""
    name: str | None = connection.execute(LIVE_GENERATION).scalar()
    return name


def age_seconds(connection: Connection) -> float | None:
    """How long ago the partition that lags most was seen at its end; None where one never was."""
    age: float | None = connection.execute(FRESHNESS).scalar()
    return age


def event(connection: Connection, key: bytes, stream_key: str | None, position: LogPosition | None) -> EventFate:
    """What became of the event with this idempotency key, and of its copy at a position."""
    asked = {
        "event_key": key,
        "stream_key": stream_key,
        "topic": position and position.topic,
        "partition": position and position.partition,
        "offset": position and position.offset,
    }
    row = connection.execute(EVENT, asked).one()
    place = None if row.record_offset is None else LogPosition(row.topic, row.partition_number, row.record_offset)
    records = [_record({**known, "since": datetime.fromisoformat(known["since"])}) for known in row.records]
    return EventFate(row.version, place, records, bool(row.has_passed), row.as_of)


def events(
    connection: Connection, source: str, state: str, after: LogPosition | None, limit: int
) -> tuple[list[SetAsideRecord], datetime | None]:
    """A publisher's records in one state after a position, and how fresh that is."""
    since = after or LogPosition("", -1, -1)
    asked = {"topic": since.topic, "partition": since.partition, "offset": since.offset, "limit": limit}
    rows = connection.execute(EVENTS, {"source": source, "state": state, **asked}).mappings().all()
    return [_record(row) for row in rows if row["topic"] is not None], rows[0]["as_of"]


def views_status(connection: Connection) -> ViewsStatus:
    """How far the live generation is, and how much is set aside."""
    row = connection.execute(VIEWS_STATUS).one()
    return ViewsStatus(
        generation=row.name,
        definition=row.definition,
        topic=row.topic,
        quarantined=row.quarantined,
        parked=row.parked,
        blocked=row.blocked,
        as_of=row.as_of,
        age_seconds=row.age,
        partitions=[
            PartitionStatus(number, next_offset, _instant(moved_at), _instant(caught_up_at))
            for number, next_offset, moved_at, caught_up_at in row.partitions
        ],
    )


def has_passed(connection: Connection, topic: str, partition: int, offset: int) -> bool | None:
    """Whether the live checkpoint has passed a position; None where it reads no such partition."""
    where = {"topic": topic, "partition": partition, "offset": offset}
    passed: bool | None = connection.execute(HAS_PASSED, where).scalar()
    return passed


def _record(known: Mapping[Any, Any]) -> SetAsideRecord:
    return SetAsideRecord(
        position=LogPosition(known["topic"], known["partition_number"], known["record_offset"]),
        stream_key=known["stream_key"],
        state=known["state"],
        reason=known["reason"],
        waiting_for=known["waiting_for"],
        errors=known["errors"],
        since=known["since"],
        event_id=known["event_id"],
        event_type=known["event_type"],
    )


def _instant(text_of_json: str | None) -> datetime | None:
    return None if text_of_json is None else datetime.fromisoformat(text_of_json)


def _found(rows: Iterable[Row[Any]]) -> Iterable[FoundPrescription]:
    for _, group in groupby(rows, key=lambda row: row.stream_key):
        issues = list(group)
        first = issues[0]
        yield FoundPrescription(
            prescription_id=first.prescription_id,
            treatment_type=first.treatment_type,
            prescribed_at=first.prescribed_at,
            last_event_at=first.last_event_at,
            pending_cancellations=first.pending_cancellations,
            current_issue=first.current_issue,
            nhs_number=first.nhs_number,
            issues=tuple(
                FoundIssue(row.issue_number, row.status, row.item_statuses, row.released_at)
                for row in issues
                if row.issue_number is not None
            ),
        )


def _has_issue_at(found: FoundPrescription, status: str) -> bool:
    return any(issue.status == status for issue in found.issues)


def _prescription(row: Row[Any]) -> PrescriptionDetail:
    return PrescriptionDetail(
        prescription_id=row.prescription_id,
        prescription_type=row.prescription_type,
        treatment_type=row.treatment_type,
        signed_at=row.signed_at,
        last_event_at=row.last_event_at,
        current_issue=row.current_issue,
        days_supply=row.days_supply,
        pending_cancellations=row.pending_cancellations,
        nhs_number=row.nhs_number,
        prescriber_ods=row.prescriber_ods,
        prescriber_name=row.prescriber_name,
        prescriber_telecom=row.prescriber_telecom,
        nominated_ods=row.nominated_ods,
        nominated_name=row.nominated_name,
    )


def _issue(row: Row[Any]) -> IssueDetail:
    return IssueDetail(
        issue_number=row.issue_number,
        status=row.status,
        item_ids=row.item_ids,
        item_statuses=row.item_statuses,
        has_applied_cancellation=row.has_applied_cancellation,
        last_dispensed_at=row.last_dispensed_at,
        dispenser_ods=row.dispenser_ods,
        dispenser_name=row.dispenser_name,
        dispenser_telecom=row.dispenser_telecom,
    )
