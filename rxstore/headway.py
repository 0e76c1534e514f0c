"""How far a build is, partition by partition, and what keeps it from going on: one look for all who tell of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row, text

from projector import building, rebuild
from projector.building import AUTO, Throttle
from projector.generations import Generation
from projector.runner import SESSION_OPTIONS
from rxstore.progress import duration
from rxstore.store import Log

# A checkpoint that has not moved for so long stands still; workers note how far they are every second.
STANDS_STILL_AFTER_SECONDS = 10.0

PARTITIONS = """
SELECT c.partition_number, c.epoch, c.owner,
       greatest(c.next_offset, CASE WHEN EXISTS (
                    SELECT FROM pg_stat_activity a WHERE a.pid = p.session AND a.datname = current_database()
                ) THEN p.folded_to END) AS next_offset,
       coalesce(c.moved_at > clock_timestamp() - make_interval(secs => :seconds), false)
           OR coalesce(p.noted_at > clock_timestamp() - make_interval(secs => :seconds) AND p.events_per_second > 0,
                       false) AS moves,
       coalesce(c.hold_until > clock_timestamp() AND c.hold_until < 'infinity', false) AS held,
       p.session, p.event_time, p.trouble,
       CASE WHEN p.noted_at > clock_timestamp() - make_interval(secs => :seconds) THEN p.events_per_second
            ELSE 0 END AS rate,
       EXISTS (SELECT FROM pg_stat_activity a
                WHERE a.application_name = :worker AND a.datname = current_database()
                  AND a.pid = coalesce(p.session, a.pid)) AS connected
  FROM {schema}.checkpoint c
  LEFT JOIN rxstore.progress p ON p.generation = :generation AND p.partition_number = c.partition_number
 WHERE c.topic = :topic
 ORDER BY c.partition_number
"""

# Sessions of workers that wait for a lock. Which generation a session works for shows in the tables that it has locked
# or waits for, and in what it noted.
LOCKS = """
SELECT a.pid, (pg_blocking_pids(a.pid))[1] AS by
  FROM pg_stat_activity a
 WHERE a.application_name = :worker AND a.datname = current_database() AND cardinality(pg_blocking_pids(a.pid)) > 0
   AND (EXISTS (SELECT FROM rxstore.progress p WHERE p.generation = :generation AND p.session = a.pid)
        OR EXISTS (SELECT FROM pg_locks l JOIN pg_class t ON t.oid = l.relation
                    WHERE l.pid = a.pid AND t.relnamespace = to_regnamespace(:schema)))
 ORDER BY a.pid
"""


NOBODY_LOADS = "nobody loads it: the same 'rxstore rebuild stage --archive' again goes on where it was"


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of a build. What is to be read in all is None when the brokers could not be asked.

    ``event_time`` is that of the last event that was folded, ``left_seconds`` how long the rest takes at this rate.
    """

    partition: int
    done_events: int
    total_events: int | None
    events_per_second: float
    left_seconds: float | None
    event_time: datetime | None


@dataclass(frozen=True, slots=True)
class Cause:
    """What keeps partitions from going on, or all of them from going faster; ``why`` says it in words."""

    cause: str
    why: str
    partitions: list[int]


@dataclass(frozen=True, slots=True)
class Headway:
    """How far a build is. ``throttle`` is None when it goes as fast as it can."""

    done_events: int
    total_events: int | None
    events_per_second: float
    left_seconds: float | None
    event_time: datetime | None
    throttle: Throttle | None
    causes: list[Cause]
    partitions: list[Partition]

    def as_json(self) -> dict[str, Any]:
        """Return the member ``build`` of a generation in ``status --json``."""
        throttle = self.throttle
        return {
            "done_events": self.done_events,
            "total_events": self.total_events,
            "events_per_second": self.events_per_second,
            "left_seconds": self.left_seconds,
            "event_time": self.event_time,
            "throttle": None if throttle is None else throttle.wanted,
            "throttle_events_per_second": None if throttle is None else throttle.rate,
            "throttle_p99_ms": None if throttle is None else throttle.p99_ms,
            "causes": [asdict(cause) for cause in self.causes],
            "partitions": [asdict(partition) for partition in self.partitions],
        }

    @property
    def kinds(self) -> list[str]:
        """Return what tells whether the causes are others than a moment ago, whatever their numbers are."""
        return [cause.cause if cause.cause == "throttled" else cause.why for cause in self.causes]

    @property
    def why(self) -> str | None:
        """Say everything that keeps it, in one line; None when nothing does."""
        return "; ".join(cause.why for cause in self.causes) or None


def look(connection: Connection, generation: Generation, log: Log | None, unreachable: str | None = None) -> Headway:
    """Look how far a generation is. Without a log, ``unreachable`` says why the brokers could not be asked."""
    rows = connection.execute(
        text(PARTITIONS.format(schema=generation.schema)),
        {
            "seconds": STANDS_STILL_AFTER_SECONDS,
            "generation": generation.name,
            "topic": generation.topic,
            "worker": SESSION_OPTIONS["application_name"],
        },
    ).all()
    if log is not None and generation.ends is not None:
        log = replace(log, end_offsets=generation.ends)
    staged = rebuild.last(connection, generation.name, "staged")
    begins = {int(number): first for number, first in (staged.details["from_offsets"] if staged else {}).items()}
    if log is not None:
        begins = {**log.first_offsets, **begins}
    ends = None if log is None else log.end_offsets
    partitions = [_partition(row, begins.get(row.partition_number, 0), ends) for row in rows]
    throttle = building.throttle(connection, generation.name)
    total = None if ends is None else sum(one.total_events or 0 for one in partitions)
    done, rate = sum(one.done_events for one in partitions), sum(row.rate for row in rows)
    return Headway(
        done_events=done,
        total_events=total,
        events_per_second=round(rate, 1),
        left_seconds=None if total is None else _seconds(total - done, rate),
        event_time=max((row.event_time for row in rows if row.event_time), default=None),
        throttle=throttle,
        causes=list(_causes(connection, generation, rows, ends or {}, unreachable, throttle)),
        partitions=partitions,
    )


def _partition(row: Row[Any], first: int, ends: Mapping[int, int] | None) -> Partition:
    done = max(0, row.next_offset - first)
    end = None if ends is None else ends.get(row.partition_number)
    total = None if end is None else max(done, end - first)
    left = None if total is None else _seconds(total - done, row.rate)
    return Partition(row.partition_number, done, total, round(row.rate, 1), left, row.event_time)


def _seconds(events: int, rate: float) -> float | None:
    """Return how long so many events take; None when nothing moves."""
    if events <= 0:
        return 0.0
    return round(events / rate, 1) if rate > 0 else None


# what keeps it --------------------------------------------------------------------------------------------------------


def _causes(
    connection: Connection,
    generation: Generation,
    rows: Sequence[Row[Any]],
    ends: Mapping[int, int],
    unreachable: str | None,
    throttle: Throttle | None,
) -> Iterator[Cause]:
    behind = [row for row in rows if row.next_offset < ends.get(row.partition_number, row.next_offset + 1)]
    if unreachable is not None:
        yield Cause("no_broker", unreachable, _numbers(rows))
    if generation.state == "loading" and not any(row.session is not None and row.connected for row in rows):
        yield Cause("stopped", NOBODY_LOADS, _numbers(behind))
        return
    # Whoever loads an archive takes its partitions one after the other.
    unclaimed = [row for row in behind if row.epoch == 0 and generation.state != "loading"]
    if unclaimed:
        yield _unclaimed(generation, unclaimed, len(rows))
    busy = {row.owner for row in rows if row.moves}
    # A worker reads its partitions by turns: one that waits for its turn does not stand still.
    still = [row for row in behind if row.epoch > 0 and not row.moves and row.owner not in busy]
    held, still = _split(still, lambda row: row.held)
    if held:
        yield Cause("held", "it is held for a comparison", _numbers(held))
    locks = connection.execute(
        text(LOCKS),
        {
            "generation": generation.name,
            "schema": generation.schema,
            "worker": SESSION_OPTIONS["application_name"],
        },
    ).all()
    for lock in locks:
        theirs = [row for row in behind if row.epoch > 0 and row.session in {lock.pid, None}]
        still = [row for row in still if row not in theirs]
        yield Cause(
            "lock",
            f"session {lock.pid} of a projector waits for a lock that session {lock.by} holds",
            _numbers(theirs),
        )
    stopped, still = _split(still, lambda row: not row.connected)
    if stopped:
        yield Cause(
            "stopped",
            f"the workers of {_named(stopped, len(rows))} have stopped: run 'rxstore project' of this version, or look "
            "at its log",
            _numbers(stopped),
        )
    for trouble in sorted({row.trouble for row in still if row.trouble}):
        theirs, still = _split(still, partial(_has_trouble, trouble))
        yield Cause("trouble", f"{trouble}: its workers try again until that is over", _numbers(theirs))
    if throttle is not None and (paced := [row for row in behind if row.epoch > 0 and row.connected]):
        yield Cause("throttled", _throttled(generation, throttle), _numbers(paced))
    elif still:
        yield Cause(
            "unknown",
            f"the workers of {_named(still, len(rows))} are there and do not get on: look at their logs "
            "('action=retry')",
            _numbers(still),
        )


def _split(rows: Sequence[Row[Any]], belongs: Callable[[Row[Any]], bool]) -> tuple[list[Row[Any]], list[Row[Any]]]:
    return [row for row in rows if belongs(row)], [row for row in rows if not belongs(row)]


def _has_trouble(trouble: str, row: Row[Any]) -> bool:
    return bool(row.trouble == trouble)


def _unclaimed(generation: Generation, unclaimed: Sequence[Row[Any]], partitions: int) -> Cause:
    numbers = _numbers(unclaimed)
    if len(numbers) == partitions:
        why = "no projector has taken its partitions: run 'rxstore project' of this version, or look at its log"
    else:
        why = f"no worker has taken {_named(unclaimed, partitions)} of {generation.topic}: look at the projectors' logs"
    return Cause("unclaimed", why, numbers)


def _throttled(generation: Generation, throttle: Throttle) -> str:
    how = f"'rxstore rebuild throttle {generation.name} off' lifts that"
    if throttle.wanted != AUTO:
        return f"throttled to {throttle.rate:,} events a second: {how}"
    measured = "" if throttle.p99_ms is None else f", at a p99 of {throttle.p99_ms:.1f} ms"
    return f"throttled for the API's sake to {throttle.rate:,} events a second{measured}: {how}"


def _numbers(rows: Iterable[Row[Any]]) -> list[int]:
    return [row.partition_number for row in rows]


def _named(rows: Sequence[Row[Any]], partitions: int) -> str:
    numbers = _numbers(rows)
    if len(numbers) == partitions:
        return "all partitions"
    return f"partition{'s' if numbers[1:] else ''} {', '.join(map(str, numbers))}"


# for people -----------------------------------------------------------------------------------------------------------


def lines(found: Headway) -> list[str]:
    """Return the look as lines of text: the whole in the first one, then what holds it up and each partition."""
    told = [f"  built          {_part(found.done_events, found.total_events)} events{_pace(found)}"]
    if found.throttle is not None:
        measured = "" if found.throttle.p99_ms is None else f", the API's p99 is {found.throttle.p99_ms:.1f} ms"
        told.append(f"  throttle       {found.throttle.wanted}: {found.throttle.rate:,} events a second{measured}")
    told += [f"  waits          {cause.why}" for cause in found.causes]
    told += ["", "  partition          done            of     %   a second       left  event time"]
    told += [
        f"  {one.partition:>9} {one.done_events:>13,} {_count(one.total_events):>13} {_percent(one):>5}"
        f" {one.events_per_second:>10,.0f} {_left(one.left_seconds):>10}  {_instant(one.event_time)}"
        for one in found.partitions
    ]
    return told


def _pace(found: Headway) -> str:
    left = "" if found.left_seconds is None else f", about {duration(found.left_seconds)} left"
    reached = "" if found.event_time is None else f", events of {_instant(found.event_time)}"
    return f", {found.events_per_second:,.0f} a second{left}{reached}"


def _part(done: int, total: int | None) -> str:
    return f"{done:,}" if total is None else f"{done:,} of {total:,}"


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _percent(one: Partition) -> str:
    if one.total_events is None:
        return "-"
    return f"{100 * one.done_events / one.total_events:.0f}" if one.total_events else "100"


def _left(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _instant(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%dT%H:%M:%SZ}"
