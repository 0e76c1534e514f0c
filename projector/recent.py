"""The streams that this worker wrote last, so that the next event of a prescription need not load it again.

What is kept is what the database holds, as long as nobody else writes there; and nobody does while the worker holds
the partition's claim: whoever writes to a stream beside its worker must raise the epoch first. Losing a claim, or any
failure between here and the database, forgets everything.
"""

from __future__ import annotations

from collections.abc import Iterable

from projector.prescription import has_run_its_course
from projector.sizes import size_of_stream
from projector.stream import FoldedStream, Stream


class RecentStreams:
    """Healthy streams of at most ``limit`` bytes, estimated; the least recently used one leaves first.

    A stream that waits is loaded. So is one that has run its course: few events come to it, and it would take the place
    of one that has not.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._more = 0
        self._size = 0
        self._streams: dict[str, tuple[Stream, int]] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def get(self, key: str) -> Stream | None:
        """Return the stream as last written, or None."""
        held = self._streams.pop(key, None)
        if held is None:
            return None
        self._streams[key] = held
        return held[0]

    def keep(self, folded: Iterable[FoldedStream]) -> None:
        """Remember what was committed; forget streams that hold or held anything set aside."""
        for stream in folded:
            before, after = stream.before, stream.prescription
            self.drop((before.key,))
            if stream.set_aside or stream.removed or before.open or before.has_parked or stream.deleted:
                continue
            if after is None or has_run_its_course(after):
                continue
            size = size_of_stream(after)
            self._streams[before.key] = Stream(before.key, before.partition, after, stream.history), size
            self._size += size
        self._let_go()

    def allow(self, more: int) -> None:
        """Keep so many bytes more than the limit from now on."""
        self._more = more
        self._let_go()

    def drop(self, keys: Iterable[str]) -> None:
        """Forget some streams, which somebody else holds from now on."""
        for key in keys:
            held = self._streams.pop(key, None)
            if held is not None:
                self._size -= held[1]

    def forget(self) -> None:
        """Forget everything: the next event of each stream loads it."""
        self._streams.clear()
        self._size = 0

    def _let_go(self) -> None:
        too_much = self._size - self._limit - self._more
        leaving = []
        for key, (_, size) in self._streams.items():  # one pass: what left before would be passed again each time
            if too_much <= 0:
                break
            too_much -= size
            leaving.append(key)
        self.drop(leaving)
