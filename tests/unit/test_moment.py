"""Where a partition ended at a time: at the first record that is stamped later, whatever stands behind it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ingest.moment import EPOCH, MILLISECOND, End, first_later
from projector.batch import Position, Record

THEN = EPOCH + timedelta(days=20_000)


def stamped(*milliseconds: int) -> list[Record]:
    """Records at rising offsets with a hole after the first, stamped so many milliseconds after then."""
    then = (THEN - EPOCH) // MILLISECOND
    offsets = [0, *range(2, len(milliseconds) + 1)]
    return [
        Record(Position("events", 3, offset), then + ms, b"key", b"value", ())
        for offset, ms in zip(offsets, milliseconds, strict=True)
    ]


@pytest.mark.parametrize(
    ("milliseconds", "offset"),
    [
        ([1], 0),
        ([0, 1], 2),
        ([-2, -1, 0, 1, 2], 4),
        ([-1, 5, -3, -2, 6], 2),  # what is stamped early and stands behind a later one was sent late
        ([-500, -900, -1, 1], 4),
    ],
    ids=["at once", "at the time itself is in time", "rising", "sent late", "not rising"],
)
def test_a_partition_ends_at_the_first_record_that_is_stamped_later(milliseconds, offset):
    found = first_later(stamped(*milliseconds), THEN)
    assert found.offset == offset
    assert found.next_at > THEN


def test_without_a_later_record_it_has_no_end_of_its_own():
    assert first_later(stamped(-1, 0), THEN) is None
    assert first_later([], THEN) is None


@pytest.mark.parametrize(("microseconds", "is_later"), [(0, True), (999, True), (1_000, False)])
def test_stamps_are_whole_milliseconds_and_times_need_not_be(microseconds, is_later):
    found = first_later(stamped(1), THEN + timedelta(microseconds=microseconds))
    assert found == (End(0, THEN + MILLISECOND) if is_later else None)
