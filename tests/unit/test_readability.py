"""A bad deploy stops itself; a bad event, or a bad publisher of one prescription, does not stop anybody."""

from __future__ import annotations

import pytest

from ingest.readability import Readability, TooManyUnreadable
from projector.batch import Accepted, Position, Quarantined, Reason, Record
from projector.lately import AT_LEAST, LAST_RECORDS
from tests import examples


def record(number: int) -> Record:
    return Record(Position("events", 0, number), 0, f"key-{number}".encode(), b"{}")


def readable(count: int) -> list[Accepted]:
    event = examples.event(examples.created())
    return [Accepted(record(number), event) for number in range(count)]


def unreadable(count: int, *, key: bytes | None = None) -> list[Quarantined]:
    records = [record(number) for number in range(count)]
    if key is not None:
        records = [Record(r.position, 0, key, r.value) for r in records]
    return [Quarantined(r, Reason.UNREADABLE, ()) for r in records]


def test_more_than_half_unreadable_stops():
    with pytest.raises(TooManyUnreadable, match="101 of the last 200"):
        Readability().look([*readable(99), *unreadable(101)])


def test_half_is_not_most():
    Readability().look([*readable(100), *unreadable(100)])


def test_too_few_records_say_nothing():
    Readability().look(unreadable(AT_LEAST - 1))


def test_one_prescription_alone_is_never_most():
    Readability().look(unreadable(LAST_RECORDS, key=b"one"))


def test_what_was_readable_long_ago_does_not_count():
    readability = Readability()
    readability.look(readable(10 * LAST_RECORDS))
    with pytest.raises(TooManyUnreadable):
        readability.look(unreadable(LAST_RECORDS // 2 + 1))


def test_batches_are_taken_together():
    readability = Readability()
    readability.look(unreadable(60))
    with pytest.raises(TooManyUnreadable):
        readability.look(unreadable(60))
