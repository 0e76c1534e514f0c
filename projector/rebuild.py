"""A new generation beside the live one: staged, noted as ready, promoted, rolled back, given up or retired.

One that is built as of a time takes the same way, but for the switch: it can never be live.

Each step is one transaction, and is entered in the register's history with who did it and on what evidence. Only one
of these commands runs at a time; whoever is second is told so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, select, text, update

from projector import erasure, generations, tables
from projector.decisions import SAME_LOG, STANDS, registered
from projector.generations import MIGRATION_LOCK, Generation

REBUILD_LOCK = MIGRATION_LOCK + 1
# What a generation can be on its way to the views.
CANDIDATE = ("loading", "building", "ready")

GRANTS_ON_SCHEMA = """
SELECT DISTINCT g.rolname, a.privilege_type
  FROM pg_namespace n, aclexplode(n.nspacl) a JOIN pg_roles g ON g.oid = a.grantee
 WHERE n.nspname = :schema AND a.grantee <> n.nspowner
"""
GRANTS_ON_TABLES = """
SELECT DISTINCT c.relname, g.rolname, a.privilege_type
  FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles g ON g.oid = a.grantee
 WHERE c.relnamespace = to_regnamespace(:schema) AND c.relkind = 'r' AND a.grantee <> c.relowner
"""

# Decisions that have no place yet, or whose place a generation has come to, and that it has not applied.
NOT_APPLIED = """
SELECT count(*) FROM rxstore.decision d
  JOIN {schema}.checkpoint c ON c.topic = d.topic AND c.partition_number = d.stream_partition AND {same_log}
  {registered}
 WHERE {stands} AND (d.number IS NULL OR (d.number > c.decisions_applied AND d.effect_offset <= c.next_offset))
"""


class AnotherRuns(Exception):
    """Another rebuild command runs at this moment."""


class WrongState(Exception):
    """The generation is not in a state in which this can be done."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a generation's history."""

    generation: str
    action: str
    done_by: str
    done_at: datetime
    details: dict[str, Any]


@contextmanager
def alone(engine: Engine) -> Iterator[None]:
    """Be the only rebuild command inside the block; AnotherRuns when one is under way.

    The lock belongs to a session of its own and goes with it, however the command ends.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": REBUILD_LOCK}).scalar_one():
            raise AnotherRuns("another rebuild command is running: wait until it ends")
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": REBUILD_LOCK})


def precisely(at: datetime) -> str:
    """Return an instant for people and scripts to read: RFC 3339, in UTC."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


# history --------------------------------------------------------------------------------------------------------------


def note(connection: Connection, generation: str, action: str, *, who: str, details: Mapping[str, Any]) -> None:
    """Enter a step in a generation's history."""
    connection.execute(
        insert(tables.generation_history).values(
            generation=generation, action=action, done_by=who, details=dict(details)
        )
    )


def history(connection: Connection, generation: str) -> list[Entry]:
    """Return what became of a generation, oldest first."""
    table = tables.generation_history
    rows = connection.execute(select(table).where(table.c.generation == generation).order_by(table.c.id))
    return [Entry(row.generation, row.action, row.done_by, row.done_at, dict(row.details)) for row in rows]


def last(connection: Connection, generation: str, action: str) -> Entry | None:
    """Return the last entry of one kind in a generation's history."""
    found = [entry for entry in history(connection, generation) if entry.action == action]
    return found[-1] if found else None


# steps ----------------------------------------------------------------------------------------------------------------


def next_name(connection: Connection) -> str:
    """Return the name for the next generation: g and the number after the highest."""
    numbers = [
        int(one.name[1:]) for one in generations.every(connection) if one.name[0] == "g" and one.name[1:].isdigit()
    ]
    return f"g{max(numbers, default=0) + 1}"


def stage(
    connection: Connection,
    name: str,
    *,
    topic: str,
    topic_id: str | None,
    first_offsets: Mapping[int, int],
    settings: Mapping[str, Any],
    who: str,
    state: str = "building",
    keep_decisions: bool = False,
    until: datetime | None = None,
    ends: Mapping[int, int] | None = None,
) -> None:
    """Make a generation's schema and enter it in the register as being built, or loaded from an archive.

    With ``until`` it is built as of that time and no further than ``ends``, which are also held: whoever feeds it, of
    whatever version, no batch goes beyond. There may be any number of these, beside the one candidate.

    With ``keep_decisions`` those about the live generation's topic hold for this one too: its records are the same at
    the same offsets.

    Every partition of the topic gets its checkpoint at once, so that one which nobody reads can be seen. The register
    is locked last and for a moment: a decision that is just given its place either sees the new generation or comes
    before its first batch (``projector.decisions.give_effect``).
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    if (known := generations.find(connection, name)) is not None:
        raise WrongState(f"there is a generation {name} already ({known.state}): choose another name")
    for other in generations.every(connection):
        if until is None and other.until is None and other.state in CANDIDATE:
            raise WrongState(
                f"generation {other.name} is {other.state} already: promote it or give it up with "
                f"'rxstore rebuild abort {other.name}' first"
            )
    live = generations.live(connection)
    generations.build(connection, name)
    schema = generations.schema_of(name)
    connection.execute(
        text(
            f"INSERT INTO {schema}.checkpoint (topic, partition_number, next_offset, epoch, topic_id, hold_at, "
            "hold_until) VALUES (:topic, :number, :first, 0, :topic_id, CAST(:end AS bigint), "
            "CASE WHEN CAST(:end AS bigint) IS NOT NULL THEN CAST('infinity' AS timestamptz) END)"
        ),
        [
            {"topic": topic, "number": number, "first": first, "topic_id": topic_id, "end": (ends or {}).get(number)}
            for number, first in sorted(first_offsets.items())
        ],
    )
    _grant_like(connection, live.schema, schema)
    connection.execute(text("LOCK TABLE rxstore.generation IN EXCLUSIVE MODE"))
    generations.register(
        connection,
        name,
        state=state,
        topic=topic,
        settings=dict(settings),
        topic_id=topic_id,
        partitions=len(first_offsets),
        until=until,
        ends=ends,
    )
    kept = _copy_decisions(connection, live, topic, topic_id) if keep_decisions else 0
    begins = {str(number): first for number, first in sorted(first_offsets.items())}
    details: dict[str, Any] = {"topic": topic, "topic_id": topic_id, "from_offsets": begins, "decisions_kept": kept}
    if until is not None:
        details |= {
            "until": precisely(until),
            "to_offsets": {str(number): end for number, end in (ends or {}).items()},
        }
    note(connection, name, "staged", who=who, details=details)


def loaded(connection: Connection, name: str, *, who: str) -> Generation:
    """Hand a generation that has been loaded from an archive over to those who feed: from here on it is being built."""
    connection.execute(text("LOCK TABLE rxstore.generation IN EXCLUSIVE MODE"))
    generation = in_state(connection, name, "loading")
    _set_state(connection, name, "building")
    note(connection, name, "loaded", who=who, details={"offsets": offsets(connection, generation)})
    if generation.until is not None:
        for number, end in (generation.ends or {}).items():
            connection.execute(
                text(
                    f"UPDATE {generation.schema}.checkpoint SET caught_up_at = :until "
                    "WHERE topic = :topic AND partition_number = :number AND next_offset >= :end"
                ),
                {"until": generation.until, "topic": generation.topic, "number": number, "end": end},
            )
        note_ready(connection, in_state(connection, name, "building"), who=who)
    return in_state(connection, name, "building", "ready")


def note_ready(connection: Connection, generation: Generation, *, who: str) -> bool:
    """Call a generation ready once every partition has been read to an end that it had; whether it is now.

    One that is built as of a time must also have applied every decision of then: nobody feeds it any more after this.
    """
    count, seen = connection.execute(
        text(f"SELECT count(*), count(caught_up_at) FROM {generation.schema}.checkpoint WHERE topic = :topic"),
        {"topic": generation.topic},
    ).one()
    if not count or seen < count or count != generation.partitions:
        return False
    if generation.until is not None and connection.execute(text(_not_applied(generation.schema))).scalar_one():
        return False
    became = connection.execute(
        update(tables.generation)
        .where(tables.generation.c.name == generation.name, tables.generation.c.state == "building")
        .values(state="ready")
    )
    if became.rowcount:
        if generation.until is not None:
            erase_deleted_since(connection, generation)
        note(connection, generation.name, "ready", who=who, details={"offsets": offsets(connection, generation)})
    return True


def erase_deleted_since(connection: Connection, generation: Generation) -> None:
    """Take out of a generation that is complete as of a time what was deleted since; also after it was made ready."""
    session: Any = connection.connection.driver_connection
    with session.cursor() as cursor:
        erasure.erase_from(cursor, generation.name)


def _not_applied(schema: str) -> str:
    return NOT_APPLIED.format(schema=schema, same_log=SAME_LOG, registered=registered(schema), stands=STANDS)


def promote(
    connection: Connection,
    name: str,
    *,
    who: str,
    details: Mapping[str, Any],
    retire_at: datetime | timedelta | None = None,
) -> str:
    """Point the views at a generation that is ready; what was live becomes the previous one. Return its name.

    With ``retire_at`` that one is let go then, or so long after now.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    generation = can_be_live(in_state(connection, name, "ready"))
    live = generations.live(connection)
    for other in generations.every(connection):
        if other.state == "previous":
            raise WrongState(
                f"generation {other.name} is kept for the way back already: 'rxstore rebuild retire {other.name}' first"
            )
    _switch(connection, live, "previous", generation, "promoted", who=who, details=details)
    if retire_at is not None:
        plan_retirement(connection, live.name, retire_at, who=who)
    return live.name


def roll_back(connection: Connection, *, who: str, details: Mapping[str, Any]) -> tuple[str, str]:
    """Point the views back at the previous generation; what was live is ready again. Return both names, back first."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    live, previous = generations.live(connection), previous_generation(connection)
    _switch(connection, live, "ready", previous, "rolled_back_to", who=who, details=details)
    return previous.name, live.name


def _switch(
    connection: Connection,
    live: Generation,
    becomes: str,
    to: Generation,
    action: str,
    *,
    who: str,
    details: Mapping[str, Any],
) -> None:
    found = {
        "instead_of": live.name,
        "offsets": {one.name: offsets(connection, one) for one in (live, to)},
        **details,
    }
    generations.show(connection, to.name)
    _set_state(connection, live.name, becomes)
    # A plan to let it go was made when it was the previous one.
    _set_state(connection, to.name, "live", promoted_at=func.clock_timestamp(), retire_at=None, retire_by=None)
    note(connection, to.name, action, who=who, details=found)
    note(connection, live.name, becomes, who=who, details={"live": to.name})


def give_up(connection: Connection, name: str, *, who: str) -> Generation:
    """Take a generation that was never promoted, or was rolled back, out of what is fed; ``drop`` then drops it."""
    generation = in_state(connection, name, *CANDIDATE)
    _set_state(connection, name, "abandoned")
    note(connection, name, "abandoned", who=who, details={"offsets": offsets(connection, generation)})
    return generation


def retire(connection: Connection, name: str, *, who: str) -> Generation:
    """Take the previous generation out of what is fed: there is no way back after this."""
    generation = in_state(connection, name, "previous")
    _set_state(connection, name, "retired")
    note(connection, name, "retired", who=who, details={"offsets": offsets(connection, generation)})
    return generation


def plan_retirement(connection: Connection, name: str, at: datetime | timedelta | None, *, who: str) -> Generation:
    """Let the previous generation go at a time, or so long after now; with None it is kept until somebody lets it go.

    The clock is the database's. WrongState for a time that has passed.
    """
    generation = in_state(connection, name, "previous")
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    due = now + at if isinstance(at, timedelta) else at
    if due is not None and due <= now:
        raise WrongState(f"{precisely(due)} has passed: 'rxstore rebuild retire {name}' lets {name} go at once")
    _set_state(connection, name, "previous", retire_at=due, retire_by=None if due is None else who)
    if due is not None:
        note(connection, name, "retirement_planned", who=who, details={"retire_at": precisely(due)})
    elif generation.retire_at is not None:
        note(connection, name, "retirement_cancelled", who=who, details={"retire_at": precisely(generation.retire_at)})
    return in_state(connection, name, "previous")


def retire_due(connection: Connection, *, by: str) -> Generation | None:
    """Retire the previous generation if its time has come and no rebuild command runs; return it then.

    ``by`` is who carries it out; done by whom is who planned it.
    """
    table = tables.generation
    due = (table.c.state == "previous") & (table.c.retire_at <= func.clock_timestamp())
    if connection.execute(select(table.c.name).where(due)).first() is None or not _alone_until_the_end(connection):
        return None
    row = connection.execute(select(table.c.name, table.c.retire_at, table.c.retire_by).where(due)).first()
    if row is None:
        return None
    generation = in_state(connection, row.name, "previous")
    _set_state(connection, row.name, "retired")
    details = {
        "offsets": offsets(connection, generation),
        "planned_for": precisely(row.retire_at),
        "carried_out_by": by,
    }
    note(connection, row.name, "retired", who=row.retire_by, details=details)
    return generation


def drop_retired(connection: Connection) -> list[Generation]:
    """Drop what is left of generations that were retired at their time, if no rebuild command runs; return them."""
    left = [one for one in left_standing(connection) if one.state == "retired" and one.retire_at is not None]
    if not left or not _alone_until_the_end(connection):
        return []
    for generation in left:
        drop(connection, generation)
    return left


def _alone_until_the_end(connection: Connection) -> bool:
    """Whether no rebuild command runs; until the end of this transaction none begins then."""
    free: bool = connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": REBUILD_LOCK}).scalar_one()
    return free


def drop(connection: Connection, generation: Generation) -> None:
    """Drop the tables of a generation that is no longer fed; never those of one that is."""
    in_state(connection, generation.name, "abandoned", "retired")
    connection.execute(text("SET LOCAL lock_timeout = '2s'"))
    connection.execute(text(f"DROP SCHEMA IF EXISTS {generation.schema} CASCADE"))
    connection.execute(delete(tables.progress).where(tables.progress.c.generation == generation.name))


def left_standing(connection: Connection) -> list[Generation]:
    """Return the generations that are no longer fed and whose tables are still there."""
    schemas = set(connection.execute(text("SELECT nspname FROM pg_namespace")).scalars())
    return [
        one for one in generations.every(connection) if one.state in {"abandoned", "retired"} and one.schema in schemas
    ]


# what they ask --------------------------------------------------------------------------------------------------------


def in_state(connection: Connection, name: str, *states: str) -> Generation:
    """Return a generation that is in one of these states; WrongState otherwise."""
    generation = generations.find(connection, name)
    if generation is None:
        raise WrongState(f"there is no generation {name}: 'rxstore status' shows which there are")
    if generation.state not in states:
        raise WrongState(f"generation {name} is {generation.state}, not {' or '.join(states)}")
    return generation


def can_be_live(generation: Generation) -> Generation:
    """Return the generation; WrongState for one that is built as of a time."""
    if generation.until is not None:
        raise WrongState(
            f"generation {generation.name} is the state as of {precisely(generation.until)} and can never be live: "
            "'rxstore query' looks at it, and 'rxstore rebuild stage' without --until makes one that can be"
        )
    return generation


def being_loaded(connection: Connection, name: str | None, until: datetime | None) -> Generation | None:
    """Return the generation that is being loaded from an archive as of the same time, of this name if one is given."""
    for generation in generations.every(connection):
        if generation.state == "loading" and generation.until == until and name in {None, generation.name}:
            return generation
    return None


def candidate(connection: Connection) -> Generation:
    """Return the one generation that is being built or ready; WrongState when there is none.

    Those that are built as of a time are none: they have to be named.
    """
    looking_back = []
    for generation in generations.every(connection):
        if generation.state in CANDIDATE and generation.until is None:
            return generation
        if generation.state in CANDIDATE:
            looking_back.append(generation.name)
    but = f" ({', '.join(looking_back)}, as of a time, must be named)" if looking_back else ""
    raise WrongState(f"no generation is being built{but}: 'rxstore rebuild stage' begins one")


def previous_generation(connection: Connection) -> Generation:
    """Return the generation that was live before; WrongState when there is none."""
    for generation in generations.every(connection):
        if generation.state == "previous":
            return generation
    raise WrongState("no previous generation is kept: there is nothing to go back to")


def offsets(connection: Connection, generation: Generation) -> dict[str, int]:
    """Return the next offset of each partition."""
    rows = connection.execute(
        text(f"SELECT partition_number, next_offset FROM {generation.schema}.checkpoint WHERE topic = :topic"),
        {"topic": generation.topic},
    )
    return {str(row[0]): int(row[1]) for row in sorted(rows.all())}


def _set_state(connection: Connection, name: str, state: str, **values: Any) -> None:  # noqa: ANN401 - columns
    connection.execute(update(tables.generation).where(tables.generation.c.name == name).values(state=state, **values))


def _copy_decisions(connection: Connection, live: Generation, topic: str, topic_id: str | None) -> int:
    """Enter the decisions that took effect once more, about the same places of another topic."""
    done = connection.execute(
        text(
            "INSERT INTO rxstore.decision (action, topic, topic_id, partition_number, record_offset, stream_key, "
            "stream_partition, why, decided_by, decided_at, number, effect_offset) "
            "SELECT action, :topic, :topic_id, partition_number, record_offset, stream_key, stream_partition, why, "
            "decided_by, decided_at, number, effect_offset FROM rxstore.decision WHERE number IS NOT NULL "
            "AND revoked_at IS NULL AND topic = :old AND (topic_id IS NULL OR topic_id = :old_id) ORDER BY number"
        ),
        {"topic": topic, "topic_id": topic_id, "old": live.topic, "old_id": live.topic_id},
    )
    return done.rowcount


def _grant_like(connection: Connection, model: str, schema: str) -> None:
    """Give every role the rights on a new schema that it has on another."""
    rows = connection.execute(text(GRANTS_ON_SCHEMA), {"schema": model}).all()
    for role, privilege in rows:
        connection.exec_driver_sql(f"GRANT {privilege} ON SCHEMA {schema} TO {_quoted(connection, role)}")
    for table, role, privilege in connection.execute(text(GRANTS_ON_TABLES), {"schema": model}).all():
        if connection.dialect.has_table(connection, table, schema=schema):
            connection.exec_driver_sql(f"GRANT {privilege} ON {schema}.{table} TO {_quoted(connection, role)}")


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote(name)
