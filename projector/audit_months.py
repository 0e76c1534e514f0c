"""The months of the audit trail: ``rxstore.audit`` is partitioned, so that what is old goes by whole tables.

Months are made ahead by whoever migrates or retires; what comes in a month that nobody made lands in ``rest`` and is
moved when its month is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime

from sqlalchemy import Connection, text

SCHEMA = "rxstore_audit"
AHEAD = 6

_is_month = re.compile(r"m([0-9]{4})_([0-9]{2})").fullmatch

PARTITIONS = text("""
    SELECT c.relname
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'rxstore.audit'::regclass
     ORDER BY c.relname
""")
EARLIEST_OF_REST = text(f"SELECT min(at) FROM {SCHEMA}.rest")


def make_ahead(connection: Connection, now: datetime, ahead: int = AHEAD) -> list[date]:
    """Make the month of ``now``, some after it, and those that records wait for in ``rest``; return the new ones."""
    this = now.astimezone(UTC).date().replace(day=1)
    waiting = connection.execute(EARLIEST_OF_REST).scalar()
    first = this if waiting is None else min(this, waiting.astimezone(UTC).date().replace(day=1))
    there = set(months(connection))
    made = [month for month in _months_from(first, _after(this, ahead)) if month not in there]
    for month in made:
        _make(connection, month)
    return made


def months(connection: Connection) -> list[date]:
    """Return the first day of each month that has a table of its own, in order."""
    found = map(_is_month, connection.execute(PARTITIONS).scalars())
    return sorted(date(int(month[1]), int(month[2]), 1) for month in found if month)


def ended_before(connection: Connection, day: date) -> list[date]:
    """Return the months that have a table and had ended when this day began, in order."""
    return [month for month in months(connection) if _after(month, 1) <= day]


def end_of(month: date) -> datetime:
    """Return the instant at which a month is over."""
    end = _after(month, 1)
    return datetime(end.year, end.month, 1, tzinfo=UTC)


def drop(connection: Connection, month: date) -> None:
    """Take a month away, with its records."""
    connection.execute(text(f"DROP TABLE {table_of(month)}"))


def table_of(month: date) -> str:
    """Return the table of a month."""
    return f"{SCHEMA}.m{month:%Y_%m}"


def _make(connection: Connection, month: date) -> None:
    """Fill the table before it is attached: the months of records in ``rest`` could not be made beside them."""
    table, begin, end = table_of(month), f"'{month} 00:00:00+00'", f"'{_after(month, 1)} 00:00:00+00'"
    connection.execute(text(f"CREATE TABLE {table} (LIKE rxstore.audit INCLUDING ALL)"))
    connection.execute(
        text(
            f"WITH moved AS (DELETE FROM {SCHEMA}.rest WHERE at >= {begin} AND at < {end} RETURNING *) "
            f"INSERT INTO {table} SELECT * FROM moved"
        )
    )
    connection.execute(text(f"ALTER TABLE rxstore.audit ATTACH PARTITION {table} FOR VALUES FROM ({begin}) TO ({end})"))


def _months_from(first: date, last: date) -> Iterator[date]:
    month = first
    while month <= last:
        yield month
        month = _after(month, 1)


def _after(month: date, count: int) -> date:
    number = month.year * 12 + month.month - 1 + count
    return date(number // 12, number % 12 + 1, 1)
