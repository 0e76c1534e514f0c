"""Connections that can only read, and the one second try that a dead connection deserves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TypeVar

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError

from query_api import queries
from query_api.clients import Client, registered
from query_api.queries import (
    EventFate,
    LogPosition,
    Retrieved,
    SearchCriteria,
    Searched,
    SetAsideRecord,
    ViewsStatus,
)

T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS = 3
STATEMENT_TIMEOUT_MS = 3_000
POOL_TIMEOUT_SECONDS = 5


def read_only_engine(
    url: str, *, role: str | None = None, pool_size: int = 8, application_name: str = "rxstore-api"
) -> Engine:
    """An engine whose every statement is a transaction of its own, reads only and ends after a few seconds.

    With ``role`` it can do no more than that role, whoever logs in. Parameters are hidden from errors: they name
    patients.
    """
    # libpq's own reading of the URL: SQLAlchemy's knows no list of hosts with ports.
    parsed = conninfo_to_dict(url.replace("postgresql+psycopg://", "postgresql://", 1))
    if parsed.get("target_session_attrs") == "read-write":
        parsed["target_session_attrs"] = "primary"  # our own session is read only, on whatever server
    given = parsed.get("options", "")
    as_role = "" if role is None else f" -c role={role}"
    ours = f"-c default_transaction_read_only=on -c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC{as_role}"
    return create_engine(
        "postgresql+psycopg://",
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        pool_reset_on_return=None,
        connect_args={
            **parsed,
            "options": f"{given} {ours}".lstrip(),
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": application_name,
        },
    )


class Questions:
    """The questions that the API asks of the read model, each on a connection of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def prescription(self, stream_key: str, issue_number: int | None) -> Retrieved:
        """Ask for one prescription and one of its issues."""
        return self._ask(lambda connection: queries.prescription(connection, stream_key, issue_number))

    def prescriptions(self, criteria: SearchCriteria) -> Searched:
        """Ask for a patient's prescriptions."""
        return self._ask(lambda connection: queries.prescriptions(connection, criteria))

    def live_generation(self) -> str | None:
        """Ask for the generation behind the views."""
        return self._ask(queries.live_generation)

    def age_seconds(self) -> float | None:
        """Ask how old the read model may be."""
        return self._ask(queries.age_seconds)

    def event(self, key: bytes, stream_key: str | None, position: LogPosition | None) -> EventFate:
        """Ask what became of an event."""
        return self._ask(lambda connection: queries.event(connection, key, stream_key, position))

    def events(
        self, source: str, state: str, after: LogPosition | None, limit: int
    ) -> tuple[list[SetAsideRecord], datetime | None]:
        """Ask for a publisher's records that were set aside."""
        return self._ask(lambda connection: queries.events(connection, source, state, after, limit))

    def views(self) -> ViewsStatus:
        """Ask how far the live generation is."""
        return self._ask(queries.views_status)

    def has_passed(self, topic: str, partition: int, offset: int) -> bool | None:
        """Ask whether the live checkpoint has passed a position."""
        return self._ask(lambda connection: queries.has_passed(connection, topic, partition, offset))

    def clients(self) -> Mapping[str, Client]:
        """Ask for every registered client, by ASID."""
        return self._ask(registered)

    def _ask(self, question: Callable[[Connection], T]) -> T:
        """Ask once more, on a new connection, when the pooled one turns out to be dead.

        After a restart of the database the pool holds dead connections; looking at each before use would cost every
        request a round trip.
        """
        try:
            with self._engine.connect() as connection:
                return question(connection)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        with self._engine.connect() as connection:
            return question(connection)
