"""Operators' decisions: retry or skip a record that was set aside. With the topic they are the whole truth.

A decision names the position that it concerns. The worker that owns the stream's partition gives it a number and its
*effect offset*, the next offset to be read in every generation that is fed; each generation then applies it there, at
once or when a rebuild comes to it. So a rebuild folds the same log and the same decisions to the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection, Cursor

from projector.batch import Position

PATIENCE_MS = 500
# The states of generations that are fed.
ACTIVE = ("building", "ready", "live", "previous")


class DecisionsDue(Exception):
    """A batch would pass the effect offset of a decision: ``offsets`` says where to cut it, by partition."""

    def __init__(self, offsets: Mapping[int, int]) -> None:
        super().__init__(f"decisions take effect inside the batch, at {dict(offsets)}")
        self.offsets = offsets


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision; ``number`` and ``effect_offset`` are None until a worker has given it its place."""

    id: int
    action: str
    position: Position
    stream_key: str
    stream_partition: int
    number: int | None = None
    effect_offset: int | None = None


SELECT = (
    "SELECT d.id, d.action, d.topic, d.partition_number, d.record_offset, d.stream_key, d.stream_partition, d.number, "
    "d.effect_offset FROM rxstore.decision d"
)


# Offsets of a topic that was made again under the same name mean other records.
SAME_LOG = "(d.topic_id IS NULL OR c.topic_id IS NULL OR d.topic_id = c.topic_id)"
# A decision stands unless it is revoked; for a generation that is built as of a time, if it stood then.
STANDS = (
    "(CASE WHEN g.until IS NULL THEN d.revoked_at IS NULL "
    "ELSE d.decided_at <= g.until AND (d.revoked_at IS NULL OR d.revoked_at > g.until) END)"
)


def registered(schema: str) -> str:
    """Return the join with a schema's row in the register, which ``STANDS`` asks."""
    return f"LEFT JOIN rxstore.generation g ON g.name = '{schema.removeprefix('rx_')}'"


def waiting(connection: Connection[Any], schema: str, topic: str, partitions: Iterable[int]) -> list[Decision]:
    """Return the decisions about streams of these partitions that this generation has not applied, in their order."""
    rows = connection.execute(
        f"{SELECT} JOIN {schema}.checkpoint c ON c.topic = d.topic AND c.partition_number = d.stream_partition "
        f"AND {SAME_LOG} {registered(schema)} WHERE d.topic = %s AND d.stream_partition = ANY(%s) AND {STANDS} "
        "AND (d.number IS NULL OR d.number > c.decisions_applied) ORDER BY d.number NULLS LAST, d.id",
        (topic, sorted(partitions)),
        prepare=True,
    )
    return [_loaded(row) for row in rows]


def of_stream(connection: Connection[Any], schema: str, topic: str, key: str) -> list[Decision]:
    """Return the decisions about a stream that this generation has applied and that stand, in their order.

    One that is being built may not have come to the place of the last of them.
    """
    rows = connection.execute(
        f"{SELECT} JOIN {schema}.checkpoint c ON c.topic = d.topic AND c.partition_number = d.stream_partition "
        f"AND {SAME_LOG} {registered(schema)} WHERE d.topic = %s AND d.stream_key = %s "
        f"AND d.number <= c.decisions_applied AND {STANDS} ORDER BY d.number",
        (topic, key),
    )
    return [_loaded(row) for row in rows]


def revoke(connection: Connection[Any], decision_id: int, *, who: str) -> Decision | None:
    """Revoke a decision, for every fold from now on; None when there is none with this id or it is revoked already."""
    row = connection.execute(
        "UPDATE rxstore.decision d SET revoked_at = now(), revoked_by = %s WHERE id = %s AND revoked_at IS NULL "
        "RETURNING d.id, d.action, d.topic, d.partition_number, d.record_offset, d.stream_key, d.stream_partition, "
        "d.number, d.effect_offset",
        (who, decision_id),
    ).fetchone()
    return None if row is None else _loaded(row)


def give_effect(connection: Connection[Any], decisions: Sequence[Decision]) -> None:
    """Give decisions their numbers and effect offsets: not before the next offset of any generation that is fed.

    The checkpoint rows are written, not only locked: a batch that is under way in another generation then fails its
    comparison of snapshots and looks again, instead of passing the offset unseen. The lock on the register comes before
    the snapshot, so that a generation which is being registered is either seen or waits. One that is built as of a time
    is not asked: what is decided now did not stand then.

    Raises LockNotAvailable when another generation's checkpoint is being written for longer than a moment, as when a
    build writes what it folded in memory: try again then, rather than let all else wait for it.
    """
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE rxstore.generation IN ROW SHARE MODE")
        cursor.execute(f"SET LOCAL lock_timeout = '{PATIENCE_MS}ms'")
        cursor.execute(
            "SELECT name FROM rxstore.generation WHERE state = ANY(%s) AND until IS NULL ORDER BY name",
            (list(ACTIVE),),
        )
        names = [row[0] for row in cursor.fetchall()]
        for decision in decisions:
            offset = max(_last_effect(cursor, decision), *(_touch(cursor, f"rx_{name}", decision) for name in names))
            cursor.execute(
                "UPDATE rxstore.decision SET effect_offset = %s, number = nextval('rxstore.decision_number') "
                "WHERE id = %s AND effect_offset IS NULL",
                (offset, decision.id),
            )


def _last_effect(cursor: Cursor[Any], decision: Decision) -> int:
    """Return the last effect offset of the partition: numbers and offsets rise together.

    The generation that was furthest may have gone since that decision was made.
    """
    cursor.execute(
        "SELECT coalesce(max(o.effect_offset), 0) FROM rxstore.decision d JOIN rxstore.decision o "
        "ON o.topic = d.topic AND o.stream_partition = d.stream_partition "
        "AND o.topic_id IS NOT DISTINCT FROM d.topic_id WHERE d.id = %s",
        (decision.id,),
    )
    row = cursor.fetchone()
    return int(row[0]) if row else 0


def _touch(cursor: Cursor[Any], schema: str, decision: Decision) -> int:
    cursor.execute(
        f"UPDATE {schema}.checkpoint c SET next_offset = c.next_offset FROM rxstore.decision d "
        f"WHERE d.id = %s AND c.topic = d.topic AND c.partition_number = d.stream_partition AND {SAME_LOG} "
        "RETURNING c.next_offset",
        (decision.id,),
    )
    row = cursor.fetchone()
    return 0 if row is None else int(row[0])


def check_none_is_passed(cursor: Cursor[Any], schema: str, topic: str, next_offsets: Mapping[int, int]) -> None:
    """Raise DecisionsDue when a batch that ends at ``next_offsets`` would pass a decision that it has not applied."""
    cursor.execute(
        "SELECT d.stream_partition, min(d.effect_offset) FROM rxstore.decision d "
        f"JOIN {schema}.checkpoint c ON c.topic = d.topic AND c.partition_number = d.stream_partition AND {SAME_LOG} "
        f"{registered(schema)} WHERE d.topic = %s AND d.stream_partition = ANY(%s) "
        f"AND d.number > c.decisions_applied AND {STANDS} GROUP BY d.stream_partition",
        (topic, sorted(next_offsets)),
        prepare=True,
    )
    due = {partition: offset for partition, offset in cursor.fetchall() if offset < next_offsets[partition]}
    if due:
        raise DecisionsDue(due)


def applied(cursor: Cursor[Any], schema: str, decision: Decision) -> None:
    """Note in the partition's checkpoint that this generation has applied the decision."""
    cursor.execute(
        f"UPDATE {schema}.checkpoint SET decisions_applied = %s WHERE topic = %s AND partition_number = %s",
        (decision.number, decision.position.topic, decision.stream_partition),
    )


def _loaded(row: Sequence[Any]) -> Decision:
    return Decision(row[0], row[1], Position(row[2], row[3], row[4]), row[5], row[6], row[7], row[8])
