"""The story of one prescription, for ``rxstore explain`` and the API: read by the reader's role and from the log.

The read model remembers where the events of a prescription stand and what was set aside; the records themselves are
read from the topic and folded again, step by step (``projector.story``). Nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import KafkaError
from sqlalchemy import Engine, Row, text

from ingest.decode import Decoder
from ingest.lookup import lookup
from ingest.moment import EPOCH, MILLISECOND, EndsAt, ends_at
from projector import refold, story
from projector.batch import FieldError, Position, Reason, Record
from projector.decisions import Decision
from projector.prescription import Prescription
from projector.refold import Lookup
from projector.story import Happening, Plain, Step, Told
from projector.stream import SetAside
from query_api.history import History, HistoryUnavailable
from rxstore import store
from rxstore.errors import Refused

# One snapshot of all that is known of a stream. It names the views in the order of projector.tables.VIEWS.
KNOWN = text("""
    SELECT g.name AS generation, g.topic, g.partitions, g.settings,
           p.prescription_id, p.version, p.current_issue, p.blocked,
           issues.found AS issues, aside.found AS set_aside, fresh.found AS checkpoints, events.found AS events,
           made.found AS decisions
      FROM (VALUES (CAST(:key AS text))) AS asked (stream_key)
      LEFT JOIN rxstore.prescription p ON p.stream_key = asked.stream_key
     CROSS JOIN LATERAL (
               SELECT coalesce(jsonb_agg(jsonb_build_array(i.issue_number, i.status, i.item_statuses)
                                         ORDER BY i.issue_number), '[]') AS found
                 FROM rxstore.issue i WHERE i.stream_key = asked.stream_key
           ) issues
     CROSS JOIN LATERAL (
               SELECT coalesce(jsonb_agg(to_jsonb(s) - 'nhs_number' - 'event_key'
                                         ORDER BY s.topic, s.partition_number, s.record_offset), '[]') AS found
                 FROM rxstore.set_aside s WHERE s.stream_key = asked.stream_key
           ) aside
     CROSS JOIN (
               SELECT coalesce(jsonb_object_agg(k.partition_number, k.caught_up_at), '{}') AS found
                 FROM rxstore.checkpoint k
           ) fresh
     CROSS JOIN LATERAL (
               SELECT coalesce(jsonb_agg(jsonb_build_array(e.partition_number, e.record_offset, e.deleted)
                                         ORDER BY e.version), '[]') AS found
                 FROM rxstore.event e WHERE e.stream_key = asked.stream_key
           ) events
      JOIN rxstore.generation g ON g.state = 'live'
     CROSS JOIN LATERAL (
               SELECT coalesce(jsonb_agg(to_jsonb(d) ORDER BY d.number NULLS LAST, d.id), '[]') AS found
                 FROM rxstore.decision d WHERE d.topic = g.topic AND d.stream_key = asked.stream_key
           ) made
""")


@dataclass(frozen=True, slots=True)
class Story:
    """What happened to one prescription and how it stands, now or as it was ``at`` an instant.

    ``told`` is None when the log no longer has an event of it: ``steps`` then says what is known without folding.
    """

    prescription_id: str
    stream_key: str
    generation: str
    topic: str
    partition: int
    as_of: datetime | None
    at: datetime | None
    deleted: bool
    missing: tuple[Position, ...]
    steps: tuple[Step, ...]
    told: Told | None
    as_stored: bool | None
    decisions: Mapping[int, dict[str, Any]]
    stored: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """Return the document of ``explain --json`` and of the history endpoint."""
        return {
            "prescription_id": self.prescription_id,
            "stream_key": self.stream_key,
            "generation": self.generation,
            "topic": self.topic,
            "partition": self.partition,
            "as_of": _instant(self.as_of),
            "at": _instant(self.at),
            "deleted": self.deleted,
            "complete": not self.missing and not self.deleted,
            "as_stored": self.as_stored,
            "steps": [self._step(step) for step in self.steps],
            "state": self.state(),
            "decisions": list(self.decisions.values()),
        }

    def state(self) -> dict[str, Any] | None:
        """Return how the prescription stands after the steps; of an incomplete one what is stored now."""
        if self.told is None:
            return self.stored
        prescription = self.told.prescription
        blocking = [record for record in self.told.set_aside if record.blocks]
        return {
            "exists": prescription is not None,
            "version": 0 if prescription is None else prescription.version,
            "last_event_at": None if prescription is None else _instant(prescription.last_event_at),
            "blocked": self.told.blocked,
            **_nested(story.plain(prescription)),
            "set_aside": [
                {
                    "id": str(record.position),
                    "state": record.state,
                    "reason": str(record.reason),
                    "waiting_for": story.waiting_for(record, self.told.next_sequence, blocking),
                }
                for record in self.told.set_aside
            ],
        }

    def _step(self, step: Step) -> dict[str, Any]:
        event = step.event
        return {
            "position": str(step.position),
            "outcome": step.outcome,
            "version": step.version,
            "because_of": step.because_of,
            "event": None
            if event is None
            else {
                "source": event.source,
                "id": event.id,
                "type": event.type,
                "time": _instant(event.time),
                "sequence": event.sequence,
                "arrived": _instant(EPOCH + event.arrived_ms * MILLISECOND),
            },
            "in_log": step.position not in self.missing,
            "reason": None if step.reason is None else str(step.reason),
            "errors": [{"path": error.path, "message": error.message} for error in step.errors],
            "waiting_for": step.waiting_for,
            "repairs": [str(position) for position in step.repairs],
            "changes": [{"path": c.path, "before": c.before, "after": c.after} for c in step.changes],
            "decision": None if step.decision is None else self.decisions.get(step.decision),
        }


def explain(engine: Engine, look_up: Lookup, key: str, *, ends_at: EndsAt, at: datetime | None = None) -> Story | None:
    """Return the story of a prescription by its stream key; None when nothing is known of it.

    What had arrived ``at`` an instant is decided by where the log ended then (``ingest.moment``, by ``ends_at``), what
    had been decided by the times of the decisions: what the system could know then, not what had happened by then in
    the world.
    """
    with engine.connect() as connection:
        row = connection.execute(KNOWN, {"key": key}).first()
    if row is None:
        raise Refused("no generation is live: run 'rxstore migrate'")
    if not row.events and not row.set_aside:
        return None
    if row.partitions is None:
        raise Refused(f"generation {row.generation} has read nothing yet: run 'rxstore project' first")
    decode = store.decoder(row.settings, row.partitions)
    ends: dict[int, int] | None = None
    if at is not None:
        known = {row_of["partition_number"] for row_of in row.set_aside} | {number for number, *_ in row.events}
        numbers = {decode.partition_of(key.encode()), *(number for number in known if number is not None)}
        ends = {number: end.offset for number, end in ends_at(row.topic, numbers, at).items()}
    return _told(row, key, decode, look_up, at, ends)


def history(engine: Engine, make_consumer: Callable[[], KafkaConsumer]) -> History:
    """Return the function that tells the API's history; it tells what stands in its way without naming anybody."""

    def tell(stream_key: str, at: datetime | None) -> dict[str, Any] | None:
        try:
            told = explain(engine, lookup(make_consumer), stream_key, at=at, ends_at=ends_at(make_consumer))
        except KafkaError as error:
            raise HistoryUnavailable("the topic cannot be read now: the brokers are away or too slow") from error
        except Refused as error:
            raise HistoryUnavailable(str(error)) from error
        return None if told is None else told.as_json()

    return tell


def _told(
    row: Row[Any],
    key: str,
    decode: Decoder,
    look_up: Lookup,
    at: datetime | None,
    ends: Mapping[int, int] | None,
) -> Story:
    partition = decode.partition_of(key.encode())
    rows = [_set_aside(known) for known in row.set_aside]
    folded = [Position(row.topic, number, offset) for number, offset, _ in row.events if number is not None]
    deleted = any(is_deleted for *_, is_deleted in row.events)
    records = {} if deleted else look_up([*folded, *(known.position for known in rows)])
    missing = () if deleted else tuple(sorted({*folded, *(known.position for known in rows)} - records.keys()))
    told: Told | None = None
    if not deleted and not missing:
        happenings = _happenings(row, rows, list(records.values()), decode, partition, at, ends)
        told = story.tell(key, partition, happenings)
        steps: Sequence[Step] = told.steps
    else:
        items = {position: decode(record) for position, record in records.items()}
        steps = story.outline(folded, rows, items)
    as_of = row.checkpoints.get(str(partition))
    return Story(
        prescription_id=row.prescription_id or key,
        stream_key=key,
        generation=row.generation,
        topic=row.topic,
        partition=partition,
        as_of=None if as_of is None else datetime.fromisoformat(as_of),
        at=at,
        deleted=deleted,
        missing=missing,
        steps=tuple(steps),
        told=told,
        as_stored=None if at is not None or told is None else _summary(told.prescription) == _stored_summary(row),
        decisions={made["id"]: _decision(made) for made in row.decisions},
        stored=None if deleted or at is not None else _stored(row),
    )


def _happenings(
    row: Row[Any],
    rows: Sequence[SetAside],
    records: Sequence[Record],
    decode: Decoder,
    partition: int,
    at: datetime | None,
    ends: Mapping[int, int] | None,
) -> list[Happening]:
    made = [_effective(decision) for decision in row.decisions if _stood(decision, at, ends)]
    arrivals = refold.happenings(records, rows, made, decode, partition=partition)
    happenings = [Happening(arrival, None if decision is None else decision.id) for arrival, decision in arrivals]
    marks = [replace(known, state="open") for known in rows if known.reason is Reason.MISROUTED]
    happenings = story.with_marks(happenings, marks)
    return happenings if ends is None else story.until(happenings, ends)


def _stood(decision: Mapping[str, Any], at: datetime | None, ends: Mapping[int, int] | None) -> bool:
    """Whether a decision was applied and not revoked, now or at an instant (``projector.decisions.STANDS``)."""
    if decision["number"] is None:
        return False
    revoked = decision["revoked_at"]
    if at is None or ends is None:
        return revoked is None
    if decision["effect_offset"] > ends[decision["stream_partition"]]:
        return False
    decided = datetime.fromisoformat(decision["decided_at"])
    return decided <= at and (revoked is None or datetime.fromisoformat(revoked) > at)


def _effective(made: Mapping[str, Any]) -> Decision:
    return Decision(
        id=made["id"],
        action=made["action"],
        position=Position(made["topic"], made["partition_number"], made["record_offset"]),
        stream_key=made["stream_key"],
        stream_partition=made["stream_partition"],
        number=made["number"],
        effect_offset=made["effect_offset"],
    )


def _decision(made: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "decision": made["id"],
        "action": made["action"],
        "id": f"{made['topic']}:{made['partition_number']}:{made['record_offset']}",
        "why": made["why"],
        "by": made["decided_by"],
        "at": _instant(datetime.fromisoformat(made["decided_at"])),
        "effect_offset": made["effect_offset"],
        "revoked_at": None if made["revoked_at"] is None else _instant(datetime.fromisoformat(made["revoked_at"])),
        "revoked_by": made["revoked_by"],
    }


def _set_aside(known: Mapping[str, Any]) -> SetAside:
    return SetAside(
        position=Position(known["topic"], known["partition_number"], known["record_offset"]),
        stream_key=known["stream_key"],
        stands_at=known["stands_at"],
        state=known["state"],
        reason=Reason(known["reason"]),
        errors=tuple(FieldError(error["path"], error["message"]) for error in known["errors"]),
        timestamp_ms=(datetime.fromisoformat(known["since"]) - EPOCH) // MILLISECOND,
        record=None,
        sequence=known["sequence"],
        event_source=known["event_source"],
        event_id=known["event_id"],
        event_type=known["event_type"],
    )


def _summary(prescription: Prescription | None) -> tuple[Any, ...]:
    if prescription is None:
        return None, None, []
    return (
        prescription.version,
        prescription.current_issue,
        [[issue.number, issue.status, list(issue.item_statuses)] for issue in prescription.issues],
    )


def _stored_summary(row: Row[Any]) -> tuple[Any, ...]:
    return row.version, row.current_issue, row.issues


def _stored(row: Row[Any]) -> dict[str, Any]:
    return {
        "exists": row.version is not None,
        "version": row.version or 0,
        "blocked": row.blocked,
        "current_issue": row.current_issue,
        "issues": {
            str(number): {"status": status, "items": {str(n): item for n, item in enumerate(items, start=1)}}
            for number, status, items in row.issues
        },
        "set_aside": [
            {
                "id": f"{known['topic']}:{known['partition_number']}:{known['record_offset']}",
                "state": known["state"],
                "reason": known["reason"],
                "waiting_for": known["waiting_for"],
            }
            for known in row.set_aside
        ],
    }


def _nested(values: Mapping[str, Plain]) -> dict[str, Any]:
    """Turn paths into objects inside objects."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        *outer, last = path.split(".")
        place = nested
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    return nested


def _instant(instant: datetime | None) -> str | None:
    if instant is None:
        return None
    digits = "microseconds" if instant.microsecond % 1000 else "milliseconds" if instant.microsecond else "seconds"
    return instant.astimezone(UTC).isoformat(timespec=digits).replace("+00:00", "Z")
