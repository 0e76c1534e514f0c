"""What was folded and is not yet written says how large it is, and forgets what it is told to."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence

from projector.batch import Position, Record
from projector.projection import by_stream
from projector.stream import Stream, fold
from projector.unwritten import Unwritten
from tests.integration.projecting import DECODE, PARTITIONS, generated_log

POLLED = 500


def copied(record: Record) -> Record:
    """A record with bytes of its own, as it comes from the brokers."""
    position = record.position
    return Record(
        Position(position.topic, position.partition, position.offset),
        record.timestamp_ms,
        bytes(bytearray(record.key or b"")),
        bytes(bytearray(record.value or b"")),
        record.headers,
    )


def folded(records: Sequence[Record]) -> Unwritten:
    unwritten = Unwritten()
    for begin in range(0, len(records), POLLED):
        arrivals = by_stream(DECODE(copied(record)) for record in records[begin : begin + POLLED])
        for key, items in arrivals.by_stream.items():
            stream = unwritten.stream(key) or Stream(key, items[0].record.position.partition)
            unwritten.add(fold(stream, items))
    return unwritten


def folded_further(records: Sequence[Record]) -> Unwritten:
    """What the second half of the log makes of the streams that the first one left."""
    half = len(records) // 2
    stored = {key: Stream(key, 0, one.prescription, one.history) for key, one in folded(records[:half]).streams.items()}
    unwritten = Unwritten()
    for begin in range(half, len(records), POLLED):
        arrivals = by_stream(DECODE(copied(record)) for record in records[begin : begin + POLLED])
        for key, items in arrivals.by_stream.items():
            if key in stored:
                unwritten.add(fold(unwritten.stream(key) or stored[key], items))
    return unwritten


def kept(records: Sequence[Record]) -> Unwritten:
    unwritten = Unwritten()
    for begin in range(0, len(records), POLLED):
        arrivals = by_stream(DECODE(copied(record)) for record in records[begin : begin + POLLED])
        for key, items in arrivals.by_stream.items():
            unwritten.keep(key, items)
    return unwritten


def taken(make: object, records: Sequence[Record]) -> tuple[int, int]:
    """How many bytes the interpreter took, and how many it is said to be."""
    assert callable(make)
    make(records[:POLLED])  # fills caches
    gc.collect()
    tracemalloc.start()
    try:
        unwritten = make(records)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return held, unwritten.size


def test_the_size_of_folded_streams_is_not_less_than_what_they_take_and_not_far_above():
    held, said = taken(folded, list(generated_log(600).records()))
    assert held < said < 1.5 * held


def test_the_size_of_streams_that_were_stored_before_is_not_less_than_what_they_take_and_not_far_above():
    held, said = taken(folded_further, sorted(generated_log(600).records(), key=lambda record: record.timestamp_ms))
    assert held < said < 1.5 * held


def test_the_size_of_kept_events_is_not_less_than_what_they_take_and_not_far_above():
    held, said = taken(kept, list(generated_log(200).records()))
    assert held < said < 2 * held


def test_a_stream_is_what_the_fold_of_all_its_events_is_however_often_it_was_added_to():
    records = [record for number in range(PARTITIONS) for record in generated_log(50).partitions[number]]
    unwritten = folded(records)
    for key, items in by_stream(DECODE(record) for record in records).by_stream.items():
        whole = fold(Stream(key, items[0].record.position.partition), items)
        assert unwritten.streams[key].prescription == whole.prescription
        assert unwritten.streams[key].history == whole.history
        assert unwritten.streams[key].counts == whole.counts
        assert unwritten.streams[key].before == whole.before


def test_forgetting_a_partition_leaves_the_others_and_their_size():
    records = list(generated_log(60).records())
    unwritten, others = folded(records), folded([r for r in records if r.position.partition != 1])
    unwritten.forget(1)
    assert unwritten.streams == others.streams
    assert unwritten.size == others.size
