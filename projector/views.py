"""Replaces the views of schema ``rxstore`` without ever taking a column from them.

PostgreSQL replaces a view in place only when its columns stay; so does every report that people have written. A column
that the new query does not have becomes a NULL of its type, and a view that it does not know becomes empty. Without
that the way back from a newer version would fail.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection

from projector import roles, tables

SCHEMA = tables.CONTROL_SCHEMA

COLUMNS = """
SELECT a.attname,
       format_type(a.atttypid, a.atttypmod)
       || coalesce(' COLLATE ' || quote_ident(n.nspname) || '.' || quote_ident(c.collname), '')
  FROM pg_attribute a
  LEFT JOIN pg_collation c ON c.oid = a.attcollation AND c.collname <> 'default'
  LEFT JOIN pg_namespace n ON n.oid = c.collnamespace
 WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum
"""


def replace(connection: Connection, queries: Mapping[str, str], schema: str) -> None:
    """Point every view at the tables of ``schema``, in the one order of views, and let the roles read them."""
    for view in in_order(connection, queries):
        query = queries.get(view)
        shown = [(str(row[0]), str(row[1])) for row in connection.exec_driver_sql(COLUMNS, (f"{SCHEMA}.{view}",))]
        if query is None and not shown:
            continue
        # Not text(): the queries hold casts (::), which it would read as parameters.
        connection.exec_driver_sql(
            f"CREATE OR REPLACE VIEW {SCHEMA}.{view} AS "
            + _keeping_columns(connection, shown, None if query is None else query.format(schema=schema))
        )
        roles.grant_view(connection, view)


def in_order(connection: Connection, queries: Mapping[str, str]) -> list[str]:
    """Return this version's views in their order, then those that only another version knows."""
    there = connection.exec_driver_sql(
        f"SELECT relname FROM pg_class WHERE relnamespace = '{SCHEMA}'::regnamespace AND relkind = 'v' ORDER BY 1"
    ).scalars()
    known = list(tables.VIEWS)
    return [*known, *sorted(({*there} | {*queries}) - {*known})]


def _keeping_columns(connection: Connection, shown: list[tuple[str, str]], query: str | None) -> str:
    if query is None:
        return f"SELECT {_nulls(shown)} WHERE false"
    own = list(connection.exec_driver_sql(f"SELECT * FROM ({query}) q LIMIT 0").keys())
    if own[: len(shown)] == [name for name, _ in shown]:
        return query
    kept = [f"q.{name}" if name in own else _nulls([(name, kind)]) for name, kind in shown]
    added = [f"q.{name}" for name in own if name not in {name for name, _ in shown}]
    return f"SELECT {', '.join([*kept, *added])} FROM ({query}) q"


def _nulls(columns: list[tuple[str, str]]) -> str:
    return ", ".join(f"NULL::{kind} AS {name}" for name, kind in columns)
