"""What a worker remembers of the streams that it wrote."""

from __future__ import annotations

from collections.abc import Iterable

from projector.projection import by_stream
from projector.recent import RecentStreams
from projector.sizes import size_of_stream
from projector.stream import FoldedStream, Stream, fold
from tests.integration.projecting import DECODE, generated_log

PLENTY = 1_000_000_000
WITH_AN_END = {"0004", "0005", "0007", "0008", "0009"}


def folded() -> list[FoldedStream]:
    """Streams in which all is well."""
    arrivals = by_stream(DECODE(record) for record in generated_log(60).records())
    streams = [
        fold(Stream(key, items[0].record.position.partition), items) for key, items in arrivals.by_stream.items()
    ]
    return [one for one in streams if one.prescription is not None and not one.set_aside and not one.deleted]


def statuses(stream: FoldedStream) -> set[str]:
    assert stream.prescription is not None
    return {issue.status for issue in stream.prescription.issues}


def size(streams: Iterable[FoldedStream]) -> int:
    return sum(size_of_stream(one.prescription) for one in streams)


def unfinished(streams: Iterable[FoldedStream]) -> list[FoldedStream]:
    return [one for one in streams if not statuses(one) <= WITH_AN_END]


def test_a_stream_is_remembered_as_it_was_written():
    recent, streams = RecentStreams(PLENTY), unfinished(folded())
    recent.keep(streams)
    assert streams
    for one in streams:
        assert recent.get(one.before.key) == Stream(one.before.key, one.before.partition, one.prescription, one.history)


def test_a_stream_all_of_whose_issues_came_to_an_end_makes_place_for_others():
    recent, streams = RecentStreams(PLENTY), folded()
    recent.keep(streams)
    ended = [one for one in streams if statuses(one) <= WITH_AN_END]
    assert ended
    assert all(recent.get(one.before.key) is None for one in ended)
    assert len(recent) == len(unfinished(streams))


def test_a_stream_that_comes_to_its_end_is_no_longer_remembered_as_it_was_before():
    recent = RecentStreams(PLENTY)
    one = next(one for one in folded() if statuses(one) <= WITH_AN_END)
    arrivals = by_stream(DECODE(record) for record in generated_log(60).records()).by_stream[one.before.key]
    begun = fold(one.before, arrivals[:1])
    recent.keep([begun])
    assert recent.get(one.before.key) is not None
    recent.keep([one])
    assert recent.get(one.before.key) is None


def test_the_stream_that_was_not_asked_for_longest_is_forgotten_first():
    streams = unfinished(folded())[:3]
    first, second, third = (one.before.key for one in streams)
    recent = RecentStreams(size(streams) - 1)
    recent.keep(streams[:2])
    recent.get(first)
    recent.keep(streams[2:])
    assert recent.get(second) is None
    assert recent.get(first) is not None
    assert recent.get(third) is not None


def test_a_stream_that_is_written_again_takes_its_place_once():
    streams = unfinished(folded())[:3]
    recent = RecentStreams(size(streams))
    for _ in range(5):
        recent.keep(streams)
        recent.drop([streams[0].before.key])
    recent.keep(streams)
    assert len(recent) == 3


def test_more_may_be_remembered_for_a_while():
    streams = unfinished(folded())
    recent = RecentStreams(size(streams[-2:]))
    recent.allow(size(streams[:-2]))
    recent.keep(streams)
    assert len(recent) == len(streams)
    recent.allow(size(streams[-3:-2]))
    assert len(recent) == 3
    recent.allow(0)
    assert len(recent) == 2
    recent.forget()
    recent.keep(streams)
    assert len(recent) == 2


def test_dropped_streams_are_loaded_again_and_the_others_are_not():
    recent, streams = RecentStreams(PLENTY), unfinished(folded())
    recent.keep(streams)
    dropped, *others = (one.before.key for one in streams)
    recent.drop([dropped, "never-seen"])
    assert recent.get(dropped) is None
    assert others
    assert all(recent.get(key) is not None for key in others)
