"""Every RXSTORE_ variable: one table with its default, its meaning and what it may be.

The environment comes first, a ``.env`` file in the working directory second. An empty value counts as none. What is
secret can stand in a file of its own: RXSTORE_NAME_FILE names it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from query_api import secret_files
from rxstore.errors import WrongUse

PREFIX = "RXSTORE_"
TEST_PREFIX = "RXSTORE_TEST_"
ENV_FILE = Path(".env")
MASK = "***"
A_FILE = "the file "

Parsed = TypeVar("Parsed")
Parser = Callable[[str], Parsed]


class Bind(NamedTuple):
    """An address to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def text(value: str) -> str:
    return value


def one_of(*choices: str) -> Parser[str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"must be {' or '.join([', '.join(choices[:-1]), choices[-1]])}")
        return value

    return parse


def yes_or_no(value: str) -> bool:
    return one_of("yes", "no")(value) == "yes"


def whole_number(low: int, high: int) -> Parser[int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", value) or not low <= int(value) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return parse


def matching(pattern: str, expected: str) -> Parser[str]:
    def parse(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {expected}")
        return value

    return parse


def bind(value: str) -> Bind:
    """``host:port``, with an IPv6 host in brackets."""
    address = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:\s]+)):([0-9]{1,5})", value)
    if address is None or int(address[3]) > 65_535:
        raise ValueError("must be host:port")
    return Bind(address[1] or address[2], int(address[3]))


class UnixSocket(NamedTuple):
    """A socket in the file system to listen on."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


def bind_or_socket(value: str) -> Bind | UnixSocket:
    """``host:port``, or ``unix:`` with an absolute path."""
    if value.startswith("unix:/"):
        return UnixSocket(Path(value.removeprefix("unix:")))
    try:
        return bind(value)
    except ValueError:
        raise ValueError("must be host:port, or unix:/path of a socket") from None


def networks(value: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Addresses and networks with commas between: ``10.0.0.4,10.1.0.0/24,2001:db8::/64``."""
    try:
        return tuple(ip_network(one.strip()) for one in value.split(","))
    except ValueError:
        raise ValueError("must be addresses or networks, with commas between them") from None


def bind_or_off(value: str) -> Bind | None:
    return None if value == "off" else bind(value)


def bootstrap_servers(value: str) -> tuple[str, ...]:
    try:
        return tuple(str(bind(server.strip())) for server in value.split(","))
    except ValueError as error:
        raise ValueError("must be host:port,host:port") from error


def readable_file(value: str) -> Path:
    path = Path(value)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ValueError("must be the path of a file that can be read")
    return path


def file_to_write(value: str) -> Path:
    path = Path(value)
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError("must be the path of a file in a directory that exists")
    return path


def database_url(value: str) -> str:
    """In the form that psycopg and psql take; a SQLAlchemy driver in the scheme is put aside."""
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise ValueError("must be postgresql://user:password@host/db?options")
    url = f"postgresql://{rest}"
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(url)
    except ProgrammingError:
        # The driver's own words, and so this error's context, would have parts of the password.
        raise ValueError(
            "must be postgresql://user:password@host/db?options, with % and other special characters of the password "
            "percent-encoded"
        ) from None
    return url


def instant(value: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError("must be an RFC 3339 instant with its offset, like 2026-03-01T09:00:00Z")
    return moment.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Setting:
    """One variable. ``default`` is what one would write to get it; ``None`` when nothing is set by default."""

    name: str
    default: str | None
    meaning: str
    parse: Parser[Any]
    secret: bool = False
    may_be_file: bool = False

    @property
    def names(self) -> list[str]:
        """What it can be set by: its own name and, where it is or holds a secret, that of a file with the value."""
        return [self.name, self.name + secret_files.SUFFIX] if self.may_be_file else [self.name]

    @property
    def field(self) -> str:
        """The attribute of ``Settings`` that holds it."""
        return self.name.removeprefix(PREFIX).lower()

    def shown(self, value: str | None) -> str | None:
        """The value as it may be printed."""
        if value is None:
            return None
        return MASK if self.secret else without_password(value)


SETTINGS = (
    Setting("RXSTORE_DATABASE_URL", None, "postgresql://user:password@host/db?options", database_url, may_be_file=True),
    Setting("RXSTORE_KAFKA_BOOTSTRAP_SERVERS", None, "brokers to start from: host:port,host:port", bootstrap_servers),
    Setting(
        "RXSTORE_KAFKA_SECURITY_PROTOCOL",
        "PLAINTEXT",
        "how to talk to the brokers: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
        one_of("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
    ),
    Setting("RXSTORE_KAFKA_SSL_CAFILE", None, "authority that the brokers' certificates must come from", readable_file),
    Setting("RXSTORE_KAFKA_SSL_CERTFILE", None, "our certificate, when the brokers ask for one", readable_file),
    Setting("RXSTORE_KAFKA_SSL_KEYFILE", None, "the key of that certificate", readable_file),
    Setting(
        "RXSTORE_KAFKA_SASL_MECHANISM",
        None,
        "how to log in: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
        one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"),
    ),
    Setting("RXSTORE_KAFKA_SASL_USERNAME", None, "user to log in to the brokers as", text),
    Setting("RXSTORE_KAFKA_SASL_PASSWORD", None, "that user's password", text, secret=True, may_be_file=True),
    Setting(
        "RXSTORE_TOPIC",
        "prescription-events",
        "the event log",
        matching(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}", "the name of a topic: letters, digits, dots, dashes"),
    ),
    Setting(
        "RXSTORE_PARTITIONER",
        "murmur2",
        "how publishers choose partitions: murmur2, or crc32 for a topic filled by librdkafka's default",
        one_of("murmur2", "crc32"),
    ),
    Setting(
        "RXSTORE_GROUP_ID",
        "rxstore-projector",
        "consumer group prefix; each generation has its own group",
        matching(r"\S{1,200}", "up to 200 characters without spaces"),
    ),
    Setting(
        "RXSTORE_GROUP_INSTANCE_ID",
        None,
        "this machine's name for static membership: a restart within the session time-out moves no partition",
        matching(r"[A-Za-z0-9._-]{1,200}", "letters, digits, dots and dashes, at most 200"),
    ),
    Setting(
        "RXSTORE_SESSION_TIMEOUT_MS",
        "8000",
        "after how long without a heartbeat another worker takes over (the brokers' own bounds apply)",
        whole_number(3_000, 1_800_000),
    ),
    Setting(
        "RXSTORE_BATCH_RECORDS",
        "20000",
        "the most records that a worker projects in one transaction",
        whole_number(1, 100_000),
    ),
    Setting(
        "RXSTORE_BUILD_MEMORY_MB",
        "1024",
        "the memory of a worker while it builds a generation; 0 builds it batch by batch",
        whole_number(0, 1_000_000),
    ),
    Setting(
        "RXSTORE_MAX_VALUE_BYTES",
        "262144",
        "a record's value above this is set aside unread as too_large",
        whole_number(1_024, 16_777_216),
    ),
    Setting(
        "RXSTORE_THROTTLE_P99_MS",
        "20",
        "under how many milliseconds an automatic throttle holds the p99 of the API's questions to the database",
        whole_number(1, 60_000),
    ),
    Setting(
        "RXSTORE_HTTP_BIND",
        "127.0.0.1:8443",
        "host:port that the API listens on, or unix:/path of a socket for a proxy",
        bind_or_socket,
    ),
    Setting(
        "RXSTORE_CLIENTS",
        None,
        "registered lets only clients of the register ask the API, each what it may (rxstore clients): so over TLS; "
        "any lets in any ASID: so by default with --insecure",
        one_of("any", "registered"),
    ),
    Setting(
        "RXSTORE_RATE_LIMIT",
        "20000",
        "how many requests a minute each ASID may make of one server; 0 for any number",
        whole_number(0, 10_000_000),
    ),
    Setting("RXSTORE_TLS_CERTFILE", None, "the API's certificate", readable_file),
    Setting("RXSTORE_TLS_KEYFILE", None, "the key of that certificate", readable_file),
    Setting(
        "RXSTORE_TLS_CLIENT_CAFILE", None, "authority that the clients' certificates must come from", readable_file
    ),
    Setting("RXSTORE_TLS_CRLFILE", None, "that authority's lists of revoked certificates, in PEM", readable_file),
    Setting(
        "RXSTORE_TRUSTED_PROXIES",
        None,
        "addresses or networks of the proxies that end TLS, where serve --behind-proxy listens on host:port",
        networks,
    ),
    Setting(
        "RXSTORE_PROXY_CERTIFICATE_HEADER",
        "X-Client-Cert",
        "the header in which such a proxy hands on the client's certificate",
        matching(r"[A-Za-z][A-Za-z0-9-]{0,99}", "the name of a header: letters, digits and dashes"),
    ),
    Setting(
        "RXSTORE_AUDIT",
        None,
        "on keeps a record of every request to the API, written before its answer leaves (rxstore audit): so over TLS; "
        "off keeps none: so by default with --insecure",
        one_of("off", "on"),
    ),
    Setting("RXSTORE_AUDIT_PUBLIC_KEY_FILE", None, "the key that questions are sealed with", readable_file),
    Setting("RXSTORE_AUDIT_HASH_KEY_FILE", None, "the key that NHS numbers are hashed with", readable_file),
    Setting(
        "RXSTORE_AUDIT_ANCHOR_FILE",
        None,
        "the file outside the database that the heads of the audit's chains are added to",
        file_to_write,
    ),
    Setting(
        "RXSTORE_CHECK_CHARACTER",
        "strict",
        "lenient accepts a prescription id with a wrong check character",
        one_of("strict", "lenient"),
    ),
    Setting(
        "RXSTORE_EMPTY_SEARCH",
        "not-found",
        "empty-list answers a search without matches with code 0 and an empty list instead of code 1",
        one_of("not-found", "empty-list"),
    ),
    Setting(
        "RXSTORE_REQUIRE_USER",
        "no",
        "yes makes Spine-UserId and Spine-RoleProfileId mandatory on the primary pair",
        yes_or_no,
    ),
    Setting(
        "RXSTORE_READY_MAX_AGE_SECONDS",
        None,
        "the API says that it is not ready while a partition was last seen at its end longer ago",
        whole_number(1, 1_000_000),
    ),
    Setting("RXSTORE_LOG_LEVEL", "info", "debug, info, warning or error", one_of("debug", "info", "warning", "error")),
    Setting("RXSTORE_LOG_FORMAT", "auto", "json, text, or auto: text on a terminal", one_of("auto", "json", "text")),
    Setting("RXSTORE_METRICS_BIND", "off", "host:port of the Prometheus endpoint of a projector, or off", bind_or_off),
    Setting(
        "RXSTORE_NOW",
        None,
        "for tests and demos only: a fixed RFC 3339 instant that the API takes as the present",
        instant,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one run, checked. What a command cannot do without it asks for by a method."""

    database_url: str | None
    kafka_bootstrap_servers: tuple[str, ...] | None
    kafka_security_protocol: str
    kafka_ssl_cafile: Path | None
    kafka_ssl_certfile: Path | None
    kafka_ssl_keyfile: Path | None
    kafka_sasl_mechanism: str | None
    kafka_sasl_username: str | None
    kafka_sasl_password: str | None
    topic: str
    partitioner: Literal["murmur2", "crc32"]
    group_id: str
    group_instance_id: str | None
    session_timeout_ms: int
    batch_records: int
    build_memory_mb: int
    max_value_bytes: int
    throttle_p99_ms: int
    http_bind: Bind | UnixSocket
    clients: Literal["any", "registered"] | None
    rate_limit: int
    tls_certfile: Path | None
    tls_keyfile: Path | None
    tls_client_cafile: Path | None
    tls_crlfile: Path | None
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] | None
    proxy_certificate_header: str
    audit: Literal["off", "on"] | None
    audit_public_key_file: Path | None
    audit_hash_key_file: Path | None
    audit_anchor_file: Path | None
    check_character: Literal["strict", "lenient"]
    empty_search: Literal["not-found", "empty-list"]
    require_user: bool
    ready_max_age_seconds: int | None
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["auto", "json", "text"]
    metrics_bind: Bind | None
    now: datetime | None

    def __repr__(self) -> str:
        """No value: logs and tracebacks must not show a password."""
        return "Settings(...)"

    def database(self) -> str:
        """The database's URL for psycopg; WrongUse when there is none."""
        return self.database_url or _missing("RXSTORE_DATABASE_URL")

    def audit_file(self, name: Literal["public_key", "hash_key", "anchor"]) -> Path:
        """One of the files of the audit; WrongUse when it is not set."""
        path: Path | None = getattr(self, f"audit_{name}_file")
        return path or _missing(f"RXSTORE_AUDIT_{name.upper()}_FILE")

    def kafka(self) -> dict[str, Any]:
        """What every client of the brokers is made with; WrongUse when it is not known where they are."""
        options = {
            "bootstrap_servers": list(self.kafka_bootstrap_servers or _missing("RXSTORE_KAFKA_BOOTSTRAP_SERVERS")),
            "security_protocol": self.kafka_security_protocol,
            "ssl_cafile": self.kafka_ssl_cafile and str(self.kafka_ssl_cafile),
            "ssl_certfile": self.kafka_ssl_certfile and str(self.kafka_ssl_certfile),
            "ssl_keyfile": self.kafka_ssl_keyfile and str(self.kafka_ssl_keyfile),
        }
        if self.kafka_security_protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.kafka_sasl_mechanism or _missing("RXSTORE_KAFKA_SASL_MECHANISM"),
                "sasl_plain_username": self.kafka_sasl_username or _missing("RXSTORE_KAFKA_SASL_USERNAME"),
                "sasl_plain_password": self.kafka_sasl_password or _missing("RXSTORE_KAFKA_SASL_PASSWORD"),
            }
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Given:
    """A value as somebody wrote it, and where: environment, .env, or the file of a secret."""

    value: str
    origin: str


def load(environ: Mapping[str, str] | None = None, env_file: Path = ENV_FILE) -> Settings:
    """The settings of this process; WrongUse names the variable that is unknown or malformed."""
    values = given(environ, env_file)
    return Settings(**{setting.field: _parsed(setting, values.get(setting.name)) for setting in SETTINGS})


def given(environ: Mapping[str, str] | None = None, env_file: Path = ENV_FILE) -> dict[str, Given]:
    """What was set, by name, secrets out of their files; WrongUse when a name is none of ours."""
    environ = os.environ if environ is None else environ
    found = _ours(_env_file_values(env_file), ".env") | _ours(environ, "environment")
    names = {name for setting in SETTINGS for name in setting.names}
    for name in sorted(found.keys() - names):
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0)[0]
        raise WrongUse(f"{name} is not a setting; did you mean {nearest}? `rxstore settings` lists them all")
    for setting in SETTINGS:
        if setting.may_be_file:
            _read_file(setting, found)
    return found


def _read_file(setting: Setting, found: dict[str, Given]) -> None:
    """Put what the file of a setting holds in the place of the file's name."""
    try:
        value = secret_files.value_of({name: one.value for name, one in found.items()}, setting.name)
    except ValueError as error:
        raise WrongUse(str(error)) from None
    named = found.pop(setting.name + secret_files.SUFFIX, None)
    if named is not None and value is not None:
        found[setting.name] = Given(value, A_FILE + named.value)


def _ours(values: Mapping[str, str | None], origin: str) -> dict[str, Given]:
    return {
        name: Given(value, origin)
        for name, value in values.items()
        if name.startswith(PREFIX) and not name.startswith(TEST_PREFIX) and value
    }


def _env_file_values(path: Path) -> dict[str, str | None]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    return dotenv_values(path, interpolate=False)


def _parsed(setting: Setting, written: Given | None) -> Any:  # noqa: ANN401 - each setting has a type of its own
    value = setting.default if written is None else written.value
    if value is None:
        return None
    try:
        return setting.parse(value)
    except ValueError as error:
        where = f" (from {written.origin})" if written is not None and written.origin.startswith(A_FILE) else ""
        raise WrongUse(f"{setting.name}{where} {error}; see `rxstore settings --help`") from None


def _missing(name: str) -> Any:  # noqa: ANN401 - never returns, and so fits every ``or``
    setting = next(setting for setting in SETTINGS if setting.name == name)
    or_file = f", or {name}{secret_files.SUFFIX} to the path of a file that holds it" if setting.may_be_file else ""
    raise WrongUse(f"{name} is not set ({setting.meaning}); set it in the environment or in a .env file{or_file}")


def without_password(value: str) -> str:
    """A URL as it may be shown. Where it is unclear how far a password goes, it hides more rather than less."""
    value = re.sub(r"(?<=://)([^:/?#]*):.*@", rf"\1:{MASK}@", value)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", rf"\1{MASK}", value)
