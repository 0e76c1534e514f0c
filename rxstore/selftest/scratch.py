"""Databases and topics of the self-test's own, on the servers of the settings; gone when it ends, however it ends.

The schema and the topic of the installation are never touched: a database is made beside the one of the settings, and
everything on the brokers begins with ``rxstore-selftest-``.
"""

from __future__ import annotations

import ssl
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError
from psycopg import sql
from sqlalchemy import make_url

from projector import audit_months, generations, roles, tables
from rxstore import broker, store
from rxstore.errors import Refused, ServerUnavailable
from rxstore.selftest.comparison import LIVE, TRUTH
from rxstore.selftest.proxy import Server
from rxstore.settings import Settings

DATABASE_PREFIX = "rxstore_selftest_"
BROKER_PREFIX = "rxstore-selftest-"
# What a stock broker allows at least.
USUAL_LEAST_SESSION_TIMEOUT_MS = 6_000


@dataclass(frozen=True, slots=True)
class Ground:
    """What a run stands on: one database for each job, and what the servers are."""

    run: str
    database_urls: Sequence[str]
    least_session_timeout_ms: int
    postgresql: str
    brokers: str
    left_out: Sequence[str]


@contextmanager
def ground(settings: Settings, jobs: int, database_url: str | None) -> Iterator[Ground]:
    """Make what a run needs and remove it again; in an empty ``database_url`` when databases cannot be made."""
    run = uuid.uuid4().hex[:8]
    left_out: list[str] = []
    with broker.admin_client(settings) as admin:
        least = _least_session_timeout_ms(admin)
        if least is None:
            left_out.append(
                "the brokers do not say which session time-out they allow at least: "
                f"{USUAL_LEAST_SESSION_TIMEOUT_MS / 1000:.0f} s was taken"
            )
        version = _broker_version(admin)
    databases = (
        _made_databases(settings, run, jobs) if database_url is None else _given_database(settings, database_url)
    )
    with databases as urls:
        with psycopg.connect(urls[0]) as connection:
            number = connection.info.server_version
        try:
            yield Ground(
                run,
                urls,
                least or USUAL_LEAST_SESSION_TIMEOUT_MS,
                f"{number // 10_000}.{number % 10_000}",
                version,
                left_out,
            )
        finally:
            _clean_brokers(settings, run)


@contextmanager
def _made_databases(settings: Settings, run: str, jobs: int) -> Iterator[list[str]]:
    names = [f"{DATABASE_PREFIX}{run}_{number}" for number in range(jobs)]
    with psycopg.connect(settings.database(), autocommit=True) as connection:
        had = _roles(connection)
        try:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(names[0])))
        except psycopg.errors.InsufficientPrivilege as error:
            raise Refused(
                "the user of RXSTORE_DATABASE_URL may not create databases: have an empty one made and name it with "
                "--database-url"
            ) from error
        try:
            urls = [
                make_url(settings.database()).set(database=name).render_as_string(hide_password=False) for name in names
            ]
            _migrate(settings, urls[0])
            for name in names[1:]:
                connection.execute(
                    sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(names[0]))
                )
            yield urls
        finally:
            for name in names:
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            _drop_roles(connection, had)


@contextmanager
def _given_database(settings: Settings, url: str) -> Iterator[list[str]]:
    schemas = [tables.CONTROL_SCHEMA, audit_months.SCHEMA, LIVE, TRUTH]
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = ANY(%s)", (schemas,)).fetchone():
            raise Refused("the database of --database-url holds an installation of rxstore: name an empty one")
        had = _roles(connection)
        try:
            _migrate(settings, url)
            yield [url]
        finally:
            for schema in schemas:
                connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
            _drop_roles(connection, had)


def _roles(connection: psycopg.Connection) -> set[str]:
    """Return which of our roles there are on this server."""
    found = connection.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", (list(roles.ROLES),))
    return {str(row[0]) for row in found}


def _drop_roles(connection: psycopg.Connection, but: set[str]) -> None:
    """Drop the roles that migrating made on this server, unless somebody uses them by now."""
    for role in sorted(_roles(connection) - but):
        with suppress(psycopg.Error):
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def _migrate(settings: Settings, url: str) -> None:
    """Make the schema of an installation, and one read model more for the rows of the truth."""
    with store.engine(replace(settings, database_url=url)) as engine:
        generations.migrate(engine, topic=BROKER_PREFIX, settings=store.meaning(settings))
        with engine.begin() as connection:
            generations.build(connection, TRUTH.removeprefix("rx_"))


def database_server(url: str) -> Server:
    """Find out where PostgreSQL really is, and whether TLS is spoken there."""
    with psycopg.connect(url) as connection:
        info = connection.info
        host = info.host if info.host.startswith("/") else info.hostaddr or info.host
        if not connection.pgconn.ssl_in_use:
            return Server(host, info.port)
        parameters = info.get_parameters() | make_url(url).query
    return Server(host, info.port, _tls(parameters), info.host)


def _tls(parameters: Mapping[str, Any]) -> ssl.SSLContext:
    """Return the TLS that libpq was told to speak: certificates are verified where it verifies them."""
    mode = parameters.get("sslmode", "prefer")
    context = ssl.create_default_context(cafile=parameters.get("sslrootcert"))
    context.check_hostname = mode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if mode.startswith("verify") else ssl.CERT_NONE
    if parameters.get("sslcert"):
        context.load_cert_chain(parameters["sslcert"], parameters.get("sslkey"), parameters.get("sslpassword"))
    return context


# brokers --------------------------------------------------------------------------------------------------------------


def _least_session_timeout_ms(admin: KafkaAdminClient) -> int | None:
    """Ask the brokers; None when the user may not."""
    try:
        node = admin.describe_cluster()["brokers"][0]
        name = str(node.get("broker_id", node.get("node_id")))
        resource = ConfigResource(ConfigResourceType.BROKER, name)
        values = admin.describe_configs([resource], config_filter="all")["broker"][name]
        return int(values["group.min.session.timeout.ms"]["value"])
    except (KafkaError, KeyError, IndexError, TypeError, ValueError):
        return None


def _broker_version(admin: KafkaAdminClient) -> str:
    """Return the version as the protocol shows it: a release line, not a patch."""
    version = admin._manager.broker_version
    return ".".join(map(str, version)) if version else "unknown"


def _clean_brokers(settings: Settings, run: str) -> None:
    """Delete the topics and groups of a run that a trial did not come to delete itself."""
    mine = f"{BROKER_PREFIX}{run}-"
    with suppress(KafkaError, ServerUnavailable), broker.admin_client(settings) as admin:
        topics = [name for name in admin.list_topics() if str(name).startswith(mine)]
        if topics:
            admin.delete_topics(topics, raise_errors=False)
        groups = [group for group in _groups(admin) if group.startswith(mine)]
        if groups:
            admin.delete_groups(groups)


def _groups(admin: KafkaAdminClient) -> list[str]:
    return [str(group["group_id"]) for group in admin.list_groups()]
