"""Looks at everything, in the order in which one thing rests on another; what cannot be looked at is a finding too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection, text

from projector.generations import Generation
from rxstore import broker, report, store
from rxstore.diagnosis import database, projector, records, topic
from rxstore.diagnosis.findings import Finding, in_order
from rxstore.diagnosis.projector import Group
from rxstore.diagnosis.topic import Checkpoint
from rxstore.errors import ServerUnavailable, explained
from rxstore.report import GenerationReport
from rxstore.settings import Settings
from rxstore.store import Log

T = TypeVar("T")

# A rebalance takes a moment: what is odd about the group counts when it stays so.
LOOKS_AT_GROUP = 4
BETWEEN_LOOKS_SECONDS = 1.5


@dataclass(slots=True)
class Diagnosis:
    """What was found. ``database`` is whether that could be reached: without it next to nothing can be checked."""

    settings: Settings
    findings: list[Finding] = field(default_factory=list)
    database: bool = False

    def look(self) -> Diagnosis:
        """Look at everything once."""
        log = self._log()
        try:
            with store.engine(self.settings) as engine, engine.connect() as connection:
                self.database = True
                self._database(connection.execution_options(isolation_level="AUTOCOMMIT"), log)
        except Exception as error:
            if (said := explained(error)) is None:
                raise
            if self.database:
                self._could_not_check("the rest", said)
            else:
                self.findings.append(database.unreachable(said))
        self.findings = in_order(self.findings)
        return self

    def _database(self, connection: Connection, log: Log | None) -> None:
        self._check("whether the database takes writes", lambda: database.writes(connection))
        self._check("the clock", lambda: database.clock(connection, self.settings))
        self._check("who holds locks", lambda: database.idle_sessions(connection))
        generation = database.live(connection)
        if isinstance(generation, Finding):
            self.findings.append(generation)
            self._topic_is_there(log, None)
            return
        self._topic_is_there(log, generation)
        self._check("the settings", lambda: projector.refused(self.settings, generation))
        self._check("what is blocked", lambda: records.blocked(connection, generation))
        self._check("what waits", lambda: records.waiting(connection, generation))
        self._check("the decisions", lambda: records.decisions(connection, generation))
        if log is not None and log.partitions and generation.topic == log.name:
            self._log_and_projectors(connection, generation, log)

    def _log_and_projectors(self, connection: Connection, generation: Generation, log: Log) -> None:
        stands = _checkpoints(connection, generation)
        another = list(topic.another_log(generation, log))
        self.findings += another
        if not another:
            self._check("whether the log is whole", lambda: topic.cut_log(self.settings, log, stands))
        group = self._tried("the consumer group", lambda: self._settled_group(connection, generation, log))
        if group is None:
            return
        now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        workers = None if group.members is None else len(group.members)
        live = self._tried(
            "how far the projector is",
            lambda: report.of_generation(connection, generation, log.end_offsets, workers, now),
        )
        if live is None:
            return
        self._check("who projects", lambda: projector.nobody(live, group, now))
        self._check("the lag", lambda: projector.behind(live, database.lock_holders(connection), now))
        if not another:
            self._check("the checkpoints", lambda: projector.went_back(group, stands))
            self._check("what comes next", lambda: self._what_comes_next(live, log))

    def _what_comes_next(self, live: GenerationReport, log: Log) -> Iterable[Finding]:
        return projector.mostly_unreadable(self.settings, live, log.partitions)

    def _settled_group(self, connection: Connection, generation: Generation, log: Log) -> Group:
        """Return the group; tell of partitions that nobody projects if they stay so over several looks."""
        name = store.group_of(self.settings, generation)
        with broker.admin_client(self.settings) as admin:
            for look in range(LOOKS_AT_GROUP):
                time.sleep(BETWEEN_LOOKS_SECONDS if look else 0)
                group = projector.group(admin, name, log.name)
                odd = projector.unclaimed(group, _checkpoints(connection, generation), log.partitions)
                if not odd and group.settled:
                    return group
        self.findings += projector.partition_unclaimed(group, odd)
        return group

    def _log(self) -> Log | None:
        """Return the topic as the brokers describe it, None when they do not; without partitions when there is none."""
        try:
            with broker.admin_client(self.settings) as admin:
                if broker.partition_count(admin, self.settings.topic) is None:
                    return Log(self.settings.topic, None, {}, {})
                self._check("the topic's settings", lambda: topic.settings_differ(admin, self.settings))
            return store.describe_log(self.settings)
        except Exception as error:
            said = explained(error)
            if not isinstance(said, ServerUnavailable):
                raise
            self.findings.append(topic.unreachable(said))
            return None

    def _topic_is_there(self, log: Log | None, generation: Generation | None) -> None:
        if log is not None and not log.partitions:
            self.findings.append(topic.missing(self.settings, generation))

    def _check(self, what: str, findings: Callable[[], Iterable[Finding]]) -> None:
        self.findings += self._tried(what, lambda: list(findings())) or []

    def _tried(self, what: str, ask: Callable[[], T]) -> T | None:
        """Return the answer; what cannot be asked is told as a finding."""
        try:
            return ask()
        except Exception as error:
            if (said := explained(error)) is None:
                raise
            self._could_not_check(what, said)
            return None

    def _could_not_check(self, what: str, said: Exception) -> None:
        self.findings.append(
            Finding(
                "could_not_check", f"{what} could not be looked at: {said}. Trouble may hide there", "rxstore diagnose"
            )
        )


def _checkpoints(connection: Connection, generation: Generation) -> list[Checkpoint]:
    rows = connection.execute(
        text(
            "SELECT partition_number, next_offset, leader_epoch, topic_id, owner "
            f"FROM {generation.schema}.checkpoint WHERE topic = :topic ORDER BY partition_number"
        ),
        {"topic": generation.topic},
    )
    return [Checkpoint(*row) for row in rows]
