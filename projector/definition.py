"""What a read model means: the definition that this code folds by, and the hashes beside it.

``DEFINITION`` is ``major.minor``. Raise major when rows of events that folded before come out differently, minor when
only events that were refused before now fold. The golden log in the tests fails when the fold changes and this does
not (docs/decisions/0005).
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import orjson
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from projector import tables
from schemas.json_schema import event_schemas

DEFINITION = "1.0"


def hashes() -> dict[str, str]:
    """Return short hashes of contract, tables and views, to see at a glance whether two installations agree."""
    return {"contract": _digest(event_schemas()), "tables": _digest(ddl()), "views": _digest(tables.VIEWS)}


def major(definition: str) -> int:
    """Return the major part of a definition."""
    return int(definition.partition(".")[0])


def ddl() -> list[str]:
    """Return the statements that make the tables of a read model in whatever schema comes first."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call] # SQLAlchemy does not type it
    statements: list[str] = []
    for table in tables.READ_MODEL.sorted_tables:
        statements.append(str(CreateTable(table).compile(dialect=dialect)))
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        statements.extend(str(CreateIndex(index).compile(dialect=dialect)) for index in indexes)
    return statements


def _digest(value: Any) -> str:  # noqa: ANN401 - any JSON
    return sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
