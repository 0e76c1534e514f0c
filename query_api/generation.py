"""The API's questions asked of one generation by name, whichever the views show: for whoever investigates.

The statements stay as they are. Where they name a view of schema ``rxstore``, the SELECT that makes it up is put in its
place, over the tables of that generation; and the register shows that one as if it were live.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sqlalchemy import Engine, event

from projector.tables import CONTROL_SCHEMA, VIEWS

REGISTERED = (
    "(SELECT r.name, 'live' AS state, r.definition, r.topic, r.partitions, r.settings "
    "FROM rxstore.generation r WHERE r.name = '{name}')"
)

_is_name = re.compile(r"[a-z][a-z0-9_]{0,30}").fullmatch
_relation = re.compile(rf"\b{CONTROL_SCHEMA}\.([a-z_]+)\b")


def ask_generation(engine: Engine, name: str) -> Engine:
    """Have an engine ask a generation instead of the views, from now on; it needs the right to read those tables."""
    relations = relations_of(name)

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def instead(
        connection: object, cursor: object, statement: str, parameters: object, context: object, executemany: bool
    ) -> tuple[str, object]:
        return of_generation(statement, relations), parameters

    return engine


def of_generation(statement: str, relations: Mapping[str, str]) -> str:
    """Put other relations in the place of the views and of the register."""
    return _relation.sub(lambda found: relations.get(found[1], found[0]), statement)


def relations_of(name: str) -> dict[str, str]:
    """Return what stands for each view and for the register when a generation is asked."""
    if not _is_name(name):  # it goes into SQL as it is
        raise ValueError("a generation's name is 1 to 31 of a-z, 0-9 and _, and begins with a letter")
    views = {view: f"({query.format(schema=f'rx_{name}')})" for view, query in VIEWS.items()}
    return {**views, "generation": REGISTERED.format(name=name)}
