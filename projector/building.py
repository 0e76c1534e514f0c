"""What the register and ``rxstore.progress`` know of a build: how fast it may go, and how far its workers say it is.

Workers look and note about once a second, and only while a generation is being built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection as Session
from sqlalchemy import Connection, text, update

from projector import rebuild, tables
from projector.generations import Generation
from projector.pace import FIRST

# A throttle holds for these: whoever follows the topic, live or not, must keep up with it.
BUILDING = ("loading", "building")
AUTO = "auto"

ALLOWED = """
SELECT g.state = ANY(%s), g.throttle_rate,
       (SELECT count(DISTINCT c.owner) FROM {schema}.checkpoint c WHERE c.epoch > 0 AND c.caught_up_at IS NULL)
  FROM rxstore.generation g
 WHERE g.name = %s
"""

NOTE = """
INSERT INTO rxstore.progress AS p
       (generation, partition_number, session, folded_to, event_time, events_per_second, trouble, noted_at)
SELECT %s, n.number, pg_backend_pid(), n.folded_to, n.event_time, n.rate, %s, clock_timestamp()
  FROM unnest(%s::int[], %s::bigint[], %s::timestamptz[], %s::float8[]) AS n (number, folded_to, event_time, rate)
    ON CONFLICT (generation, partition_number) DO UPDATE
   SET session = excluded.session, folded_to = excluded.folded_to,
       event_time = coalesce(excluded.event_time, p.event_time),
       events_per_second = excluded.events_per_second, trouble = excluded.trouble, noted_at = excluded.noted_at
"""


# What a worker that is gone had in memory is folded again.
FOLDED = """
SELECT coalesce(sum(greatest(c.next_offset, CASE WHEN a.pid IS NOT NULL THEN p.folded_to END)), 0)
  FROM {schema}.checkpoint c
  LEFT JOIN rxstore.progress p ON p.generation = :name AND p.partition_number = c.partition_number
  LEFT JOIN pg_stat_activity a ON a.pid = p.session AND a.datname = current_database()
 WHERE c.topic = :topic
"""


@dataclass(frozen=True, slots=True)
class Throttle:
    """How fast a generation may be built. ``wanted`` is a number or ``auto``; ``rate`` is in events a second.

    ``p99_ms`` is what an automatic throttle measured last.
    """

    wanted: str
    rate: int
    p99_ms: float | None


class Note(NamedTuple):
    """What a worker says of one partition: the next offset to be folded, the time of the last event, events a second.

    What is folded may be in memory, and not in the database yet.
    """

    folded_to: int
    event_time: datetime | None
    events_per_second: float


# workers --------------------------------------------------------------------------------------------------------------


def allowed(session: Session[Any], schema: str, name: str) -> tuple[bool, float | None]:
    """Return whether a generation is being built, and how many events a second one of its workers may fold, if bounded.

    A throttle is shared evenly by those who hold partitions that were never at their end.
    """
    row = session.execute(ALLOWED.format(schema=schema), (list(BUILDING), name)).fetchone()
    if row is None:
        return False, None
    is_building, rate, workers = row
    return is_building, rate / max(1, workers) if is_building and rate is not None else None


def note(session: Session[Any], name: str, notes: Mapping[int, Note], trouble: str | None) -> None:
    """Say how far these partitions are, and what their worker waits for, if it waits."""
    numbers = sorted(notes)
    offsets = [notes[number].folded_to for number in numbers]
    times = [notes[number].event_time for number in numbers]
    rates = [notes[number].events_per_second for number in numbers]
    session.execute(NOTE, (name, trouble, numbers, offsets, times, rates))


# commands -------------------------------------------------------------------------------------------------------------


def throttle(connection: Connection, name: str) -> Throttle | None:
    """Return a generation's throttle while it holds; None without one."""
    row = connection.execute(
        text(
            "SELECT throttle, throttle_rate, throttle_p99_ms FROM rxstore.generation "
            "WHERE name = :name AND state = ANY(:states) AND throttle IS NOT NULL"
        ),
        {"name": name, "states": list(BUILDING)},
    ).one_or_none()
    return None if row is None else Throttle(row.throttle, row.throttle_rate, row.throttle_p99_ms)


def set_throttle(connection: Connection, name: str, wanted: str | None, *, who: str) -> Generation:
    """Let a generation be built at a number of events a second, at what the API can bear (``auto``), or freely (None).

    An automatic throttle begins where another one was. WrongState when the generation is not being built.
    """
    generation = rebuild.in_state(connection, name, *BUILDING)
    before = throttle(connection, name)
    begins = FIRST if before is None else before.rate
    rate = None if wanted is None else begins if wanted == AUTO else int(wanted)
    connection.execute(
        update(tables.generation)
        .where(tables.generation.c.name == name)
        .values(throttle=wanted, throttle_rate=rate, throttle_p99_ms=None)
    )
    rebuild.note(connection, name, "throttled", who=who, details={"throttle": wanted or "off"})
    return generation


def adapt(connection: Connection, name: str, rate: int, p99_ms: float | None) -> None:
    """Enter what an automatic throttle came to, unless somebody has set another one meanwhile."""
    connection.execute(
        update(tables.generation)
        .where(tables.generation.c.name == name, tables.generation.c.throttle == AUTO)
        .values(throttle_rate=rate, throttle_p99_ms=p99_ms)
    )


def folded(connection: Connection, generation: Generation) -> int:
    """Return the sum of a generation's next offsets, in memory or written: what it grows by was folded."""
    return int(
        connection.execute(
            text(FOLDED.format(schema=generation.schema)), {"name": generation.name, "topic": generation.topic}
        ).scalar_one()
    )
