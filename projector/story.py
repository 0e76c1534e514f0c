"""The story of one prescription: what each arrival did to it, found by folding step by step. No I/O, no clock.

``tell`` is given what happened to a stream in its order and folds it one arrival at a time, exactly as a worker would;
each step says what became of one event or decision and which plain values it changed. Steps carry statuses, codes, ids
and ODS codes, and neither names nor what was prescribed: who asks what happened need not learn about whom.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import NamedTuple

from projector.batch import Accepted, FieldError, Position, Quarantined, Reason
from projector.prescription import Issue, Prescription, evolve
from projector.stream import (
    KEY_BYTES,
    POSITION_BYTES,
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
    needs_parked,
)
from schemas.events import Organisation
from schemas.incoming import TYPE_OF
from schemas.values import value

Plain = str | int | bool | None
Before = Mapping[Position, SetAside | None]


class Happening(NamedTuple):
    """Something that happened to a stream; ``decision`` is the id of the decision that a retry or skip comes from.

    A ``SetAside`` is a misrouted record of another partition: it only marks the stream.
    """

    arrival: Arrival | SetAside
    decision: int | None = None


@value()
class Change:
    """A plain value before and after, at a path such as ``issues.1.status``; None is "not there"."""

    path: str
    before: Plain
    after: Plain


@value()
class Described:
    """What is known of an event: all of it when it keeps the contract, else what could be read."""

    source: str | None
    id: str | None
    type: str | None
    time: datetime | None
    sequence: int | None
    arrived_ms: int


@value()
class Step:
    """What became of one record or decision, at its own turn or because of another (``because_of``).

    ``because_of`` names the record or decision that made it move. ``outcome`` is folded, duplicate, parked or
    quarantined for an event; retried, skipped, parked, refused or nothing for a decision.
    """

    position: Position
    outcome: str
    event: Described | None = None
    decision: int | None = None
    because_of: str | None = None
    version: int | None = None
    reason: Reason | None = None
    errors: tuple[FieldError, ...] = ()
    waiting_for: str | None = None
    repairs: tuple[Position, ...] = ()
    changes: tuple[Change, ...] = ()


@value()
class Told:
    """The steps, and how the stream stands after them."""

    steps: tuple[Step, ...]
    prescription: Prescription | None
    is_deleted: bool
    set_aside: tuple[SetAside, ...]
    next_sequence: int | None

    @property
    def blocked(self) -> str | None:
        """Return why the prescription is not shown, as the view ``rxstore.prescription`` has it."""
        if self.is_deleted:
            return None
        for record in sorted(self.set_aside, key=lambda record: record.stands_at):
            if record.blocks:
                return str(record.reason)
        for record in self.set_aside:
            if record.state == "open" and record.reason is Reason.MISROUTED:
                return str(record.reason)
        gap = any(record.state == "parked" and record.reason is Reason.SEQUENCE_GAP for record in self.set_aside)
        return str(Reason.SEQUENCE_GAP) if gap else None


def tell(key: str, partition: int, happenings: Iterable[Happening]) -> Told:
    """Fold what happened to a stream, one arrival at a time, and say what each did."""
    telling = _Telling(key, partition)
    for happening in happenings:
        telling.add(happening)
    return Told(
        tuple(telling.steps),
        telling.prescription,
        telling.is_deleted,
        tuple(sorted(telling.rows.values(), key=lambda row: (row.stands_at, row.position))),
        telling.history.next_sequence,
    )


def with_marks(happenings: Sequence[Happening], marks: Iterable[SetAside]) -> list[Happening]:
    """Put misrouted records where their timestamps say, and before any decision about them."""
    told = list(happenings)
    for mark in sorted(marks, key=lambda mark: mark.timestamp_ms):
        at = next((index for index, other in enumerate(told) if _is_after(other, mark)), len(told))
        told.insert(at, Happening(mark))
    return told


def _is_after(happening: Happening, mark: SetAside) -> bool:
    arrival = happening.arrival
    if isinstance(arrival, Retry | Skip):
        return arrival.position == mark.position
    if isinstance(arrival, SetAside):
        return arrival.timestamp_ms > mark.timestamp_ms
    return arrival.record.timestamp_ms > mark.timestamp_ms


def until(happenings: Iterable[Happening], ends: Mapping[int, int]) -> list[Happening]:
    """Return what had happened when the partitions ended at these offsets: records before them, and all decisions.

    Decisions must be chosen before: those that had been made and stood.
    """

    def had_come(arrival: Arrival | SetAside) -> bool:
        if isinstance(arrival, Retry | Skip):
            return True
        position = arrival.position if isinstance(arrival, SetAside) else arrival.record.position
        return position.offset < ends[position.partition]

    return [happening for happening in happenings if had_come(happening.arrival)]


class _Telling:
    """One stream between its steps, as the database keeps it between batches."""

    def __init__(self, key: str, partition: int) -> None:
        self.key = key
        self.partition = partition
        self.prescription: Prescription | None = None
        self.history = History()
        self.rows: dict[Position, SetAside] = {}
        # The same rows by state, so that a long queue behind a block costs no look at all of it at every step.
        self.open: dict[Position, SetAside] = {}
        self.parked: dict[Position, SetAside] = {}
        self.items: dict[Position, Item] = {}
        self.steps: list[Step] = []

    @property
    def is_deleted(self) -> bool:
        return self.prescription is None and bool(self.history.keys)

    def add(self, happening: Happening) -> None:
        arrival = happening.arrival
        if isinstance(arrival, SetAside):
            self._put(arrival.position, arrival)
            self.steps.append(self._set_aside(arrival))
            return
        if isinstance(arrival, Retry):
            self.items[arrival.position] = arrival.item
        elif not isinstance(arrival, Skip):
            self.items[arrival.record.position] = arrival
        folded = fold(self._stream(arrival), [arrival])
        before = self._keep(folded)
        if isinstance(arrival, Retry | Skip):
            self._tell_decision(arrival.position, happening.decision, folded, before)
        else:
            self._tell_arrival(arrival.record.position, folded, before)

    def _stream(self, arrival: Arrival) -> Stream:
        """Return the stream as a worker would load it: parked records only when they can move."""
        opened = tuple(row for row in _in_place(self.open) if row.reason is not Reason.MISROUTED)
        stream = Stream(self.key, self.partition, self.prescription, self.history, opened, bool(self.parked))
        if not needs_parked(stream, [arrival]):
            return stream
        loaded = tuple(Parked(row, self.items[row.position]) for row in _in_place(self.parked))
        return Stream(self.key, self.partition, self.prescription, self.history, opened, True, loaded)

    def _keep(self, folded: FoldedStream) -> dict[Position, SetAside | None]:
        """Save what a fold wrote, and return what stood there before."""
        before = {position: self.rows.get(position) for position in (*folded.set_aside, *folded.removed)}
        for position in folded.removed:
            self._put(position, None)
        for position, row in folded.set_aside.items():
            self._put(position, row)
        if folded.deleted:
            for position, row in list(self.rows.items()):
                self._put(position, row.without_content())
        self.prescription, self.history = folded.prescription, folded.history
        return before

    def _put(self, position: Position, row: SetAside | None) -> None:
        for rows in (self.rows, self.open, self.parked):
            rows.pop(position, None)
        if row is not None:
            self.rows[position] = row
            if row.state == "open":
                self.open[position] = row
            elif row.state == "parked":
                self.parked[position] = row

    def _tell_arrival(self, own: Position, folded: FoldedStream, before: Before) -> None:
        """What became of a record first, then what it released."""
        repairs = tuple(sorted(row.position for row in folded.set_aside.values() if row.state == "repaired"))
        steps = {step.position: step for step in (*self._folded(folded), *self._moved(folded, before))}
        if folded.counts.duplicates:
            steps |= self._copies(own, folded, steps)
        if own in steps:
            self.steps.append(replace(steps.pop(own), repairs=repairs))
        self.steps += [replace(step, because_of=str(own)) for step in steps.values()]

    def _tell_decision(self, own: Position, decision: int | None, folded: FoldedStream, before: Before) -> None:
        """What became of the record that it names, then what moved."""
        steps = {step.position: step for step in (*self._folded(folded), *self._moved(folded, before))}
        row = folded.set_aside.get(own)
        if row is not None and row.state in {"open", "parked"}:
            told = self._set_aside(row)
            steps.pop(own, None)
            self.steps.append(
                replace(told, outcome="parked" if row.state == "parked" else "refused", decision=decision)
            )
        else:
            # A skip of what waits for missing numbers lets the record itself fold: it leaves no row.
            outcome = row.state if row is not None else "skipped" if own in folded.removed else "nothing"
            self.steps.append(Step(own, outcome, event=self._described(own), decision=decision))
        self.steps += [replace(step, because_of=f"decision {decision}") for step in steps.values()]

    def _folded(self, folded: FoldedStream) -> Iterator[Step]:
        """Yield a step for each event that folded, with what it alone changed."""
        state, version = folded.before.prescription, folded.before.history.version
        for position in self._new_positions(folded):
            item = self.items[position]
            if not isinstance(item, Accepted):
                raise AssertionError(f"{position} folded and is no event")
            after = evolve(state, item.event)
            version += 1
            yield Step(position, "folded", event=described(item), version=version, changes=tuple(changes(state, after)))
            state = after

    def _new_positions(self, folded: FoldedStream) -> list[Position]:
        """Return where the events stand that this fold added; a deletion forgets places, and is found by its key."""
        before, after = folded.before.history, folded.history
        if not folded.deleted:
            return positions(after.positions[len(before.positions) :], self._topic)
        keys = [after.keys[at : at + KEY_BYTES] for at in range(len(before.keys), len(after.keys), KEY_BYTES)]
        by_key = {item.event.envelope.key: at for at, item in self.items.items() if isinstance(item, Accepted)}
        return [by_key[key] for key in keys]

    def _moved(self, folded: FoldedStream, before: Before) -> Iterator[Step]:
        """Yield a step for each record that is set aside now and was not, or for another reason."""
        for row in sorted(folded.set_aside.values(), key=lambda row: (row.stands_at, row.position)):
            was = before[row.position]
            if row.state in {"open", "parked"} and (was is None or (was.state, was.reason) != (row.state, row.reason)):
                yield self._set_aside(row)

    def _copies(self, own: Position, folded: FoldedStream, told: Mapping[Position, Step]) -> dict[Position, Step]:
        """Return the events that turned out to be copies of folded ones."""
        copies = sorted({*folded.removed, own} - told.keys() - folded.set_aside.keys())
        return {at: Step(at, "duplicate", event=self._described(at)) for at in copies}

    def _set_aside(self, row: SetAside) -> Step:
        return Step(
            position=row.position,
            outcome="parked" if row.state == "parked" else "quarantined",
            event=self._described(row.position) or _of_row(row),
            reason=row.reason,
            errors=row.errors,
            waiting_for=waiting_for(row, self.history.next_sequence, self.open.values()),
        )

    def _described(self, position: Position) -> Described | None:
        item = self.items.get(position)
        return None if item is None else described(item)

    @property
    def _topic(self) -> str:
        return next(iter(self.items)).topic


def _in_place(rows: Mapping[Position, SetAside]) -> list[SetAside]:
    return sorted(rows.values(), key=lambda row: (row.stands_at, row.position))


def outline(key_positions: Sequence[Position], rows: Sequence[SetAside], items: Mapping[Position, Item]) -> list[Step]:
    """Return what is known without folding, by place: which events folded as which version, and what is set aside.

    For a stream of which the log no longer has every event: nobody can say what each changed.
    """
    blocking = [row for row in rows if row.blocks]
    steps = [
        Step(at, "folded", event=described(items[at]) if at in items else None, version=version)
        for version, at in enumerate(key_positions, start=1)
    ]
    steps += [
        Step(
            position=row.position,
            outcome={"open": "quarantined"}.get(row.state, row.state),
            event=_of_row(row),
            reason=row.reason,
            errors=row.errors,
            waiting_for=waiting_for(row, None, blocking),
        )
        for row in rows
    ]
    return sorted(steps, key=lambda step: step.position)


# what is known --------------------------------------------------------------------------------------------------------


def described(item: Item) -> Described:
    """Return what is known of an event."""
    record = item.record
    if isinstance(item, Quarantined):
        return Described(item.event_source, item.event_id, item.event_type, None, item.sequence, record.timestamp_ms)
    about = item.event.envelope
    return Described(about.source, about.id, TYPE_OF[type(item.event)], about.time, about.sequence, record.timestamp_ms)


def _of_row(row: SetAside) -> Described:
    return Described(row.event_source, row.event_id, row.event_type, None, row.sequence, row.timestamp_ms)


def positions(packed: bytes, topic: str) -> list[Position]:
    """Return the places that a stream remembers, in the order in which its events folded."""
    return [
        Position(topic, int.from_bytes(packed[at : at + 4], "big"), int.from_bytes(packed[at + 4 : at + 12], "big"))
        for at in range(0, len(packed), POSITION_BYTES)
    ]


def waiting_for(row: SetAside, next_sequence: int | None, rows: Iterable[SetAside]) -> str | None:
    """Return what a record waits for, as the view ``rxstore.set_aside`` has it; None when it is not parked."""
    if row.state != "parked":
        return None
    if row.reason is Reason.NOT_CREATED:
        return "created"
    if row.reason is Reason.SEQUENCE_GAP:
        return f"sequence {next_sequence or 1}"
    blocking = min((other for other in rows if other.blocks), key=lambda other: other.stands_at, default=None)
    return None if blocking is None else str(blocking.position)


# plain values ---------------------------------------------------------------------------------------------------------


def plain(state: Prescription | None) -> dict[str, Plain]:
    """Return a prescription as plain values by path, without names, texts, NHS number and what was prescribed."""
    if state is None:
        return {}
    prescribed = state.prescribed
    found: dict[str, Plain] = {
        "kind": str(state.kind),
        "treatment_type": prescribed.treatment_type,
        "prescription_type": prescribed.prescription_type,
        "prescriber_ods": _ods(prescribed.prescriber),
        "nominated_ods": _ods(state.nominated),
        "current_issue": state.current_issue,
        "pending_cancellations": state.pending_cancellations,
    }
    for issue in state.issues:
        found |= _issue(issue)
    for notification in state.notifications:
        path = f"issues.{notification.issue_number}.notifications.{notification.id}"
        found[f"{path}.status"] = notification.status
        found[f"{path}.amends"] = notification.amends
        found[f"{path}.withdrawn"] = notification.withdrawn
    for cancellation in state.cancellations:
        path = f"cancellations.{cancellation.id}"
        found[f"{path}.state"] = cancellation.state
        found[f"{path}.target"] = cancellation.target
        found[f"{path}.item_id"] = cancellation.item_id
        found[f"{path}.reason_code"] = cancellation.reason_code
        found[f"{path}.organisation_ods"] = cancellation.organisation_ods
        found[f"{path}.first_issue"] = cancellation.first_issue
    return found


def _issue(issue: Issue) -> dict[str, Plain]:
    path = f"issues.{issue.number}"
    return {
        f"{path}.status": issue.status,
        **{f"{path}.items.{number}": status for number, status in enumerate(issue.item_statuses, start=1)},
        f"{path}.dispenser_ods": _ods(issue.dispenser),
        f"{path}.released_at": _instant(issue.released_at),
        f"{path}.last_dispensed_at": _instant(issue.last_dispensed_at),
        f"{path}.completed_at": _instant(issue.completed_at),
        f"{path}.claimed_at": _instant(issue.claimed_at),
        f"{path}.nominated_download_date": _date(issue.nominated_download_date),
    }


def changes(before: Prescription | None, after: Prescription | None) -> Iterator[Change]:
    """Yield every plain value that differs."""
    was, becomes = plain(before), plain(after)
    for path in (*becomes, *(path for path in was if path not in becomes)):
        if was.get(path) != becomes.get(path):
            yield Change(path, was.get(path), becomes.get(path))


def _ods(organisation: Organisation | None) -> str | None:
    return None if organisation is None else organisation.ods


def _instant(instant: datetime | None) -> str | None:
    return None if instant is None else instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _date(day: date | None) -> str | None:
    return None if day is None else day.isoformat()
