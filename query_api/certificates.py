"""Client certificates: what is known of one, and which are revoked. The page of it is docs/security.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

_pem_crls = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL).findall
_fingerprint = re.compile(r"[0-9a-f]{64}").fullmatch
# Envoy's header: By=…;Hash=…;Cert="…";Subject="…"; a second certificate would follow after a comma.
_certificate_of_envoy = re.compile(
    r'(?:[A-Za-z]+=(?:"[^",;]*"|[^",;]*);)*Cert="([^",;]+)"(?:;[A-Za-z]+=[^,]*)?'
).fullmatch
LONGEST_ESCAPED = 32_768


class Unreadable(ValueError):
    """What should be a certificate or a fingerprint is none."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate, as far as anybody is known by it.

    ``fingerprint`` is the SHA-256 of its DER form in 64 lower-case hex digits; ``subject`` and ``issuer`` are in the
    form of RFC 4514, like ``CN=system.example,O=Example``.
    """

    fingerprint: str
    subject: str
    issuer: str
    serial: int
    not_before: datetime
    not_after: datetime

    def is_valid_at(self, now: datetime) -> bool:
        """Whether it had begun and not ended then."""
        return self.not_before <= now <= self.not_after


@lru_cache(maxsize=1024)
def from_der(der: bytes) -> Certificate:
    """Read a certificate; Unreadable when it is none."""
    try:
        return _of(x509.load_der_x509_certificate(der))
    except ValueError as error:
        raise Unreadable("it is no X.509 certificate") from error


def from_pem(pem: bytes) -> Certificate:
    """Read the first certificate of a PEM file; Unreadable when there is none."""
    try:
        return _of(x509.load_pem_x509_certificate(pem))
    except ValueError as error:
        raise Unreadable("it is no X.509 certificate in PEM") from error


@lru_cache(maxsize=1024)
def from_header(value: str) -> Certificate:
    """Read what a proxy hands on: PEM, percent-encoded, as nginx and AWS send it, or in Envoy's ``Cert="…"``.

    Unreadable for anything else, two certificates among it.
    """
    if len(value) > LONGEST_ESCAPED:
        raise Unreadable("it is too long")
    of_envoy = _certificate_of_envoy(value)
    pem = unquote(value if of_envoy is None else of_envoy[1])
    if pem.count("-----BEGIN") != 1:
        raise Unreadable("it is not one percent-encoded PEM certificate")
    return from_pem(pem.encode())


def normal_fingerprint(given: str) -> str:
    """Return a SHA-256 fingerprint, however it is written (``AB:CD:…`` as openssl does); Unreadable when it is none."""
    found = given.strip().lower().removeprefix("sha256:").replace(":", "")
    if not _fingerprint(found):
        raise Unreadable("a SHA-256 fingerprint has 64 hex digits")
    return found


def _of(found: x509.Certificate) -> Certificate:
    return Certificate(
        fingerprint=found.fingerprint(SHA256()).hex(),
        subject=found.subject.rfc4514_string(),
        issuer=found.issuer.rfc4514_string(),
        serial=found.serial_number,
        not_before=found.not_valid_before_utc,
        not_after=found.not_valid_after_utc,
    )


@dataclass(frozen=True, slots=True)
class Revocations:
    """What the revocation lists of a file say. ``next_update`` is the earliest of theirs, None when none says any."""

    revoked: frozenset[tuple[str, int]] = frozenset()
    next_update: datetime | None = None

    def names(self, certificate: Certificate) -> bool:
        """Whether this certificate is revoked."""
        return (certificate.issuer, certificate.serial) in self.revoked

    @classmethod
    def read(cls, path: Path) -> Revocations:
        """Read the PEM lists of a file; Unreadable when there is none in it."""
        try:
            lists = [x509.load_pem_x509_crl(pem) for pem in _pem_crls(path.read_bytes())]
        except ValueError as error:
            raise Unreadable(f"{path} holds a revocation list that cannot be read") from error
        if not lists:
            raise Unreadable(f"{path} holds no revocation list in PEM")
        ends = [found.next_update_utc for found in lists if found.next_update_utc is not None]
        return cls(
            frozenset((found.issuer.rfc4514_string(), one.serial_number) for found in lists for one in found),
            min(ends, default=None),
        )


def now() -> datetime:
    """The present by the machine's clock, by which certificates begin and end."""
    return datetime.now(UTC)
