"""What every benchmark stands on: real servers, a store of its own, generated events in a topic.

PostgreSQL runs as safe as in earnest (fsync on) and with the memory that a small server would have; the wheel, Docker
or RXSTORE_TEST_DATABASE_URL gives it, Kafka likewise (tests/servers.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psycopg
from kafka import KafkaAdminClient, KafkaProducer
from psycopg import sql
from sqlalchemy import make_url

from ingest.decode import MAX_VALUE_BYTES
from ingest.partitioning import partitioner
from rxstore import publishing, topics
from rxstore.generator import lines
from rxstore.settings import PREFIX, TEST_PREFIX, Settings, load
from tests import servers

ROOT = Path(__file__).parents[1]

# As somebody would set up a small server in earnest. fsync, full_page_writes and synchronous_commit keep their safe
# defaults; the projector's own sessions choose otherwise for themselves (projector.runner.SESSION_OPTIONS).
POSTGRES_SETTINGS = {
    "shared_buffers": "1GB",
    "effective_cache_size": "3GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
}

# Kafka's default, which tests do without: a group waits for its first members before it shares out the partitions.
KAFKA_SETTINGS = {"group.initial.rebalance.delay.ms": "3000"}

# Events of the generator per prescription, rounded down so that a little too much is made rather than too little.
EVENTS_PER_PRESCRIPTION = 4.5
SCHEMA = "rx_g1"


@dataclass(frozen=True, slots=True)
class Ground:
    """The servers of a run."""

    bootstrap_servers: str
    database_url: str


@contextmanager
def ground(*, postgres: dict[str, str] = POSTGRES_SETTINGS) -> Iterator[Ground]:
    """Start both servers, or use those that RXSTORE_TEST_… names."""
    say("starting PostgreSQL and Kafka")
    with servers.postgres(postgres) as database_url, servers.kafka(KAFKA_SETTINGS) as bootstrap_servers:
        yield Ground(bootstrap_servers, database_url)


@dataclass(frozen=True, slots=True)
class Store:
    """A new database and a new topic, and the commands that work on them."""

    environment: dict[str, str]
    partitions: int

    @property
    def settings(self) -> Settings:
        """What the commands will read from the environment."""
        return load(self.environment, env_file=ROOT / "no such file")

    @property
    def database_url(self) -> str:
        """Return the URL of the database."""
        return self.environment["RXSTORE_DATABASE_URL"]

    @property
    def topic(self) -> str:
        """Return the name of the topic."""
        return self.environment["RXSTORE_TOPIC"]

    def start(self, *command: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start an ``rxstore`` command, where no setting of the user's shell reaches it."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(PREFIX) or name.startswith(TEST_PREFIX)
        }
        return subprocess.Popen(
            [sys.executable, "-m", "rxstore.cli.main", *command],
            env={**inherited, **self.environment, **settings},
            stdout=subprocess.DEVNULL,
        )

    def run(self, *command: str) -> None:
        """Run an ``rxstore`` command to its end."""
        process = self.start(*command)
        if process.wait():
            raise SystemExit(f"rxstore {' '.join(command)} ended with exit code {process.returncode}")

    def connect(self) -> psycopg.Connection[Any]:
        """Open a session for looking and filling."""
        return psycopg.connect(self.database_url, autocommit=True)

    def publish(self, events: Iterable[bytes]) -> int:
        """Send events to the topic, each under its stream key, as ``rxstore publish`` does but without its checks."""
        producer = KafkaProducer(
            **self.settings.kafka(),
            acks="all",
            enable_idempotence=True,
            batch_size=publishing.BATCH_BYTES,
            linger_ms=publishing.LINGER_MS,
            compression_type="lz4",
            metrics_enabled=False,
        )
        partition_of = partitioner(self.settings.partitioner, self.partitions)
        published = 0
        try:
            for event in events:
                key = stream_key(event)
                producer.send(
                    self.topic, event, key=key, partition=partition_of(key), headers=[publishing.CONTENT_TYPE]
                )
                published += 1
            producer.flush()
        finally:
            producer.close()
        return published


@contextmanager
def store(on: Ground, *, partitions: int = 8, **settings: str) -> Iterator[Store]:
    """Make a migrated database and an empty topic; both are gone after the block."""
    with topic(on, partitions) as name, database(on, name, partitions, **settings) as made:
        yield made


@contextmanager
def topic(on: Ground, partitions: int) -> Iterator[str]:
    """Make an empty topic as ``rxstore topics create`` does."""
    name = _new_name()
    with closing(KafkaAdminClient(bootstrap_servers=on.bootstrap_servers)) as admin:
        topics.create(admin, name, partitions, MAX_VALUE_BYTES)
        yield name
        admin.delete_topics([name])


@contextmanager
def database(on: Ground, topic: str, partitions: int, **settings: str) -> Iterator[Store]:
    """Make a migrated database for an existing topic."""
    name = _new_name()
    made = Store(
        {
            "RXSTORE_DATABASE_URL": make_url(on.database_url).set(database=name).render_as_string(hide_password=False),
            "RXSTORE_KAFKA_BOOTSTRAP_SERVERS": on.bootstrap_servers,
            "RXSTORE_TOPIC": topic,
            "RXSTORE_GROUP_ID": name,
            "RXSTORE_LOG_LEVEL": "warning",
            **settings,
        },
        partitions,
    )
    with psycopg.connect(on.database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            made.run("migrate")
            yield made
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _new_name() -> str:
    return f"rxstore_benchmark_{uuid.uuid4().hex[:12]}"


def events(count: int, *, seed: int = 1) -> Iterator[bytes]:
    """Return the first ``count`` events of as many synthetic lifecycles as that takes, in the order of their times."""
    return islice(lines(int(count / EVENTS_PER_PRESCRIPTION) + 100, seed), count)


def stream_key(event: bytes) -> bytes:
    """Return the key that a generated event is published under."""
    subject: str = json.loads(event)["subject"]
    return subject[:-1].encode()


def say(text: str) -> None:
    """Tell a person how far the benchmark is."""
    print(f"# {text}", file=sys.stderr, flush=True)


def timed(what: str, work: Callable[[], int]) -> int:
    """Do something that is not measured itself, and tell how long it took."""
    began = time.monotonic()
    done = work()
    say(f"{what}: {done:,} in {time.monotonic() - began:.0f} s")
    return done
