"""A certificate authority for demonstrations and tests: it lives as long as the process, and no longer."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
HOUR = datetime.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, as PEM files."""

    certfile: Path
    keyfile: Path
    certificate: x509.Certificate


@dataclass(slots=True)
class Authority:
    """Issues certificates into a directory; ``certfile`` is its own."""

    directory: Path
    name: str = "rxstore demonstration authority"
    certfile: Path = field(init=False)
    _key: ec.EllipticCurvePrivateKey = field(init=False)
    _certificate: x509.Certificate = field(init=False)

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._signed(
            self.name,
            self._key.public_key(),
            [
                (x509.BasicConstraints(ca=True, path_length=0), True),
                (_usage(sign_certificates=True), True),
                (x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), False),
            ],
        )
        self.certfile = self.directory / f"{self.name.replace(' ', '-')}.pem"
        self.certfile.write_bytes(self._certificate.public_bytes(Encoding.PEM))

    def server(self, name: str, hosts: Sequence[str]) -> Issued:
        """Issue a certificate for a server with these names and addresses."""
        return self._issued(name, ExtendedKeyUsageOID.SERVER_AUTH, hosts)

    def client(self, name: str, *, begins: datetime.timedelta = -HOUR, lasts: datetime.timedelta = 30 * DAY) -> Issued:
        """Issue a certificate for a client; ``begins`` counts from now."""
        return self._issued(name, ExtendedKeyUsageOID.CLIENT_AUTH, (), begins, lasts)

    def revoke(self, revoked: Sequence[Issued], path: Path, *, lasts: datetime.timedelta = 30 * DAY) -> Path:
        """Write the list of the revoked certificates."""
        now = _now()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - 2 * HOUR)
            .next_update(now + lasts)
        )
        for each in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(each.certificate.serial_number)
                .revocation_date(now - HOUR)
                .build()
            )
        written = path.with_suffix(".new")
        written.write_bytes(builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM))
        return written.replace(path)

    def _issued(
        self,
        name: str,
        purpose: x509.ObjectIdentifier,
        hosts: Sequence[str],
        begins: datetime.timedelta = -HOUR,
        lasts: datetime.timedelta = 30 * DAY,
    ) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(sign_certificates=False), True),
            (x509.ExtendedKeyUsage([purpose]), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False),
        ]
        if hosts:
            extensions.append((x509.SubjectAlternativeName(list(map(_host, hosts))), False))
        certificate = self._signed(name, key.public_key(), extensions, begins, lasts)
        certfile, keyfile = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        certfile.write_bytes(certificate.public_bytes(Encoding.PEM))
        descriptor = os.open(keyfile, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Issued(certfile, keyfile, certificate)

    def _signed(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        extensions: Sequence[tuple[x509.ExtensionType, bool]],
        begins: datetime.timedelta = -HOUR,
        lasts: datetime.timedelta = 30 * DAY,
    ) -> x509.Certificate:
        now = _now()
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named(self.name))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + begins + lasts)
        )
        for extension, is_critical in extensions:
            builder = builder.add_extension(extension, critical=is_critical)
        return builder.sign(self._key, SHA256())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
