"""What can be wrong with the database: away, read only, another version's, locked, or in another time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy import Connection, text

from projector import generations
from projector.generations import Generation, MadeByLaterVersion, NotMigrated
from rxstore.diagnosis.findings import Finding
from rxstore.settings import Settings

PSQL = 'psql "$RXSTORE_DATABASE_URL"'
IDLE_TOO_LONG_SECONDS = 10
CLOCK_TOLERANCE_SECONDS = 2.0

# Sessions of others that hold a lock on a table of ours inside a transaction; of each, the strongest kind of lock.
LOCK_HOLDERS = """
SELECT a.pid, coalesce(nullif(a.application_name, ''), 'unnamed') AS application,
       a.state LIKE 'idle in transaction%' AS is_idle,
       extract(epoch FROM clock_timestamp() - a.xact_start) AS age,
       extract(epoch FROM clock_timestamp() - a.state_change) AS idle,
       bool_or(l.mode NOT IN ('AccessShareLock', 'RowShareLock')) AS holds_up_writers
  FROM pg_stat_activity a
  JOIN pg_locks l ON l.pid = a.pid AND l.granted AND l.locktype = 'relation'
                 AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  JOIN pg_class c ON c.oid = l.relation
  JOIN pg_namespace n ON n.oid = c.relnamespace AND (n.nspname = 'rxstore' OR n.nspname LIKE 'rx\\_%')
 WHERE a.pid <> pg_backend_pid() AND a.application_name <> 'rxstore-projector' AND a.xact_start IS NOT NULL
 GROUP BY a.pid, a.application_name, a.state, a.xact_start, a.state_change
 ORDER BY a.xact_start
"""


def unreachable(error: Exception) -> Finding:
    """The database does not answer, or does not let us in."""
    return Finding(
        "database_unreachable",
        f"{error}. The API answers code 5 to everybody, and nothing is projected, until the database is back",
        'pg_isready --dbname "$RXSTORE_DATABASE_URL"',
    )


def writes(connection: Connection) -> Iterator[Finding]:
    """Find out whether it takes writes."""
    in_recovery, read_only = connection.execute(
        text("SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'")
    ).one()
    meaning = "nothing is projected, so answers stay as they were when it became so and grow old"
    if in_recovery:
        yield Finding(
            "database_read_only",
            f"the database of RXSTORE_DATABASE_URL is a standby or in recovery: {meaning}. If another server is the "
            "primary, point the URL there; if there is none any more, promote this one",
            f'{PSQL} -c "SELECT pg_promote()"',
        )
    elif read_only:
        yield Finding(
            "database_read_only",
            f"the database of RXSTORE_DATABASE_URL is set to read only (default_transaction_read_only): {meaning}",
            f'{PSQL} -c "SET default_transaction_read_only = off" '
            '-c "ALTER SYSTEM RESET default_transaction_read_only" -c "SELECT pg_reload_conf()"',
        )


def live(connection: Connection) -> Generation | Finding:
    """Return the live generation, or why there is none."""
    try:
        return generations.live(connection)
    except MadeByLaterVersion as error:
        return Finding(
            "migrated_by_later_version",
            f"{error}. A projector or an API of this version does not start here; running ones go on",
            "rxstore --version",
        )
    except NotMigrated as error:
        return Finding(
            "not_migrated",
            f"{error}. Until then no projector starts and the API is not ready: nobody gets an answer from here",
            "rxstore migrate",
        )


def lock_holders(connection: Connection) -> list[tuple[int, str, float]]:
    """Return who may be holding writers up: pid, application, and for how many seconds."""
    rows = connection.execute(text(LOCK_HOLDERS))
    return [(row.pid, row.application, float(row.age)) for row in rows if row.holds_up_writers]


def idle_sessions(connection: Connection) -> Iterator[Finding]:
    """Find sessions that hold locks on our tables and do nothing with them."""
    for row in connection.execute(text(LOCK_HOLDERS)):
        if row.is_idle and row.idle > IDLE_TOO_LONG_SECONDS:
            yield Finding(
                "idle_in_transaction",
                f"the session with pid {row.pid} ({row.application}) has stood still for {row.idle:.0f} s inside a "
                "transaction that holds locks on our tables: it can hold up the projector, a migration or a promotion, "
                "and then answers grow old",
                f'{PSQL} -c "SELECT pg_terminate_backend({row.pid})"',
            )


def clock(connection: Connection, settings: Settings) -> Iterator[Finding]:
    """Compare what the API here takes as the present with the database's clock."""
    before = time.time()
    there = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    after = time.time()
    here = settings.now or datetime.fromtimestamp((before + after) / 2, UTC)
    apart = abs((here - there).total_seconds())
    if apart <= CLOCK_TOLERANCE_SECONDS + (after - before):
        return
    cause, command = "the clock of this machine", "timedatectl status"
    if settings.now is not None:
        cause, command = "RXSTORE_NOW, meant for tests and demos,", "unset RXSTORE_NOW"
    yield Finding(
        "clock_differs",
        f"{cause} is {apart:,.0f} s from the database's clock: an API here reckons the window of a search from the "
        "wrong day, and its answers look fresher or older than they are",
        command,
    )
