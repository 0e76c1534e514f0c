"""Tells a bad event from a bad deploy: whether most of what came lately is bad, and not of one stream alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

LAST_RECORDS = 1_000
AT_LEAST = 100

IsBad = bool
Key = bytes | None


class Lately:
    """The last 1,000 records: whether each was bad, and its key. Not changed by what comes after."""

    def __init__(self, records: Iterable[tuple[IsBad, Key]] = ()) -> None:
        self._last = deque(records, maxlen=LAST_RECORDS)

    def after(self, records: Iterable[tuple[IsBad, Key]]) -> Lately:
        """Return the last records once these came too."""
        later = Lately(self._last)
        later._last.extend(records)
        return later

    @property
    def bad(self) -> int:
        """Return how many were bad."""
        return sum(is_bad for is_bad, _ in self._last)

    @property
    def seen(self) -> int:
        """Return how many there were, the good ones too."""
        return len(self._last)

    @property
    def is_mostly_bad(self) -> bool:
        """Whether more than half were bad. One stream alone never counts as most: ours is not what is wrong then."""
        if self.seen < AT_LEAST or 2 * self.bad <= self.seen:
            return False
        return len({key for is_bad, key in self._last if is_bad}) > 1
