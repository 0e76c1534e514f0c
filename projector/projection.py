"""What a batch means: stored streams and what arrived become streams after and records set aside. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from projector.batch import Accepted, Quarantined, Reason
from projector.stream import Counts, FoldedStream, SetAside, Stream, fold, mark

Item = Accepted | Quarantined


@dataclass(frozen=True, slots=True)
class Arrivals:
    """One poll, sorted by stream: each stream's items in log order, and the records that belong to none."""

    by_stream: dict[str, list[Item]]
    marks: tuple[SetAside, ...]


@dataclass(frozen=True, slots=True)
class Projected:
    """What to write after a batch."""

    streams: tuple[FoldedStream, ...]
    marks: tuple[SetAside, ...]
    counts: Counts


def by_stream(items: Iterable[Item]) -> Arrivals:
    """Group what arrived by stream, in log order. A misrouted record belongs to none: it only marks one."""
    streams: dict[str, list[Item]] = {}
    marks: list[SetAside] = []
    for item in items:
        if isinstance(item, Accepted):
            streams.setdefault(item.event.envelope.stream_key, []).append(item)
        elif item.stream_key is None or item.reason is Reason.MISROUTED:
            marks.append(mark(item))
        else:
            streams.setdefault(item.stream_key, []).append(item)
    return Arrivals(streams, tuple(marks))


def project(stored: Mapping[str, Stream], arrivals: Arrivals) -> Projected:
    """Fold what arrived into the stored streams, which must hold every stream that arrivals name."""
    counts = Counts(quarantined=len(arrivals.marks))
    streams: list[FoldedStream] = []
    for key in sorted(arrivals.by_stream):
        folded = fold(stored[key], arrivals.by_stream[key])
        counts.add(folded.counts)
        streams.append(folded)
    return Projected(tuple(streams), arrivals.marks, counts)
