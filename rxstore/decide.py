"""Operators' decisions: which records they are about, what they would change, and what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from psycopg import Connection
from psycopg.errors import DeadlockDetected, SerializationFailure
from sqlalchemy import Engine, text

from ingest.decode import Decoder
from ingest.lookup import lookup
from projector import decisions, generations, tables
from projector.batch import Position
from projector.decisions import Decision
from projector.generations import Generation
from projector.prescription import Prescription
from projector.read_model import ReadModel
from projector.recent import RecentStreams
from projector.refold import LogIncomplete, Refolded, refold
from projector.runner import Runner, connect
from projector.stream import FoldedStream
from rxstore import store
from rxstore.errors import Refused, WrongUse
from rxstore.fleet import make_reader
from rxstore.settings import Settings

T = TypeVar("T")

LOOK_EVERY_SECONDS = 0.1
ATTEMPTS = 20
CONFLICTS = (SerializationFailure, DeadlockDetected)
# A projector's session does not wait for the disk; what people decided is nowhere else, so here it must.
KEPT_FOR_GOOD = "SET LOCAL synchronous_commit = on"
DECISION_COLUMNS = tuple(column.name for column in tables.decision.columns)

CANDIDATES = """
SELECT topic, partition_number, record_offset, stream_key, state, reason
  FROM {schema}.set_aside
 WHERE (state = 'open' AND reason <> 'deleted' OR state = 'parked' AND reason = 'sequence_gap' AND :gaps)
   AND (CAST(:reason AS text) IS NULL OR reason = :reason)
   AND (CAST(:stream AS text) IS NULL OR stream_key = :stream)
   AND (CAST(:source AS text) IS NULL OR event_source = :source)
   AND (CAST(:older_than AS double precision) IS NULL OR since < now() - make_interval(secs => :older_than))
 ORDER BY since, topic, partition_number, record_offset
 LIMIT :limit
"""

INSERT = """
INSERT INTO rxstore.decision
       (action, topic, topic_id, partition_number, record_offset, stream_key, stream_partition, why, decided_by)
VALUES (:action, :topic, :topic_id, :partition, :offset, :stream_key, :stream_partition, :why, :decided_by)
RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A record that a decision can be about."""

    position: Position
    stream_key: str | None
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a decision would make of its prescription: statuses before and after, and what is set aside then."""

    id: str
    stream_key: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    folds: int
    record_state: str
    still_open: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return one object for a script."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a decision; ``state`` is that of its record, None while no worker has applied it."""

    decision: int
    id: str
    state: str | None

    def as_json(self) -> dict[str, Any]:
        """Return one object for a script."""
        return {"decision": self.decision, "id": self.id, "applied": self.state is not None, "state": self.state}


@dataclass(frozen=True, slots=True)
class Desk:
    """Where an operator sits: the live generation and how its records are read."""

    settings: Settings
    engine: Engine
    generation: Generation
    decode: Decoder
    partition_of: Callable[[bytes], int]

    def find(self, positions: Sequence[Position], action: str) -> list[Candidate]:
        """Return the records at these positions; WrongUse names the first that no decision can be about."""
        found = []
        question = text(
            f"SELECT topic, partition_number, record_offset, stream_key, state, reason FROM "
            f"{self.generation.schema}.set_aside "
            "WHERE (topic, partition_number, record_offset) = (:topic, :partition, :offset)"
        )
        with self.engine.connect() as connection:
            for position in positions:
                where = {"topic": position.topic, "partition": position.partition, "offset": position.offset}
                row = connection.execute(question, where).first()
                if row is None:
                    raise WrongUse(f"nothing was set aside at {position}: 'rxstore quarantine list' shows what was")
                found.append(Candidate(position, row.stream_key, row.state, row.reason))
        for candidate in found:
            _check(candidate, action)
        return found

    def search(self, action: str, **filters: Any) -> list[Candidate]:  # noqa: ANN401 - the parameters of CANDIDATES
        """Return the records that match every filter, oldest first."""
        statement = text(CANDIDATES.format(schema=self.generation.schema))
        with self.engine.connect() as connection:
            rows = connection.execute(statement, {"gaps": action == "skip", **filters})
            found = [
                Candidate(Position(r.topic, r.partition_number, r.record_offset), r.stream_key, r.state, r.reason)
                for r in rows
            ]
        return [candidate for candidate in found if candidate.stream_key is not None]

    def outlook(self, action: str, candidates: Sequence[Candidate]) -> list[Outlook]:
        """Say what each decision, taken alone, would change: the real fold of what is stored, and nothing written."""
        found = []
        with connect(self.settings.database()) as session:
            for candidate in candidates:
                with session.transaction(force_rollback=True):
                    found.append(self._outlook(session, action, candidate))
        return found

    def _outlook(self, session: Connection[Any], action: str, candidate: Candidate) -> Outlook:
        runner = Runner(session, ReadModel(self.generation.schema), self.decode, RecentStreams(0), lambda _: {})
        folded = runner.decided(self._decision(action, candidate))
        record = folded.set_aside.get(candidate.position)
        state = record.state if record else ("folded" if candidate.position in folded.removed else candidate.state)
        return Outlook(
            id=str(candidate.position),
            stream_key=folded.before.key,
            before=_statuses(folded.before.prescription),
            after=_statuses(folded.prescription),
            folds=folded.counts.folded,
            record_state=state,
            still_open=_still_open(folded),
        )

    def _decision(self, action: str, candidate: Candidate) -> Decision:
        key = candidate.stream_key or ""
        return Decision(0, action, candidate.position, key, self.partition_of(key.encode()))

    def decide(self, action: str, candidates: Sequence[Candidate], *, why: str, who: str) -> list[int]:
        """Record one decision for each, in one transaction; workers apply them."""
        with self.engine.begin() as connection:
            return [
                connection.execute(
                    text(INSERT),
                    {
                        "action": action,
                        "topic": candidate.position.topic,
                        "topic_id": self.generation.topic_id,
                        "partition": candidate.position.partition,
                        "offset": candidate.position.offset,
                        "stream_key": candidate.stream_key,
                        "stream_partition": self._decision(action, candidate).stream_partition,
                        "why": why,
                        "decided_by": who,
                    },
                ).scalar_one()
                for candidate in candidates
            ]

    def undo(self, decision_id: int, *, who: str) -> Refolded | None:
        """Revoke a decision and fold its prescription again, in one transaction; None when it had taken no effect.

        Raises WrongUse when there is no such decision, or it is revoked already.
        """

        def revoked(session: Connection[Any]) -> Refolded | None:
            decision = decisions.revoke(session, decision_id, who=who)
            if decision is None:
                raise WrongUse(f"there is no decision {decision_id} that stands: see 'rxstore quarantine decisions'")
            return None if decision.number is None else self.refold(session, decision.stream_key)

        return self._beside_workers(revoked)

    def refold_again(self, key: str) -> Refolded:
        """Fold a prescription again, in a transaction of its own."""
        return self._beside_workers(lambda session: self.refold(session, key))

    def _beside_workers(self, work: Callable[[Connection[Any]], T]) -> T:
        """Do something in one transaction; from the beginning, when a worker wrote what it had already seen.

        That is the rule where batches follow each other. After the conflict the worker has committed and is polling,
        so the next attempt comes first.
        """
        with connect(self.settings.database()) as session:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    with session.transaction():
                        session.execute(KEPT_FOR_GOOD)
                        return work(session)
                except CONFLICTS:
                    if attempt == ATTEMPTS:
                        raise
        raise AssertionError("the last attempt returns or raises")

    def refold(self, session: Connection[Any], key: str) -> Refolded:
        """Fold a prescription again in every generation that is fed; Refused when the log lost an event of it.

        Refused also while a generation is fed by another version, whose meaning this one does not know.
        """
        refolded = None
        for generation in self._fed():
            decode, partition_of = store.reading(generation)
            try:
                found = refold(
                    session,
                    ReadModel(generation.schema),
                    decode,
                    lookup(lambda: make_reader(self.settings.kafka())),
                    topic=generation.topic,
                    key=key,
                    partition=partition_of(key.encode()),
                )
            except LogIncomplete as error:
                raise Refused(f"{error}; nothing was changed") from error
            if generation.name == self.generation.name:
                refolded = found
        if refolded is None:
            raise Refused("no generation is live: run 'rxstore migrate'")
        return refolded

    def _fed(self) -> list[Generation]:
        """Return the generations that are fed and have read something; Refused when one means something else."""
        with self.engine.connect() as connection:
            every = generations.every(connection)
        # What is decided, revoked or written anew now says nothing about a state as of a time.
        fed = [one for one in every if one.state in decisions.ACTIVE and one.partitions and one.until is None]
        for generation in fed:
            if (reason := store.other_meaning(generation)) is not None:
                raise Refused(
                    f"{reason}: a prescription is folded again in every generation that is fed, so finish the rebuild "
                    "first; nothing was changed"
                )
        return fed

    def export(self) -> Iterator[dict[str, Any]]:
        """Yield every decision, in the order in which they were made, for another installation or a safe place."""
        with self.engine.connect() as connection:
            for row in connection.execute(text("SELECT * FROM rxstore.decision ORDER BY id")).mappings():
                yield {name: _plain(value) for name, value in row.items()}

    def load(self, documents: Sequence[dict[str, Any]]) -> int:
        """Enter exported decisions and fold again the prescriptions that they come too late for.

        Only into an installation without decisions of its own: their numbers and offsets must stay as they are.
        """
        with connect(self.settings.database()) as session, session.transaction():
            session.execute(KEPT_FOR_GOOD)
            if session.execute("SELECT 1 FROM rxstore.decision LIMIT 1").fetchone() is not None:
                raise Refused("there are decisions already: import them into an installation that has none")
            late: set[str] = set()
            for document in documents:
                columns = ", ".join(DECISION_COLUMNS)
                # Whoever imports says that the offsets are those of the topic that is read here.
                document = {**document, "topic_id": self.generation.topic_id}
                values = [document.get(name) for name in DECISION_COLUMNS]
                session.execute(
                    f"INSERT INTO rxstore.decision ({columns}) OVERRIDING SYSTEM VALUE "
                    f"VALUES ({', '.join(['%s'] * len(values))})",
                    values,
                )
                if document.get("number") is not None and document.get("revoked_at") is None:
                    late.add(str(document["stream_key"]))
            session.execute(
                "SELECT setval(pg_get_serial_sequence('rxstore.decision', 'id'), max(id)), "
                "setval('rxstore.decision_number', coalesce(max(number), 1)) FROM rxstore.decision HAVING count(*) > 0"
            )
            for generation in self._fed():
                session.execute(
                    f"UPDATE {generation.schema}.checkpoint c SET decisions_applied = greatest(c.decisions_applied, "
                    "coalesce((SELECT max(d.number) FROM rxstore.decision d WHERE d.topic = c.topic "
                    "AND d.stream_partition = c.partition_number AND d.effect_offset <= c.next_offset), 0))"
                )
            for key in sorted(late):
                self.refold(session, key)
        return len(documents)

    def wait(self, ids: Sequence[int], seconds: float) -> list[Applied]:
        """Return what became of decisions, as soon as all are applied or time is up."""
        until = time.monotonic() + seconds
        while True:
            found = self._applied(ids)
            if all(one.state is not None for one in found) or time.monotonic() > until:
                return found
            time.sleep(LOOK_EVERY_SECONDS)

    def _applied(self, ids: Sequence[int]) -> list[Applied]:
        schema = self.generation.schema
        question = text(
            "SELECT d.id, d.topic || ':' || d.partition_number || ':' || d.record_offset AS position, "
            "CASE WHEN d.number <= c.decisions_applied THEN coalesce(s.state, 'folded') END AS state "
            f"FROM rxstore.decision d LEFT JOIN {schema}.checkpoint c "
            "ON c.topic = d.topic AND c.partition_number = d.stream_partition "
            f"LEFT JOIN {schema}.set_aside s ON (s.topic, s.partition_number, s.record_offset) = "
            "(d.topic, d.partition_number, d.record_offset) WHERE d.id = ANY(:ids) ORDER BY d.id"
        )
        with self.engine.connect() as connection:
            return [Applied(row.id, row.position, row.state) for row in connection.execute(question, {"ids": [*ids]})]


@contextmanager
def desk(settings: Settings) -> Iterator[Desk]:
    """Sit down at the live generation; Refused when no projector has read anything yet."""
    with store.engine(settings) as engine:
        generation = store.live_generation(engine)
        if generation.partitions is None:
            raise Refused(f"generation {generation.name} has read nothing yet: run 'rxstore project' first")
        decode, partition_of = store.reading(generation)
        yield Desk(settings, engine, generation, decode, partition_of)


def _check(candidate: Candidate, action: str) -> None:
    if candidate.stream_key is None:
        raise WrongUse(
            f"{candidate.position} belongs to no prescription that could be told: nothing waits for it, and nothing "
            "can be decided about it"
        )
    if candidate.state == "open" and candidate.reason != "deleted":
        return
    if action == "skip" and candidate.state == "parked" and candidate.reason == "sequence_gap":
        return
    if candidate.state == "parked":
        raise WrongUse(
            f"{candidate.position} is parked as {candidate.reason}: it folds by itself when what it waits for comes. "
            "Decide about the record that it waits for"
        )
    if candidate.reason == "deleted":
        raise WrongUse(f"{candidate.position} came after its prescription was deleted: nothing waits for it")
    raise WrongUse(f"{candidate.position} is settled: its state is {candidate.state}, its reason {candidate.reason}")


def _statuses(prescription: Prescription | None) -> dict[str, Any] | None:
    if prescription is None:
        return None
    return {
        "version": prescription.version,
        "currentIssue": prescription.current_issue,
        "issues": {
            str(issue.number): {"status": issue.status, "items": list(issue.item_statuses)}
            for issue in prescription.issues
        },
    }


def _still_open(folded: FoldedStream) -> list[str]:
    after = {record.position: record for record in folded.before.open} | folded.set_aside
    return [
        f"{record.position} {record.reason}"
        for record in sorted(after.values(), key=lambda record: record.stands_at)
        if record.blocks
    ]


def _plain(value: Any) -> Any:  # noqa: ANN401 - a column of the decision table
    return value.isoformat() if isinstance(value, datetime) else value
