"""A real Kafka that speaks TLS only, knows its users by SCRAM and lets nobody do what no ACL allows."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rxstore.embedded import LOOPBACK, temporary_directory
from tests import servers

ADMIN = "admin"
SETTINGS = {
    "listener.security.protocol.map": "SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "SASL_SSL",
    "sasl.enabled.mechanisms": "SCRAM-SHA-512",
    "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "false",
    # The broker reaches its own controller on loopback without a login.
    "super.users": f"User:{ADMIN};User:ANONYMOUS",
}


@dataclass(frozen=True, slots=True)
class SecureKafka:
    """Where it is, whom to trust, and the password of each user."""

    address: str
    authority: Path
    passwords: Mapping[str, str]

    def client(self, user: str) -> dict[str, str]:
        """Return what one of Kafka's clients needs to log in."""
        return _client(self.authority, user, self.passwords[user])


@contextmanager
def secure_kafka(users: Collection[str]) -> Iterator[SecureKafka]:
    """Run one with these users, who may do nothing yet, and an administrator who may do everything."""
    with temporary_directory("secure-kafka") as directory:
        authority, key = _certificates(directory)
        passwords = {user: secrets.token_hex(16) for user in (ADMIN, *users)}
        client = _client(authority, ADMIN, passwords[ADMIN])
        login = "org.apache.kafka.common.security.scram.ScramLoginModule required"
        settings = SETTINGS | {
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
                f'{login} username="{ADMIN}" password="{passwords[ADMIN]}";'
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(key),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(authority),
        }
        broker = servers.kafka_on_disk(directory, settings, listener="SASL_SSL", scram=passwords, client=client)
        with broker.running():
            yield SecureKafka(broker.address, authority, passwords)


def _client(authority: Path, user: str, password: str) -> dict[str, str]:
    return {
        "security_protocol": "SASL_SSL",
        "ssl_cafile": str(authority),
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": user,
        "sasl_plain_password": password,
    }


def _certificates(directory: Path) -> tuple[Path, Path]:
    """Make an authority, and a key with its certificate for loopback in the form that Kafka reads."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer, subject = _name("an authority for a test"), _name("a broker for a test")
    authority = (
        _certificate(issuer, issuer, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        _certificate(subject, issuer, key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(LOOPBACK))]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    trusted, keystore = directory / "authority.pem", directory / "broker.pem"
    trusted.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    keystore.touch(mode=0o600)
    keystore.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return trusted, keystore


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
    )
