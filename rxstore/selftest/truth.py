"""What must be there in the end: the pure fold of the log, with operators' decisions where they took effect.

Nothing of a worker takes part in this: no batch, no checkpoint, no row that it wrote. The log is read from the topic,
the decisions from their table, and every stream is folded once from nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from projector.batch import Decode, Position, Reason, Record
from projector.decisions import Decision
from projector.prescription import Kind, Prescription, evolve
from projector.projection import by_stream
from projector.stream import Arrival, Counts, FoldedStream, Item, Retry, SetAside, Skip, Stream, fold
from rxstore.generator.stream import Event
from schemas.incoming import load
from schemas.outgoing import (
    Answer,
    FoundIssue,
    FoundPrescription,
    IssueDetail,
    PrescriptionDetail,
    retrieve_answer,
    retrieve_failure,
    search_answer,
    search_failure,
)
from schemas.vocabulary import TrackerStatus

Partition = Callable[[bytes], int]


@dataclass(frozen=True, slots=True)
class Truth:
    """Every stream as it must be, and every record that must be set aside, whichever stream it belongs to."""

    streams: dict[str, FoldedStream]
    set_aside: dict[Position, SetAside]

    @property
    def counts(self) -> Counts:
        """What became of the records of known streams."""
        total = Counts()
        for stream in self.streams.values():
            total.add(stream.counts)
        return total

    def of_stream(self, key: str) -> list[SetAside]:
        """Return what is set aside of a stream, marks of misrouted records too, by their places."""
        found = [record for record in self.set_aside.values() if record.stream_key == key]
        return sorted(found, key=lambda record: (record.stands_at, record.position))


def truth_of(
    records: Iterable[Record], decisions: Sequence[Decision], decode: Decode, partition_of: Partition
) -> Truth:
    """Fold a whole log; ``decisions`` in the order of their numbers."""
    by_position = {record.position: decode(record) for record in records}
    arrivals = by_stream(by_position[position] for position in sorted(by_position))
    marks = {record.position: record for record in arrivals.marks}
    items: dict[str, list[Item]] = dict(arrivals.by_stream)
    made: dict[str, list[Decision]] = {}
    for decision in decisions:
        made.setdefault(decision.stream_key, []).append(decision)
    streams: dict[str, FoldedStream] = {}
    for key in items.keys() | made.keys():
        stream = Stream(key, partition_of(key.encode()))
        streams[key] = fold(stream, _story(stream, items.get(key, []), made.get(key, []), marks, by_position, decode))
    set_aside = dict(marks)
    for folded in streams.values():
        set_aside |= folded.set_aside
    deleted = {key for key, folded in streams.items() if folded.prescription is None and folded.history.keys}
    return Truth(
        streams,
        {
            position: record.without_content() if record.stream_key in deleted else record
            for position, record in set_aside.items()
        },
    )


def _story(
    stream: Stream,
    items: Sequence[Item],
    decisions: Sequence[Decision],
    marks: dict[Position, SetAside],
    by_position: dict[Position, Item],
    decode: Decode,
) -> list[Arrival]:
    """Return a stream's records in log order, each decision in front of the first that stands at its effect offset."""
    waiting = list(decisions)
    story: list[Arrival] = []
    for item in items:
        while waiting and (waiting[0].effect_offset or 0) <= item.record.position.offset:
            story += _decided(waiting.pop(0), stream, story, marks, by_position, decode)
        story.append(item)
    for decision in waiting:
        story += _decided(decision, stream, story, marks, by_position, decode)
    return story


def _decided(
    decision: Decision,
    stream: Stream,
    story: Sequence[Arrival],
    marks: dict[Position, SetAside],
    by_position: dict[Position, Item],
    decode: Decode,
) -> list[Arrival]:
    item = by_position[decision.position]
    record = marks.get(decision.position)
    if record is not None:
        before = fold(stream, story)
        if before.set_aside.get(decision.position, record).state != "open":
            return []
        if decision.action == "retry" and before.prescription is None and before.history.keys:
            return []  # deleted: its content is gone
        item = decode.regardless_of_place(item.record)
    if decision.action == "skip":
        return [Skip(decision.position, record)]
    return [Retry(decision.position, item, record)]


def as_meant(events: Iterable[Event]) -> Prescription | None:
    """Fold events one after the other, with nothing that could park, set aside or order them."""
    state: Prescription | None = None
    for event in events:
        attributes = dict(event)
        state = evolve(state, load(attributes, attributes.pop("data")))
    return state


# answers --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Expected:
    """The body of an answer and the ids that its header must name."""

    body: Answer
    blocked: frozenset[str]


def retrieved(truth: Truth, key: str, issue_number: int | None) -> Expected:
    """Return what a retrieve must answer: the current issue when none is named."""
    stream = truth.streams.get(key)
    prescription = stream.prescription if stream else None
    if prescription is None:
        if any(_counts(truth, record) for record in truth.of_stream(key)):
            return Expected(retrieve_failure(TrackerStatus.FAILED_TO_PARSE), frozenset({key}))
        return Expected(retrieve_failure(TrackerStatus.NOT_FOUND), frozenset())
    reason = _block(truth, key)
    if reason is not None:
        is_duplicate = reason is Reason.DUPLICATE_PRESCRIPTION
        status = TrackerStatus.NO_UNIQUE_PRESCRIPTION if is_duplicate else TrackerStatus.FAILED_TO_PARSE
        return Expected(retrieve_failure(status), frozenset({prescription.prescribed.prescription_id}))
    number = prescription.current_issue if issue_number is None else issue_number
    return Expected(retrieve_answer(_detail(prescription), _issue(prescription, number)), frozenset())


def searched(truth: Truth, nhs_number: str) -> Expected:
    """Return what a search over all time must answer."""
    matches = sorted(
        ((key, stream.prescription) for key, stream in truth.streams.items() if stream.prescription is not None),
        key=lambda match: match[0],
    )
    matches = [match for match in matches if match[1].prescribed.nhs_number == nhs_number]
    matches.sort(key=lambda match: match[1].prescribed.prescribed_at, reverse=True)
    healthy = [prescription for key, prescription in matches if _block(truth, key) is None]
    blocked = {p.prescribed.prescription_id for key, p in matches if _block(truth, key) is not None}
    blocked |= _unseen(truth, nhs_number)
    if blocked:
        body = search_answer(map(_found, healthy), status=TrackerStatus.FAILED_TO_PARSE)
    elif healthy:
        body = search_answer(map(_found, healthy))
    else:
        body = search_failure(TrackerStatus.NOT_FOUND)
    return Expected(body, frozenset(blocked))


def nhs_numbers(truth: Truth) -> set[str]:
    """Return every number that anything is known of."""
    prescriptions = [stream.prescription for stream in truth.streams.values() if stream.prescription is not None]
    found = {prescription.prescribed.nhs_number for prescription in prescriptions}
    return found | {record.nhs_number for record in truth.set_aside.values() if record.nhs_number is not None}


def _block(truth: Truth, key: str) -> Reason | None:
    records = truth.of_stream(key)
    blocking = [record.reason for record in records if record.blocks]
    marks = [r.reason for r in records if r.state == "open" and r.reason is Reason.MISROUTED]
    gaps = [r.reason for r in records if r.state == "parked" and r.reason is Reason.SEQUENCE_GAP]
    return next(iter([*blocking, *marks, *gaps]), None)


def _counts(truth: Truth, record: SetAside) -> bool:
    """Whether the record puts its prescription in doubt."""
    stream = truth.streams.get(record.stream_key or "")
    if record.stream_key is None or (stream and stream.prescription is None and stream.history.keys):
        return False
    if record.state == "open":
        return record.reason is not Reason.DELETED
    return record.state == "parked" and record.reason in {Reason.SEQUENCE_GAP, Reason.BEHIND_BLOCK}


def _unseen(truth: Truth, nhs_number: str) -> set[str]:
    """Return the ids of prescriptions that are not created because a record of theirs is set aside."""
    found = set()
    for record in truth.set_aside.values():
        if record.nhs_number != nhs_number or not _counts(truth, record):
            continue
        key = record.stream_key or ""
        stream = truth.streams.get(key)
        prescription = stream.prescription if stream else None
        if prescription is None:
            found.add(key)
        elif prescription.kind is Kind.PLACEHOLDER:
            found.add(prescription.prescribed.prescription_id)
    return found


def _detail(p: Prescription) -> PrescriptionDetail:
    prescriber, nominated = p.prescribed.prescriber, p.nominated
    return PrescriptionDetail(
        prescription_id=p.prescribed.prescription_id,
        prescription_type=p.prescribed.prescription_type,
        treatment_type=p.prescribed.treatment_type,
        signed_at=p.prescribed.signed_at,
        last_event_at=p.last_event_at,
        current_issue=p.current_issue,
        days_supply=p.prescribed.days_supply,
        pending_cancellations=p.pending_cancellations,
        nhs_number=p.prescribed.nhs_number,
        prescriber_ods=prescriber.ods if prescriber else None,
        prescriber_name=prescriber.name if prescriber else None,
        prescriber_telecom=prescriber.telecom if prescriber else None,
        nominated_ods=nominated.ods if nominated else None,
        nominated_name=nominated.name if nominated else None,
    )


def _issue(p: Prescription, number: int) -> IssueDetail | None:
    issue = p.issue(number)
    if issue is None:
        return None
    return IssueDetail(
        issue_number=number,
        status=issue.status,
        item_ids=[item.id for item in p.prescribed.line_items],
        item_statuses=issue.item_statuses,
        has_applied_cancellation=any(c.state == "applied" and c.first_issue <= number for c in p.cancellations),
        last_dispensed_at=issue.last_dispensed_at,
        dispenser_ods=issue.dispenser.ods if issue.dispenser else None,
        dispenser_name=issue.dispenser.name if issue.dispenser else None,
        dispenser_telecom=issue.dispenser.telecom if issue.dispenser else None,
    )


def _found(p: Prescription) -> FoundPrescription:
    return FoundPrescription(
        prescription_id=p.prescribed.prescription_id,
        treatment_type=p.prescribed.treatment_type,
        prescribed_at=p.prescribed.prescribed_at,
        last_event_at=p.last_event_at,
        pending_cancellations=p.pending_cancellations,
        current_issue=p.current_issue,
        nhs_number=p.prescribed.nhs_number,
        issues=[FoundIssue(i.number, i.status, i.item_statuses, i.released_at) for i in p.issues],
    )
