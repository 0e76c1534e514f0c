"""Tells a bad event from a bad deploy: when most of what arrives cannot be read, stop and set none of it aside."""

from __future__ import annotations

from collections.abc import Iterable

from projector.batch import Accepted, Quarantined
from projector.lately import Lately


class TooManyUnreadable(Exception):
    """Most of what arrives cannot be read: look at the last deploy, the settings or the publishers, not one event."""


class Readability:
    """The last 1,000 records: which could be read, and to which key the others belonged."""

    def __init__(self) -> None:
        self._lately = Lately()

    def look(self, items: Iterable[Accepted | Quarantined]) -> None:
        """Take a batch in before it is projected; TooManyUnreadable when more than half of the last are unreadable."""
        self._lately = self._lately.after((isinstance(item, Quarantined), item.record.key) for item in items)
        if self._lately.is_mostly_bad:
            raise TooManyUnreadable(
                f"{self._lately.bad} of the last {self._lately.seen} records cannot be read: the version that was "
                "deployed, a setting (RXSTORE_PARTITIONER, RXSTORE_CHECK_CHARACTER, RXSTORE_TOPIC) or the publishers "
                "are wrong, not single events. Nothing of this batch was set aside; 'rxstore project --keep-going' "
                "sets it aside all the same"
            )
