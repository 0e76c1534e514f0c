"""What holds for every log: batches, duplicates and delays do not show, and a repair makes good what was broken.

A *life* is events that fold one after the other. A *log* is whatever may stand in a topic: events that fit and events
that do not, copies, broken records and their repairs, with sequences, without, or with wrong ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from projector.batch import Accepted, Quarantined
from projector.prescription import Kind, Prescription, contradiction, evolve
from projector.stream import Arrival, Counts, Item, Retry, Skip, fold
from schemas.events import Cancelled, CorrectedIssue, Created, Deleted, Event, Expired
from tests.unit.given import (
    CANCELLATION,
    ITEMS,
    OTHER_NHS_NUMBER,
    OTHER_PHARMACY,
    SECOND_CANCELLATION,
    UNKNOWN_ITEM,
    StoredStream,
    at,
    broken,
    cancelled,
    claimed,
    corrected,
    corrected_to,
    created,
    days_later,
    deleted,
    dispense_withdrawn,
    dispensed,
    expired,
    issued,
    nominated,
    not_claimed,
    prescribed_items,
    released,
    repeat_dispensing,
    returned,
)

ITEM_STATUSES = [("0001", "0001"), ("0003", "0001"), ("0002", "0002"), ("0001", "0005"), ("0008", "0006")]


def first_events() -> list[Event]:
    few = prescribed_items(2, issues=3, last_item_issues=1)
    return [created(), repeat_dispensing(3), repeat_dispensing(3, line_items=few), cancelled("pending", id="early")]


def next_events(number: int, last_notification: str) -> Iterator[Event]:
    """Events of every type that may or may not follow; ``number`` makes their ids and times."""
    made = {"id": f"event {number}", "time": days_later(number)}
    new = f"{number:08}-5E36-4F18-A0C4-7D91E2F3B601"
    yield created(**made)
    yield repeat_dispensing(3, **made)
    for issue_number in (1, 2, 3):
        issue = made | {"issue_number": issue_number}
        yield issued(**issue, status="0000")
        yield issued(**issue)
        yield released(**issue)
        yield returned(**issue)
        for sent in ITEM_STATUSES:
            yield dispensed(*sent, **issue, notification_id=new)
            yield dispensed(*sent, **issue, notification_id=new, amends=last_notification)
        yield dispense_withdrawn(**issue, notification_id=last_notification)
        yield claimed(**issue)
        yield claimed(**issue, amends=CANCELLATION)
        yield not_claimed(**issue)
        yield expired(**issue)
        yield corrected_to("0001", "0007", "0007", **issue)
        yield corrected(CorrectedIssue(issue_number, "0002", dispensing_organisation=OTHER_PHARMACY), **made)
    for outcome in ("applied", "pending", "unsuccessful"):
        for cancellation in (CANCELLATION, SECOND_CANCELLATION):
            yield cancelled(outcome, **made, cancellation_id=cancellation)
            yield cancelled(outcome, **made, cancellation_id=cancellation, line_item_id=ITEMS[1], issue_number=1)
        yield cancelled(outcome, **made, line_item_id=UNKNOWN_ITEM)
        yield cancelled(outcome, **made, nhs_number=OTHER_NHS_NUMBER)
    yield nominated(**made)
    yield nominated(**made, nominated_dispenser=None)
    yield corrected(**made, current_issue_number=2)
    yield deleted(**made)


def last_notification(state: Prescription | None) -> str:
    return state.notifications[-1].id if state is not None and state.notifications else UNKNOWN_ITEM


def may_follow(state: Prescription | None, event: Event) -> bool:
    """Whether the event folds: the rules of a created prescription, of a placeholder and of no prescription."""
    if state is None:
        return isinstance(event, Created) or (isinstance(event, Cancelled) and event.outcome == "pending")
    if state.kind is Kind.PLACEHOLDER:
        early = isinstance(event, Cancelled) and event.outcome != "applied"
        return (early or isinstance(event, Created | Expired | Deleted)) and contradiction(state, event) is None
    return not isinstance(event, Created) and contradiction(state, event) is None


def numbered(event: Event, sequence: int | None) -> Event:
    return replace(event, envelope=replace(event.envelope, sequence=sequence))


@st.composite
def lives(draw: st.DrawFn) -> list[Event]:
    """Events that fold one after the other, perhaps up to a deletion."""
    life: list[Event] = [draw(st.sampled_from(first_events()))]
    state = evolve(None, life[0])
    for number in range(1, draw(st.integers(0, 9)) + 1):
        if state is None:
            break
        fitting = [event for event in next_events(number, last_notification(state)) if may_follow(state, event)]
        life.append(draw(st.sampled_from(fitting)))
        state = evolve(state, life[-1])
    return life


@st.composite
def logs(draw: st.DrawFn, *, decisions: bool = False) -> list[Any]:
    """Records of one stream, ten offsets apart: most of them fit, the others do not; operators may decide between."""
    sequenced = draw(st.booleans())
    stream = StoredStream(always_load_parked=True)
    seen: list[Event] = []
    log: list[Arrival] = []
    for number in range(draw(st.integers(1, 10))):
        offset = 10 * number
        kind = draw(
            st.sampled_from(["fits", "fits", "fits", "any", "copy", "repair", "broken", *["decision"] * decisions])
        )
        known_ids = [event.envelope.id for event in seen] + [row.event_id for row in stream.set_aside.values()]
        if kind == "decision" and stream.set_aside:
            position = draw(st.sampled_from(sorted(stream.set_aside)))
            item: Arrival = Skip(position)
            if draw(st.booleans()):
                item = Retry(position, stream.decoded[position])
                if isinstance(item.item, Quarantined) and draw(st.booleans()):
                    event = _drawn(draw, stream, number, fits=True, sequenced=sequenced)
                    item = Retry(position, Accepted(item.item.record, event))
        elif kind == "copy" and seen:
            item = at(offset, draw(st.sampled_from(seen)))
        elif kind == "broken":
            item = broken(offset, id=draw(st.sampled_from([None, f"event {number}", *known_ids])))
        else:
            item = at(offset, _drawn(draw, stream, number, fits=kind != "any", sequenced=sequenced))
            opened = [row.event_id for row in stream.set_aside.values() if row.state == "open" and row.event_id]
            if kind == "repair" and opened:
                other = replace(item.event.envelope, **_identity(draw(st.sampled_from(opened))))
                item = at(offset, replace(item.event, envelope=other))
            seen.append(item.event)
        log.append(item)
        stream.fold(item)
    return log


def _drawn(draw: st.DrawFn, stream: StoredStream, number: int, *, fits: bool, sequenced: bool) -> Event:
    state = stream.prescription
    events = [*first_events(), *next_events(number, last_notification(state))]
    fitting = [event for event in events if may_follow(state, event)]
    event = draw(st.sampled_from(fitting if fits else events))
    if not sequenced:
        return event
    expected = stream.history.next_sequence or 1
    return numbered(event, draw(st.sampled_from([expected, expected, expected, expected + 1, expected + 2, 1, None])))


def _identity(event_id: str) -> dict[str, object]:
    envelope = nominated(id=event_id).envelope
    return {"id": envelope.id, "key": envelope.key, "source": envelope.source}


def cuts_of(length: int) -> st.SearchStrategy[list[int]]:
    return st.sets(st.integers(1, max(1, length - 1))).map(lambda cuts: [0, *sorted(cuts - {length}), length])


def fold_in_batches(stream: StoredStream, log: list[Arrival], cuts: list[int]) -> Counts:
    counts = Counts()
    for start, stop in pairwise(cuts):
        counts.add(stream.fold(*log[start:stop]).counts)
    return counts


def content(stream: StoredStream) -> tuple[object, ...]:
    return (stream.prescription, stream.history, stream.set_aside)


@settings(max_examples=150)
@given(st.data(), logs(decisions=True))
def test_where_a_stream_is_cut_into_batches_does_not_matter(data: st.DataObject, log: list[Arrival]):
    whole, cut = StoredStream(), StoredStream()
    counted = asdict(whole.fold(*log).counts)
    counted_in_parts = asdict(fold_in_batches(cut, log, data.draw(cuts_of(len(log)))))
    assert content(cut) == content(whole)
    assert counted_in_parts == counted


@settings(max_examples=150)
@given(st.data(), logs(decisions=True))
def test_parked_records_are_loaded_whenever_they_are_needed(data: st.DataObject, log: list[Arrival]):
    cuts = data.draw(cuts_of(len(log)))
    always, when_needed = StoredStream(always_load_parked=True), StoredStream()
    assert fold_in_batches(when_needed, log, cuts) == fold_in_batches(always, log, cuts)
    assert content(when_needed) == content(always)


@settings(max_examples=150)
@given(st.data(), logs())
def test_an_event_that_folded_may_come_again_at_any_time(data: st.DataObject, log: list[Item]):
    once, repeated = StoredStream(), StoredStream()
    events = [item.event for item in log if isinstance(item, Accepted)]
    for item in log:
        once.fold(item)
        repeated.fold(item)
        folded = [event for event in events if once.history.has(event.envelope.key)]
        if folded and data.draw(st.booleans()):
            copy = data.draw(st.sampled_from(folded))
            counts = repeated.fold(at(item.record.position.offset + 1, copy)).counts
            assert counts == Counts(duplicates=1)
    assert content(repeated) == content(once)


@settings(max_examples=150)
@given(st.data(), lives())
def test_with_sequences_the_order_of_arrival_does_not_matter(data: st.DataObject, life: list[Event]):
    life = [numbered(event, sequence) for sequence, event in enumerate(life, start=1)]
    repeated = data.draw(st.lists(st.sampled_from([event for event in life if not isinstance(event, Deleted)])))
    shuffled = data.draw(st.permutations([*life, *repeated]))
    log = [at(offset, event) for offset, event in enumerate(shuffled)]
    in_order, as_it_came = StoredStream(), StoredStream()
    in_order.fold(*(at(offset, event) for offset, event in enumerate(life)))
    fold_in_batches(as_it_came, log, data.draw(cuts_of(len(log))))
    assert as_it_came.prescription == in_order.prescription
    assert as_it_came.history.keys == in_order.history.keys == b"".join(event.envelope.key for event in life)
    assert as_it_came.history.next_sequence == in_order.history.next_sequence
    assert as_it_came.set_aside == in_order.set_aside == {}


@settings(max_examples=150)
@given(st.data(), lives(), st.booleans())
def test_repairs_make_good_what_was_broken(data: st.DataObject, life: list[Event], sequenced: bool):
    life = [numbered(event, sequence if sequenced else None) for sequence, event in enumerate(life, start=1)]
    to_break = data.draw(st.sets(st.integers(0, len(life) - 1), min_size=1))
    log: list[Item] = []
    repairs: list[Event] = []
    for number, event in enumerate(life):
        offset = 10 * number
        log.append(broken(offset, id=event.envelope.id) if number in to_break else at(offset, event))
        repairs += [event] if number in to_break else []
        if data.draw(st.booleans()) and len(repairs) > 1:
            log.append(at(offset + 5, repairs.pop(data.draw(st.integers(0, len(repairs) - 1)))))
    log += [at(10 * len(life) + n, repair) for n, repair in enumerate(data.draw(st.permutations(repairs)))]
    unbroken, repaired = StoredStream(), StoredStream()
    unbroken.fold(*(at(offset, event) for offset, event in enumerate(life)))
    fold_in_batches(repaired, log, data.draw(cuts_of(len(log))))
    assert repaired.prescription == unbroken.prescription
    assert repaired.history.keys == unbroken.history.keys
    assert set(repaired.states().values()) == {"repaired"}


@settings(max_examples=150)
@given(logs(decisions=True))
def test_a_prescription_is_consistent_after_every_record(log: list[Arrival]):
    stream = StoredStream()
    for item in log:
        stream.fold(item)
        state = stream.prescription
        assert (state is None) == (stream.history.keys == b"" or stream.load().is_deleted)
        if state is None:
            continue
        assert state.version == stream.history.version == len(stream.folded)
        assert [issue.number for issue in state.issues] == list(range(1, state.prescribed.issues_authorised + 1))
        assert 1 <= state.current_issue <= len(state.issues)
        assert [entry.number for entry in state.cancellations] == list(range(1, len(state.cancellations) + 1))
        for issue in state.issues:
            assert len(issue.item_statuses) == len(state.prescribed.line_items)
            assert 1 <= issue.version <= state.version


@settings(max_examples=150)
@given(logs())
def test_every_record_folds_is_a_duplicate_or_is_kept(log: list[Item]):
    stream = StoredStream()
    counts = fold_in_batches(stream, log, [0, len(log)])
    kept_or_known = {position.offset for position in stream.set_aside}
    for item in log:
        if item.record.position.offset in kept_or_known:
            continue
        assert isinstance(item, Accepted)
        assert stream.history.has(item.event.envelope.key)
    assert counts.folded == stream.history.version
    assert counts.folded + counts.duplicates + len(stream.set_aside) == len(log)


@settings(max_examples=150)
@given(logs(), logs())
def test_fold_leaves_its_arguments_as_they_are(log: list[Item], more: list[Item]):
    stored = StoredStream(always_load_parked=True)
    stored.fold(*log)
    later = [
        replace(item, record=replace(item.record, position=replace(item.record.position, offset=1000 + n)))
        for n, item in enumerate(more)
    ]
    stream = stored.load(later)
    before = repr((stream, later))
    first = fold(stream, later)
    assert repr((stream, later)) == before
    assert fold(stream, later) == first
