"""Where the tests' servers come from: a real Apache Kafka and a real PostgreSQL, on loopback, for one session.

Kafka: RXSTORE_TEST_KAFKA_BOOTSTRAP_SERVERS when set, else a container where a Docker engine answers, else Java with
the jars from Maven. PostgreSQL: RXSTORE_TEST_DATABASE_URL when set, else a container, else the wheel of the demo.

``python -m tests.servers`` (``make servers``) starts both for a person.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from rxstore import embedded
from rxstore.embedded import LOOPBACK, Server, ServerFailed, answers, free_port, running, temporary_directory

KAFKA_VERSION = "4.3.1"
KAFKA_IMAGE = f"apache/kafka:{KAFKA_VERSION}"
POSTGRES_IMAGE = f"postgres:{embedded.POSTGRES_VERSION}"
JAVA_VERSION = 17

CACHE = Path(__file__).parents[1] / ".cache"
KAFKA_POM = Path(__file__).parent / "kafka" / "pom.xml"
KAFKA_HEAP = "512m"
KAFKA_CLUSTER_ID = "cnhzdG9yZS1mb3ItdGVzdA"  # "rxstore-for-test" in the form that Kafka wants
KAFKA_STARTS_QUICKLY = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")

# One broker that is its own controller, and that leaves out all waiting for peers which do not exist.
KAFKA_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "controlled.shutdown.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "num.io.threads": "4",
    "num.network.threads": "2",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
}
NO_SETTINGS: Mapping[str, str] = {}


@cache
def docker_answers() -> bool:
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=3)
    except DockerException:
        return False
    try:
        return bool(client.ping())
    except DockerException:
        return False
    finally:
        client.close()


@cache
def kafka_missing() -> str | None:
    """What would have to be there for a real Kafka, as a sentence; ``None`` when one can be had."""
    if os.environ.get("RXSTORE_TEST_KAFKA_BOOTSTRAP_SERVERS") or docker_answers():
        return None
    missing = own_kafka_missing()
    if missing is None:
        return None
    return f"no Docker engine answers and {missing}. Or start Docker, or set RXSTORE_TEST_KAFKA_BOOTSTRAP_SERVERS"


def own_kafka_missing() -> str | None:
    """The same for a Kafka that a test may stop and start again."""
    java = _java_version()
    if java is None:
        missing = "there is no java"
    elif java < JAVA_VERSION:
        missing = f"java is version {java}"
    elif shutil.which("mvn") is None and not _kafka_jars().is_dir():
        missing = "there is no mvn"
    else:
        return None
    return (
        f"{missing}: install Java {JAVA_VERSION} or later and Maven "
        "(Debian: apt-get install default-jre-headless maven)"
    )


def _java_version() -> int | None:
    if shutil.which("java") is None:
        return None
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    return int(version[1]) if version else None


@contextmanager
def kafka(settings: Mapping[str, str] = NO_SETTINGS) -> Iterator[str]:
    """The bootstrap servers of a real Apache Kafka, started with these settings beside KAFKA_SETTINGS."""
    given = os.environ.get("RXSTORE_TEST_KAFKA_BOOTSTRAP_SERVERS")
    if given:
        yield given
    elif docker_answers():
        with kafka_in_docker(settings) as address:
            yield address
    else:
        with kafka_from_maven(settings) as server:
            yield server.address


@contextmanager
def kafka_in_docker(settings: Mapping[str, str] = NO_SETTINGS) -> Iterator[str]:
    from testcontainers.core.container import DockerContainer

    # A broker tells its clients where it is, so the port must be known before it starts.
    port = free_port()
    settings = (
        KAFKA_SETTINGS
        | dict(settings)
        | {
            "listeners": f"PLAINTEXT://:{port},CONTROLLER://:9093",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
            "controller.quorum.voters": "1@localhost:9093",
        }
    )
    container = DockerContainer(KAFKA_IMAGE).with_bind_ports(port, port)
    for name, value in settings.items():
        container.with_env(f"KAFKA_{name.upper().replace('.', '_')}", value)
    with container:
        address = f"{LOOPBACK}:{port}"
        deadline = time.monotonic() + embedded.START_TIMEOUT_S
        while not kafka_answers(address):
            if time.monotonic() > deadline:
                raise ServerFailed(f"{KAFKA_IMAGE} did not answer within {embedded.START_TIMEOUT_S:.0f} seconds")
        yield address


@contextmanager
def kafka_from_maven(settings: Mapping[str, str] = NO_SETTINGS) -> Iterator[Server]:
    with temporary_directory("kafka") as directory:
        broker = kafka_on_disk(directory, settings)
        with broker.running() as pid:
            yield Server(broker.address, pid)


@dataclass(frozen=True, slots=True)
class Broker:
    """A Kafka on the disk; it can run again with what it holds, under the same address."""

    address: str
    directory: Path
    # What a client needs besides the address, to ask whether it answers.
    client: Mapping[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @contextmanager
    def running(self) -> Iterator[int]:
        port = int(self.address.rpartition(":")[2])
        with running(
            f"Kafka {KAFKA_VERSION}",
            [*_java(), f"-Xmx{KAFKA_HEAP}", "-XX:+UseSerialGC", "kafka.Kafka", self.directory / "server.properties"],
            log=self.directory / "log",
            ready=lambda: answers(port) and kafka_answers(self.address, self.client),
        ) as pid:
            yield pid


def kafka_on_disk(
    directory: Path,
    settings: Mapping[str, str] = NO_SETTINGS,
    *,
    listener: str = "PLAINTEXT",
    scram: Mapping[str, str] = NO_SETTINGS,
    client: Mapping[str, str] = NO_SETTINGS,
) -> Broker:
    """A new Kafka, formatted and not started yet; ``scram`` has the passwords of its users."""
    port, controller_port = free_port(), free_port()
    broker = Broker(f"{LOOPBACK}:{port}", directory, client)
    properties = directory / "server.properties"
    _write_properties(
        properties,
        KAFKA_SETTINGS
        | dict(settings)
        | {
            "log.dirs": str(broker.data),
            "listeners": f"{listener}://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
            "advertised.listeners": f"{listener}://{LOOPBACK}:{port}",
            "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
        },
    )
    _run(
        "Kafka's StorageTool",
        *(*_java(), *KAFKA_STARTS_QUICKLY, "kafka.tools.StorageTool"),
        *("format", "-t", KAFKA_CLUSTER_ID, "-c", str(properties)),
        *(f"--add-scram=SCRAM-SHA-512=[name={user},password={password}]" for user, password in scram.items()),
    )
    return broker


def java_command(main_class: str) -> list[str]:
    """One of Kafka's own commands, as ``kafka-configs.sh`` and its like run it."""
    return [*_java(), *KAFKA_STARTS_QUICKLY, main_class]


def _java() -> list[str]:
    return ["java", "-cp", f"{_fetched_kafka_jars()}/*", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]


@dataclass(slots=True)
class Restartable:
    """A server that a test may stop and start again; what it holds and its address stay."""

    server: embedded.Cluster | Broker
    _running: ExitStack = field(default_factory=ExitStack)

    @property
    def address(self) -> str:
        return self.server.address

    def start(self) -> None:
        self._running.enter_context(self.server.running())

    def stop(self) -> None:
        self._running.close()


@contextmanager
def own_kafka() -> Iterator[Restartable]:
    """A Kafka for a test that stops it; a container's port and disk would not outlive that."""
    with temporary_directory("kafka") as directory:
        broker = Restartable(kafka_on_disk(directory))
        broker.start()
        try:
            yield broker
        finally:
            broker.stop()


@contextmanager
def own_postgres() -> Iterator[Restartable]:
    """A PostgreSQL for a test that stops it."""
    with temporary_directory("postgres") as directory:
        database = Restartable(embedded.postgres_cluster(directory))
        database.start()
        try:
            yield database
        finally:
            database.stop()


def kafka_answers(address: str, client: Mapping[str, str] = NO_SETTINGS) -> bool:
    try:
        admin = KafkaAdminClient(
            bootstrap_servers=address, bootstrap_timeout_ms=2_000, request_timeout_ms=2_000, **client
        )
    except KafkaError:
        return False
    try:
        return bool(admin.describe_cluster()["brokers"])
    except KafkaError:
        return False
    finally:
        admin.close()


def _kafka_jars() -> Path:
    return CACHE / f"kafka-{KAFKA_VERSION}"


def _fetched_kafka_jars() -> Path:
    jars = _kafka_jars()
    if not jars.is_dir():
        CACHE.mkdir(exist_ok=True)
        # Moved into place when whole: a download that was cut short must not look like a Kafka.
        with tempfile.TemporaryDirectory(dir=CACHE) as incomplete:
            fetched = Path(incomplete) / "jars"
            _run(
                "Maven",
                *("mvn", "-q", "-B", "-f", str(KAFKA_POM), "dependency:copy-dependencies"),
                *(f"-Dkafka.version={KAFKA_VERSION}", "-DincludeScope=runtime", f"-DoutputDirectory={fetched}"),
            )
            if not jars.is_dir():
                fetched.rename(jars)
    return jars


def _run(name: str, *command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise ServerFailed(f"{name} failed: {' / '.join(done.stdout.splitlines()[-5:])}")


def _write_properties(path: Path, properties: Mapping[str, str]) -> None:
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))


@contextmanager
def postgres(settings: Mapping[str, str] = embedded.NOT_DURABLE) -> Iterator[str]:
    """The URL of a PostgreSQL in which databases and roles may be made."""
    given = os.environ.get("RXSTORE_TEST_DATABASE_URL")
    if given:
        yield given
    elif docker_answers():
        with postgres_in_docker(settings) as address:
            yield address
    else:
        with embedded.postgres(settings) as server:
            yield server.address


@contextmanager
def postgres_in_docker(settings: Mapping[str, str]) -> Iterator[str]:
    from testcontainers.postgres import PostgresContainer

    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    with PostgresContainer(POSTGRES_IMAGE, driver=None).with_command(f"postgres {options}") as container:
        yield container.get_connection_url()


def main() -> None:
    """Both servers for a person, until Ctrl-C; PostgreSQL as safe and as slow as in earnest."""
    # SIGINT too: whoever is started in the background of a script may have it ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        with postgres(settings={}) as database_url, kafka() as bootstrap_servers:
            print(f"export RXSTORE_DATABASE_URL={database_url}")
            print(f"export RXSTORE_KAFKA_BOOTSTRAP_SERVERS={bootstrap_servers}")
            print("# Both run, and keep what they hold, until Ctrl-C.", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        print("# Stopped.")


if __name__ == "__main__":
    main()
