"""What becomes of an event in its stream: it folds, waits, is set aside or was seen before. No I/O, no clock.

A *stream* is all events of one prescription. ``fold`` takes the stored state of one stream and what a batch brings for
it, in log order, and returns the state after. The rules are those of docs/events.md ("What becomes of an event");
they depend on the log alone, so a rebuild comes to the same rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from math import inf
from typing import NamedTuple

from projector.batch import Accepted, FieldError, Position, Quarantined, Reason, Record
from projector.defects import defect
from projector.prescription import Kind, Prescription, contradiction, evolve
from schemas.events import Cancelled, Created, Deleted, Event, Expired
from schemas.incoming import TYPE_OF
from schemas.values import value

KEY_BYTES = 16
POSITION_BYTES = 12
MANY = 16  # parked events from which on a set of what folded is sooner made than searched through for each


class History(NamedTuple):
    """What a stream remembers of the events that folded.

    ``keys`` are their idempotency keys, 16 bytes each, for good; ``positions`` their places in the log, 12 bytes each
    (partition, offset; big endian), none once the prescription is deleted. ``next_sequence`` is the number expected
    next, None on a stream without sequences; ``passed`` are numbers above it that count as seen.
    """

    keys: bytes = b""
    positions: bytes = b""
    next_sequence: int | None = None
    passed: tuple[int, ...] = ()

    def has(self, key: bytes) -> bool:
        """Whether an event with this idempotency key folded."""
        at = self.keys.find(key)
        while at % KEY_BYTES and at >= 0:
            at = self.keys.find(key, at + 1)
        return at >= 0

    def each_key(self) -> Iterator[bytes]:
        """Yield the idempotency keys in the order in which their events folded."""
        return (self.keys[at : at + KEY_BYTES] for at in range(0, len(self.keys), KEY_BYTES))

    @property
    def version(self) -> int:
        """Return how many events folded: the version of the prescription."""
        return len(self.keys) // KEY_BYTES


NO_HISTORY = History()


@value()
class SetAside:
    """A record that did not fold. ``stands_at`` is its place in the stream: its offset, or that of what it repairs.

    ``state`` is open, parked, repaired, retried or skipped. ``record`` is None once its content is gone (deletion).
    """

    position: Position
    stream_key: str | None
    stands_at: int
    state: str
    reason: Reason
    errors: tuple[FieldError, ...]
    timestamp_ms: int
    record: Record | None
    sequence: int | None = None
    event_key: bytes | None = None
    event_source: str | None = None
    event_id: str | None = None
    event_type: str | None = None
    nhs_number: str | None = None

    @property
    def blocks(self) -> bool:
        """Whether the record, on a stream that is not deleted, holds back what comes after it."""
        return self.state == "open" and self.reason not in {Reason.MISROUTED, Reason.DELETED}

    def without_content(self) -> SetAside:
        """Keep position and reason, lose the rest: what a deletion leaves."""
        return replace(self, errors=(), record=None, event_source=None, event_id=None, event_type=None, nhs_number=None)


@value()
class Parked:
    """A parked record and what it decodes to today."""

    set_aside: SetAside
    item: Accepted | Quarantined


@value()
class Stream:
    """One stream as stored. ``parked`` is None while its parked records, if it ``has_parked``, were not loaded."""

    key: str
    partition: int
    prescription: Prescription | None = None
    history: History = NO_HISTORY
    open: tuple[SetAside, ...] = ()
    has_parked: bool = False
    parked: tuple[Parked, ...] | None = None

    @property
    def is_deleted(self) -> bool:
        """Whether events folded and left no prescription."""
        return self.prescription is None and bool(self.history.keys)


@value()
class Retry:
    """An operator had a record tried again: ``item`` is what it decodes to now.

    ``mark`` is the set-aside record itself when it is misrouted; it stands in another partition than the stream.
    """

    position: Position
    item: Accepted | Quarantined
    mark: SetAside | None = None


@value()
class Skip:
    """An operator had a record passed over; ``mark`` as in ``Retry``."""

    position: Position
    mark: SetAside | None = None


Item = Accepted | Quarantined
Arrival = Item | Retry | Skip


@dataclass(slots=True)
class Counts:
    """What became of a batch's events."""

    folded: int = 0
    duplicates: int = 0
    parked: int = 0
    quarantined: int = 0
    repaired: int = 0

    def add(self, other: Counts) -> None:
        """Add another batch's or stream's counts."""
        self.folded += other.folded
        self.duplicates += other.duplicates
        self.parked += other.parked
        self.quarantined += other.quarantined
        self.repaired += other.repaired


@value()
class FoldedStream:
    """The stream after a batch, and what to write: set-aside records to save, positions of those that are gone."""

    before: Stream
    prescription: Prescription | None
    history: History
    set_aside: dict[Position, SetAside]
    removed: frozenset[Position]
    deleted: bool
    counts: Counts


@value()
class Step:
    """The stream right after one event folded; ``attempt`` is the number of the attempt, from 1 within a batch."""

    attempt: int
    position: Position
    prescription: Prescription | None
    history: History


class Outcome(Enum):
    """What became of one event when it was tried."""

    FOLDED = auto()
    DUPLICATE = auto()
    PARKED = auto()
    QUARANTINED = auto()


def needs_parked(stream: Stream, items: Sequence[Arrival]) -> bool:
    """Whether folding ``items`` can move parked records, so that the shell must load them first.

    A blocked stream moves only when one of its open records is repaired: a long queue behind a block then costs
    nothing.
    """
    if not stream.has_parked:
        return False
    if any(isinstance(item, Retry | Skip) for item in items):
        return True
    accepted = [item.event.envelope for item in items if isinstance(item, Accepted)]
    keys = {envelope.key for envelope in accepted}
    broken = {item.event_key for item in items if isinstance(item, Quarantined)}
    may_repair = len(keys) < len(accepted) or any(record.event_key in keys for record in stream.open)
    if may_repair or not keys.isdisjoint(broken):
        return True
    if any(record.blocks for record in stream.open):
        return False
    expected = stream.history.next_sequence
    return expected is None or any((envelope.sequence or 0) <= expected for envelope in accepted)


Defects = Mapping[int, FieldError]
NO_DEFECTS: Defects = {}


def fold(stream: Stream, items: Sequence[Arrival], defects: Defects = NO_DEFECTS) -> FoldedStream:
    """Return ``stream`` after ``items``, which stand in log order, decisions at the offsets where they take effect.

    The arguments are left as they are. A decision about a record that is no longer open or parked changes nothing.
    An event on which our own code raises is set aside as ``fold_failed``; so is one whose attempt is in ``defects``,
    which the shell found to be refused by the database.
    """
    return _folding(stream, items, defects).result()


def steps(stream: Stream, items: Sequence[Arrival], defects: Defects = NO_DEFECTS) -> list[Step]:
    """Return the stream after each event that folds in ``fold`` with the same arguments, in the order of folding."""
    noted: list[Step] = []
    _folding(stream, items, defects, noted)
    return noted


def _folding(stream: Stream, items: Sequence[Arrival], defects: Defects, noted: list[Step] | None = None) -> _Folding:
    """Fold; when an attempt raises, begin again knowing which, since it may have left things half done."""
    known = dict(defects)
    while True:
        if noted is not None:
            noted.clear()
        folding = _Folding(stream, known, noted)
        try:
            folding.take(items)
        except AttemptFailed as failed:
            known[failed.attempt] = failed.error
        else:
            return folding


class AttemptFailed(Exception):
    """Our own code raised on an event: a defect."""

    def __init__(self, attempt: int, error: FieldError) -> None:
        super().__init__(error.message)
        self.attempt = attempt
        self.error = error


class _Folding:
    """The private copy that ``fold`` changes."""

    __slots__ = (
        "attempts",
        "counts",
        "defects",
        "deleted",
        "history",
        "known",
        "noted",
        "open",
        "parked",
        "prescription",
        "removed",
        "saved",
        "seen",
        "stream",
    )

    def __init__(self, stream: Stream, defects: Defects, noted: list[Step] | None) -> None:
        self.stream = stream
        self.defects = defects
        self.noted = noted
        self.attempts = 0
        self.seen: set[bytes] | None = None
        self.prescription = stream.prescription
        self.history = stream.history
        self.open = list(stream.open)
        parked = stream.parked or ()
        self.parked = {record.set_aside.position: record for record in parked}
        self.known = {record.set_aside.position: record.set_aside for record in parked}
        self.saved: dict[Position, SetAside] = {}
        self.removed: set[Position] = set()
        self.deleted = False
        self.counts = Counts()

    def take(self, items: Sequence[Arrival]) -> None:
        for item in items:
            match item:
                case Accepted():
                    self.accept(item)
                case Quarantined():
                    self.quarantine(item)
                case Retry():
                    self.retry_decided(item)
                case Skip():
                    self.skip_decided(item)

    def result(self) -> FoldedStream:
        return FoldedStream(
            before=self.stream,
            prescription=self.prescription,
            history=self.history,
            set_aside=self.saved,
            removed=frozenset(self.removed),
            deleted=self.deleted,
            counts=self.counts,
        )

    @property
    def is_deleted(self) -> bool:
        return self.prescription is None and bool(self.history.keys)

    def first_block(self) -> float:
        """Return where the first record that blocks stands; nothing after it moves."""
        if not self.open or self.is_deleted:
            return inf
        return min((record.stands_at for record in self.open if record.blocks), default=inf)

    def has(self, key: bytes) -> bool:
        return self.history.has(key) if self.seen is None else key in self.seen

    # what arrives -----------------------------------------------------------------------------------------------------

    def accept(self, item: Accepted) -> None:
        """An event that keeps the contract arrives: duplicate, repair, blocked, then whether it may fold."""
        key = item.event.envelope.key
        if self.has(key):
            self.counts.duplicates += 1
            return
        stands_at = item.record.position.offset
        if not (self.open or self.parked or self.stream.has_parked):
            self.attempt(item, stands_at)
            return
        repaired = [record for record in self.open if record.event_key == key]
        for record in repaired:
            self.settle(record, "repaired")
            self.counts.repaired += 1
            stands_at = min(stands_at, record.stands_at)
        if self.first_block() < stands_at:
            self.park(item, stands_at, Reason.BEHIND_BLOCK)
            outcome = Outcome.PARKED
        else:
            outcome = self.attempt(item, stands_at)
        if repaired or outcome is Outcome.FOLDED:
            self.release()

    def quarantine(self, item: Quarantined) -> None:
        """A record that breaks the contract arrives; it blocks from its own offset on."""
        self.set_open(_set_aside(item, item.record.position.offset, "open", item.reason, item.errors))

    # what it means ----------------------------------------------------------------------------------------------------

    def attempt(self, item: Accepted, stands_at: int) -> Outcome:
        """Try an event that nothing holds back: fold it, park it or set it aside."""
        self.attempts += 1
        if self.attempts in self.defects:
            return self.refuse(item, stands_at, Reason.FOLD_FAILED, self.defects[self.attempts])
        try:
            return self.tried(item, stands_at)
        except Exception as error:  # a bug of ours on this one event must not stop every other prescription
            raise AttemptFailed(self.attempts, defect(error)) from error

    def tried(self, item: Accepted, stands_at: int) -> Outcome:
        event = item.event
        if self.is_deleted:
            return self.refuse(item, stands_at, Reason.DELETED, FieldError("subject", "the prescription is deleted"))
        created = self.prescription is not None and self.prescription.kind is Kind.CREATED
        if created and isinstance(event, Created):
            return self.refuse(
                item,
                stands_at,
                Reason.DUPLICATE_PRESCRIPTION,
                FieldError("subject", "a prescription with this id was created by another event"),
            )
        if not created and not _may_precede_created(event, placeholder=self.prescription is not None):
            return self.park(item, stands_at, Reason.NOT_CREATED)
        sequence = event.envelope.sequence
        has_sequences = self.expects_sequence(event)
        if has_sequences:
            expected = self.history.next_sequence or 1
            if sequence is None:
                return self.refuse(
                    item,
                    stands_at,
                    Reason.SEQUENCE_CONFLICT,
                    FieldError("sequence", f"missing on a stream that has sequences; expected {expected}"),
                )
            if sequence < expected or sequence in self.history.passed:
                return self.refuse(
                    item,
                    stands_at,
                    Reason.SEQUENCE_CONFLICT,
                    FieldError("sequence", f"already seen; expected {expected}"),
                )
            if sequence > expected:
                return self.park(item, stands_at, Reason.SEQUENCE_GAP)
        return self.evolve(item, stands_at, has_sequences)

    def expects_sequence(self, event: Event) -> bool:
        """The first event that folds decides whether the stream has sequences."""
        if self.history.keys or self.history.next_sequence is not None:
            return self.history.next_sequence is not None
        return event.envelope.sequence is not None

    def evolve(self, item: Accepted, stands_at: int, has_sequences: bool) -> Outcome:
        event = item.event
        refused = contradiction(self.prescription, event) if self.prescription is not None else None
        if refused is not None:
            return self.refuse(item, stands_at, Reason.ILLEGAL_TRANSITION, refused)
        self.prescription = evolve(self.prescription, event)
        self.history = _remembering(self.history, item, has_sequences)
        self.counts.folded += 1
        if self.seen is not None:
            self.seen.add(event.envelope.key)
        if isinstance(event, Deleted):
            self.forget()
        if self.noted is not None:
            self.noted.append(Step(self.attempts, item.record.position, self.prescription, self.history))
        return Outcome.FOLDED

    def forget(self) -> None:
        """A deletion leaves idempotency keys; parked events will never fold; what was set aside loses its content."""
        self.deleted = True
        self.history = History(keys=self.history.keys)
        for parked in self.parked.values():
            record = replace(parked.set_aside, state="open", reason=Reason.DELETED)
            self.saved[record.position] = record
            self.open.append(record)
            self.counts.quarantined += 1
        self.parked.clear()
        self.open = [record.without_content() for record in self.open]
        self.saved = {position: record.without_content() for position, record in self.saved.items()}

    # what operators decide --------------------------------------------------------------------------------------------

    def retry_decided(self, decision: Retry) -> None:
        """The record joins the parked ones at its own place; one that breaks the contract still is open again."""
        if decision.mark is not None:
            if not self.is_settled(decision.mark):
                self.retry_mark(decision.mark, decision.item)
            return
        record = next((record for record in self.open if record.position == decision.position), None)
        if record is None or self.is_deleted:
            return
        self.open.remove(record)
        if isinstance(decision.item, Quarantined):
            self.set_open(
                _set_aside(decision.item, record.stands_at, "open", decision.item.reason, decision.item.errors)
            )
            return
        parked = _set_aside(decision.item, record.stands_at, "parked", Reason.BEHIND_BLOCK, ())
        self.parked[record.position] = Parked(parked, decision.item)
        self.saved[record.position] = self.known[record.position] = parked
        self.release()
        if record.position in self.removed:
            # It did not vanish like a parked one: what was quarantined keeps its row, and its row says how it ended.
            self.removed.discard(record.position)
            self.saved[record.position] = replace(record, state="retried")

    def is_settled(self, record: SetAside) -> bool:
        """Whether an earlier decision of this same fold settled the record; a stored one is not handed in any more."""
        return self.saved.get(record.position, record).state in {"retried", "skipped"}

    def retry_mark(self, mark: SetAside, item: Item) -> None:
        """A misrouted record folds at the stream's present place, or leaves its mark."""
        if isinstance(item, Quarantined) or self.first_block() < inf:
            return
        counts = replace(self.counts)
        if self.has(item.event.envelope.key):
            self.counts.duplicates += 1
        elif self.attempt(item, item.record.position.offset) is not Outcome.FOLDED:
            self.parked.pop(mark.position, None)
            self.known.pop(mark.position, None)
            self.saved.pop(mark.position, None)
            self.open = [record for record in self.open if record.position != mark.position]
            self.counts = counts
            return
        self.saved[mark.position] = replace(mark, state="retried")
        self.release()

    def skip_decided(self, decision: Skip) -> None:
        """The record is passed over, and on a stream with sequences its number counts as seen.

        On a record that waits for missing numbers it means that these will not come.
        """
        waiting = self.parked.get(decision.position)
        if waiting is not None and waiting.set_aside.reason is Reason.SEQUENCE_GAP:
            self.pass_missing_numbers(decision.position)
            return
        record = decision.mark or next((r for r in self.open if r.position == decision.position), None)
        if record is None or self.is_settled(record):
            return
        if record in self.open:
            self.open.remove(record)
        self.saved[record.position] = replace(record, state="skipped")
        if not self.is_deleted:
            self.count_as_seen(record)
            self.release()

    def pass_missing_numbers(self, position: Position) -> None:
        """Let the record at ``position`` and all parked before it in sequence fold; only what is missing is passed."""
        passed = 0
        while position in self.parked:
            expected = self.history.next_sequence or 1
            numbers = [parked.set_aside.sequence for parked in self.parked.values()]
            lowest = min((number for number in numbers if number is not None and number >= expected), default=0)
            if lowest <= passed:
                return
            passed = lowest
            self.expect(lowest)
            self.release()

    def count_as_seen(self, record: SetAside) -> None:
        """Count the record's own sequence as seen, else the next number, unless a parked event carries it."""
        history = self.history
        begins = not history.keys and history.next_sequence is None
        if (begins and record.sequence is None) or (not begins and history.next_sequence is None):
            return
        expected = history.next_sequence or 1
        number = expected if record.sequence is None else record.sequence
        if any(parked.set_aside.sequence == number for parked in self.parked.values()) or number < expected:
            return
        self.history = history._replace(next_sequence=expected, passed=tuple(sorted({*history.passed, number})))
        self.expect(expected)

    def expect(self, number: int) -> None:
        """Expect ``number`` next, or the first one after it that did not pass already."""
        number, passed = _expecting(number, self.history.passed)
        self.history = self.history._replace(next_sequence=number, passed=passed)

    # what waits -------------------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Try the parked events that stand before the first block, until none moves."""
        if self.stream.has_parked and self.stream.parked is None:
            raise AssertionError("needs_parked said that the parked records are not needed")
        waiting = self.in_order()
        if self.seen is None and len(waiting) > MANY:
            self.seen = set(self.history.each_key())
        stayed: list[Parked] = []
        while waiting:
            parked = waiting.popleft()
            position = parked.set_aside.position
            if position not in self.parked or parked.set_aside.stands_at > self.first_block():
                continue
            had_sequences = self.history.next_sequence is not None
            outcome = self.retry(parked)
            if outcome is Outcome.PARKED:
                stayed.append(self.parked[position])
            elif outcome is Outcome.FOLDED:
                if had_sequences != (self.history.next_sequence is not None):
                    waiting = self.in_order()
                else:
                    waiting.extendleft(reversed(stayed))
                stayed.clear()

    def in_order(self) -> deque[Parked]:
        """By sequence, then place, those without a sequence last; on a stream without sequences by place."""
        sequenced = self.history.next_sequence is not None

        def order(parked: Parked) -> tuple[float, int]:
            sequence = parked.set_aside.sequence if sequenced else 0
            return (inf if sequence is None else sequence, parked.set_aside.stands_at)

        return deque(sorted(self.parked.values(), key=order))

    def retry(self, parked: Parked) -> Outcome:
        """Try a parked event again; its row goes when it folds or turns out to be a copy."""
        record, item = parked.set_aside, parked.item
        del self.parked[record.position]
        if isinstance(item, Quarantined):
            self.set_open(_set_aside(item, record.stands_at, "open", item.reason, item.errors))
            return Outcome.QUARANTINED
        if self.has(item.event.envelope.key):
            self.counts.duplicates += 1
            self.remove(record.position)
            return Outcome.DUPLICATE
        outcome = self.attempt(item, record.stands_at)
        if outcome is Outcome.FOLDED:
            self.remove(record.position)
        return outcome

    # where it goes ----------------------------------------------------------------------------------------------------

    def park(self, item: Accepted, stands_at: int, reason: Reason) -> Outcome:
        record = _set_aside(item, stands_at, "parked", reason, ())
        known = self.known.get(record.position)
        if known is None:
            self.counts.parked += 1
        if known != record:
            self.saved[record.position] = self.known[record.position] = record
        self.parked[record.position] = Parked(record, item)
        return Outcome.PARKED

    def remove(self, position: Position) -> None:
        self.saved.pop(position, None)
        self.removed.add(position)

    def refuse(self, item: Accepted, stands_at: int, reason: Reason, error: FieldError) -> Outcome:
        self.set_open(_set_aside(item, stands_at, "open", reason, (error,)))
        return Outcome.QUARANTINED

    def set_open(self, record: SetAside) -> None:
        if self.is_deleted:
            record = record.without_content()
        self.open.append(record)
        self.saved[record.position] = record
        self.counts.quarantined += 1

    def settle(self, record: SetAside, state: str) -> None:
        self.open.remove(record)
        self.saved[record.position] = replace(record, state=state)


def _may_precede_created(event: Event, *, placeholder: bool) -> bool:
    """Whether an event folds on a stream that does not exist yet or holds early cancellations only."""
    if isinstance(event, Cancelled):
        return event.outcome == "pending" or (placeholder and event.outcome == "unsuccessful")
    return isinstance(event, Created) or (placeholder and isinstance(event, Expired | Deleted))


def _remembering(history: History, item: Accepted, has_sequences: bool) -> History:
    """Return the history with one more event; on a stream with sequences its number has passed."""
    keys, positions, next_sequence, passed = history
    envelope, position = item.event.envelope, item.record.position
    if has_sequences and envelope.sequence is not None:
        next_sequence, passed = _expecting(envelope.sequence + 1, passed)
    place = position.partition.to_bytes(4, "big") + position.offset.to_bytes(8, "big")
    return History(keys + envelope.key, positions + place, next_sequence, passed)


def _expecting(number: int, passed: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Return the first number from ``number`` on that did not pass already, and the passed ones above it."""
    while number in passed:
        number += 1
    return number, tuple(other for other in passed if other > number) if passed else passed


def _set_aside(
    item: Accepted | Quarantined, stands_at: int, state: str, reason: Reason, errors: tuple[FieldError, ...]
) -> SetAside:
    record = item.record
    if isinstance(item, Quarantined):
        return SetAside(
            position=record.position,
            stream_key=item.stream_key,
            stands_at=stands_at,
            state=state,
            reason=reason,
            errors=errors,
            timestamp_ms=record.timestamp_ms,
            record=record,
            sequence=item.sequence,
            event_key=item.event_key,
            event_source=item.event_source,
            event_id=item.event_id,
            event_type=item.event_type,
            nhs_number=item.nhs_number,
        )
    event = item.event
    return SetAside(
        position=record.position,
        stream_key=event.envelope.stream_key,
        stands_at=stands_at,
        state=state,
        reason=reason,
        errors=errors,
        timestamp_ms=record.timestamp_ms,
        record=record,
        sequence=event.envelope.sequence,
        event_key=event.envelope.key,
        event_source=event.envelope.source,
        event_id=event.envelope.id,
        event_type=TYPE_OF[type(event)],
        nhs_number=event.nhs_number if isinstance(event, Created) else None,
    )


def mark(item: Quarantined) -> SetAside:
    """Return a record that blocks no stream: misrouted (it marks the stream it names), or of a stream unknown."""
    return _set_aside(item, item.record.position.offset, "open", item.reason, item.errors)
