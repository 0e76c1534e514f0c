"""Who may ask what: the registered clients, by ASID, and the interactions that each may use.

The page of it is docs/operators/clients.md.

A server reads the register when it is older than two seconds, so a change holds on every server within that and the
time of one request. Where the register cannot be read nobody is let in.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import falcon
from sqlalchemy import Connection, text

from query_api import problems

logger = logging.getLogger(__name__)

FRESH_SECONDS = 2.0
SEARCH = "ExternalPrescriptionSearch_1_0"
RETRIEVE = "ExternalPrescriptionQuery_1_0"
HISTORY, EVENTS, STATUS = "rxstore_history", "rxstore_events", "rxstore_status"
# The tracker's four, of which two are not served yet, and our own.
INTERACTIONS = (SEARCH, RETRIEVE, "NHS111_ItemSummary", "NHS111_ItemDetail", HISTORY, EVENTS, STATUS)
# The tracker's own paths answer in their envelope, with code 52.
OURS = {
    "/rxstore/prescriptions/{prescription_id}/history": HISTORY,
    "/rxstore/events": EVENTS,
    "/rxstore/status": STATUS,
}


REGISTER = text("SELECT asid, interactions, valid_from, valid_to, revoked_at FROM rxstore.client")


@dataclass(frozen=True, slots=True)
class Client:
    """One registered client."""

    interactions: frozenset[str]
    valid_from: datetime
    valid_to: datetime | None
    is_revoked: bool


def registered(connection: Connection) -> dict[str, Client]:
    """Return every client of the register, by ASID."""
    return {
        row.asid: Client(frozenset(row.interactions), row.valid_from, row.valid_to, row.revoked_at is not None)
        for row in connection.execute(REGISTER)
    }


class Admission(Protocol):
    """Decides whether a caller is let in."""

    def admits(self, asid: str, interaction: str) -> bool:
        """Whether the client with this ASID may use the interaction now."""


class Everybody:
    """Lets any ASID in: for an installation whose callers somebody else has checked."""

    def admits(self, asid: str, interaction: str) -> bool:
        """Whoever it is."""
        return True


@dataclass(slots=True)
class Registered:
    """Lets in whom the register names. ``read`` returns every client by ASID; errors of it are the caller's."""

    read: Callable[[], Mapping[str, Client]]
    clock: Callable[[], datetime]
    monotonic: Callable[[], float] = time.monotonic
    _clients: Mapping[str, Client] = field(default_factory=dict)
    _read_at: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admits(self, asid: str, interaction: str) -> bool:
        """Whether the client is registered for it; why not stands in the log, and is not told to the caller."""
        rule = self._refused_by(self._current().get(asid), interaction)
        if rule is not None:
            logger.warning(
                "client %s was refused: %s",
                asid,
                rule,
                extra={"action": "client_refused", "asid": asid, "interaction": interaction},
            )
        return rule is None

    def _current(self) -> Mapping[str, Client]:
        with self._lock:
            now = self.monotonic()
            if self._read_at is None or now - self._read_at > FRESH_SECONDS:
                self._clients = self.read()
                self._read_at = now
            return self._clients

    def _refused_by(self, client: Client | None, interaction: str) -> str | None:
        now = self.clock()
        if client is None:
            return "it is not registered"
        if client.is_revoked:
            return "it is revoked"
        if now < client.valid_from:
            return "it is not valid yet"
        if client.valid_to is not None and now >= client.valid_to:
            return "it is no longer valid"
        if interaction not in client.interactions:
            return f"it may not use {interaction}"
        return None


class OnlyRegistered:
    """Lets only registered clients ask our own paths."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: object, params: dict[str, Any]
    ) -> None:
        """Refuse whoever is not let in, before anything is read."""
        interaction = OURS.get(req.uri_template or "")
        if interaction is not None and not self._admission.admits(
            req.get_header("Spine-From-Asid", default=""), interaction
        ):
            raise problems.forbidden(
                "Spine-From-Asid must be the ASID of a client that may ask this: whoever runs this server registers "
                "them with 'rxstore clients'."
            )
