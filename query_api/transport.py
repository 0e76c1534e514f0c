"""How callers reach a server process, and by which certificate they are known there.

Three ways, one of them for a whole server: plain HTTP on this machine, TLS with client certificates, and behind a
proxy that has seen the certificate. The page of it is docs/security.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from gevent import ssl

from query_api import certificates
from query_api.certificates import Certificate, Revocations, Unreadable

logger = logging.getLogger(__name__)

Network = IPv4Network | IPv6Network
T = TypeVar("T")
Stamp = tuple[tuple[int, int, int] | None, ...]


class TurnedAway(Exception):
    """A connection that is not served; the message says why, without anything that the caller sent."""


class Unusable(ValueError):
    """What a server should be started with cannot be used; the message says what and where."""


@dataclass(frozen=True, slots=True)
class Identity:
    """By what a caller is known: a certificate, or why there is none that counts."""

    certificate: Certificate | None = None
    problem: str | None = None


NOBODY = Identity()


class Transport(Protocol):
    """One of the ways."""

    @property
    def is_secure(self) -> bool:
        """Whether callers are known by certificates."""

    def accept(self, client: Any, address: Any) -> Any:  # noqa: ANN401 - gevent has no types
        """Turn an accepted socket into one to speak HTTP on; TurnedAway or OSError when it is not served."""

    def certificate(self, connection: Any) -> Certificate | None:  # noqa: ANN401
        """Return the certificate that an accepted connection showed."""

    def identity(self, shown: Certificate | None, environ: Mapping[str, Any]) -> Identity:
        """Say who makes a request, from what its connection showed and its headers."""

    def look_again(self) -> None:
        """Take over files that have changed; called every second."""


class Plain:
    """Plain HTTP: nobody is known by anything."""

    is_secure = False

    def accept(self, client: Any, address: Any) -> Any:  # noqa: ANN401
        """Serve whoever can connect."""
        return client

    def certificate(self, connection: Any) -> Certificate | None:  # noqa: ANN401
        """Return none."""
        return None

    def identity(self, shown: Certificate | None, environ: Mapping[str, Any]) -> Identity:
        """Return nobody."""
        return NOBODY

    def look_again(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where certificates are, all in PEM; ``client_cafile`` holds clients' authorities, ``crlfile`` their lists."""

    certfile: Path
    keyfile: Path
    client_cafile: Path
    crlfile: Path | None = None


class _Watched(Generic[T]):
    """What was read from files, read again when one of them changes; what cannot be used leaves ``current`` as it was.

    :raises Unusable: it cannot be used at the start.
    """

    def __init__(self, paths: Sequence[Path | None], read: Callable[[], T]) -> None:
        self._paths = [path for path in paths if path is not None]
        self._read = read
        self._stamp = self._stamped()
        self.current = read()

    def look_again(self) -> None:
        """Take over files that have changed; those that cannot be used are reported once."""
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.current = self._read()
        except Unusable as error:
            logger.error(
                "changed certificates cannot be used, those before stay in use: %s",
                error,
                extra={"action": "certificates_refused"},
            )
        else:
            logger.info("changed certificates are in use", extra={"action": "certificates_reloaded"})

    def _stamped(self) -> Stamp:
        return tuple(map(_stamp, self._paths))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class MutualTls:
    """TLS 1.2 or 1.3, with a client certificate of the configured authority.

    Files that change are taken over for new connections; open ones go on, but a certificate is looked up in the newest
    revocation list with every request. Files that cannot be used are reported once, and those in use stay.

    :raises Unusable: the files cannot be used.
    """

    is_secure = True

    def __init__(self, files: TlsFiles) -> None:
        paths = (files.certfile, files.keyfile, files.client_cafile, files.crlfile)
        self._watched = _Watched(paths, lambda: _loaded(files))

    def accept(self, client: Any, address: Any) -> Any:  # noqa: ANN401
        """Shake hands."""
        context, _ = self._watched.current
        return context.wrap_socket(client, server_side=True)

    def certificate(self, connection: Any) -> Certificate | None:  # noqa: ANN401
        """Return the certificate that the handshake verified."""
        der = connection.getpeercert(binary_form=True)
        return None if der is None else certificates.from_der(der)

    def identity(self, shown: Certificate | None, environ: Mapping[str, Any]) -> Identity:
        """Return what the handshake verified, if it is still neither ended nor revoked."""
        if shown is None:
            return Identity(problem="its connection showed no certificate")
        return _identity(shown, self._watched.current[1])

    def look_again(self) -> None:
        """Take over files that have changed."""
        self._watched.look_again()


def _identity(certificate: Certificate, revocations: Revocations) -> Identity:
    if revocations.names(certificate):
        return Identity(certificate, "its certificate is revoked")
    if not certificate.is_valid_at(certificates.now()):
        return Identity(certificate, "its certificate is out of date")
    return Identity(certificate)


def _loaded(files: TlsFiles) -> tuple[Any, Revocations]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    # A session that is taken up again is not verified again: a list of revoked certificates would come too late.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    try:
        context.load_cert_chain(files.certfile, files.keyfile, password=_no_password)
    except (OSError, ValueError) as error:
        raise Unusable(
            f"{files.certfile} and {files.keyfile} are no certificate with its key: {_said(error)}"
        ) from None
    try:
        context.load_verify_locations(cafile=files.client_cafile)
    except (OSError, ValueError) as error:
        raise Unusable(f"{files.client_cafile} holds no authority: {_said(error)}") from None
    revocations = _revocations(files.crlfile)
    if files.crlfile is not None:
        try:
            context.load_verify_locations(cafile=files.crlfile)
        except (OSError, ValueError) as error:
            raise Unusable(f"{files.crlfile} cannot be read: {_said(error)}") from None
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context, revocations


def _revocations(path: Path | None) -> Revocations:
    if path is None:
        return Revocations()
    try:
        found = Revocations.read(path)
    except (OSError, Unreadable) as error:
        raise Unusable(_said(error)) from None
    if found.next_update is not None and found.next_update < certificates.now():
        raise Unusable(f"{path} should have been replaced by a newer list by {found.next_update}")
    return found


def _no_password() -> str:
    """Refuse to ask on the terminal, as OpenSSL would."""
    raise ValueError("the key is encrypted, and there is nobody to ask for its password")


def _said(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
    return str(reason or error)


class BehindProxy:
    """Behind a proxy that ends TLS, demands the certificate, and hands it on in a header that it always sets itself.

    Only proxies are served: those at the addresses of ``trusted``, and whoever may open the Unix socket.

    :raises Unusable: the revocation list cannot be used.
    """

    is_secure = True

    def __init__(
        self, trusted: Sequence[Network] = (), header: str = "X-Client-Cert", crlfile: Path | None = None
    ) -> None:
        self._trusted = trusted
        self._header = header
        self._variable = f"HTTP_{header.upper().replace('-', '_')}"
        self._watched = _Watched((crlfile,), lambda: _revocations(crlfile))

    def accept(self, client: Any, address: Any) -> Any:  # noqa: ANN401
        """Serve proxies alone."""
        if isinstance(address, tuple) and not self._is_trusted(address[0]):
            raise TurnedAway("it comes from an address that is none of RXSTORE_TRUSTED_PROXIES")
        return client

    def _is_trusted(self, host: str) -> bool:
        found = ip_address(host.partition("%")[0])
        found = getattr(found, "ipv4_mapped", None) or found
        return any(found.version == network.version and found in network for network in self._trusted)

    def certificate(self, connection: Any) -> Certificate | None:  # noqa: ANN401
        """Return none: a proxy's connection carries the requests of many."""
        return None

    def identity(self, shown: Certificate | None, environ: Mapping[str, Any]) -> Identity:
        """Return what the proxy says."""
        given = environ.get(self._variable)
        if not given:
            return Identity(problem=f"the proxy handed on no certificate in {self._header}")
        try:
            found = certificates.from_header(given)
        except Unreadable:
            return Identity(problem=f"what the proxy handed on in {self._header} is no certificate")
        return _identity(found, self._watched.current)

    def look_again(self) -> None:
        """Take over a changed revocation list."""
        self._watched.look_again()
