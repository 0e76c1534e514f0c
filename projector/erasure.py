"""A deletion reaches the generations that read no more of the log: those that are complete as of a time before it.

A generation that is fed folds the deletion at its place and keeps a tombstone. One that is complete never reads it:
whoever folds it takes the prescription out of that one too, and leaves nothing there, since no later event will come.

Like the marks of misrouted records (``projector.set_aside``) this is done after the commit, since the generation may
become complete at the same moment: both sides look once more after theirs. A worker that dies in between leaves it to
whoever claims its partition.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from psycopg import Cursor

from projector.read_model import TABLES

COMPLETE = """
SELECT 'rx_' || complete.name
  FROM rxstore.generation complete JOIN rxstore.generation fed ON fed.topic = complete.topic
 WHERE complete.until IS NOT NULL AND complete.state = 'ready' AND fed.name = %s
"""
LIVE = """
SELECT 'rx_' || live.name
  FROM rxstore.generation live JOIN rxstore.generation complete ON complete.topic = live.topic
 WHERE live.state = 'live' AND complete.state = 'ready' AND complete.name = %s
"""
DELETED_SINCE = """
SELECT p.stream_key FROM {fed}.prescription p
 WHERE p.kind = 'deleted' AND (%(partition)s::int IS NULL OR p.partition_number = %(partition)s)
   AND (EXISTS (SELECT 1 FROM {complete}.prescription o WHERE o.stream_key = p.stream_key)
        OR EXISTS (SELECT 1 FROM {complete}.set_aside s WHERE s.stream_key = p.stream_key))
"""


def erase(cursor: Cursor[Any], generation: str, keys: Collection[str]) -> None:
    """Take prescriptions that were just deleted in a generation out of every complete one."""
    for complete in _schemas(cursor, COMPLETE, generation):
        _remove(cursor, complete, keys)


def erase_missed(cursor: Cursor[Any], generation: str, partition: int) -> None:
    """Take out what a worker before this one deleted in a partition of a generation, and did not come to take out."""
    for complete in _schemas(cursor, COMPLETE, generation):
        _remove(cursor, complete, _deleted_since(cursor, f"rx_{generation}", complete, partition))


def erase_from(cursor: Cursor[Any], generation: str) -> None:
    """Take out of a generation that is complete now what was deleted since its time."""
    for live in _schemas(cursor, LIVE, generation):
        _remove(cursor, f"rx_{generation}", _deleted_since(cursor, live, f"rx_{generation}", None))


def _schemas(cursor: Cursor[Any], question: str, generation: str) -> list[str]:
    return [row[0] for row in cursor.execute(question, (generation,)).fetchall()]


def _deleted_since(cursor: Cursor[Any], fed: str, complete: str, partition: int | None) -> list[str]:
    found = cursor.execute(DELETED_SINCE.format(fed=fed, complete=complete), {"partition": partition})
    return [row[0] for row in found.fetchall()]


def _remove(cursor: Cursor[Any], schema: str, keys: Iterable[str]) -> None:
    gone = sorted(keys)
    if gone:
        for table in (*TABLES, "set_aside"):
            cursor.execute(f"DELETE FROM {schema}.{table} WHERE stream_key = ANY(%s)", (gone,))
