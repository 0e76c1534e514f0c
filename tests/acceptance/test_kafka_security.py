"""Kafka over TLS and SCRAM with its authorizer on: each user has the rights of docs/operators/kafka-security.md."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)

from tests import examples
from tests.acceptance.conftest import System, eventually
from tests.conftest import new_database
from tests.secure_kafka import ADMIN, SecureKafka, secure_kafka

pytestmark = pytest.mark.own_kafka

PAGE = Path(__file__).parents[2] / "docs" / "operators" / "kafka-security.md"
TOPIC = "prescription-events"
CREATED = examples.created()
SUBJECT = str(CREATED["subject"])


def acls_of(page: str) -> list[ACL]:
    """The ACLs that the lines of the page make, read as kafka-acls reads them."""
    parser = argparse.ArgumentParser(prog="kafka-acls")
    parser.add_argument("--add", action="store_true", required=True)
    parser.add_argument("--allow-principal", required=True)
    parser.add_argument("--operation", required=True)
    parser.add_argument("--topic")
    parser.add_argument("--group")
    parser.add_argument("--resource-pattern-type", default="literal")
    found = []
    for line in re.findall(r"^kafka-acls (.*)$", page, re.MULTILINE):
        given = parser.parse_args(shlex.split(line))
        kind = ResourceType.TOPIC if given.topic else ResourceType.GROUP
        pattern = ACLResourcePatternType[given.resource_pattern_type.upper()]
        operation = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", given.operation).upper()
        resource = ResourcePattern(kind, given.topic or given.group, pattern)
        found.append(ACL(given.allow_principal, "*", ACLOperation[operation], ACLPermissionType.ALLOW, resource))
    return found


ACLS = acls_of(PAGE.read_text(encoding="utf-8"))


def user_of(acl: ACL) -> str:
    return acl.principal.removeprefix("User:")


USERS = sorted({user_of(acl) for acl in ACLS})


def named(acl: ACL) -> str:
    return f"{user_of(acl)} {acl.operation.name} {acl.resource_pattern.resource_type.name}"


@dataclass(frozen=True, slots=True)
class Secured:
    """An installation on a Kafka with an authorizer."""

    kafka: SecureKafka
    admin: KafkaAdminClient
    database_url: str
    directory: Path

    def by(self, user: str, topic: str = TOPIC, password: str | None = None) -> System:
        """The installation as a user of the brokers meets it; the password stands in a file."""
        secret = self.directory / f"password-of-{user}"
        secret.write_text(f"{password or self.kafka.passwords[user]}\n")
        return System(
            {
                "RXSTORE_DATABASE_URL": self.database_url,
                "RXSTORE_KAFKA_BOOTSTRAP_SERVERS": self.kafka.address,
                "RXSTORE_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
                "RXSTORE_KAFKA_SSL_CAFILE": str(self.kafka.authority),
                "RXSTORE_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
                "RXSTORE_KAFKA_SASL_USERNAME": user,
                "RXSTORE_KAFKA_SASL_PASSWORD_FILE": str(secret),
                "RXSTORE_TOPIC": topic,
                "RXSTORE_SESSION_TIMEOUT_MS": "6000",
                "RXSTORE_LOG_LEVEL": "warning",
            },
            self.directory,
        )

    def allow(self, acls: Sequence[ACL]) -> None:
        assert not self.admin.create_acls(list(acls))["failed"]
        eventually(lambda: all(self._stands(acl) for acl in acls))

    def forbid(self, acl: ACL) -> None:
        self.admin.delete_acls([_filter(acl)])
        eventually(lambda: not self._stands(acl))

    @contextmanager
    def without(self, acl: ACL) -> Iterator[None]:
        self.forbid(acl)
        try:
            yield
        finally:
            self.allow([acl])

    def _stands(self, acl: ACL) -> bool:
        found, _ = self.admin.describe_acls(_filter(acl))
        return bool(found)


def _filter(acl: ACL) -> ACLFilter:
    at = acl.resource_pattern
    where = ResourcePatternFilter(at.resource_type, at.resource_name, at.pattern_type)
    return ACLFilter(acl.principal, "*", acl.operation, ACLPermissionType.ALLOW, where)


@pytest.fixture(scope="module")
def secured(postgres_url, migrated_template, tmp_path_factory) -> Iterator[Secured]:
    """Everybody has the rights of the page; the topic has one prescription, which is folded."""
    with (
        secure_kafka(USERS) as kafka,
        new_database(postgres_url, template=migrated_template) as database_url,
        closing(KafkaAdminClient(bootstrap_servers=kafka.address, **kafka.client(ADMIN))) as admin,
    ):
        made = Secured(kafka, admin, database_url, tmp_path_factory.mktemp("secured"))
        made.allow(ACLS)
        made.by("rxstore-topics").do("topics", "create", "--partitions", "4")
        made.by("rxstore-publish").publish([CREATED])
        assert made.by("rxstore-project").project()["folded"] == 1
        yield made


def test_the_page_has_lines_for_every_user_that_it_names_and_for_no_other():
    table = re.findall(r"^\| `(rxstore-[a-z]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(table) == USERS == sorted(COMMANDS)


A_NEW_DIRECTORY = "a new directory"

# What each user runs: all of it succeeds with its rights, and one of it is refused without any one of them.
COMMANDS: dict[str, list[list[str]]] = {
    "rxstore-topics": [["topics", "create"], ["topics", "create"]],
    "rxstore-publish": [["publish", "-"]],
    "rxstore-project": [["project", "--until-caught-up", "--workers", "1"]],
    "rxstore-serve": [["explain", SUBJECT]],
    "rxstore-operate": [["status"], ["diagnose"]],
    "rxstore-rebuild": [["rebuild", "plan"], ["rebuild", "prescription", SUBJECT]],
    "rxstore-archive": [["archive", "export", A_NEW_DIRECTORY]],
}
# These go on with what they may, and say what they could not ask.
GO_ON = {"status", "diagnose"}


@pytest.mark.parametrize("acl", ACLS, ids=named)
def test_without_any_one_of_its_rights_a_command_is_refused_with_a_sentence(secured, acl):
    user = user_of(acl)
    topic = TOPIC
    acls = [acl]
    if user == "rxstore-topics":  # which makes a topic, so that this must be another one each time
        topic = f"another-topic-{ACLS.index(acl)}"
        acls = [moved(one, topic) for one in ACLS if user_of(one) == user]
        secured.allow(acls)
        acl = moved(acl, topic)
    with secured.without(acl):
        refused = first_refused(secured.by(user, topic))
    assert refused is not None, "nothing needed it"
    assert "refuse" in refused, refused


@pytest.mark.parametrize(
    "acl", [acl for acl in ACLS if acl.operation is ACLOperation.READ and user_of(acl) != "rxstore-operate"], ids=named
)
def test_who_may_describe_and_not_read_is_refused_too(secured, acl):
    describe = ACL(acl.principal, acl.host, ACLOperation.DESCRIBE, acl.permission_type, acl.resource_pattern)
    secured.allow([describe])
    try:
        with secured.without(acl):
            refused = first_refused(secured.by(user_of(acl)))
    finally:
        secured.forbid(describe)
    assert refused is not None, "describing was enough"
    assert "refuse" in refused


def moved(acl: ACL, topic: str) -> ACL:
    resource = ResourcePattern(acl.resource_pattern.resource_type, topic, acl.resource_pattern.pattern_type)
    return ACL(acl.principal, acl.host, acl.operation, acl.permission_type, resource)


def first_refused(system: System) -> str | None:
    """Run what a user runs, and return what the first command that is refused says."""
    for written in COMMANDS[system.environment["RXSTORE_KAFKA_SASL_USERNAME"]]:
        command = [uuid.uuid4().hex if word == A_NEW_DIRECTORY else word for word in written]
        stdin = json.dumps(CREATED).encode() if command == ["publish", "-"] else b""
        done = system.run(*command, stdin=stdin)
        if command[0] in GO_ON:
            if "refuse" in done.stdout or "AuthorizationFailed" in done.stdout:
                assert done.returncode == 1
                return f"the brokers refuse: {done.stdout}"
        elif done.returncode:
            assert (done.returncode, len(done.stderr.strip().splitlines())) == (3, 1), done.stderr
            return done.stderr
    return None


@pytest.mark.parametrize("user", sorted(COMMANDS))
def test_with_its_rights_everything_that_a_user_runs_succeeds(secured, user):
    assert first_refused(secured.by(user)) is None


def test_an_operator_sees_the_workers_and_all_that_there_is_to_diagnose(secured):
    with secured.by("rxstore-project").projecting():
        operator = secured.by("rxstore-operate")
        eventually(lambda: operator.status()["verdict"] == "following")
        (live,) = operator.status()["generations"]
        assert live["workers"] == 1
        assert json.loads(operator.run("diagnose", "--json").stdout)["findings"] == []


def test_a_server_tells_a_history_and_without_the_right_everything_else(secured):
    (acl,) = [one for one in ACLS if user_of(one) == "rxstore-serve"]
    with secured.by("rxstore-serve").serving() as ask:
        history = f"/rxstore/prescriptions/{quote(SUBJECT)}/history"
        assert ask(history).status == 200
        with secured.without(acl):
            assert ask(history).status == 503
            assert ask(f"/mm/prescriptions/{quote(SUBJECT)}").body["statusCode"] == "0"


def test_a_generation_is_built_verified_and_switched_to(secured):
    rebuild = secured.by("rxstore-rebuild")
    with secured.by("rxstore-project").projecting():
        rebuild.do("rebuild", "stage")
        rebuild.do("rebuild", "wait", "--max-lag", "0", "--timeout", "50")
        rebuild.do("rebuild", "verify")
        rebuild.do("rebuild", "promote")
        rebuild.do("rebuild", "rollback")
        rebuild.do("rebuild", "abort", "g2")


def test_a_wrong_password_is_refused_with_a_sentence_that_does_not_show_it(secured):
    done = secured.by("rxstore-archive", password="not-the-password").run("archive", "export", "elsewhere")
    assert done.returncode == 3
    assert "RXSTORE_KAFKA" in done.stderr
    assert "not-the-password" not in done.stderr + done.stdout


def test_a_client_that_does_not_trust_the_authority_is_refused_with_a_sentence(secured, tmp_path):
    system = secured.by("rxstore-archive")
    del system.environment["RXSTORE_KAFKA_SSL_CAFILE"]
    done = system.run("archive", "export", "elsewhere")
    assert done.returncode == 3
    assert "certificate verify failed" in done.stderr  # in the client's log
    assert "check RXSTORE_KAFKA_BOOTSTRAP_SERVERS, its security settings" in done.stderr.strip().splitlines()[-1]
