"""Who may ask what: the registered clients, by ASID, and the interactions that each may use.

The page of it is docs/operators/clients.md.

A server reads the register when it is older than two seconds, so a change holds on every server within that and the
time of one request. Where the register cannot be read nobody is let in.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import falcon
from sqlalchemy import Connection, text

from query_api import problems
from query_api.certificates import Certificate
from query_api.rates import Rates
from schemas.identifiers import is_asid

logger = logging.getLogger(__name__)

FRESH_SECONDS = 2.0
# What a server process says about the caller of a request, in its WSGI environment.
CERTIFICATE = "rxstore.certificate"
FINGERPRINT = "rxstore.certificate_fingerprint"
PROBLEM = "rxstore.certificate_problem"
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


REGISTER = text(
    "SELECT asid, interactions, valid_from, valid_to, revoked_at, fingerprints, subject, issuer FROM rxstore.client"
)


@dataclass(frozen=True, slots=True)
class Client:
    """One registered client; ``subject`` and ``issuer`` are in the form of RFC 4514, both or neither."""

    interactions: frozenset[str]
    valid_from: datetime
    valid_to: datetime | None
    is_revoked: bool
    fingerprints: frozenset[str] = frozenset()
    subject: str | None = None
    issuer: str | None = None

    def has(self, certificate: Certificate) -> bool:
        """Whether the certificate is one of this client's."""
        if certificate.fingerprint in self.fingerprints:
            return True
        return self.subject is not None and (self.subject, self.issuer) == (certificate.subject, certificate.issuer)


def registered(connection: Connection) -> dict[str, Client]:
    """Return every client of the register, by ASID."""
    return {
        row.asid: Client(
            frozenset(row.interactions),
            row.valid_from,
            row.valid_to,
            row.revoked_at is not None,
            frozenset(row.fingerprints),
            row.subject,
            row.issuer,
        )
        for row in connection.execute(REGISTER)
    }


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the ASID as it was sent, and the certificate that came with it, or why none counts."""

    asid: str
    certificate: Certificate | None = None
    problem: str | None = None


class Admission(Protocol):
    """Decides whether a caller is let in."""

    def rule_against(self, caller: Caller, interaction: str) -> str | None:
        """Say which rule keeps the caller from this interaction now, None when none does."""


class Everybody:
    """Lets any ASID in: for an installation whose callers somebody else has checked."""

    def rule_against(self, caller: Caller, interaction: str) -> str | None:
        """Let in whoever it is."""
        return None


@dataclass(slots=True)
class Registered:
    """Lets in whom the register names. ``read`` returns every client by ASID; errors of it are the caller's.

    With ``by_certificate`` the certificate must be one that is registered for the ASID.
    """

    read: Callable[[], Mapping[str, Client]]
    clock: Callable[[], datetime]
    monotonic: Callable[[], float] = time.monotonic
    by_certificate: bool = False
    _clients: Mapping[str, Client] = field(default_factory=dict)
    _read_at: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def rule_against(self, caller: Caller, interaction: str) -> str | None:
        """Look the caller up."""
        client = self._current().get(caller.asid)
        now = self.clock()
        if client is None:
            return "it is not registered"
        if client.is_revoked:
            return "it is revoked"
        if now < client.valid_from:
            return "it is not valid yet"
        if client.valid_to is not None and now >= client.valid_to:
            return "it is no longer valid"
        if self.by_certificate and (caller.problem is not None or caller.certificate is None):
            return caller.problem or "it showed no certificate"
        if self.by_certificate and caller.certificate is not None and not client.has(caller.certificate):
            return "its certificate is not registered for it"
        if interaction not in client.interactions:
            return f"it may not use {interaction}"
        return None

    def _current(self) -> Mapping[str, Client]:
        with self._lock:
            now = self.monotonic()
            if self._read_at is None or now - self._read_at > FRESH_SECONDS:
                self._clients = self.read()
                self._read_at = now
            return self._clients


class Gate:
    """Lets callers in, each for what it may and not more often than it may."""

    def __init__(self, admission: Admission, rates: Rates | None = None) -> None:
        self._admission = admission
        self._rates = rates

    def lets_in(self, request: falcon.Request, interaction: str) -> bool:
        """Whether the caller may; why not stands in the log and the audit, and is not told to the caller.

        :raises falcon.HTTPTooManyRequests: it may, but has asked too often.
        """
        asid = request.get_header("Spine-From-Asid", default="")
        caller = Caller(asid, request.env.get(CERTIFICATE), request.env.get(PROBLEM))
        rule = self._admission.rule_against(caller, interaction)
        if rule is not None:
            request.context.refused_by = rule
            logger.warning(
                "client %s was refused: %s",
                asid if is_asid(asid) else "without an ASID",
                rule,
                extra={"action": "client_refused", "interaction": interaction},
            )
            return False
        if self._rates is not None and is_asid(asid):
            seconds = self._rates.seconds_to_wait(asid)
            if seconds > 0:
                request.context.refused_by = "it asks too often"
                raise problems.too_many(math.ceil(seconds))
        return True


class OnlyRegistered:
    """Lets only registered clients ask our own paths."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: object, params: dict[str, Any]
    ) -> None:
        """Refuse whoever is not let in, before anything is read."""
        interaction = OURS.get(req.uri_template or "")
        if interaction is not None and not self._gate.lets_in(req, interaction):
            raise problems.forbidden(
                "Spine-From-Asid must be the ASID of a client that may ask this: whoever runs this server registers "
                "them with 'rxstore clients'."
            )
