"""Servers once a session, a database and a topic of its own for each test, and no test left out in silence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from hypothesis import settings as hypothesis_settings
from kafka import KafkaAdminClient
from psycopg import sql
from sqlalchemy import make_url

from rxstore import embedded
from tests import servers
from tests.servers import Restartable

PARTITIONS = 8

NOT_RUN = pytest.StashKey[dict[str, int]]()
# What a test may ask for, and what this machine may lack for it.
MISSING: dict[str, Callable[[], str | None]] = {"kafka": servers.kafka_missing, "own_kafka": servers.own_kafka_missing}

# On a machine that others use too, the time of one example says nothing.
hypothesis_settings.register_profile("rxstore", deadline=None)
hypothesis_settings.load_profile("rxstore")


def pytest_configure(config: pytest.Config) -> None:
    """What the developer's own shell is set to must not reach the tests."""
    for name in list(os.environ):
        if name.startswith("RXSTORE_") and not name.startswith("RXSTORE_TEST_"):
            del os.environ[name]
    # Commands that are tested inherit what is ignored here, as everything does that a script starts in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(NotRunElsewhere())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sets the tests for a real Kafka aside where none can be had; in CI that is an error."""
    for item in items:
        for fixture in MISSING:
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(fixture)
    for marker, missing_of in MISSING.items():
        not_run = [item for item in items if item.get_closest_marker(marker)]
        missing = missing_of() if not_run else None
        if missing is not None:
            items[:] = [item for item in items if not item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=not_run)
            config.stash.setdefault(NOT_RUN, {})[missing] = len(not_run)


class NotRunElsewhere:
    """Where the tests are spread over processes, each tells the first one what it left out; all leave out the same."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Hear what a process that ends has left out."""
        node.config.stash[NOT_RUN] = getattr(node, "workeroutput", {}).get("not_run", {})


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the first process; there, in CI, a test that was left out is an error."""
    not_run: dict[str, int] = session.config.stash.get(NOT_RUN, {})
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["not_run"] = not_run
    elif not_run and os.environ.get("CI", "").lower() in {"1", "true"}:
        session.exitstatus = pytest.ExitCode.USAGE_ERROR


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The very last lines, where nobody overlooks them."""
    if not hasattr(config, "workeroutput"):
        for missing, count in config.stash.get(NOT_RUN, {}).items():
            print(f"\nNOT RUN: {count} tests that need a real Apache Kafka, since {missing}.")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL in which databases and roles may be made; tests use ``database_url``."""
    with servers.postgres() as url:
        yield url


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """A new and empty database."""
    with new_database(postgres_url, template="template0") as url:
        yield url


@pytest.fixture(scope="session")
def migrated_template(postgres_url: str) -> Iterator[str]:
    """The name of a database that ``rxstore migrate`` has been run on, to copy from; nobody may connect to it."""
    with migrated(postgres_url) as name:
        yield name


@contextmanager
def migrated(server_url: str) -> Iterator[str]:
    """The name of a new database on which ``rxstore migrate`` has been run."""
    with new_database(server_url, template="template0") as url:
        subprocess.run(
            [sys.executable, "-m", "rxstore.cli.main", "migrate"],
            env={**os.environ, "RXSTORE_DATABASE_URL": url},
            check=True,
        )
        yield str(make_url(url).database)


@pytest.fixture
def migrated_database_url(postgres_url: str, migrated_template: str) -> Iterator[str]:
    """A new database with the whole schema in it, by a copy instead of by migrations."""
    with new_database(postgres_url, template=migrated_template) as url:
        yield url


@pytest.fixture
def another_database_url(postgres_url: str, migrated_template: str) -> Iterator[str]:
    """A second one, to compare with."""
    with new_database(postgres_url, template=migrated_template) as url:
        yield url


@contextmanager
def new_database(server_url: str, template: str) -> Iterator[str]:
    name = f"rxstore_test_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """The bootstrap servers of a real Apache Kafka. Asking for it marks a test with ``kafka``."""
    with servers.kafka() as bootstrap_servers:
        yield bootstrap_servers


@pytest.fixture(scope="session")
def own_kafka() -> Iterator[Restartable]:
    """A real Kafka that a test may stop, if it starts it again. Asking for it marks a test with ``own_kafka``."""
    with servers.own_kafka() as server:
        yield server


@pytest.fixture(scope="session")
def own_postgres() -> Iterator[Restartable]:
    """A PostgreSQL that a test may stop, if it starts it again."""
    with servers.own_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest) -> Iterator[str]:
    """The bootstrap servers of a real Kafka where one can be had, else of the embedded broker."""
    if servers.kafka_missing() is None:
        yield request.getfixturevalue("kafka")
    else:
        with embedded.broker() as server:
            yield server.address


@pytest.fixture(scope="session")
def admin(broker: str) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=broker)
    yield client
    client.close()


@pytest.fixture
def topic(admin: KafkaAdminClient) -> str:
    """The name of a new topic with eight partitions on ``broker``."""
    name = f"rxstore-test-{uuid.uuid4().hex}"
    admin.create_topics({name: {"num_partitions": PARTITIONS, "replication_factor": 1}}, wait_for_metadata=True)
    return name
