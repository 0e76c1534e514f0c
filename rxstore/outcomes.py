"""What became of published events: waits until the live read model has passed them, then asks about all in bulk."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Engine, text

from projector.batch import Position
from rxstore.publishing import Published

LOOK_EVERY_SECONDS = 0.1
AT_A_TIME = 5_000
NOT_SEEN = "not_seen"
FINE = frozenset({"folded", "duplicate"})

PASSED = text("""
    SELECT k.partition_number, k.next_offset FROM rxstore.checkpoint k WHERE k.topic = :topic
""")

# The events of each stream are cut out of its row once, however many are asked about.
FATES = text("""
    SELECT asked.n, s.state, s.reason, s.waiting_for, s.errors, e.version,
           (e.partition_number, e.record_offset) = (asked.partition_number, asked.record_offset) AS stands_here,
           e.deleted
      FROM unnest(CAST(:partitions AS integer[]), CAST(:offsets AS bigint[]), CAST(:keys AS text[]),
                  CAST(:event_keys AS bytea[])) WITH ORDINALITY
           AS asked (partition_number, record_offset, stream_key, event_key, n)
      LEFT JOIN rxstore.set_aside s
             ON (s.topic, s.partition_number, s.record_offset)
              = (CAST(:topic AS text), asked.partition_number, asked.record_offset)
      LEFT JOIN (
               SELECT stored.*
                 FROM unnest(CAST(:streams AS text[])) AS stream (stream_key)
                 JOIN rxstore.event stored ON stored.stream_key = stream.stream_key
           ) e ON e.stream_key = asked.stream_key AND e.event_key = asked.event_key
     ORDER BY asked.n
""")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one published event.

    ``state`` is folded, duplicate, parked, open, repaired, retried, skipped, or not_seen while the read model has not
    come to it.
    """

    published: Published
    state: str
    version: int | None = None
    reason: str | None = None
    waiting_for: str | None = None
    errors: Sequence[dict[str, str]] = ()

    @property
    def is_fine(self) -> bool:
        """Whether the event counts: it folded, or an equal one did before."""
        return self.state in FINE

    def as_json(self) -> dict[str, Any]:
        """Return the members that ``publish --json`` adds for it."""
        return {
            "state": self.state,
            "version": self.version,
            "reason": self.reason,
            "waiting_for": self.waiting_for,
            "errors": list(self.errors),
        }


def wait(engine: Engine, published: Sequence[Published], seconds: float) -> Iterator[Outcome]:
    """Yield what became of each event, in their order, once all are passed or the time is up."""
    ends = _ends(published)
    until = time.monotonic() + seconds
    while not _all_passed(engine, ends) and time.monotonic() < until:
        time.sleep(LOOK_EVERY_SECONDS)
    rest = iter(published)
    while chunk := list(islice(rest, AT_A_TIME)):
        with engine.connect() as connection:
            yield from _outcomes(connection, chunk)


def summary(counts: Counter[str]) -> str:
    """Say how many came to which state, folded ones first."""
    order = ["folded", "duplicate", *sorted(counts.keys() - FINE)]
    return ", ".join(f"{state.replace('_', ' ')} {counts[state]:,}" for state in order)


def _ends(published: Iterable[Published]) -> dict[tuple[str, int], int]:
    ends: dict[tuple[str, int], int] = {}
    for one in published:
        place = (one.position.topic, one.position.partition)
        ends[place] = max(ends.get(place, -1), one.position.offset)
    return ends


def _all_passed(engine: Engine, ends: dict[tuple[str, int], int]) -> bool:
    with engine.connect() as connection:
        next_offsets = _next_offsets(connection, {topic for topic, _ in ends})
    return all(next_offsets.get(place, 0) > offset for place, offset in ends.items())


def _next_offsets(connection: Connection, topics: Iterable[str]) -> dict[tuple[str, int], int]:
    return {
        (topic, row.partition_number): row.next_offset
        for topic in topics
        for row in connection.execute(PASSED, {"topic": topic})
    }


def _outcomes(connection: Connection, chunk: Sequence[Published]) -> Iterator[Outcome]:
    topic = chunk[0].position.topic
    # Asked before the rows: what it says to be passed is in them.
    next_offsets = _next_offsets(connection, {topic})
    asked = {
        "topic": topic,
        "partitions": [one.position.partition for one in chunk],
        "offsets": [one.position.offset for one in chunk],
        "keys": [one.key for one in chunk],
        "event_keys": [one.event_key for one in chunk],
        "streams": sorted({one.key for one in chunk if one.key is not None}),
    }
    for row in connection.execute(FATES, asked):
        one = chunk[row.n - 1]
        if next_offsets.get(_place(one.position), 0) <= one.position.offset:
            yield Outcome(one, NOT_SEEN)
        elif row.version is not None and (row.stands_here or row.deleted):
            # A deletion forgets where its events stand: that an equal one folded is all that is known.
            yield Outcome(one, "folded", row.version)
        elif row.state is not None:
            yield Outcome(one, row.state, None, row.reason, row.waiting_for, row.errors)
        elif row.version is not None:
            yield Outcome(one, "duplicate", row.version)
        else:
            yield Outcome(one, NOT_SEEN)


def _place(position: Position) -> tuple[str, int]:
    return position.topic, position.partition
