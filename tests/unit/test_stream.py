"""What becomes of an event in its stream: it folds, waits, is set aside or was seen before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from projector import stream as stream_module
from projector.batch import Accepted, Reason
from projector.prescription import Kind, evolve
from projector.stream import Counts, History, Retry, Stream, fold, needs_parked
from schemas.events import Event, Nominated
from tests.unit.given import (
    ITEMS,
    NHS_NUMBER,
    PARTITION,
    SECOND_CANCELLATION,
    SECOND_NOTIFICATION,
    SOURCE,
    STREAM_KEY,
    UNKNOWN_ITEM,
    StoredStream,
    at,
    broken,
    cancelled,
    claimed,
    corrected,
    created,
    days_later,
    deleted,
    dispense_withdrawn,
    dispensed,
    expired,
    issued,
    log,
    misrouted,
    nominated,
    not_claimed,
    prescribed_items,
    record,
    released,
    retried_mark,
    returned,
    stored,
)

CREATED = created(sequence=1)
RELEASED = released(sequence=2)
DISPENSED = dispensed(sequence=3)
CLAIMED = claimed(sequence=4)


def blocked() -> StoredStream:
    """A created prescription whose next event, at offset 1, is broken: its id is ``broken``."""
    stream = stored(created())
    stream.fold(broken(1, id="broken"))
    return stream


# folding --------------------------------------------------------------------------------------------------------------


def test_events_fold_in_log_order():
    stream = stored(created(), released(), dispensed(), claimed())
    assert stream.status == "0008"
    assert stream.folded == [0, 1, 2, 3]
    assert stream.prescription.version == 4
    assert stream.set_aside == {}


def test_what_folded_is_remembered_by_key_and_place():
    history = stored(created(), released()).history
    assert history.has(created().envelope.key)
    assert history.has(released().envelope.key)
    assert not history.has(claimed().envelope.key)
    assert history.positions == b"".join(PARTITION.to_bytes(4, "big") + offset.to_bytes(8, "big") for offset in (0, 1))


def test_a_key_is_not_found_across_two_others():
    first, second = b"0123456789abcdef", b"fedcba9876543210"
    history = History(keys=first + second)
    assert not history.has(first[8:] + second[:8])
    assert history.has(second)


def test_a_key_is_found_behind_its_own_misaligned_copy():
    key = b"\x01" * 16
    history = History(keys=b"\x00" + b"\x01" * 15 + key)
    assert history.has(key)


# duplicates -----------------------------------------------------------------------------------------------------------


def test_an_event_that_folded_is_ignored_and_counted_when_it_comes_again():
    stream = stored(created(), released())
    folded = stream.fold(at(2, released()))
    assert folded.counts.duplicates == 1
    assert folded.counts.folded == 0
    assert (folded.prescription, folded.history) == (folded.before.prescription, folded.before.history)
    assert stream.set_aside == {}


def test_source_and_id_alone_make_a_duplicate():
    stream = stored(created(), nominated())
    folded = stream.fold(at(2, released(id=nominated().envelope.id)))
    assert folded.counts.duplicates == 1
    assert stream.status == "0001"


def test_the_same_id_from_another_source_is_another_event():
    stream = stored(created(), nominated())
    folded = stream.fold(at(2, nominated(source="urn:nhs:asid:000000000001")))
    assert folded.counts.folded == 1
    assert stream.prescription.version == 3


def test_duplicates_are_counted_while_the_stream_is_blocked():
    stream = blocked()
    folded = stream.fold(at(2, created()))
    assert folded.counts.duplicates == 1
    assert stream.parked == {}


def test_a_duplicate_is_counted_before_its_sequence_is_looked_at():
    stream = stored(CREATED, RELEASED)
    assert stream.fold(at(2, released(sequence=9))).counts.duplicates == 1


def test_a_duplicate_is_counted_before_the_data_could_be_a_second_created():
    stream = stored(created())
    assert stream.fold(at(1, created(nhs_number="9990000026"))).counts.duplicates == 1
    assert stream.open == {}


def test_a_copy_of_a_parked_event_waits_too_and_turns_out_to_be_a_duplicate():
    stream = StoredStream()
    stream.fold(at(0, released()), at(1, released()))
    assert stream.parked == {0: "not_created", 1: "not_created"}
    folded = stream.fold(at(2, created()))
    assert stream.folded == [2, 0]
    assert folded.counts.duplicates == 1
    assert stream.set_aside == {}


def test_a_copy_of_an_event_parked_behind_a_block_waits_too():
    stream = blocked()
    stream.fold(at(2, released()), at(3, released()))
    assert stream.parked == {2: "behind_block", 3: "behind_block"}
    folded = stream.fold(at(4, nominated(id="broken")))
    assert stream.folded == [0, 4, 2]
    assert folded.counts.duplicates == 1


# repairs --------------------------------------------------------------------------------------------------------------


def test_a_repair_replaces_the_broken_record_and_folds():
    stream = blocked()
    folded = stream.fold(at(2, released(id="broken")))
    assert stream.status == "0002"
    assert stream.states() == {1: "repaired"}
    assert folded.counts.repaired == 1
    assert folded.counts.folded == 1


def test_a_repair_needs_source_and_id():
    stream = blocked()
    stream.fold(at(2, released(id="broken", source="urn:nhs:asid:000000000001")))
    assert stream.open == {1: "contract_violation"}
    assert stream.parked == {2: "behind_block"}


def test_nothing_repairs_a_record_whose_source_and_id_nobody_could_read():
    stream = stored(created())
    stream.fold(broken(1), at(2, released()))
    assert stream.open == {1: "contract_violation"}
    assert stream.parked == {2: "behind_block"}


def test_what_waits_behind_the_broken_record_folds_after_its_repair():
    stream = blocked()
    stream.fold(at(2, dispensed()), at(3, claimed()))
    stream.fold(at(4, released(id="broken")))
    assert stream.status == "0008"
    assert stream.folded == [0, 4, 2, 3]
    assert stream.parked == {}


def test_a_repair_takes_the_place_of_the_broken_record_and_not_its_own():
    stream = blocked()
    stream.fold(at(2, nominated(id="n-2", nominated_dispenser=None)))
    stream.fold(at(3, nominated(id="broken")))
    assert stream.prescription.nominated is None


def test_a_repair_replaces_every_open_record_with_its_id_and_stands_at_the_first():
    stream = blocked()
    stream.fold(at(2, dispensed()), broken(3, id="broken"), at(4, claimed()))
    folded = stream.fold(at(5, released(id="broken")))
    assert folded.counts.repaired == 2
    assert stream.states() == {1: "repaired", 3: "repaired"}
    assert stream.folded == [0, 5, 2, 4]


def test_a_broken_copy_repairs_nothing():
    stream = blocked()
    stream.fold(broken(2, id="broken"))
    assert stream.states() == {1: "open", 2: "open"}


def test_a_repair_behind_another_block_waits_where_the_record_stood():
    stream = blocked()
    stream.fold(broken(2, id="second"), at(3, claimed()))
    folded = stream.fold(at(4, dispensed(id="second")))
    assert folded.counts.repaired == 1
    assert stream.states() == {1: "open", 2: "repaired", 3: "parked", 4: "parked"}
    assert stream.row(4).stands_at == 2
    assert stream.parked[4] == "behind_block"
    stream.fold(at(5, released(id="broken")))
    assert stream.folded == [0, 5, 4, 3]


def test_after_the_first_block_the_second_one_blocks():
    stream = blocked()
    stream.fold(at(2, nominated()), broken(3, id="second"), at(4, dispensed()))
    stream.fold(at(5, released(id="broken")))
    assert stream.folded == [0, 5, 2]
    assert stream.open == {3: "contract_violation"}
    assert stream.parked == {4: "behind_block"}
    stream.fold(at(6, nominated(id="second")))
    assert stream.folded == [0, 5, 2, 6, 4]
    assert stream.status == "0006"


def test_a_repair_that_is_refused_itself_blocks_where_the_record_stood():
    stream = blocked()
    stream.fold(at(2, released()))
    stream.fold(at(3, claimed(id="broken")))
    assert stream.states() == {1: "repaired", 2: "parked", 3: "open"}
    assert stream.row(3).stands_at == 1
    assert stream.open == {3: "illegal_transition"}
    stream.fold(at(4, nominated(id="broken")))
    assert stream.states() == {1: "repaired", 3: "repaired"}
    assert stream.folded == [0, 4, 2]


def test_a_copy_of_a_refused_event_is_a_repair_that_is_refused_again():
    stream = stored(created())
    stream.fold(at(1, claimed()), at(2, claimed()))
    assert stream.states() == {1: "repaired", 2: "open"}
    assert stream.row(2).stands_at == 1


def test_a_repair_can_have_another_type_than_what_it_repairs():
    stream = stored(created())
    stream.fold(at(1, claimed()), at(2, released(id=claimed().envelope.id)))
    assert stream.status == "0002"


def test_a_repair_of_created_creates_the_prescription():
    stream = StoredStream()
    stream.fold(broken(0, id="broken"), at(1, released()))
    assert stream.parked == {1: "behind_block"}
    stream.fold(at(2, created(id="broken")))
    assert stream.status == "0002"
    assert stream.folded == [2, 1]


def test_a_repair_on_a_stream_that_is_not_created_waits_where_the_record_stood():
    stream = StoredStream()
    stream.fold(broken(0, id="broken"), at(1, nominated()))
    stream.fold(at(2, released(id="broken")))
    assert stream.states() == {0: "repaired", 1: "parked", 2: "parked"}
    assert stream.parked == {1: "not_created", 2: "not_created"}
    assert stream.row(2).stands_at == 0
    stream.fold(at(3, created()))
    assert stream.folded == [3, 2, 1]


def test_the_sequence_of_the_repair_counts_and_not_that_of_the_record():
    stream = stored(CREATED)
    stream.fold(broken(1, id="broken", sequence=7), at(2, dispensed(sequence=3)))
    stream.fold(at(3, released(id="broken", sequence=2)))
    assert stream.folded == [0, 3, 2]


def test_a_repair_ahead_of_its_turn_waits_for_the_gap_to_close():
    stream = stored(CREATED)
    stream.fold(broken(1, id="broken"))
    stream.fold(at(2, dispensed(id="broken", sequence=3)))
    assert stream.parked == {2: "sequence_gap"}
    assert stream.states() == {1: "repaired", 2: "parked"}
    stream.fold(at(3, RELEASED))
    assert stream.folded == [0, 3, 2]


def test_a_repair_ahead_of_its_turn_lets_what_waited_behind_the_record_go_first():
    stream = stored(CREATED)
    stream.fold(broken(1, id="broken"), at(2, RELEASED))
    stream.fold(at(3, dispensed(id="broken", sequence=3)))
    assert stream.folded == [0, 2, 3]
    assert stream.parked == {}


def test_a_repair_without_a_sequence_is_refused_where_the_stream_has_sequences():
    stream = stored(CREATED)
    stream.fold(broken(1, id="broken"), at(2, RELEASED))
    stream.fold(at(3, released(id="broken")))
    assert stream.open == {3: "sequence_conflict"}
    assert stream.row(3).stands_at == 1
    assert stream.parked == {2: "behind_block"}


def test_a_second_repair_of_the_same_record_is_a_duplicate():
    stream = blocked()
    stream.fold(at(2, released(id="broken")))
    assert stream.fold(at(3, released(id="broken"))).counts.duplicates == 1


def test_an_event_that_folded_repairs_no_broken_copy_of_itself():
    stream = stored(created(), released())
    stream.fold(broken(2, id=released().envelope.id))
    folded = stream.fold(at(3, released()))
    assert folded.counts.duplicates == 1
    assert stream.open == {2: "contract_violation"}


@pytest.mark.parametrize(
    "reason",
    [Reason.TOO_LARGE, Reason.UNREADABLE, Reason.CONTRACT_VIOLATION, Reason.UNKNOWN_TYPE],
)
def test_whatever_cannot_be_read_blocks_its_stream_even_one_that_is_not_created(reason: Reason):
    stream = StoredStream()
    folded = stream.fold(broken(0, reason=reason), at(1, created()))
    assert stream.open == {0: reason.value}
    assert stream.parked == {1: "behind_block"}
    assert folded.counts.quarantined == 1
    assert folded.counts.parked == 1
    assert stream.prescription is None


# not created ----------------------------------------------------------------------------------------------------------

NEEDS_A_PRESCRIPTION = [
    issued(),
    released(),
    dispensed(),
    dispense_withdrawn(),
    returned(),
    cancelled("applied"),
    claimed(),
    not_claimed(),
    nominated(),
    corrected(),
]
NEEDS_A_STREAM = [cancelled("unsuccessful"), expired(), deleted()]


def by_type(event: Event) -> str:
    return type(event).__name__


@pytest.mark.parametrize("event", [*NEEDS_A_PRESCRIPTION, *NEEDS_A_STREAM], ids=by_type)
def test_on_a_stream_that_does_not_exist_yet_an_event_waits_for_created(event: Event):
    stream = StoredStream()
    folded = stream.fold(at(0, event))
    assert stream.parked == {0: "not_created"}
    assert stream.prescription is None
    assert folded.counts.parked == 1


@pytest.mark.parametrize("event", NEEDS_A_PRESCRIPTION, ids=by_type)
def test_on_a_stream_that_holds_early_cancellations_only_an_event_waits_for_created(event: Event):
    stream = stored(cancelled("pending", id="early"))
    stream.fold(at(1, event))
    assert stream.parked == {1: "not_created"}


@pytest.mark.parametrize(
    "event", [*NEEDS_A_STREAM, cancelled("pending", cancellation_id=SECOND_CANCELLATION), created()], ids=by_type
)
def test_on_a_stream_that_holds_early_cancellations_only_these_fold(event: Event):
    stream = stored(cancelled("pending", id="early"))
    assert stream.fold(at(1, event)).counts.folded == 1
    assert stream.set_aside == {}


def test_a_pending_cancellation_folds_on_a_stream_that_does_not_exist_yet():
    assert stored(cancelled("pending")).prescription.kind is Kind.PLACEHOLDER


def test_what_waited_for_created_folds_by_itself_in_log_order():
    stream = StoredStream()
    stream.fold(at(0, released()), at(1, dispensed()), at(2, claimed()))
    folded = stream.fold(at(3, created()))
    assert stream.folded == [3, 0, 1, 2]
    assert stream.status == "0008"
    assert stream.set_aside == {}
    assert folded.counts.folded == 4
    assert {position.offset for position in folded.removed} == {0, 1, 2}


def test_what_waits_for_created_blocks_nothing():
    stream = StoredStream()
    stream.fold(at(0, released()), at(1, cancelled("pending")))
    assert stream.prescription.kind is Kind.PLACEHOLDER
    assert stream.parked == {0: "not_created"}


def test_an_applied_cancellation_that_came_before_created_cancels_it():
    stream = StoredStream()
    stream.fold(at(0, cancelled()), at(1, created()))
    assert stream.status == "0005"


def test_an_event_that_waits_for_created_is_not_ahead_of_its_turn():
    stream = StoredStream()
    stream.fold(at(0, dispensed(sequence=3)))
    assert stream.parked == {0: "not_created"}
    stream.fold(at(1, CREATED))
    assert stream.parked == {0: "sequence_gap"}
    stream.fold(at(2, RELEASED))
    assert stream.folded == [1, 2, 0]


def test_what_waited_for_created_and_is_refused_then_blocks_at_its_own_offset():
    stream = StoredStream()
    stream.fold(at(0, nominated()), at(1, claimed()), at(2, released()), at(3, created()))
    assert stream.folded == [3, 0]
    assert stream.open == {1: "illegal_transition"}
    assert stream.parked == {2: "not_created"}
    assert stream.row(1).stands_at == 1


def test_after_created_only_its_early_cancellations_are_left_of_a_placeholder():
    stream = stored(cancelled("pending"), created(line_items=prescribed_items(3)))
    assert stream.prescription.kind is Kind.CREATED
    assert stream.prescription.version == 2
    assert [issue.item_statuses for issue in stream.prescription.issues] == [("0005",) * 3]


# sequences ------------------------------------------------------------------------------------------------------------


def test_a_stream_whose_first_event_has_a_sequence_has_sequences():
    assert stored(CREATED).history.next_sequence == 2
    assert stored(cancelled("pending", sequence=1)).history.next_sequence == 2


def test_on_a_stream_without_sequences_they_are_ignored():
    stream = stored(created(), released(sequence=9), dispensed(sequence=4))
    assert stream.history.next_sequence is None
    assert stream.fold(at(3, claimed())).counts.folded == 1


@pytest.mark.parametrize("event", [created(sequence=2), cancelled("pending", sequence=2)], ids=by_type)
def test_the_first_sequence_expected_is_1(event: Event):
    stream = StoredStream()
    stream.fold(at(0, event))
    assert stream.parked == {0: "sequence_gap"}
    assert stream.prescription is None


def test_an_event_ahead_of_its_turn_folds_when_the_gap_closes():
    stream = stored(CREATED)
    stream.fold(at(1, CLAIMED), at(2, DISPENSED))
    assert stream.parked == {1: "sequence_gap", 2: "sequence_gap"}
    stream.fold(at(3, RELEASED))
    assert stream.folded == [0, 3, 2, 1]
    assert stream.history.next_sequence == 5
    assert stream.set_aside == {}


def test_an_event_ahead_of_its_turn_holds_nothing_back():
    stream = stored(CREATED)
    stream.fold(at(1, dispensed(sequence=3)))
    assert stream.fold(at(2, nominated(sequence=2))).counts.folded == 1


def test_the_first_event_that_folds_decides_even_when_others_wait():
    stream = StoredStream()
    stream.fold(at(0, released(sequence=7)), at(1, created(id="later", sequence=2)), at(2, created()))
    assert stream.history.next_sequence is None
    assert stream.folded == [2, 0]
    assert stream.open == {1: "duplicate_prescription"}


@pytest.mark.parametrize("sequence", [1, 2])
def test_a_sequence_at_or_below_the_last_one_is_a_conflict(sequence: int):
    stream = stored(CREATED, RELEASED)
    stream.fold(at(2, nominated(sequence=sequence)), at(3, DISPENSED))
    assert stream.open == {2: "sequence_conflict"}
    assert stream.parked == {3: "behind_block"}


def test_a_missing_sequence_is_a_conflict_on_a_stream_that_has_them():
    stream = stored(CREATED)
    stream.fold(at(1, released(id="without")), at(2, RELEASED))
    assert stream.open == {1: "sequence_conflict"}
    assert [error.path for error in stream.row(1).errors] == ["sequence"]
    assert stream.parked == {2: "behind_block"}


def test_a_refused_event_does_not_use_up_its_number():
    stream = stored(CREATED)
    stream.fold(at(1, claimed(sequence=2)))
    assert stream.open == {1: "illegal_transition"}
    stream.fold(at(2, released(id=claimed().envelope.id, sequence=2)))
    assert stream.history.next_sequence == 3


def test_of_two_events_with_one_number_the_second_is_a_conflict():
    stream = stored(CREATED)
    stream.fold(at(1, dispensed(sequence=3)), at(2, nominated(sequence=3)), at(3, claimed(sequence=4)))
    stream.fold(at(4, RELEASED))
    assert stream.folded == [0, 4, 1]
    assert stream.open == {2: "sequence_conflict"}
    assert set(stream.parked) == {3}


def test_a_sequence_conflict_is_found_before_an_illegal_transition():
    stream = stored(CREATED)
    stream.fold(at(1, claimed(sequence=1)))
    assert stream.open == {1: "sequence_conflict"}


def test_a_number_that_was_passed_over_is_not_waited_for():
    stream = stored(CREATED)
    stream.history = stream.history._replace(passed=(3, 4))
    stream.fold(at(1, RELEASED), at(2, dispensed(sequence=5)))
    assert stream.folded == [0, 1, 2]
    assert stream.history.next_sequence == 6
    assert stream.history.passed == ()


def test_a_number_that_was_passed_over_counts_as_seen():
    stream = stored(CREATED)
    stream.history = stream.history._replace(passed=(3,))
    stream.fold(at(1, dispensed(sequence=3)))
    assert stream.open == {1: "sequence_conflict"}


def test_an_event_on_a_blocked_stream_waits_behind_the_block_whatever_its_sequence():
    stream = stored(CREATED)
    stream.fold(broken(1, id="broken"), at(2, dispensed(sequence=9)), at(3, nominated()))
    assert stream.parked == {2: "behind_block", 3: "behind_block"}


# order of release -----------------------------------------------------------------------------------------------------


def test_parked_events_fold_by_sequence():
    stream = stored(CREATED)
    stream.fold(broken(1, id="broken"), at(2, CLAIMED), at(3, DISPENSED))
    stream.fold(at(4, released(id="broken", sequence=2)))
    assert stream.folded == [0, 4, 3, 2]


def test_parked_events_without_a_sequence_come_last():
    stream = stored(CREATED)
    stream.fold(broken(1, id="broken"), at(2, nominated()), at(3, CLAIMED), at(4, DISPENSED))
    stream.fold(at(5, released(id="broken", sequence=2)))
    assert stream.folded == [0, 5, 4, 3]
    assert stream.open == {2: "sequence_conflict"}


def test_without_sequences_parked_events_fold_by_offset():
    stream = blocked()
    stream.fold(at(2, dispensed(sequence=9)), at(3, claimed(sequence=8)), at(4, nominated(sequence=1)))
    stream.fold(at(5, released(id="broken")))
    assert stream.folded == [0, 5, 2, 3, 4]


def test_a_released_event_ahead_of_its_turn_stays_parked_as_sequence_gap():
    stream = stored(CREATED)
    stream.fold(broken(1, id="broken"), at(2, CLAIMED))
    stream.fold(at(3, released(id="broken", sequence=2)))
    assert stream.parked == {2: "sequence_gap"}
    assert stream.open == {}


def test_a_released_event_that_is_refused_blocks_at_its_own_offset():
    stream = blocked()
    stream.fold(at(2, nominated()), at(3, claimed()), at(4, dispensed()))
    stream.fold(at(5, released(id="broken")))
    assert stream.folded == [0, 5, 2]
    assert stream.open == {3: "illegal_transition"}
    assert stream.row(3).stands_at == 3
    assert stream.parked == {4: "behind_block"}


def test_what_stands_before_a_refused_event_still_folds_by_its_sequence():
    stream = stored(CREATED)
    stream.fold(broken(1, id="broken"), at(2, dispensed(sequence=4)), at(3, released(sequence=3)))
    stream.fold(at(4, nominated(id="broken", sequence=2)))
    assert stream.folded == [0, 4, 3, 2]


def test_only_what_stands_before_the_first_open_record_is_tried():
    stream = stored(CREATED)
    stream.fold(at(1, DISPENSED), broken(2, id="broken"), at(3, RELEASED), at(4, CLAIMED))
    assert stream.folded == [0]
    assert stream.parked == {1: "sequence_gap", 3: "behind_block", 4: "behind_block"}
    stream.fold(at(5, nominated(id="broken", sequence=9)))
    assert stream.folded == [0, 3, 1, 4]
    assert stream.parked == {5: "sequence_gap"}


def test_a_released_event_may_close_the_gap_for_one_before_it():
    stream = stored(CREATED)
    stream.fold(at(1, DISPENSED), broken(2, id="broken"))
    stream.fold(at(3, released(id="broken", sequence=2)))
    assert stream.folded == [0, 3, 1]


def test_parked_events_are_tried_again_after_each_one_that_folds():
    stream = StoredStream()
    stream.fold(broken(0, id="broken"), at(1, released()), at(2, created()), at(3, dispensed()))
    stream.fold(at(4, cancelled("pending", id="broken", line_item_id=UNKNOWN_ITEM)))
    assert stream.folded == [4, 2, 1, 3]
    assert stream.parked == {}


def test_once_the_first_parked_event_folds_its_sequence_decides_the_order_of_the_others():
    stream = StoredStream()
    stream.fold(broken(0, id="broken"), at(1, CREATED), at(2, nominated()), at(3, RELEASED))
    stream.fold(at(4, dispensed(id="broken", sequence=3)))
    assert stream.folded == [1, 3, 4]
    assert stream.open == {2: "sequence_conflict"}


def test_a_parked_event_that_no_longer_keeps_the_contract_blocks_where_it_stood():
    stream = blocked()
    stream.fold(at(2, dispensed()), at(3, claimed()))
    stream.decoded[record(2).position] = broken(2, id=dispensed().envelope.id)
    stream.fold(at(4, released(id="broken")))
    assert stream.open == {2: "contract_violation"}
    assert stream.parked == {3: "behind_block"}
    stream.fold(at(5, dispensed()))
    assert stream.status == "0008"


# illegal transitions, second created, defects -------------------------------------------------------------------------


def test_a_transition_that_is_not_allowed_blocks_the_stream():
    stream = stored(created())
    folded = stream.fold(at(1, claimed()), at(2, released()))
    assert stream.open == {1: "illegal_transition"}
    assert stream.parked == {2: "behind_block"}
    assert [error.path for error in stream.row(1).errors] == ["data.issueNumber"]
    assert folded.counts.quarantined == 1
    assert stream.status == "0001"


def test_a_cancellation_for_another_nhs_number_is_an_illegal_transition():
    stream = stored(created())
    stream.fold(at(1, cancelled(nhs_number="9990000026")))
    assert stream.open == {1: "illegal_transition"}
    assert NHS_NUMBER not in str(stream.row(1).errors)


def test_a_second_created_is_a_duplicate_prescription_and_blocks():
    stream = stored(created())
    stream.fold(at(1, created(id="again")), at(2, released()))
    assert stream.open == {1: "duplicate_prescription"}
    assert stream.parked == {2: "behind_block"}


@pytest.mark.parametrize("sequence", [None, 1, 2, 9])
def test_a_second_created_is_found_before_its_sequence_is_looked_at(sequence: int | None):
    stream = stored(CREATED)
    stream.fold(at(1, created(id="again", sequence=sequence)))
    assert stream.open == {1: "duplicate_prescription"}


def test_a_second_created_waits_behind_a_block():
    stream = blocked()
    stream.fold(at(2, created(id="again")))
    assert stream.parked == {2: "behind_block"}


def test_of_two_created_behind_a_block_the_second_is_the_duplicate():
    stream = StoredStream()
    stream.fold(broken(0, id="broken"), at(1, created(id="one")), at(2, created(id="two")))
    stream.fold(at(3, cancelled("pending", id="broken")))
    assert stream.folded == [3, 1]
    assert stream.open == {2: "duplicate_prescription"}


@pytest.fixture
def a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fold raises on every nomination."""

    def defective(state, event):
        if isinstance(event, Nominated):
            raise KeyError(NHS_NUMBER)
        return evolve(state, event)

    monkeypatch.setattr(stream_module, "evolve", defective)


@pytest.mark.usefixtures("a_defect")
def test_an_event_on_which_the_fold_fails_blocks_its_stream():
    stream = StoredStream()
    folded = stream.fold(at(0, created()), at(1, nominated()), at(2, released()))
    assert stream.folded == [0]
    assert stream.open == {1: "fold_failed"}
    assert stream.parked == {2: "behind_block"}
    assert folded.counts.quarantined == 1


@pytest.mark.usefixtures("a_defect")
def test_the_reason_for_a_failed_fold_names_the_error_and_no_value():
    stream = stored(created())
    stream.fold(at(1, nominated()))
    (error,) = stream.row(1).errors
    assert "KeyError" in error.message
    assert NHS_NUMBER not in error.message


@pytest.mark.usefixtures("a_defect")
def test_a_parked_event_on_which_the_fold_fails_blocks_at_its_own_offset():
    stream = StoredStream()
    stream.fold(at(0, nominated()), at(1, released()))
    stream.fold(at(2, created()))
    assert stream.open == {0: "fold_failed"}
    assert stream.folded == [2]


def test_after_the_defect_is_fixed_a_copy_repairs_the_event():
    stream = stored(created())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream_module, "evolve", lambda state, event: 1 / 0)
        stream.fold(at(1, nominated()), at(2, released()))
    stream.fold(at(3, nominated()))
    assert stream.folded == [0, 3, 2]


# deletion -------------------------------------------------------------------------------------------------------------


def test_a_deletion_leaves_the_keys_and_nothing_else():
    stream = stored(CREATED, RELEASED)
    folded = stream.fold(at(2, deleted(sequence=3)))
    assert folded.deleted
    assert stream.prescription is None
    assert stream.load().is_deleted
    assert stream.history.version == 3
    assert (stream.history.positions, stream.history.next_sequence, stream.history.passed) == (b"", None, ())


def test_a_stream_on_which_nothing_folded_is_not_deleted():
    assert not StoredStream().load().is_deleted


@pytest.mark.parametrize(
    "event", [created(id="again"), created(id="x", sequence=9), released(), cancelled("pending"), deleted(id="again")]
)
def test_after_deletion_an_event_is_quarantined_and_blocks_nothing(event: Event):
    stream = stored(created(), deleted())
    folded = stream.fold(at(2, event), at(3, nominated()))
    assert stream.open == {2: "deleted", 3: "deleted"}
    assert stream.parked == {}
    assert stream.prescription is None
    assert folded.counts.quarantined == 2


def test_after_deletion_duplicates_are_still_counted():
    stream = stored(created(), released(), deleted())
    folded = stream.fold(at(3, released()), at(4, deleted()))
    assert folded.counts.duplicates == 2
    assert stream.set_aside == {}


def test_what_is_set_aside_after_deletion_keeps_position_and_reason_only():
    stream = stored(created(), deleted())
    stream.fold(at(2, created(id="again")), broken(3, id="broken", nhs_number=NHS_NUMBER))
    for offset, reason in ((2, Reason.DELETED), (3, Reason.CONTRACT_VIOLATION)):
        row = stream.row(offset)
        assert (row.position.offset, row.reason, row.state) == (offset, reason, "open")
        assert (row.record, row.errors, row.nhs_number) == (None, (), None)
        assert (row.event_source, row.event_id, row.event_type) == (None, None, None)


def test_what_cannot_be_read_after_deletion_blocks_nothing():
    stream = stored(created(), deleted())
    stream.fold(broken(2, id="broken"), at(3, nominated()))
    assert stream.open == {2: "contract_violation", 3: "deleted"}
    assert stream.parked == {}


def test_a_repair_after_deletion_is_quarantined_as_deleted():
    stream = stored(created(), deleted())
    stream.fold(broken(2, id="broken"))
    stream.fold(at(3, released(id="broken")))
    assert stream.states() == {2: "repaired", 3: "open"}
    assert stream.open == {3: "deleted"}
    assert stream.row(2).record is None


def test_on_deletion_what_waits_for_a_gap_becomes_quarantined():
    stream = stored(CREATED)
    stream.fold(at(1, dispensed(sequence=5)))
    folded = stream.fold(at(2, deleted(sequence=2)))
    assert stream.open == {1: "deleted"}
    assert stream.parked == {}
    assert stream.row(1).record is None
    assert folded.counts.quarantined == 1


def test_a_copy_of_what_the_deletion_quarantined_repairs_it_also_in_the_same_batch():
    stream = stored(CREATED)
    stream.fold(at(1, CLAIMED), at(2, deleted(sequence=2)), at(3, CLAIMED))
    assert stream.states() == {1: "repaired", 3: "open"}
    assert stream.open == {3: "deleted"}
    assert stream.row(3).stands_at == 1


def test_on_deletion_what_waits_for_created_becomes_quarantined():
    stream = stored(cancelled("pending"))
    stream.fold(at(1, released()))
    stream.fold(at(2, deleted()))
    assert stream.open == {1: "deleted"}


def test_on_deletion_what_stands_behind_a_later_block_becomes_quarantined():
    stream = blocked()
    stream.fold(broken(2, id="second"), at(3, released()))
    stream.fold(at(4, deleted(id="broken")))
    assert stream.states() == {1: "repaired", 2: "open", 3: "open"}
    assert stream.open == {2: "contract_violation", 3: "deleted"}
    stream.fold(at(5, released(id="x")))
    assert stream.open[5] == "deleted"


def test_on_deletion_records_that_were_set_aside_before_lose_their_content():
    stream = stored(created())
    stream.fold(at(1, claimed()), at(2, released(id=claimed().envelope.id)), broken(3, id="broken"))
    stream.fold(at(4, deleted(id="broken")))
    assert stream.states() == {1: "repaired", 3: "repaired"}
    assert all(row.record is None for row in stream.set_aside.values())
    assert all(row.errors == () for row in stream.set_aside.values())


def test_a_parked_deletion_deletes_in_its_turn():
    stream = stored(CREATED)
    stream.fold(at(1, deleted(sequence=3)), at(2, nominated(sequence=4)))
    stream.fold(at(3, RELEASED))
    assert stream.load().is_deleted
    assert stream.states() == {2: "open"}
    assert stream.open == {2: "deleted"}


def test_in_the_batch_of_the_deletion_what_comes_before_it_loses_its_content_too():
    stream = StoredStream()
    folded = stream.fold(*log(created(), claimed(), deleted(id=claimed().envelope.id)))
    assert stream.load().is_deleted
    assert [row.record for row in folded.set_aside.values()] == [None]


# what operators decide (the plain cases are test_decisions.py's) ------------------------------------------------------


def test_a_block_behind_the_first_can_be_skipped_before_it():
    stream = blocked()
    stream.fold(broken(2), at(3, dispensed()))
    stream.skip(2)
    assert stream.states() == {1: "open", 2: "skipped", 3: "parked"}


def test_a_sequence_ahead_of_its_turn_counts_as_seen_when_its_turn_comes():
    stream = stored(CREATED)
    stream.fold(broken(1, sequence=4), at(2, RELEASED), at(3, DISPENSED), at(4, claimed(sequence=5)))
    stream.skip(1)
    assert stream.folded == [0, 2, 3, 4]
    assert stream.history.next_sequence == 6


@pytest.mark.parametrize("skip", [broken(1), broken(1, sequence=2), at(1, claimed(sequence=2))])
def test_a_parked_event_that_carries_the_number_takes_the_place_of_the_skipped_one(skip):
    stream = stored(CREATED)
    stream.fold(skip, at(2, DISPENSED), at(3, RELEASED))
    stream.skip(1)
    assert stream.folded == [0, 3, 2]
    assert stream.history.next_sequence == 4


def test_a_number_that_was_seen_already_is_not_counted_again():
    stream = stored(CREATED)
    stream.fold(at(1, nominated(sequence=1)), at(2, RELEASED))
    stream.skip(1)
    assert stream.folded == [0, 2]
    assert stream.history.next_sequence == 3


def test_a_number_that_comes_after_it_was_given_up_is_a_conflict():
    stream = stored(CREATED)
    stream.fold(at(1, nominated(sequence=5)))
    stream.skip(1)
    stream.fold(at(2, RELEASED))
    assert stream.open == {2: "sequence_conflict"}


def test_skipping_what_waits_for_a_gap_does_not_give_up_what_waits_beyond_the_next_gap():
    stream = stored(CREATED)
    stream.fold(at(1, nominated(sequence=5)), at(2, nominated(id="n-2", sequence=7)))
    stream.skip(1)
    assert stream.folded == [0, 1]
    assert stream.parked == {2: "sequence_gap"}


@pytest.mark.parametrize("first", [(1, 2), (2, 1)], ids=["lower number first", "higher number first"])
def test_a_number_that_is_parked_is_not_missing(first: tuple[int, int]):
    lower, higher = first
    stream = stored(CREATED)
    items = [at(lower, released(sequence=4)), at(higher, dispensed(sequence=5))]
    stream.fold(*sorted(items, key=lambda item: item.record.position))
    stream.skip(higher)
    assert stream.folded == [0, lower, higher]
    assert stream.open == {}


def test_skipping_a_gap_before_anything_folded_lets_the_first_event_fold():
    stream = StoredStream()
    stream.fold(at(0, created(sequence=2)))
    stream.skip(0)
    assert stream.folded == [0]
    assert stream.history.next_sequence == 3


def test_after_a_skipped_created_the_others_wait_for_another_one():
    stream = StoredStream()
    stream.fold(broken(0), at(1, released()))
    stream.skip(0)
    assert stream.parked == {1: "not_created"}


def test_a_skip_of_a_record_that_is_settled_changes_nothing():
    stream = blocked()
    stream.fold(at(2, released(id="broken")))
    folded = stream.skip(1)
    assert (folded.set_aside, folded.removed) == ({}, frozenset())
    assert stream.states() == {1: "repaired"}


def test_a_second_created_is_skipped_like_any_other_block():
    stream = stored(CREATED)
    stream.fold(at(1, created(id="again", sequence=2)), at(2, nominated(sequence=3)))
    stream.skip(1)
    assert stream.folded == [0, 2]


def test_a_retried_event_joins_the_parked_ones():
    stream = stored(CREATED)
    stream.fold(broken(1), at(2, RELEASED), at(3, CLAIMED))
    stream.retry(1, at(1, DISPENSED))
    assert stream.folded == [0, 2, 1, 3]


def test_a_retried_event_behind_another_block_waits_at_its_own_offset():
    stream = blocked()
    stream.fold(broken(2), at(3, claimed()))
    stream.retry(2, at(2, dispensed()))
    assert stream.open == {1: "contract_violation"}
    assert stream.parked == {2: "behind_block", 3: "behind_block"}
    stream.fold(at(4, released(id="broken")))
    assert stream.folded == [0, 4, 2, 3]


def test_a_retried_record_that_still_breaks_the_contract_blocks_again():
    stream = blocked()
    stream.fold(at(2, released()))
    stream.retry(1, broken(1, id="broken", reason=Reason.UNKNOWN_TYPE))
    assert stream.open == {1: "unknown_type"}
    assert stream.parked == {2: "behind_block"}


def test_a_retried_event_ahead_of_its_turn_waits_and_lets_what_comes_behind_it_go_on():
    stream = stored(CREATED)
    stream.fold(broken(1), at(2, RELEASED))
    stream.retry(1, at(1, claimed(sequence=4)))
    assert stream.folded == [0, 2]
    assert stream.parked == {1: "sequence_gap"}


def test_nothing_is_retried_on_a_deleted_stream():
    stream = stored(created(), deleted())
    stream.fold(broken(2))
    stream.retry(2, at(2, nominated()))
    assert stream.prescription is None
    assert stream.open == {2: "contract_violation"}


def test_a_retried_mark_folds_at_the_present_place_of_the_stream():
    stream = stored(CREATED, RELEASED)
    stream.fold(at(2, claimed(sequence=4)))
    mark = misrouted(7)
    folded = stream.fold(retried_mark(mark, DISPENSED))
    assert folded.set_aside[mark.position] == replace(mark, state="retried")
    assert stream.status == "0008"
    assert stream.folded == [0, 1, 7, 2]


def test_a_retried_mark_of_an_event_that_folded_is_a_duplicate_and_marks_no_longer():
    stream = stored(created())
    mark = misrouted(7)
    folded = stream.fold(retried_mark(mark, created()))
    assert folded.counts.duplicates == 1
    assert folded.set_aside == {mark.position: replace(mark, state="retried")}


@pytest.mark.parametrize(
    ("stream", "event"),
    [
        (StoredStream(), released()),
        (stored(created()), claimed()),
        (stored(created()), created(id="again")),
        (stored(CREATED), claimed(sequence=4)),
        (stored(CREATED), released()),
        (blocked(), released()),
        (stored(created(), deleted()), released()),
    ],
    ids=["not created", "illegal", "second created", "ahead of its turn", "no sequence", "blocked", "deleted"],
)
def test_a_retried_mark_that_does_not_fold_stays(stream: StoredStream, event: Event):
    before = (stream.prescription, stream.history, stream.set_aside)
    folded = stream.fold(retried_mark(misrouted(7), event))
    assert folded.set_aside == {}
    assert folded.counts == Counts()
    assert (stream.prescription, stream.history, stream.set_aside) == before


@pytest.mark.parametrize(
    "event", [nominated(id="lost", sequence=3), claimed(id="lost", sequence=2)], ids=["ahead of its turn", "illegal"]
)
def test_a_retried_mark_that_does_not_fold_leaves_nothing_behind_in_its_batch(event: Event):
    stream = stored(CREATED)
    folded = stream.fold(retried_mark(misrouted(7), event), at(1, RELEASED), at(2, DISPENSED))
    assert stream.folded == [0, 1, 2]
    assert folded.set_aside == {}


def test_a_gap_is_not_given_up_for_an_event_that_waits_behind_a_block():
    stream = stored(CREATED)
    stream.fold(at(1, nominated(sequence=5)), broken(2, id="broken"), at(3, nominated(id="n-2", sequence=3)))
    stream.skip(1)
    assert stream.folded == [0]
    stream.fold(at(4, nominated(id="broken", sequence=4)))
    assert stream.folded == [0, 3, 4, 1]


def test_a_retried_mark_that_still_stands_in_the_wrong_place_stays():
    mark = misrouted(7)
    stream = stored(created())
    folded = stream.fold(Retry(mark.position, broken(7, reason=Reason.MISROUTED), mark))
    assert folded.set_aside == {}


# rows -----------------------------------------------------------------------------------------------------------------


def test_a_parked_record_is_kept_with_its_content():
    stream = StoredStream()
    stream.fold(at(4, released(sequence=2, time=days_later(1))))
    row = stream.row(4)
    assert row.stream_key == STREAM_KEY
    assert row.record == record(4)
    assert row.timestamp_ms == record(4).timestamp_ms
    assert (row.stands_at, row.state, row.sequence) == (4, "parked", 2)
    assert row.event_key == released().envelope.key
    assert (row.event_source, row.event_id) == (SOURCE, released().envelope.id)
    assert row.event_type == "eps.prescription.released.v1"
    assert row.nhs_number is None


def test_a_created_that_is_set_aside_is_found_by_its_nhs_number():
    stream = StoredStream()
    stream.fold(broken(0), at(1, created()))
    assert stream.row(1).nhs_number == NHS_NUMBER


def test_a_broken_record_is_kept_with_all_that_could_be_read_of_it():
    stream = StoredStream()
    item = broken(3, id="broken", sequence=5, nhs_number=NHS_NUMBER)
    stream.fold(item)
    row = stream.row(3)
    assert row.record == item.record
    assert row.errors == item.errors
    assert (row.sequence, row.nhs_number, row.event_id) == (5, NHS_NUMBER, "broken")
    assert (row.stands_at, row.state, row.reason) == (3, "open", Reason.CONTRACT_VIOLATION)


def test_a_parked_row_that_did_not_move_is_not_written_again():
    stream = stored(CREATED)
    stream.fold(at(1, dispensed(sequence=5)))
    folded = stream.fold(at(2, RELEASED))
    assert (folded.set_aside, folded.removed) == ({}, frozenset())


def test_a_parked_row_that_waits_for_something_else_is_written_again():
    stream = StoredStream()
    stream.fold(at(0, dispensed(sequence=5)))
    folded = stream.fold(at(1, CREATED))
    assert {row.position.offset: row.reason for row in folded.set_aside.values()} == {0: Reason.SEQUENCE_GAP}
    assert folded.counts.parked == 0


def test_a_record_that_waited_within_one_batch_only_leaves_no_row():
    stream = StoredStream()
    folded = stream.fold(at(0, released()), at(1, created()))
    assert folded.set_aside == {}
    assert stream.set_aside == {}


def test_a_repaired_row_keeps_its_reason():
    stream = stored(created())
    stream.fold(at(1, claimed()), at(2, released(id=claimed().envelope.id)))
    assert (stream.row(1).state, stream.row(1).reason) == ("repaired", Reason.ILLEGAL_TRANSITION)


# loading parked records only when something can move them -------------------------------------------------------------


def a_gap() -> StoredStream:
    """A stream that waits for number 2, with number 5 parked."""
    stream = stored(CREATED)
    stream.fold(at(1, claimed(sequence=5)))
    return stream


@pytest.mark.parametrize(
    ("stream", "event", "needed"),
    [
        (stored(created()), released(), False),
        (a_gap(), released(sequence=2), True),
        (a_gap(), released(sequence=3), False),
        (a_gap(), released(), True),
    ],
    ids=["nothing parked", "closes the gap", "ahead of its turn", "without a sequence"],
)
def test_parked_records_are_needed_when_an_event_can_fold(stream: StoredStream, event: Event, needed: bool):
    assert needs_parked(stream.load(), [at(9, event)]) is needed


def test_a_long_queue_behind_a_block_is_not_loaded_for_each_event_that_joins_it():
    stream = blocked()
    stream.fold(at(2, released()))
    assert not needs_parked(stream.load(), [at(3, dispensed())])
    assert not needs_parked(stream.load(), [broken(3, id="another")])
    assert needs_parked(stream.load(), [at(3, released(id="broken"))])


def test_a_record_broken_and_repaired_in_one_batch_ahead_of_its_turn_joins_what_is_parked():
    stream = a_gap()
    stream.fold(broken(2, id="broken"), at(3, dispensed(id="broken", sequence=4)))
    assert stream.states() == {1: "parked", 2: "repaired", 3: "parked"}


def test_a_record_broken_and_repaired_in_one_batch_behind_a_block_joins_what_is_parked():
    stream = blocked()
    stream.fold(at(2, released()))
    stream.fold(broken(3, id="second"), at(4, dispensed(id="second")))
    assert stream.states() == {1: "open", 2: "parked", 3: "repaired", 4: "parked"}


def test_fold_leaves_its_arguments_as_they_are():
    stream = Stream(STREAM_KEY, PARTITION)
    items: list[Accepted] = log(created(line_items=prescribed_items(1)), released(), deleted())
    before = (repr(stream), repr(items))
    fold(stream, items)
    assert (repr(stream), repr(items)) == before
    assert ITEMS[0] in before[1]


def test_a_notification_behind_a_block_is_withdrawn_in_its_turn():
    stream = blocked()
    stream.fold(
        at(2, dispensed()),
        at(
            3,
            dispensed(
                "0002", "0002", id="d-2", notification_id=SECOND_NOTIFICATION, amends=dispensed().notification_id
            ),
        ),
        at(4, dispense_withdrawn(notification_id=SECOND_NOTIFICATION)),
    )
    stream.fold(at(5, released(id="broken")))
    assert stream.status == "0006"
