"""What operators decide: a record is tried again in its place, or passed over, and what waited behind it moves."""

from __future__ import annotations

from dataclasses import replace

from projector.batch import Accepted, Position, Quarantined, Reason
from projector.stream import NO_HISTORY, Retry, Skip, fold, mark
from tests.unit.given import (
    PARTITION,
    STREAM_KEY,
    TOPIC,
    StoredStream,
    at,
    broken,
    claimed,
    created,
    deleted,
    dispensed,
    nominated,
    record,
    released,
    stored,
)


def blocked_with_two_behind() -> StoredStream:
    """Created; a broken record at 1 that a fix would read as ``released``; dispensed and claimed parked behind it."""
    stream = stored(created())
    stream.fold(broken(1, id="broken"), at(2, dispensed()), at(3, claimed()))
    assert stream.parked == {2: "behind_block", 3: "behind_block"}
    return stream


# retry ----------------------------------------------------------------------------------------------------------------


def test_a_retried_record_folds_in_its_place_with_all_that_waited_behind_it():
    stream = blocked_with_two_behind()
    stream.retry(1, at(1, released()))
    assert stream.folded == [0, 1, 2, 3]
    assert stream.status == "0008"


def test_a_retried_record_keeps_its_row_and_says_how_it_ended():
    stream = blocked_with_two_behind()
    stream.retry(1, at(1, released()))
    assert stream.states() == {1: "retried"}


def test_a_record_that_still_breaks_the_contract_is_open_again_and_blocks():
    stream = blocked_with_two_behind()
    stream.retry(1)
    assert stream.open == {1: "contract_violation"}
    assert stream.parked == {2: "behind_block", 3: "behind_block"}


def test_a_record_that_the_rules_still_refuse_is_open_again():
    stream = stored(created())
    stream.fold(at(1, claimed()), at(2, released()))
    stream.retry(1)
    assert stream.open == {1: "illegal_transition"}
    assert stream.parked == {2: "behind_block"}


def test_a_retried_record_ahead_of_its_turn_waits_like_any_other():
    stream = stored(created(sequence=1))
    stream.fold(broken(1, id="broken", sequence=3), at(2, released(sequence=2)))
    stream.retry(1, at(1, dispensed(sequence=3)))
    assert stream.folded == [0, 2, 1]
    assert stream.states() == {1: "retried"}


def test_a_retried_copy_of_what_folded_counts_as_duplicate():
    stream = stored(created(), released())
    stream.fold(broken(2, id="broken"))
    folded = stream.retry(2, at(2, released()))
    assert folded.counts.duplicates == 1
    assert stream.states() == {2: "retried"}


def test_a_retry_of_what_is_no_longer_open_changes_nothing():
    stream = blocked_with_two_behind()
    stream.skip(1)
    before = (stream.prescription, stream.history, stream.states())
    stream.retry(1, at(1, released()))
    assert (stream.prescription, stream.history, stream.states()) == before


# skip -----------------------------------------------------------------------------------------------------------------


def test_a_skipped_record_is_passed_over_and_the_rest_folds():
    stream = stored(created(), released())
    stream.fold(broken(2), at(3, dispensed()))
    stream.skip(2)
    assert stream.folded == [0, 1, 3]
    assert stream.states() == {2: "skipped"}


def test_what_cannot_follow_without_the_skipped_record_blocks_in_its_turn():
    stream = blocked_with_two_behind()
    stream.skip(1)
    assert stream.open == {2: "illegal_transition"}
    assert stream.parked == {3: "behind_block"}


def test_a_skipped_record_s_own_sequence_counts_as_seen():
    stream = stored(created(sequence=1))
    stream.fold(broken(1, sequence=2), at(2, released(sequence=3)))
    stream.skip(1)
    assert stream.folded == [0, 2]
    assert stream.history.next_sequence == 4


def test_without_a_readable_sequence_the_next_number_counts_as_seen():
    stream = stored(created(sequence=1))
    stream.fold(broken(1), at(2, released(sequence=3)))
    stream.skip(1)
    assert stream.folded == [0, 2]


def test_a_parked_event_with_the_skipped_number_takes_its_place():
    stream = stored(created(sequence=1))
    stream.fold(broken(1), at(2, released(sequence=2)))
    stream.skip(1)
    assert stream.folded == [0, 2]
    assert stream.history.next_sequence == 3


def test_a_skipped_number_ahead_of_its_turn_is_passed_when_its_turn_comes():
    stream = stored(created(sequence=1))
    stream.fold(broken(1, sequence=3))
    stream.skip(1)
    stream.fold(at(2, released(sequence=2)))
    assert stream.history.next_sequence == 4
    assert stream.history.passed == ()


def test_skipping_the_first_record_of_a_stream_counts_its_sequence():
    stream = StoredStream()
    stream.fold(broken(0, sequence=1))
    stream.skip(0)
    stream.fold(at(1, created(sequence=2)))
    assert stream.folded == [1]


def test_skipping_the_first_record_without_a_sequence_leaves_the_stream_as_new():
    stream = StoredStream()
    stream.fold(broken(0))
    stream.skip(0)
    assert stream.history == NO_HISTORY
    stream.fold(at(1, created()))
    assert stream.folded == [1]


def test_on_a_stream_without_sequences_a_skip_counts_nothing():
    stream = stored(created())
    stream.fold(broken(1, sequence=7))
    stream.skip(1)
    assert stream.history.next_sequence is None
    assert stream.history.passed == ()


def test_skipping_what_waits_for_missing_numbers_means_that_they_will_not_come():
    stream = stored(created(sequence=1))
    stream.fold(at(1, released(sequence=4)))
    assert stream.parked == {1: "sequence_gap"}
    stream.skip(1)
    assert stream.folded == [0, 1]
    assert stream.history.next_sequence == 5
    assert stream.states() == {}


def test_the_next_open_record_blocks_when_the_first_is_skipped():
    stream = stored(created())
    stream.fold(broken(1), broken(2), at(3, released()))
    stream.skip(1)
    assert stream.open == {2: "contract_violation"}
    stream.skip(2)
    assert stream.folded == [0, 3]


def test_a_copy_of_a_skipped_event_is_no_duplicate():
    stream = stored(created())
    stream.fold(at(1, claimed()))
    stream.skip(1)
    stream.fold(at(2, claimed()))
    assert stream.open == {2: "illegal_transition"}


# misrouted records ----------------------------------------------------------------------------------------------------


def misrouted(**envelope: object) -> tuple[Quarantined, Accepted]:
    """A record in another partition, as it was set aside and as it reads when its place no longer counts."""
    event = released(**envelope)
    stands = replace(record(77), position=Position(TOPIC, PARTITION + 1, 77))
    return Quarantined(stands, Reason.MISROUTED, (), stream_key=STREAM_KEY, sequence=event.envelope.sequence), Accepted(
        stands, event
    )


def test_a_misrouted_record_that_is_retried_folds_at_the_present_place():
    quarantined, accepted = misrouted()
    folded = fold(stored(created()).load(), [Retry(quarantined.record.position, accepted, mark(quarantined))])
    assert folded.prescription is not None
    assert folded.prescription.issues[0].status == "0002"
    assert folded.set_aside[quarantined.record.position].state == "retried"


def test_a_misrouted_record_that_does_not_fold_leaves_its_mark():
    quarantined, accepted = misrouted()
    stream = stored(created(), released(id="first"))
    folded = fold(stream.load(), [Retry(quarantined.record.position, accepted, mark(quarantined))])
    assert folded.set_aside == {}
    assert folded.history == stream.history


def test_a_skipped_mark_is_removed_and_its_sequence_counts_as_seen():
    quarantined, _ = misrouted(sequence=2)
    stream = stored(created(sequence=1))
    stream.fold(at(1, nominated(sequence=3)))
    decision = Skip(quarantined.record.position, mark(quarantined))
    folded = fold(stream.load((decision,)), [decision])
    assert folded.set_aside[quarantined.record.position].state == "skipped"
    assert folded.history.next_sequence == 4


def test_a_second_decision_about_a_mark_that_is_settled_changes_nothing_when_both_are_folded_at_once():
    quarantined, accepted = misrouted(sequence=2)
    position, marked = quarantined.record.position, mark(replace(quarantined, sequence=None))
    retry, skip = Retry(position, accepted, marked), Skip(position, marked)
    once = fold(stored(created(sequence=1)).load(), [retry])
    twice = fold(stored(created(sequence=1)).load(), [retry, skip])
    assert (twice.history, twice.set_aside) == (once.history, once.set_aside)
    assert fold(stored(created(sequence=1)).load(), [skip, retry]).set_aside[position].state == "skipped"


def test_a_skip_lets_a_deletion_fold_that_waited_behind_the_record():
    stream = stored(created())
    stream.fold(broken(1), at(2, deleted()))
    stream.skip(1)
    assert stream.prescription is None
    assert stream.load().is_deleted
    assert stream.row(1).record is None
