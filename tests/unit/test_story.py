"""The story of a stream: what each arrival did to it, in the order in which it did."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from projector.batch import Position, Reason
from projector.story import Change, Happening, changes, outline, plain, tell, until, with_marks
from projector.stream import Retry, Skip, Stream, fold
from tests.unit.given import (
    PARTITION,
    PHARMACY,
    STREAM_KEY,
    SURGERY,
    TOPIC,
    at,
    broken,
    cancelled,
    claimed,
    created,
    days_later,
    deleted,
    dispensed,
    log,
    misrouted,
    nominated,
    record,
    released,
    retried_mark,
)


def told(*arrivals):
    return tell(STREAM_KEY, PARTITION, [Happening(arrival) for arrival in arrivals])


def position(offset: int) -> Position:
    return Position(TOPIC, PARTITION, offset)


def outcomes(story):
    return [(step.position.offset, step.outcome, step.version) for step in story.steps]


def test_each_event_that_folds_is_a_step_with_what_it_changed():
    story = told(*log(created(), released()))
    assert outcomes(story) == [(0, "folded", 1), (1, "folded", 2)]
    assert Change("issues.1.status", "0001", "0002") in story.steps[1].changes
    assert Change("issues.1.dispenser_ods", None, PHARMACY.ods) in story.steps[1].changes
    assert all(change.before is None for change in story.steps[0].changes)


def test_the_end_of_the_story_is_the_fold_of_it_all():
    arrivals = [
        at(0, released(sequence=2)),
        at(1, created(sequence=1)),
        broken(2, id="d"),
        at(3, claimed(sequence=4)),
        at(4, dispensed(sequence=3, id="d")),
    ]
    story = told(*arrivals)
    assert story.prescription == fold(Stream(STREAM_KEY, PARTITION), arrivals).prescription
    assert story.blocked is None


def test_what_was_released_follows_what_released_it_and_says_so():
    story = told(at(0, released()), at(1, created()))
    assert outcomes(story) == [(0, "parked", None), (1, "folded", 1), (0, "folded", 2)]
    assert [step.because_of for step in story.steps] == [None, None, str(position(1))]
    assert story.steps[0].waiting_for == "created"


def test_a_record_behind_a_block_waits_for_the_record_that_blocks():
    story = told(at(0, created()), broken(1), at(2, released()))
    assert outcomes(story)[1:] == [(1, "quarantined", None), (2, "parked", None)]
    assert story.steps[2].waiting_for == str(position(1))
    assert story.blocked == "contract_violation"


def test_a_gap_waits_for_its_number():
    story = told(at(0, created(sequence=1)), at(1, released(sequence=3)))
    assert story.steps[1].waiting_for == "sequence 2"
    assert story.blocked == "sequence_gap"


def test_a_repair_names_what_it_repairs():
    story = told(at(0, created()), broken(1, id="r"), at(2, released(id="r")))
    assert outcomes(story) == [(0, "folded", 1), (1, "quarantined", None), (2, "folded", 2)]
    assert story.steps[2].repairs == (position(1),)
    assert [row.state for row in story.set_aside] == ["repaired"]


def test_a_released_event_that_is_refused_blocks_in_its_turn():
    story = told(at(0, created()), broken(1, id="r"), at(2, claimed()), at(3, released(id="r")))
    last = story.steps[-1]
    assert (last.position, last.outcome, last.reason) == (position(2), "quarantined", Reason.ILLEGAL_TRANSITION)
    assert last.because_of == str(position(3))


def test_a_copy_is_a_duplicate():
    assert outcomes(told(at(0, created()), at(1, created())))[1] == (1, "duplicate", None)


def test_a_parked_copy_is_a_duplicate_once_the_first_has_folded():
    story = told(at(0, released()), at(1, released()), at(2, created()))
    assert outcomes(story)[2:] == [(2, "folded", 1), (0, "folded", 2), (1, "duplicate", None)]


def test_a_skip_tells_its_decision_and_what_it_let_fold():
    happenings = [Happening(item) for item in (at(0, created()), broken(1), at(2, released()))]
    story = tell(STREAM_KEY, PARTITION, [*happenings, Happening(Skip(position(1)), 7)])
    assert outcomes(story)[3:] == [(1, "skipped", None), (2, "folded", 2)]
    assert story.steps[3].decision == 7
    assert story.steps[4].because_of == "decision 7"


def test_a_retry_that_folds_tells_both():
    story = told(at(0, created()), broken(1), Retry(position(1), at(1, released())))
    assert outcomes(story)[2:] == [(1, "retried", None), (1, "folded", 2)]


def test_a_retry_that_is_refused_again_says_why():
    story = told(at(0, created()), broken(1), Retry(position(1), at(1, claimed())))
    assert outcomes(story)[2:] == [(1, "refused", None)]
    assert story.steps[2].reason is Reason.ILLEGAL_TRANSITION


def test_a_skipped_gap_lets_the_record_itself_fold():
    story = told(at(0, created(sequence=1)), at(1, released(sequence=3)), Skip(position(1)))
    assert outcomes(story)[2:] == [(1, "skipped", None), (1, "folded", 2)]


def test_a_decision_about_a_settled_record_does_nothing():
    story = told(at(0, created()), broken(1), Skip(position(1)), Skip(position(1)))
    assert outcomes(story)[2:] == [(1, "skipped", None), (1, "nothing", None)]


def test_a_misrouted_record_marks_until_it_is_retried():
    mark = misrouted(5)
    assert told(at(0, created()), mark).blocked == "misrouted"
    story = told(at(0, created()), mark, retried_mark(mark, released()))
    assert [(step.position, step.outcome) for step in story.steps[1:]] == [
        (mark.position, "quarantined"),
        (mark.position, "retried"),
        (mark.position, "folded"),
    ]
    assert story.blocked is None


def test_an_early_cancellation_is_told_with_the_placeholder_and_when_it_applies():
    story = told(at(0, cancelled(outcome="pending")), at(1, created()))
    paths = [change.path for change in story.steps[0].changes]
    (cancellation,) = {path.split(".")[1] for path in paths if path.startswith("cancellations.")}
    assert Change(f"cancellations.{cancellation}.state", "pending", "applied") in story.steps[1].changes


def test_a_deletion_ends_the_story():
    story = told(at(0, created()), broken(1), at(2, released()), at(3, deleted()), Skip(position(1)))
    assert story.is_deleted
    assert story.blocked is None
    assert all(row.record is None for row in story.set_aside)


def test_a_deletion_is_a_step():
    assert outcomes(told(at(0, created()), at(1, deleted())))[1] == (1, "folded", 2)


def test_names_numbers_and_medicines_are_not_told():
    story = told(*log(created(), released(), dispensed(), claimed()))
    said = repr([step.changes for step in story.steps]) + repr(plain(story.prescription))
    prescribed = story.prescription.prescribed
    secrets = [prescribed.nhs_number, SURGERY.name, SURGERY.telecom, PHARMACY.name, PHARMACY.address]
    secrets += [text for item in prescribed.line_items for text in (item.description, item.code, item.dosage)]
    assert [secret for secret in secrets if secret in said] == []


def test_nothing_changes_between_equal_states():
    state = told(at(0, created())).prescription
    assert list(changes(state, state)) == []
    assert list(changes(None, None)) == []


# where things stand ---------------------------------------------------------------------------------------------------


def stamped(offset: int, event, minutes: int):
    item = at(offset, event)
    return replace(item, record=replace(item.record, timestamp_ms=minutes * 60_000))


@pytest.mark.parametrize(("end", "version"), [(0, 0), (1, 1), (2, 2), (9, 3)])
def test_what_stands_before_the_end_of_its_partition_had_come(end, version):
    happenings = [Happening(at(0, created())), Happening(at(1, released())), Happening(at(2, dispensed()))]
    story = tell(STREAM_KEY, PARTITION, until(happenings, {PARTITION: end}))
    assert (story.prescription.version if story.prescription else 0) == version


def test_a_mark_had_come_when_its_own_partition_had_come_to_it_and_decisions_are_left_to_whoever_chose_them():
    mark = misrouted(8)
    decided = Happening(Skip(mark.position, mark), 1)
    ends = {mark.position.partition: 8}
    assert until([Happening(mark), decided], ends) == [decided]
    assert until([Happening(mark), decided], {mark.position.partition: 9}) == [Happening(mark), decided]


def test_marks_stand_where_their_timestamps_say_and_before_decisions_about_them():
    early, late = (replace(misrouted(offset), timestamp_ms=ms) for offset, ms in ((8, 30_000), (9, 999_000)))
    happenings = [Happening(stamped(0, created(), 1)), Happening(Skip(late.position, late), 1)]
    placed = with_marks(happenings, [late, early])
    assert [happening.arrival for happening in placed] == [
        early,
        happenings[0].arrival,
        late,
        happenings[1].arrival,
    ]


def test_what_is_known_without_the_log_is_told_by_place():
    story = told(at(0, created()), broken(2), at(3, released()))
    steps = outline([position(0), position(1)], story.set_aside, {position(1): at(1, released(id="r"))})
    assert [(step.position.offset, step.outcome) for step in steps] == [
        (0, "folded"),
        (1, "folded"),
        (2, "quarantined"),
        (3, "parked"),
    ]
    assert [step.event is None for step in steps] == [True, False, False, False]


def test_an_event_is_described_by_its_envelope():
    (step,) = told(at(0, created(sequence=1, time=days_later(1)))).steps
    assert (step.event.type, step.event.sequence, step.event.time) == ("eps.prescription.created.v1", 1, days_later(1))
    assert step.event.arrived_ms == record(0).timestamp_ms


def test_a_long_queue_behind_a_block_is_told_in_time():
    queue = [at(offset, nominated(id=f"n-{offset}")) for offset in range(2, 10_000)]
    started = time.perf_counter()
    story = told(at(0, created()), broken(1, id="r"), *queue, at(10_000, released(id="r")))
    assert story.prescription.version == 10_000
    assert time.perf_counter() - started < 10
