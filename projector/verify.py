"""Compares two generations row by row, in PostgreSQL: checksums of buckets of keys first, then what differs.

Both must stand at the same offsets, or rows differ that will not tomorrow. ``together`` brings them there: for a moment
no worker goes beyond the further one of each partition, a snapshot is taken when both have come to it, and everybody
goes on while the snapshot is compared.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Engine, text

from projector import tables
from projector.decisions import SAME_LOG
from projector.generations import Generation

COMPARED = ("prescription", "line_item", "issue", "dispense_notification", "cancellation", "set_aside")
BUCKETS = 256
SAMPLES = 5

# Members whose values say what a difference means and nothing about a patient; of the others only the name is told.
TOLD = frozenset(
    {
        "kind",
        "status",
        "item_statuses",
        "state",
        "reason",
        "withdrawn",
        "pending_cancellations",
        "current_issue",
        "treatment_type",
        "target",
    }
)
# What a record's place in the log decides; another log has other places.
PLACES = frozenset({"partition_number", "folded_positions"})

# A hold ends by itself, so that whoever sets it may die.
HOLD_SECONDS = 5.0
LOOK_EVERY_SECONDS = 0.02

NOT_APPLIED = (
    """
SELECT count(*) FROM rxstore.decision d
  JOIN {schema}.checkpoint c ON c.topic = d.topic AND c.partition_number = d.stream_partition AND """
    + SAME_LOG
    + """
 WHERE d.revoked_at IS NULL AND d.number > c.decisions_applied AND d.effect_offset <= c.next_offset
"""
)


class NotTogether(Exception):
    """Both generations did not come to the same offsets in time."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that differ in the same way: what they have in common, how many, and some of the streams."""

    table: str
    difference: str
    rows: int
    prescriptions: int
    samples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableCounts:
    """How many rows a table has on each side, and how many differ."""

    live: int
    new: int
    differing: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What comparing came to. ``digest`` names exactly these differences; ``offsets`` are None where logs differ."""

    offsets: dict[str, int] | None
    tables: dict[str, TableCounts]
    groups: tuple[Group, ...]
    digest: str
    only_in: dict[str, list[str]]

    @property
    def is_clean(self) -> bool:
        """Whether nothing differs."""
        return not any(counts.differing for counts in self.tables.values())

    def as_json(self) -> dict[str, Any]:
        """Return what is kept of it, and printed for a script."""
        return {
            "clean": self.is_clean,
            "digest": self.digest,
            "offsets": self.offsets,
            "tables": {name: asdict(counts) for name, counts in self.tables.items()},
            "groups": [asdict(group) for group in self.groups],
            "columns_only_in": self.only_in,
        }


# the same offsets -----------------------------------------------------------------------------------------------------


@contextmanager
def together(engine: Engine, live: Generation, new: Generation) -> Iterator[tuple[Connection, dict[str, int]]]:
    """Hand over a snapshot in which both generations stand at the same offsets, and those; NotTogether when not.

    Workers stand still from the moment at which the further generation is reached until the snapshot is there.
    """
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as control,
        engine.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True) as snapshot,
    ):
        try:
            _hold(control, live, new)
            until = time.monotonic() + HOLD_SECONDS
            while (offsets := _common_offsets(snapshot, live, new)) is None:
                snapshot.rollback()
                if time.monotonic() > until:
                    raise NotTogether(_who_stands(control, live, new))
                time.sleep(LOOK_EVERY_SECONDS)
        finally:
            for generation in (live, new):
                control.execute(text(f"UPDATE {generation.schema}.checkpoint SET hold_at = NULL, hold_until = NULL"))
        yield snapshot, offsets


def _hold(connection: Connection, live: Generation, new: Generation) -> None:
    """Let no worker go beyond the further generation of each partition.

    The first is held where it stands or further, the second not before that, and the first again not before the second:
    so both have the same bound however they move meanwhile.
    """
    bounds: dict[int, int] = {}
    for generation in (new, live, new):
        for number in range(generation.partitions or 0):
            row = connection.execute(
                text(
                    f"UPDATE {generation.schema}.checkpoint SET hold_at = greatest(next_offset, :at), "
                    "hold_until = clock_timestamp() + make_interval(secs => :seconds) "
                    "WHERE topic = :topic AND partition_number = :number RETURNING hold_at"
                ),
                {"at": bounds.get(number, 0), "seconds": HOLD_SECONDS, "topic": generation.topic, "number": number},
            ).first()
            if row is not None:
                bounds[number] = int(row[0])


def _common_offsets(connection: Connection, live: Generation, new: Generation) -> dict[str, int] | None:
    """Return the offsets at which both stand with the same decisions applied; None when they do not."""
    stand = [_stand(connection, generation) for generation in (live, new)]
    if stand[0] != stand[1]:
        return None
    for generation in (live, new):
        if connection.execute(text(NOT_APPLIED.format(schema=generation.schema))).scalar_one():
            return None
    return {str(number): offset for number, offset in sorted(stand[0].items())}


def _stand(connection: Connection, generation: Generation) -> dict[int, int]:
    rows = connection.execute(
        text(f"SELECT partition_number, next_offset FROM {generation.schema}.checkpoint WHERE topic = :topic"),
        {"topic": generation.topic},
    )
    return {int(row[0]): int(row[1]) for row in rows}


def _who_stands(connection: Connection, live: Generation, new: Generation) -> str:
    at, of = _stand(connection, live), _stand(connection, new)
    behind = [
        f"{generation.name}[{number}]"
        for generation, own, other in ((live, at, of), (new, of, at))
        for number in sorted(own.keys() | other.keys())
        if own.get(number, -1) < other.get(number, -1)
    ]
    named = ", ".join(behind[:8]) or f"decisions of {live.name} and {new.name}"
    return f"the generations did not come to the same offsets within {HOLD_SECONDS:.0f} s: {named} stayed behind"


# comparing ------------------------------------------------------------------------------------------------------------


def compare(connection: Connection, live: Generation, new: Generation, offsets: dict[str, int] | None) -> Comparison:
    """Compare all rows in one snapshot. Without common offsets the logs differ, and places in them are left out."""
    counted: dict[str, TableCounts] = {}
    groups: list[Group] = []
    only_in: dict[str, list[str]] = {}
    digest = sha256()
    for table in COMPARED:
        ours, theirs = (_columns(connection, one.schema, table) for one in (live, new))
        for generation, own, other in ((live, ours, theirs), (new, theirs, ours)):
            if missing := [name for name in own if name not in other]:
                only_in.setdefault(generation.name, []).extend(f"{table}.{name}" for name in missing)
        if offsets is None and table == "set_aside":
            rows = [_count(connection, one.schema, table) for one in (live, new)]
            counted[table] = TableCounts(rows[0], rows[1], 0)
            continue
        left_out = PLACES if offsets is None else frozenset()
        columns = [name for name in ours if name in theirs and name not in left_out]
        found = _Pair(connection, live.schema, new.schema, table, columns)
        buckets = found.differing_buckets()
        differing, checksum = found.differing_rows(buckets) if buckets else (0, "")
        digest.update(f"{table}:{differing}:{checksum}\n".encode())
        counted[table] = TableCounts(found.rows[0], found.rows[1], differing)
        if differing:
            groups += found.groups(buckets)
    groups.sort(key=lambda group: (-group.rows, group.table, group.difference))
    return Comparison(offsets, counted, tuple(groups), digest.hexdigest()[:16], only_in)


@dataclass(slots=True)
class _Pair:
    """One table of both generations, by the columns that both have."""

    connection: Connection
    live: str
    new: str
    table: str
    columns: Sequence[str]
    rows: tuple[int, int] = (0, 0)

    @property
    def _keys(self) -> list[str]:
        return [column.name for column in tables.READ_MODEL.tables[self.table].primary_key.columns]

    @property
    def _bucket(self) -> str:
        stream = "coalesce(stream_key, topic || ':' || record_offset)" if self.table == "set_aside" else "stream_key"
        return f"(hashtext({stream}) & {BUCKETS - 1})"

    @property
    def _text(self) -> str:
        return f'ROW({", ".join(self.columns)})::text COLLATE "C"'

    @property
    def _row(self) -> str:
        return f"md5({self._text})"

    def differing_buckets(self) -> list[int]:
        """Compare a checksum and the number of rows of every bucket.

        The checksum is the sum of a 64-bit hash of every row. A row has a key, so none is there twice, and a sum says
        as much as an ordered checksum would; but it needs no sorting and PostgreSQL spreads it over processors.
        """
        sums = [self._sums(schema) for schema in (self.live, self.new)]
        self.rows = (sum(n for n, _ in sums[0].values()), sum(n for n, _ in sums[1].values()))
        return sorted(
            bucket for bucket in sums[0].keys() | sums[1].keys() if sums[0].get(bucket) != sums[1].get(bucket)
        )

    def _sums(self, schema: str) -> dict[int, tuple[int, int]]:
        rows = self.connection.exec_driver_sql(
            f"SELECT {self._bucket} AS bucket, count(*), sum(hashtextextended({self._text}, 0)) "
            f"FROM {schema}.{self.table} GROUP BY bucket"
        )
        return {int(row[0]): (int(row[1]), int(row[2])) for row in rows}

    def differing_rows(self, buckets: list[int]) -> tuple[int, str]:
        """Return how many rows differ, and a checksum that names exactly these differences."""
        row = self.connection.exec_driver_sql(
            f"SELECT count(*), coalesce(md5(string_agg(d, '' ORDER BY d COLLATE \"C\")), '') FROM ("
            f"SELECT md5(concat_ws('|', {', '.join(self._keys)}, l.h, '/', r.h)) AS d FROM {self._joined(buckets)}) d",
            (buckets, buckets),
        ).one()
        return int(row[0]), str(row[1])

    def groups(self, buckets: list[int]) -> list[Group]:
        """Group the rows that differ by what differs in them, with the values of members that name nobody."""
        members = [name for name in self.columns if name not in self._keys]
        told = ", ".join(self._told(name) for name in members)
        stream = "coalesce(l.stream_key, r.stream_key)" if self.table == "set_aside" else "stream_key"
        rows = self.connection.exec_driver_sql(
            f"SELECT difference, count(*), count(DISTINCT stream), "
            f"(array_agg(DISTINCT stream))[1:{SAMPLES}] FROM ("
            f"SELECT {stream} AS stream, CASE WHEN l.h IS NULL THEN 'only in the new one' "
            f"WHEN r.h IS NULL THEN 'only in the live one' ELSE concat_ws(', ', {told}) END AS difference "
            f"FROM {self._joined(buckets)}) d GROUP BY difference ORDER BY 2 DESC",
            (buckets, buckets),
        )
        return [
            Group(self.table, str(row[0]), int(row[1]), int(row[2]), tuple(key for key in row[3] if key is not None))
            for row in rows
        ]

    def _told(self, name: str) -> str:
        said = f"'{name}'"
        if name in TOLD:
            said = f"concat('{name} ', coalesce(l.{name}::text, 'none'), ' -> ', coalesce(r.{name}::text, 'none'))"
        return f"CASE WHEN l.{name} IS DISTINCT FROM r.{name} THEN {said} END"

    def _joined(self, buckets: list[int]) -> str:
        sides = [
            f"(SELECT {', '.join(self.columns)}, {self._row} AS h FROM {schema}.{self.table} "
            f"WHERE {self._bucket} = ANY(%s)) {alias}"
            for schema, alias in ((self.live, "l"), (self.new, "r"))
        ]
        return f"{sides[0]} FULL JOIN {sides[1]} USING ({', '.join(self._keys)}) WHERE l.h IS DISTINCT FROM r.h"


def _columns(connection: Connection, schema: str, table: str) -> list[str]:
    rows = connection.execute(
        text(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(:name) AND attnum > 0 "
            "AND NOT attisdropped ORDER BY attnum"
        ),
        {"name": f"{schema}.{table}"},
    )
    return [str(row[0]) for row in rows]


def _count(connection: Connection, schema: str, table: str) -> int:
    return int(connection.execute(text(f"SELECT count(*) FROM {schema}.{table}")).scalar_one())
