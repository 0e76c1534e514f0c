"""What a batch means: arrivals sorted by stream, each stream folded by itself."""

from __future__ import annotations

from projector.batch import Reason
from projector.projection import Arrivals, by_stream, project
from projector.stream import Stream
from tests.unit.given import (
    NHS_NUMBER,
    PARTITION,
    STREAM_KEY,
    at,
    broken,
    claimed,
    created,
    released,
)

OTHER_STREAM = "5C08E1-Z99901-0A3F6"
THIRD_STREAM = "7D11AA-Z99901-0B2C1"


def empty(*keys: str) -> dict[str, Stream]:
    return {key: Stream(key, PARTITION) for key in keys}


def test_arrivals_are_sorted_by_stream_each_in_log_order():
    first, second, other = at(0, created()), at(2, released()), at(1, created(stream_key=OTHER_STREAM))
    arrivals = by_stream([first, other, second])
    assert arrivals.by_stream == {STREAM_KEY: [first, second], OTHER_STREAM: [other]}
    assert arrivals.marks == ()


def test_a_broken_record_arrives_in_the_stream_it_belongs_to():
    event, unread = at(0, created()), broken(1)
    assert by_stream([event, unread]).by_stream == {STREAM_KEY: [event, unread]}


def test_a_misrouted_record_arrives_in_no_stream_and_marks_the_one_it_names():
    arrivals = by_stream([broken(0, id="lost", reason=Reason.MISROUTED, nhs_number=NHS_NUMBER)])
    assert arrivals.by_stream == {}
    (mark,) = arrivals.marks
    assert (mark.state, mark.reason, mark.stream_key) == ("open", Reason.MISROUTED, STREAM_KEY)
    assert (mark.position.offset, mark.stands_at) == (0, 0)
    assert mark.record is not None
    assert mark.nhs_number == NHS_NUMBER


def test_a_misrouted_record_may_name_no_stream():
    (mark,) = by_stream([broken(0, reason=Reason.MISROUTED, stream_key=None)]).marks
    assert (mark.reason, mark.stream_key) == (Reason.MISROUTED, None)


def test_a_record_whose_stream_nobody_knows_blocks_none():
    arrivals = by_stream([broken(0, reason=Reason.UNREADABLE, stream_key=None)])
    assert arrivals.by_stream == {}
    (mark,) = arrivals.marks
    assert (mark.state, mark.reason, mark.stream_key) == ("open", Reason.UNREADABLE, None)
    assert mark.errors


def test_marks_neither_block_nor_fold():
    assert not by_stream([broken(0, reason=Reason.MISROUTED)]).marks[0].blocks


def test_a_marked_stream_goes_on_folding():
    arrivals = by_stream([at(0, created()), broken(1, reason=Reason.MISROUTED), at(2, released())])
    projected = project(empty(STREAM_KEY), arrivals)
    (stream,) = projected.streams
    assert stream.prescription.issues[0].status == "0002"
    assert stream.set_aside == {}
    assert len(projected.marks) == 1


def test_a_blocked_stream_holds_no_other_back():
    arrivals = by_stream(
        [
            at(0, created()),
            at(1, created(stream_key=OTHER_STREAM)),
            broken(2),
            at(3, released()),
            at(4, released(stream_key=OTHER_STREAM)),
        ]
    )
    projected = project(empty(STREAM_KEY, OTHER_STREAM), arrivals)
    statuses = {stream.before.key: stream.prescription.issues[0].status for stream in projected.streams}
    assert statuses == {STREAM_KEY: "0001", OTHER_STREAM: "0002"}


def test_the_same_source_and_id_in_another_stream_is_another_event():
    arrivals = by_stream([at(0, created()), at(1, created(stream_key=OTHER_STREAM))])
    assert project(empty(STREAM_KEY, OTHER_STREAM), arrivals).counts.folded == 2


def test_streams_come_in_the_order_of_their_keys():
    keys = [THIRD_STREAM, STREAM_KEY, OTHER_STREAM]
    arrivals = by_stream([at(offset, created(stream_key=key)) for offset, key in enumerate(keys)])
    assert [stream.before.key for stream in project(empty(*keys), arrivals).streams] == sorted(keys)


def test_a_batch_counts_what_became_of_its_events_over_all_streams_and_marks():
    arrivals = by_stream(
        [
            at(0, created()),
            at(1, created()),
            at(2, claimed()),
            at(3, released()),
            at(4, created(stream_key=OTHER_STREAM)),
            broken(5, stream_key=OTHER_STREAM, id="broken"),
            at(6, released(stream_key=OTHER_STREAM, id="broken")),
            broken(7, reason=Reason.MISROUTED),
        ]
    )
    counts = project(empty(STREAM_KEY, OTHER_STREAM), arrivals).counts
    assert (counts.folded, counts.duplicates, counts.parked) == (3, 1, 1)
    assert (counts.quarantined, counts.repaired) == (3, 1)


def test_an_empty_batch_means_nothing():
    projected = project({}, by_stream([]))
    assert by_stream([]) == Arrivals({}, ())
    assert (projected.streams, projected.marks, projected.counts.folded) == ((), (), 0)
