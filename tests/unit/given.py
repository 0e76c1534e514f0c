"""Events, records and stored streams for tests of the core, each made in one short line.

A builder fills in what its test is not about: ``released(issue_number=2)``, ``dispensed("0001", "0003")``.
Attributes of the envelope (id, source, time, sequence, stream_key) are given by name like any other. Events of one
type share their id unless told otherwise, so a test with two of them names at least one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from projector.batch import Accepted, FieldError, Position, Quarantined, Reason, Record
from projector.prescription import Prescription, contradiction, evolve
from projector.stream import (
    NO_HISTORY,
    Arrival,
    FoldedStream,
    History,
    Item,
    Parked,
    Retry,
    SetAside,
    Skip,
    Stream,
    fold,
    mark,
    needs_parked,
)
from schemas.events import (
    Cancelled,
    Claimed,
    Corrected,
    CorrectedIssue,
    Created,
    Deleted,
    Dispensed,
    DispenseWithdrawn,
    Envelope,
    Event,
    Expired,
    Issued,
    ItemStatus,
    Nominated,
    NotClaimed,
    Organisation,
    PrescribedItem,
    Released,
    Returned,
)
from schemas.incoming import event_key

AnEvent = TypeVar("AnEvent", bound=Event)

TOPIC = "prescription-events"
PARTITION = 3
STREAM_KEY = "1F3A9C-Z99901-4B7D2"
PRESCRIPTION_ID = "1F3A9C-Z99901-4B7D2P"
SOURCE = "urn:nhs:asid:200000000946"

NHS_NUMBER = "9990000018"
OTHER_NHS_NUMBER = "9990000026"
ITEMS = tuple(f"{letter * 8}-9A54-4D07-8F21-0B7C5D3E9A11" for letter in "ABCD")
UNKNOWN_ITEM = "FFFFFFFF-9A54-4D07-8F21-0B7C5D3E9A11"
NOTIFICATION = "C2B7A90D-5E36-4F18-A0C4-7D91E2F3B601"
SECOND_NOTIFICATION = "C2B7A90D-5E36-4F18-A0C4-7D91E2F3B602"
THIRD_NOTIFICATION = "C2B7A90D-5E36-4F18-A0C4-7D91E2F3B603"
CANCELLATION = "D91F4E6A-2B70-4C85-B3D6-8E05A1C7F401"
SECOND_CANCELLATION = "D91F4E6A-2B70-4C85-B3D6-8E05A1C7F402"
CLAIM = "E83A5D17-6C92-4E0B-9F48-2A70B6D1C501"

SURGERY = Organisation("Z99901", "INVENTED SURGERY", "0000 000001", "1 EXAMPLE STREET, SAMPLETON, ZZ99 1AA")
PHARMACY = Organisation("ZX901", "INVENTED PHARMACY", "0000 000002", "2 EXAMPLE STREET, SAMPLETON, ZZ99 1AA")
OTHER_PHARMACY = Organisation("ZX902", "ANOTHER INVENTED PHARMACY")

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def days_later(days: float) -> datetime:
    """Return the instant that many days after ``NOON``, the default time of every event."""
    return NOON + timedelta(days=days)


def day_of(instant: datetime) -> datetime:
    """Return midnight of the instant's day, which is how a date stands in the state."""
    return datetime(instant.year, instant.month, instant.day, tzinfo=UTC)


# events ---------------------------------------------------------------------------------------------------------------


def prescribed_items(count: int, *, issues: int = 1, last_item_issues: int | None = None) -> tuple[PrescribedItem, ...]:
    """Return ``count`` items, each for all ``issues``, the last one perhaps for fewer."""
    return tuple(
        PrescribedItem(
            id=ITEMS[index],
            description=f"Invented medicine {index + 1}",
            code=f"39720311000001{index + 1}",
            quantity="28",
            unit="tablet",
            dosage="Take one each day",
            issues_authorised=last_item_issues if last_item_issues and index == count - 1 else issues,
        )
        for index in range(count)
    )


def created(**overrides: Any) -> Created:
    """An acute prescription for two items."""
    issues = overrides.get("issues_authorised", 1)
    return _event(
        Created,
        overrides,
        nhs_number=NHS_NUMBER,
        treatment_type="0001",
        prescription_type="0101",
        prescribed_at=overrides.get("time", NOON),
        signed_at=overrides.get("time", NOON),
        days_supply=28,
        issues_authorised=1,
        dispense_window_low=None,
        dispense_window_high=None,
        prescribing_organisation=SURGERY,
        nominated_dispenser=PHARMACY,
        line_items=prescribed_items(2, issues=issues),
    )


def repeat_dispensing(issues: int = 3, **overrides: Any) -> Created:
    """An eRD prescription for two items."""
    return created(**{"treatment_type": "0003", "issues_authorised": issues} | overrides)


def issued(**overrides: Any) -> Issued:
    """Issue 1 became available."""
    return _event(Issued, overrides, issue_number=1, status="0001", nominated_download_date=None)


def released(**overrides: Any) -> Released:
    """The pharmacy downloaded issue 1."""
    return _event(Released, overrides, issue_number=1, dispensing_organisation=PHARMACY)


def statuses(*sent: str) -> tuple[ItemStatus, ...]:
    """Return one status for each item, in item order."""
    return tuple(ItemStatus(item, status) for item, status in zip(ITEMS, sent, strict=False))


def dispensed(*sent: str, **overrides: Any) -> Dispensed:
    """A dispense notification for issue 1; both items fully dispensed unless ``sent`` says otherwise."""
    return _event(
        Dispensed,
        overrides,
        issue_number=1,
        notification_id=NOTIFICATION,
        dispensing_organisation=PHARMACY,
        dispensed_at=overrides.get("time", NOON),
        line_items=statuses(*(sent or ("0001", "0001"))),
        prescription_status=None,
        amends=None,
    )


def dispense_withdrawn(**overrides: Any) -> DispenseWithdrawn:
    """The only notification of issue 1 was taken back."""
    return _event(DispenseWithdrawn, overrides, issue_number=1, notification_id=NOTIFICATION)


def returned(**overrides: Any) -> Returned:
    """The dispenser gave issue 1 back."""
    return _event(Returned, overrides, issue_number=1, keep_nomination=False)


def cancelled(outcome: str = "applied", **overrides: Any) -> Cancelled:
    """The prescriber cancelled the whole prescription."""
    return _event(
        Cancelled,
        overrides,
        cancellation_id=CANCELLATION,
        nhs_number=NHS_NUMBER,
        target="lineItem" if "line_item_id" in overrides else "prescription",
        line_item_id=None,
        outcome=outcome,
        reason_code="0001",
        reason_text="Prescribing error",
        issue_number=None,
        cancelling_organisation=SURGERY,
    )


def claimed(**overrides: Any) -> Claimed:
    """Issue 1 was claimed."""
    return _event(Claimed, overrides, issue_number=1, claim_id=CLAIM, amends=None)


def not_claimed(**overrides: Any) -> NotClaimed:
    """Nobody claimed issue 1."""
    return _event(NotClaimed, overrides, issue_number=1)


def expired(**overrides: Any) -> Expired:
    """Issue 1 expired."""
    return _event(Expired, overrides, issue_number=1)


def nominated(**overrides: Any) -> Nominated:
    """Another pharmacy was nominated."""
    return _event(Nominated, overrides, nominated_dispenser=OTHER_PHARMACY)


def corrected(*issues: CorrectedIssue, **overrides: Any) -> Corrected:
    """An administrator set fields of these issues right."""
    return _event(Corrected, overrides, reason="migrated wrongly", current_issue_number=None, issues=issues)


def corrected_to(status: str, *item_statuses: str, issue_number: int = 1, **overrides: Any) -> Corrected:
    """An administrator moved an issue, and perhaps its items, to these statuses."""
    return corrected(CorrectedIssue(issue_number, status, statuses(*item_statuses)), **overrides)


def deleted(**overrides: Any) -> Deleted:
    """The prescription left the record."""
    return _event(Deleted, overrides)


def _event(kind: type[AnEvent], overrides: dict[str, Any], **data: Any) -> AnEvent:
    source = overrides.pop("source", SOURCE)
    event_id = overrides.pop("id", kind.__name__)
    stream_key = overrides.pop("stream_key", STREAM_KEY)
    envelope = Envelope(
        source=source,
        id=event_id,
        key=event_key(source, event_id),
        prescription_id=PRESCRIPTION_ID if stream_key == STREAM_KEY else stream_key,
        stream_key=stream_key,
        time=overrides.pop("time", NOON),
        sequence=overrides.pop("sequence", None),
    )
    return kind(envelope=envelope, **(data | overrides))


# states ---------------------------------------------------------------------------------------------------------------


def after(*events: Event, state: Prescription | None = None) -> Prescription:
    """Return the prescription after events that can follow each other."""
    for event in events:
        refused = None if state is None else contradiction(state, event)
        assert refused is None, f"{type(event).__name__} does not fold: {refused}"
        state = evolve(state, event)
    assert state is not None
    return state


def refusal(state: Prescription, event: Event) -> FieldError:
    """Return the rule that forbids the event."""
    refused = contradiction(state, event)
    assert refused is not None, f"{type(event).__name__} folds"
    return refused


def issue_statuses(state: Prescription) -> list[str]:
    """Return the status of each issue."""
    return [issue.status for issue in state.issues]


def item_statuses(state: Prescription, issue_number: int = 1) -> tuple[str, ...]:
    """Return the item statuses of one issue."""
    return state.issues[issue_number - 1].item_statuses


# records --------------------------------------------------------------------------------------------------------------


def record(offset: int, *, key: str | None = STREAM_KEY) -> Record:
    """Return a record at this offset; its content tells which one it is."""
    return Record(
        position=Position(TOPIC, PARTITION, offset),
        timestamp_ms=1_772_452_800_000 + offset,
        key=None if key is None else key.encode(),
        value=b"content of %d" % offset,
        headers=(("content-type", b"application/cloudevents+json"),),
    )


def at(offset: int, event: Event) -> Accepted:
    """Return the event in a record at this offset."""
    return Accepted(record(offset, key=event.envelope.stream_key), event)


def broken(
    offset: int,
    *,
    id: str | None = None,
    reason: Reason = Reason.CONTRACT_VIOLATION,
    stream_key: str | None = STREAM_KEY,
    sequence: int | None = None,
    nhs_number: str | None = None,
) -> Quarantined:
    """Return a record at this offset that breaks the contract; its source and id are readable when ``id`` is given."""
    return Quarantined(
        record=record(offset, key=stream_key),
        reason=reason,
        errors=(FieldError("data.issueNumber", "must be an integer"),),
        stream_key=stream_key,
        event_key=None if id is None else event_key(SOURCE, id),
        event_source=None if id is None else SOURCE,
        event_id=id,
        event_type="eps.prescription.released.v1",
        sequence=sequence,
        nhs_number=nhs_number,
    )


def log(*events: Event, first_offset: int = 0) -> list[Item]:
    """Return the events in records that follow each other."""
    return [at(offset, event) for offset, event in enumerate(events, start=first_offset)]


def misrouted(offset: int, *, sequence: int | None = None) -> SetAside:
    """Return the mark of a record of this stream that stands in another partition."""
    item = broken(offset, id="misrouted", reason=Reason.MISROUTED, sequence=sequence)
    position = replace(item.record.position, partition=PARTITION + 1)
    return mark(replace(item, record=replace(item.record, position=position)))


def retried_mark(marked: SetAside, event: Event) -> Retry:
    """An operator retries a misrouted record."""
    assert marked.record is not None
    return Retry(marked.position, Accepted(marked.record, event), marked)


# streams --------------------------------------------------------------------------------------------------------------


@dataclass
class StoredStream:
    """One stream between batches, as the database keeps it: rows are loaded for a batch and saved after it.

    Parked records are loaded only when ``needs_parked`` asks for them, unless ``always_load_parked``.
    """

    always_load_parked: bool = False
    prescription: Prescription | None = None
    history: History = NO_HISTORY
    set_aside: dict[Position, SetAside] = field(default_factory=dict)
    decoded: dict[Position, Item] = field(default_factory=dict)

    def fold(self, *items: Arrival) -> FoldedStream:
        """Fold one batch and save what it wrote."""
        for item in items:
            if isinstance(item, Retry):
                self.decoded[item.position] = item.item
            elif not isinstance(item, Skip):
                self.decoded[item.record.position] = item
        folded = fold(self.load(items), items)
        self.save(folded)
        return folded

    def retry(self, offset: int, item: Item | None = None) -> FoldedStream:
        """Have the record at this offset tried again, as ``item`` now that a fix reads it, else as it was read."""
        position = Position(TOPIC, PARTITION, offset)
        return self.fold(Retry(position, self.decoded[position] if item is None else item))

    def skip(self, offset: int) -> FoldedStream:
        """Have the record at this offset passed over."""
        return self.fold(Skip(Position(TOPIC, PARTITION, offset)))

    def load(self, items: Iterable[Arrival] = ()) -> Stream:
        """Return the stream as it is loaded for a batch of ``items``."""
        opened = self._in_state("open")
        parked = self._in_state("parked")
        stream = Stream(STREAM_KEY, PARTITION, self.prescription, self.history, tuple(opened), bool(parked))
        if parked and (self.always_load_parked or needs_parked(stream, list(items))):
            stream = replace(stream, parked=tuple(Parked(row, self.decoded[row.position]) for row in parked))
        return stream

    def save(self, folded: FoldedStream) -> None:
        """Write what a batch changed; rows come back in the order of their keys."""
        self.history = folded.history
        self.prescription = folded.prescription and folded.prescription._replace(
            notifications=_sorted(folded.prescription.notifications, lambda n: (n.issue_number, n.number)),
            cancellations=_sorted(folded.prescription.cancellations, lambda c: c.number),
        )
        for position in folded.removed:
            self.set_aside.pop(position, None)
        self.set_aside |= folded.set_aside
        if folded.deleted:
            self.set_aside = {position: row.without_content() for position, row in self.set_aside.items()}

    def _in_state(self, state: str) -> list[SetAside]:
        rows = [row for row in self.set_aside.values() if row.state == state]
        return sorted(rows, key=lambda row: (row.stands_at, row.position))

    @property
    def open(self) -> dict[int, str]:
        """The reason of each open record, by offset."""
        return {row.position.offset: row.reason.value for row in self._in_state("open")}

    @property
    def parked(self) -> dict[int, str]:
        """The reason of each parked record, by offset."""
        return {row.position.offset: row.reason.value for row in self._in_state("parked")}

    @property
    def status(self) -> str:
        """The status of the first issue."""
        assert self.prescription is not None
        return self.prescription.issues[0].status

    @property
    def folded(self) -> list[int]:
        """The offsets of the events that folded, in the order in which they did."""
        places = self.history.positions
        return [int.from_bytes(places[at + 4 : at + 12], "big") for at in range(0, len(places), 12)]

    def row(self, offset: int) -> SetAside:
        """The record that was set aside at this offset."""
        return self.set_aside[Position(TOPIC, PARTITION, offset)]

    def states(self) -> dict[int, str]:
        """The state of every record that was set aside and is still kept, by offset."""
        return {position.offset: row.state for position, row in sorted(self.set_aside.items())}


def stored(*events: Event) -> StoredStream:
    """Return a stream that holds these events, at offsets from 0."""
    stream = StoredStream()
    stream.fold(*log(*events))
    assert stream.history.version == len(events), "an event that was given did not fold"
    return stream


def _sorted(rows: tuple[Any, ...], key: Callable[[Any], Any]) -> tuple[Any, ...]:
    return tuple(sorted(rows, key=key))


def midnight(year: int, month: int, day: int) -> datetime:
    """Return the instant that a date stands for."""
    return datetime(year, month, day, tzinfo=UTC)
