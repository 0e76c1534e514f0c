"""The streams that this worker wrote last, so that the next event of a prescription need not load it again.

What is kept is what the database holds, as long as nobody else writes there; and nobody does while the worker holds
the partition's claim: whoever writes to a stream beside its worker must raise the epoch first. Losing a claim, or any
failure between here and the database, forgets everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from projector.prescription import has_run_its_course
from projector.stream import FoldedStream, Stream


class RecentStreams:
    """At most ``limit`` healthy streams, the least recently used one leaves first. A stream that waits is loaded.

    So is one that has run its course: few events come to it, and it would take the place of one that has not.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._streams: dict[str, Stream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def get(self, key: str) -> Stream | None:
        """Return the stream as last written, or None."""
        stream = self._streams.pop(key, None)
        if stream is not None:
            self._streams[key] = stream
        return stream

    def keep(self, folded: Iterable[FoldedStream]) -> None:
        """Remember what was committed; forget streams that hold or held anything set aside."""
        for stream in folded:
            before = stream.before
            self._streams.pop(before.key, None)
            if stream.set_aside or stream.removed or before.open or before.has_parked or stream.deleted:
                continue
            if stream.prescription is not None and has_run_its_course(stream.prescription):
                continue
            self._streams[before.key] = Stream(before.key, before.partition, stream.prescription, stream.history)
        too_many = max(0, len(self._streams) - self.limit)
        for key in list(islice(self._streams, too_many)):  # one pass: what left before would be passed again each time
            del self._streams[key]

    def drop(self, keys: Iterable[str]) -> None:
        """Forget some streams, which are about to be written by other means."""
        for key in keys:
            self._streams.pop(key, None)

    def forget(self) -> None:
        """Forget everything: the next event of each stream loads it."""
        self._streams.clear()
