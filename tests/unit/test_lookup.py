"""Single records read from the log: what it has, what it no longer has, and brokers that do not answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError

from ingest import lookup as lookup_module
from ingest.lookup import lookup
from projector.batch import Position

PARTITION = TopicPartition("events", 3)


class Consumer:
    """A partition from ``first`` on with a hole; it can fall silent."""

    def __init__(self, offsets, *, first=0, silent=False):
        self.offsets, self.first, self.silent = offsets, first, silent
        self.at = 0

    def assign(self, partitions):
        assert partitions == [PARTITION]

    def beginning_offsets(self, partitions):
        return {PARTITION: self.first}

    def end_offsets(self, partitions):
        return {PARTITION: max(self.offsets) + 1}

    def seek(self, partition, offset):
        self.at = offset

    def poll(self, timeout_ms, max_records):
        if self.silent:
            return {}
        found = [offset for offset in self.offsets if offset >= self.at][:max_records]
        return {PARTITION: [_polled(offset) for offset in found]}

    def position(self, partition, timeout_ms):
        return self.at

    def close(self, autocommit):
        pass


def _polled(offset):
    return SimpleNamespace(topic="events", partition=3, offset=offset, timestamp=0, key=b"k", value=b"v", headers=[])


def read(consumer, *offsets):
    found = lookup(lambda: consumer)(Position("events", 3, offset) for offset in offsets)
    return sorted(position.offset for position in found)


def test_what_the_log_has_is_found():
    assert read(Consumer([0, 1, 4, 5]), 5, 1) == [1, 5]


def test_holes_and_what_retention_took_are_missing():
    assert read(Consumer([4, 5, 8], first=4), 0, 5, 6, 8, 99) == [5, 8]


def test_brokers_that_do_not_answer_are_an_error_and_not_a_log_without_events(monkeypatch):
    monkeypatch.setattr(lookup_module, "PATIENCE_SECONDS", 0.01)
    with pytest.raises(KafkaTimeoutError):
        read(Consumer([0, 1], silent=True), 1)
