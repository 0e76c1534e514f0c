"""The pace of one worker of a build: how many events it may take now, and what it says of how far it is.

Of a generation that is not being built it says nothing, and holds nobody back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg

from projector import building
from projector.batch import Accepted
from projector.building import Note
from projector.checkpoints import Claim
from projector.pace import Bucket, Meter
from projector.read_model import ReadModel
from projector.runner import Batch

LOOK_EVERY_SECONDS = 1.0
# A worker that waits goes round its loop as often as this, so that it hears what else it is told.
LONGEST_WAIT_SECONDS = 0.25


@dataclass(slots=True)
class Pace:
    """What one worker may do and has done. Until it has looked for the first time there is no room."""

    read_model: ReadModel
    clock: Callable[[], float] = time.monotonic
    _is_building: bool | None = None
    _bucket: Bucket | None = None
    _meters: dict[int, Meter] = field(default_factory=dict)
    _times: dict[int, datetime] = field(default_factory=dict)
    _looked_at: float | None = None
    _trouble: str | None = None

    def room(self, most: int) -> int:
        """Return how many events may be taken now, at most so many."""
        if self._is_building is None:
            return 0
        return most if self._bucket is None else min(most, self._bucket.room(self.clock()))

    def wait(self) -> float:
        """Return for how many seconds there is nothing to be taken, or a shorter time to look at other things."""
        left = LONGEST_WAIT_SECONDS if self._bucket is None else self._bucket.wait(self.clock())
        return min(LONGEST_WAIT_SECONDS, left)

    def took(self, count: int) -> None:
        """Note that so many events were taken."""
        if self._bucket is not None:
            self._bucket.take(count)

    def passed(self, batch: Batch) -> None:
        """Note that a batch was folded."""
        self._trouble = None
        if not self._is_building:
            return
        left = set(batch.next_offsets)
        for item in reversed(batch.items):
            if not left:
                break
            if isinstance(item, Accepted) and (number := item.record.position.partition) in left:
                self._times[number] = item.event.envelope.time
                left.remove(number)

    def is_due(self) -> bool:
        """Whether it is time to look again; then the next time is a second later, whatever comes of this look."""
        now = self.clock()
        if self._looked_at is not None and now - self._looked_at < LOOK_EVERY_SECONDS:
            return False
        self._looked_at = now
        return True

    def look(self, session: psycopg.Connection[Any], claims: Mapping[int, Claim]) -> None:
        """Ask for the throttle, and say how far these partitions are: ``claims`` stand where they were folded to."""
        now = self.clock()
        self._is_building, rate = building.allowed(session, self.read_model.schema, self.read_model.generation)
        if rate is None:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = Bucket(rate, now)
        else:
            self._bucket.set_rate(rate, now)
        if self._is_building:
            self._measure(claims, now)
            self._say(session, claims)

    def waits(self, session: psycopg.Connection[Any], claims: Mapping[int, Claim], words: str) -> None:
        """Say at once that these partitions wait, and for what."""
        self._trouble = words
        if self._is_building and claims:
            self._say(session, claims)

    def _measure(self, claims: Mapping[int, Claim], now: float) -> None:
        for number in self._meters.keys() - claims.keys():
            del self._meters[number]
            self._times.pop(number, None)
        for number, claim in claims.items():
            self._meters.setdefault(number, Meter()).note(now, claim.next_offset)

    def _say(self, session: psycopg.Connection[Any], claims: Mapping[int, Claim]) -> None:
        notes = {
            number: Note(
                claim.next_offset,
                self._times.get(number),
                self._meters[number].per_second if number in self._meters else 0.0,
            )
            for number, claim in claims.items()
        }
        building.note(session, self.read_model.generation, notes, self._trouble)
