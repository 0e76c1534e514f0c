"""What was folded and is not yet written: a generation that is being built writes a stream once, not with each batch.

Streams in which all is well are folded as their events come and hold no events. One in which anything is set aside, or
waits, or is deleted keeps its events instead: they are folded from the database when everything is written, as any
batch is, since what becomes of such a record depends on more than its stream. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from projector.batch import Accepted, Quarantined
from projector.sizes import size_of_record, size_of_stream
from projector.stream import Counts, FoldedStream, SetAside, Stream

Item = Accepted | Quarantined

# Of the bound; the rest is for streams that were written and have more events to come.
UNWRITTEN_SHARE = 3 / 4


@dataclass(slots=True)
class Unwritten:
    """Streams as they are after what was read since the last write, and the records for which that does not go.

    ``first_offsets`` and ``next_offsets`` say what of each partition is in here; ``size`` is in bytes, estimated, and
    ``bound`` the memory for all of this and for what is remembered of streams that were written.
    ``known`` are partition and offset of records that had been set aside before they were read, as after a rewind, and
    were passed over; ``duplicates`` of them belong to a stream.
    """

    bound: int = 0
    streams: dict[str, FoldedStream] = field(default_factory=dict)
    items: dict[str, list[Item]] = field(default_factory=dict)
    marks: list[SetAside] = field(default_factory=list)
    first_offsets: dict[int, int] = field(default_factory=dict)
    next_offsets: dict[int, int] = field(default_factory=dict)
    leader_epochs: dict[int, int] = field(default_factory=dict)
    known: set[tuple[int, int]] = field(default_factory=set)
    duplicates: int = 0
    size: int = 0

    def __bool__(self) -> bool:
        return bool(self.next_offsets)

    @property
    def is_full(self) -> bool:
        """Whether it is time to write."""
        return self.size >= self.bound * UNWRITTEN_SHARE

    @property
    def room(self) -> int:
        """Return how many bytes of written streams may be remembered beside what is in here.

        One that is not remembered is loaded when more of its events come, which costs as much as folding several.
        """
        return max(0, self.bound - self.size)

    def stream(self, key: str) -> Stream | None:
        """Return a stream as it is after what is in here; None when nothing of it is, or only its events are."""
        folded = self.streams.get(key)
        if folded is None:
            return None
        return Stream(key, folded.before.partition, folded.prescription, folded.history)

    def read_to(
        self, claimed: Mapping[int, int], next_offsets: Mapping[int, int], leader_epochs: Mapping[int, int]
    ) -> None:
        """Note how far each partition is in here; ``claimed`` says where those that come new begin."""
        for number, offset in next_offsets.items():
            self.first_offsets.setdefault(number, claimed[number])
            self.next_offsets[number] = offset
            self.leader_epochs.pop(number, None)
        self.leader_epochs.update(leader_epochs)

    def add(self, folded: FoldedStream) -> None:
        """Take a stream after more of its events; what the database holds of it stays what it was."""
        known = self.streams.get(folded.before.key)
        if known is None:
            self.size += _size_of(folded)
            self.streams[folded.before.key] = folded
            return
        counts = Counts()
        counts.add(known.counts)
        counts.add(folded.counts)
        self.size += size_of_stream(folded.prescription) - size_of_stream(known.prescription)
        self.streams[folded.before.key] = FoldedStream(
            before=known.before,
            prescription=folded.prescription,
            history=folded.history,
            set_aside={},
            removed=frozenset(),
            deleted=False,
            counts=counts,
        )

    def keep(self, key: str, items: Iterable[Item]) -> None:
        """Keep the events of a stream in which something is set aside, as they are."""
        kept = self.items.setdefault(key, [])
        for item in items:
            kept.append(item)
            self.size += size_of_record(item.record)

    def mark(self, marks: Iterable[SetAside]) -> None:
        """Keep records that belong to no stream."""
        for record in marks:
            self.marks.append(record)
            self.size += size_of_record(record.record)

    def pass_over(self, known: Iterable[tuple[int, int]], duplicates: int) -> None:
        """Note records that were passed over."""
        self.known.update(known)
        self.duplicates += duplicates

    def forget(self, partition: int) -> None:
        """Forget what is in here of a partition."""
        self.streams = {key: one for key, one in self.streams.items() if one.before.partition != partition}
        self.items = {key: one for key, one in self.items.items() if one[0].record.position.partition != partition}
        self.marks = [one for one in self.marks if one.position.partition != partition]
        self.known = {place for place in self.known if place[0] != partition}
        for offsets in (self.first_offsets, self.next_offsets, self.leader_epochs):
            offsets.pop(partition, None)
        self.size = sum(map(_size_of, self.streams.values()))
        self.size += sum(size_of_record(one.record) for kept in self.items.values() for one in kept)
        self.size += sum(size_of_record(one.record) for one in self.marks)

    def clear(self) -> None:
        """Forget everything."""
        for held in (self.streams, self.items, self.marks, self.known):
            held.clear()
        for offsets in (self.first_offsets, self.next_offsets, self.leader_epochs):
            offsets.clear()
        self.size = self.duplicates = 0


def is_well(folded: FoldedStream) -> bool:
    """Whether a stream, before and after, holds nothing that waits or was set aside, and is not deleted."""
    before = folded.before
    return not (
        folded.set_aside or folded.removed or folded.deleted or before.open or before.has_parked or before.is_deleted
    )


def _size_of(folded: FoldedStream) -> int:
    """Before and after have most of their parts in common."""
    return size_of_stream(folded.before.prescription) // 4 + size_of_stream(folded.prescription)
