"""The register of clients: who may ask the API what. Servers look at it every two seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, insert, select, update

from projector.tables import client
from query_api.certificates import Unreadable, normal_fingerprint
from query_api.clients import INTERACTIONS, RETRIEVE, SEARCH
from rxstore.errors import Refused, WrongUse
from schemas.identifiers import is_asid

PRIMARY_PAIR = (SEARCH, RETRIEVE)
MEMBERS = frozenset({"asid", "contact", "interactions", "valid_from", "valid_to", "fingerprints", "subject", "issuer"})
LONGEST_CONTACT = 500


@dataclass(frozen=True, slots=True)
class Registration:
    """What is said about a client when it is registered. ``valid_from`` None means from now on.

    Over TLS it is known by its certificates: the SHA-256 ``fingerprints`` of some, or ``subject`` and ``issuer`` (RFC
    4514) of any.
    """

    asid: str
    contact: str
    interactions: tuple[str, ...] = PRIMARY_PAIR
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    fingerprints: tuple[str, ...] = ()
    subject: str | None = None
    issuer: str | None = None

    def checked(self) -> Registration:
        """Return it with its interactions in order; WrongUse names what cannot be."""
        if not is_asid(self.asid):
            raise WrongUse("an ASID has exactly 12 digits")
        if not self.contact.strip() or len(self.contact) > LONGEST_CONTACT:
            raise WrongUse(f"client {self.asid}: say whom to ask about it, in at most {LONGEST_CONTACT} characters")
        unknown = sorted(set(self.interactions) - set(INTERACTIONS))
        if unknown or not self.interactions:
            found = f"there is no interaction {unknown[0]}" if unknown else "it has no interaction"
            raise WrongUse(f"client {self.asid}: {found}; there are {', '.join(INTERACTIONS)}")
        begins = self.valid_from or datetime.now(UTC)
        if self.valid_to is not None and self.valid_to <= begins:
            raise WrongUse(f"client {self.asid}: it would end before it begins")
        if (self.subject is None) != (self.issuer is None):
            raise WrongUse(
                f"client {self.asid}: subject and issuer of its certificates are given together or not at all"
            )
        try:
            fingerprints = tuple(dict.fromkeys(map(normal_fingerprint, self.fingerprints)))
        except Unreadable as error:
            raise WrongUse(f"client {self.asid}: {error}") from error
        return replace(
            self,
            interactions=tuple(name for name in INTERACTIONS if name in self.interactions),
            fingerprints=fingerprints,
        )


def add(engine: Engine, registration: Registration, *, who: str, anew: bool = False) -> None:
    """Register a client; Refused when it is registered and not said ``anew``. A revoked one is valid again then."""
    with engine.begin() as connection:
        _add(connection, registration.checked(), who=who, anew=anew)


def add_all(engine: Engine, registrations: Iterable[Registration], *, who: str, anew: bool = False) -> int:
    """Register several clients, all or none; return how many."""
    checked = [registration.checked() for registration in registrations]
    with engine.begin() as connection:
        for registration in checked:
            _add(connection, registration, who=who, anew=anew)
    return len(checked)


def _add(connection: Connection, registration: Registration, *, who: str, anew: bool) -> None:
    values: dict[str, Any] = {
        "contact": registration.contact,
        "interactions": list(registration.interactions),
        "valid_to": registration.valid_to,
        "fingerprints": list(registration.fingerprints),
        "subject": registration.subject,
        "issuer": registration.issuer,
        "added_by": who,
    }
    if registration.valid_from is not None:
        values["valid_from"] = registration.valid_from
    known = connection.execute(select(client.c.asid).where(client.c.asid == registration.asid)).first()
    if known is None:
        connection.execute(insert(client).values(asid=registration.asid, **values))
        return
    if not anew:
        raise Refused(
            f"client {registration.asid} is registered already: 'rxstore clients show {registration.asid}' says how, "
            "--replace replaces that"
        )
    now = datetime.now(UTC)
    unrevoked = {"revoked_at": None, "revoked_by": None, "revoked_why": None}
    connection.execute(
        update(client)
        .where(client.c.asid == registration.asid)
        .values(**{"valid_from": now, **values, **unrevoked, "added_at": now})
    )


def add_fingerprints(engine: Engine, asid: str, fingerprints: Sequence[str]) -> int:
    """Let a client use further certificates, as before an old one ends; return how many it has then."""
    return _change_fingerprints(engine, asid, fingerprints, lambda had, given: [*had, *(set(given) - set(had))])


def remove_fingerprints(engine: Engine, asid: str, fingerprints: Sequence[str]) -> int:
    """Let a client use some certificates no more; return how many it has then."""
    return _change_fingerprints(engine, asid, fingerprints, lambda had, given: [one for one in had if one not in given])


def _change_fingerprints(
    engine: Engine, asid: str, given: Sequence[str], change: Callable[[list[str], list[str]], list[str]]
) -> int:
    try:
        normal = list(map(normal_fingerprint, given))
    except Unreadable as error:
        raise WrongUse(str(error)) from error
    with engine.begin() as connection:
        had = connection.execute(
            select(client.c.fingerprints).where(client.c.asid == asid).with_for_update()
        ).scalar_one_or_none()
        if had is None:
            raise WrongUse(f"there is no client {asid}: 'rxstore clients list' shows which there are")
        has = change(had, normal)
        if has == had:
            raise Refused(f"client {asid} has {len(had)} certificates, and that would change nothing")
        connection.execute(update(client).where(client.c.asid == asid).values(fingerprints=has))
    return len(has)


def revoke(engine: Engine, asid: str, *, who: str, why: str) -> None:
    """Let a client in no more; WrongUse when there is none, Refused when it is revoked already."""
    with engine.begin() as connection:
        done = connection.execute(
            update(client)
            .where(client.c.asid == asid, client.c.revoked_at.is_(None))
            .values(revoked_at=datetime.now(UTC), revoked_by=who, revoked_why=why)
        )
        if done.rowcount:
            return
        known = connection.execute(select(client.c.asid).where(client.c.asid == asid)).first()
    if known is None:
        raise WrongUse(f"there is no client {asid}: 'rxstore clients list' shows which there are")
    raise Refused(f"client {asid} is revoked already")


def every(engine: Engine, asid: str | None = None) -> list[dict[str, Any]]:
    """Return all clients, or one, by ASID."""
    question = select(client).order_by(client.c.asid)
    if asid is not None:
        question = question.where(client.c.asid == asid)
    with engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(question)]


def state_of(one: Mapping[str, Any], now: datetime) -> str:
    """Say whether a client is let in: valid, revoked, not valid yet, or expired."""
    if one["revoked_at"] is not None:
        return "revoked"
    if now < one["valid_from"]:
        return "not valid yet"
    if one["valid_to"] is not None and now >= one["valid_to"]:
        return "expired"
    return "valid"


def read_registrations(lines: Iterable[bytes], where: str) -> Sequence[Registration]:
    """Read one JSON object a line, as ``clients list --json`` prints them; WrongUse names line and member."""
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            said = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise WrongUse(f"{where}, line {number}: must be one JSON object a line") from error
        if not isinstance(said, dict):
            raise WrongUse(f"{where}, line {number}: must be one JSON object a line")
        if said.get("revoked_at"):
            continue  # a list of clients names revoked ones too, and those are not to come back by it
        found.append(_registration(said, f"{where}, line {number}"))
    return found


def _registration(said: Mapping[str, Any], where: str) -> Registration:
    given = {name: said[name] for name in MEMBERS & said.keys() if said[name] is not None}
    interactions = given.get("interactions", list(PRIMARY_PAIR))
    fingerprints = given.get("fingerprints", [])
    texts = [
        given.get("asid"),
        given.get("contact"),
        given.get("subject", ""),
        given.get("issuer", ""),
        *(interactions if isinstance(interactions, list) else [None]),
        *(fingerprints if isinstance(fingerprints, list) else [None]),
    ]
    if not all(isinstance(text, str) for text in texts):
        raise WrongUse(
            f"{where}: asid, contact, subject and issuer must be texts, interactions and fingerprints lists of texts"
        )
    try:
        instants = {name: datetime.fromisoformat(given[name]) for name in ("valid_from", "valid_to") if name in given}
    except (TypeError, ValueError) as error:
        raise WrongUse(f"{where}: valid_from and valid_to must be RFC 3339 instants") from error
    if any(instant.tzinfo is None for instant in instants.values()):
        raise WrongUse(f"{where}: valid_from and valid_to must have an offset from UTC")
    registration = Registration(
        given["asid"],
        given["contact"],
        tuple(interactions),
        **instants,
        fingerprints=tuple(fingerprints),
        subject=given.get("subject"),
        issuer=given.get("issuer"),
    )
    try:
        return registration.checked()
    except WrongUse as error:
        raise WrongUse(f"{where}: {error}") from error
