"""Tells a bad event from a bad deploy: when most of what arrives cannot be read, stop and set none of it aside."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from projector.batch import Accepted, Quarantined

LAST_RECORDS = 1_000
AT_LEAST = 100


class TooManyUnreadable(Exception):
    """Most of what arrives cannot be read: look at the last deploy, the settings or the publishers, not one event."""


class Readability:
    """The last 1,000 records: which could be read, and to which key the others belonged."""

    def __init__(self) -> None:
        self._last: deque[tuple[bool, bytes | None]] = deque(maxlen=LAST_RECORDS)

    def look(self, items: Iterable[Accepted | Quarantined]) -> None:
        """Take a batch in before it is projected; TooManyUnreadable when more than half of the last are unreadable.

        One stream alone never counts as most: its publisher may be broken, ours is not.
        """
        self._last.extend((isinstance(item, Accepted), item.record.key) for item in items)
        unreadable = [key for readable, key in self._last if not readable]
        if len(self._last) >= AT_LEAST and 2 * len(unreadable) > len(self._last) and len(set(unreadable)) > 1:
            raise TooManyUnreadable(
                f"{len(unreadable)} of the last {len(self._last)} records cannot be read: the version that was "
                "deployed, a setting (RXSTORE_PARTITIONER, RXSTORE_CHECK_CHARACTER, RXSTORE_TOPIC) or the publishers "
                "are wrong, not single events. Nothing of this batch was set aside; 'rxstore project --keep-going' "
                "sets it aside all the same"
            )
