"""Whatever publishers, workers, crashes and operators do in whatever order, the rows are those of the pure fold.

A state machine (Hypothesis) publishes clean and dirty events; up to three workers claim partitions from each other,
project cuts of them, crash at a statement or lose the acknowledgement of a commit; an operator decides and undoes. In
the end what is left is projected, and every table is compared with the fold of the log and the decisions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import psycopg
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from projector import checkpoints, decisions, set_aside
from projector.batch import Position, Quarantined, Record
from projector.checkpoints import FencingLost
from projector.decisions import Decision, DecisionsDue
from projector.projection import by_stream
from projector.read_model import ReadModel
from projector.refold import refold
from projector.runner import Batch, OneByOne, connect
from projector.stream import Arrival, Retry, SetAside, Skip, Stream, fold
from projector.unwritten import Unwritten
from rxstore.generator import lifecycles
from tests import examples
from tests.integration.projecting import (
    DECODE,
    PARTITIONS,
    ROWS,
    SCHEMA,
    TOPIC,
    FakeWorker,
    Log,
    decide_about,
    rows,
    worker,
)

WORKERS = 3
STREAMS = 5
STATEMENTS_OF_A_BATCH = 14
EMPTY = f"TRUNCATE {', '.join(f'{SCHEMA}.{table}' for table in (*ROWS, 'checkpoint'))}, rxstore.decision"

Event = Mapping[str, Any]


def lives() -> list[list[Event]]:
    """A few generated prescriptions of several events, with sequences and without."""
    streams: dict[str, list[Event]] = {}
    for event in lifecycles(60, 7, date(2026, 1, 5), 28):
        streams.setdefault(str(event["subject"]), []).append(event)
    long = [life for life in streams.values() if 4 <= len(life) <= 12]
    numbered = [life for life in long if "sequence" in life[0]][: STREAMS - 2]
    return numbered + [life for life in long if "sequence" not in life[0]][: STREAMS - len(numbered)]


LIVES = lives()


class Killed(psycopg.OperationalError):
    """The session ended in the middle of a batch."""


class Cursor(psycopg.Cursor[Any]):
    """Counts down the statements until the session ends; ``left`` is None while it lives."""

    left: int | None = None

    def _count(self) -> None:
        if Cursor.left is not None:
            Cursor.left -= 1
            if Cursor.left < 0:
                raise Killed

    def execute(self, *arguments: Any, **options: Any) -> Any:
        self._count()
        return super().execute(*arguments, **options)

    def copy(self, *arguments: Any, **options: Any) -> Any:
        self._count()
        return super().copy(*arguments, **options)


@contextmanager
def killed_after(statements: int) -> Iterator[None]:
    Cursor.left = statements
    try:
        with suppress(Killed):
            yield
    finally:
        Cursor.left = None


@dataclass
class Published:
    """What is published of one prescription, and what is still to come."""

    life: list[Event]
    next: int = 0
    held_back: list[Event] = field(default_factory=list)
    broken: list[Event] = field(default_factory=list)
    sent: list[Event] = field(default_factory=list)
    copied: bool = False
    undone: bool = False

    @property
    def key(self) -> str:
        return str(self.life[0]["subject"])[:-1]


class Interleaving(RuleBasedStateMachine):
    """See the module."""

    def __init__(self, url: str, truth_url: str, workers: Sequence[FakeWorker]) -> None:
        super().__init__()
        self.url = url
        self.truth_url = truth_url
        self.workers = workers
        self.log = Log()
        self.published = [Published(life) for life in LIVES]

    @initialize()
    def begin(self) -> None:
        for url in (self.url, self.truth_url):
            with psycopg.connect(url) as connection:
                connection.execute(EMPTY)
        for one in self.workers:
            one.claims.clear()
            one.runner.recent.forget()
            one.runner.lookup = self.lookup
        self.claim(0, set(range(PARTITIONS)))

    def lookup(self, positions: Any) -> dict[Position, Record]:
        wanted = set(positions)
        return {record.position: record for record in self.log.records() if record.position in wanted}

    # publishers -------------------------------------------------------------------------------------------------------

    def send(self, stream: Published, event: Event, *, shift: int = 0) -> None:
        self.log.append_event(event, shift)
        stream.sent.append(event)

    @rule(which=st.integers(0, STREAMS - 1), count=st.integers(1, 4))
    def publish(self, which: int, count: int) -> None:
        stream = self.published[which]
        for event in stream.life[stream.next : stream.next + count]:
            self.send(stream, event)
        stream.next += count

    @rule(which=st.integers(0, STREAMS - 1))
    def publish_ahead_of_its_turn(self, which: int) -> None:
        stream = self.published[which]
        late, *early = stream.life[stream.next : stream.next + 2] or [None]
        if early:
            stream.held_back.append(late)
            self.send(stream, early[0])
            stream.next += 2

    @rule(which=st.integers(0, STREAMS - 1))
    def publish_late(self, which: int) -> None:
        stream = self.published[which]
        if stream.held_back:
            self.send(stream, stream.held_back.pop(0))

    @rule(which=st.integers(0, STREAMS - 1))
    def publish_broken(self, which: int) -> None:
        stream = self.published[which]
        if stream.next < len(stream.life):
            event = stream.life[stream.next]
            self.log.append_event({**event, "time": "yesterday"})
            stream.broken.append(event)
            stream.next += 1

    @rule(which=st.integers(0, STREAMS - 1))
    def repair(self, which: int) -> None:
        stream = self.published[which]
        if stream.broken:
            self.send(stream, stream.broken.pop(0))

    @rule(which=st.integers(0, STREAMS - 1), back=st.integers(1, 4))
    def publish_again(self, which: int, back: int) -> None:
        stream = self.published[which]
        if stream.sent and not stream.undone:
            stream.copied = True
            self.log.append_event(stream.sent[-back % len(stream.sent)])

    @rule(which=st.integers(0, STREAMS - 1))
    def publish_to_the_wrong_partition(self, which: int) -> None:
        stream = self.published[which]
        if stream.next < len(stream.life):
            self.log.append_event(stream.life[stream.next], 1)
            stream.next += 1

    @rule(which=st.integers(0, STREAMS - 1), rarely=st.integers(0, 5))
    def publish_a_deletion(self, which: int, rarely: int) -> None:
        stream = self.published[which]
        if rarely == 5 and stream.sent:
            last = max((int(event["sequence"]) for event in stream.sent if "sequence" in event), default=None)
            number = {} if last is None else {"sequence": str(last + 1)}
            self.log.append_event(
                {**examples.deleted(), "subject": stream.life[0]["subject"], "id": f"gone {which}", **number}
            )

    # workers ----------------------------------------------------------------------------------------------------------

    @rule(who=st.integers(0, WORKERS - 1), which=st.sets(st.integers(0, PARTITIONS - 1), min_size=1))
    def claim(self, who: int, which: set[int]) -> None:
        """Whoever had them is not told."""
        one = self.workers[who]
        one.runner.recent.forget()
        for number in sorted(which):
            one.claims[number] = checkpoints.claim(
                one.runner.connection, SCHEMA, TOPIC, number, owner=str(who), topic_id=None, first=0
            )

    def poll(self, one: FakeWorker, size: int) -> list[Record]:
        """The next records of each partition that the worker believes to hold."""
        return [
            record
            for number in sorted(one.claims)
            for record in [
                record
                for record in self.log.partitions[number]
                if record.position.offset >= one.claims[number].next_offset
            ][:size]
        ]

    @contextmanager
    def may_be_fenced(self, one: FakeWorker) -> Iterator[None]:
        """A worker that is told that it was overtaken was, and begins again without partitions."""
        try:
            yield
        except FencingLost:
            assert not checkpoints.still_hold(one.runner.connection, SCHEMA, one.claims)
            one.claims.clear()

    @rule(who=st.integers(0, WORKERS - 1), size=st.integers(1, 6))
    def project(self, who: int, size: int) -> None:
        one = self.workers[who]
        if poll := self.poll(one, size):
            with self.may_be_fenced(one):
                one.project(poll)

    @rule(who=st.integers(0, WORKERS - 1), ahead=st.integers(2, 6), behind=st.integers(1, 3))
    def be_overtaken(self, who: int, ahead: int, behind: int) -> None:
        """Another takes everything over and goes further; then the first wakes up and goes on where it stood."""
        if self.workers[who].claims:
            another = (who + 1) % WORKERS
            self.claim(another, set(self.workers[who].claims))
            self.project(another, ahead)
            self.project(who, behind)

    @rule(
        who=st.integers(0, WORKERS - 1),
        size=st.integers(1, 8),
        statements=st.integers(0, STATEMENTS_OF_A_BATCH),
        comes_again=st.booleans(),
    )
    def project_and_be_killed(self, who: int, size: int, statements: int, comes_again: bool) -> None:
        one = self.workers[who]
        if poll := self.poll(one, size):
            with self.may_be_fenced(one), killed_after(statements):
                one.project(poll)
        if not comes_again:
            one.claims.clear()
            one.runner.recent.forget()

    @rule(who=st.integers(0, WORKERS - 1), size=st.integers(1, 6))
    def project_and_never_hear_of_it(self, who: int, size: int) -> None:
        one = self.workers[who]
        believed = dict(one.claims)
        if poll := self.poll(one, size):
            with self.may_be_fenced(one):
                one.project(poll)
                one.claims = believed
                one.runner.recent.forget()

    @rule(
        who=st.integers(0, WORKERS - 1),
        sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
        statements=st.none() | st.integers(0, STATEMENTS_OF_A_BATCH),
        meanwhile=st.sampled_from(["nothing", "overtaken", "decided"]),
    )
    def build(self, who: int, sizes: list[int], statements: int | None, meanwhile: str) -> None:
        """Fold several polls in memory, then write them at once, unless something in between forbids it."""
        one = self.workers[who]
        unwritten = Unwritten()
        with self.may_be_fenced(one), killed_after(1000 if statements is None else statements):
            begun = dict(one.claims)
            try:
                for size in sizes:
                    reached = {n: begun[n].moved_to(unwritten.next_offsets.get(n, begun[n].next_offset)) for n in begun}
                    one.claims = reached
                    poll = self.poll(one, size)
                    one.claims = dict(begun)
                    if poll:
                        ends = {record.position.partition: record.position.offset + 1 for record in poll}
                        one.runner.take(begun, Batch([DECODE(record) for record in poll], ends), unwritten)
                if meanwhile == "overtaken":
                    self.claim((who + 1) % WORKERS, set(begun))
                    self.project((who + 1) % WORKERS, 3)
                elif meanwhile == "decided":
                    self.decide(sum(sizes), skip=True)
                    self.apply((who + 1) % WORKERS)
                offsets = dict(unwritten.next_offsets)
                if unwritten:
                    one.runner.write(begun, unwritten)
                    one.claims = {n: claim.moved_to(offsets.get(n, claim.next_offset)) for n, claim in begun.items()}
            except (OneByOne, DecisionsDue):
                one.runner.recent.forget()

    # operators --------------------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 30), skip=st.booleans())
    def decide(self, which: int, skip: bool) -> None:
        with psycopg.connect(self.url) as connection:
            found = connection.execute(
                f"SELECT topic, partition_number, record_offset, stream_key, state FROM {SCHEMA}.set_aside "
                "WHERE stream_key IS NOT NULL AND (state = 'open' OR state = 'parked' AND reason = 'sequence_gap') "
                "ORDER BY 1, 2, 3"
            ).fetchall()
        if found:
            *record, state = found[which % len(found)]
            decide_about(self.url, "skip" if skip or state == "parked" else "retry", (*record,))

    @rule(who=st.integers(0, WORKERS - 1))
    def apply(self, who: int) -> None:
        one = self.workers[who]
        with self.may_be_fenced(one):
            one.apply_decisions()

    @rule(who=st.integers(0, WORKERS - 1), statements=st.integers(0, STATEMENTS_OF_A_BATCH))
    def apply_and_be_killed(self, who: int, statements: int) -> None:
        one = self.workers[who]
        with self.may_be_fenced(one), killed_after(statements):
            one.apply_decisions()

    @precondition(lambda self: any(not stream.copied for stream in self.published))
    @rule(which=st.integers(0, 10))
    def undo(self, which: int) -> None:
        """Duplicates leave no trace, so a prescription that had some is folded again without them (decision 0012)."""
        streams = {stream.key: stream for stream in self.published if not stream.copied}
        with connect(self.url) as connection, connection.transaction():
            made = connection.execute(
                "SELECT id, stream_key FROM rxstore.decision WHERE revoked_at IS NULL AND stream_key = ANY(%s) "
                "ORDER BY id",
                (list(streams),),
            ).fetchall()
            if not made:
                return
            number, key = made[which % len(made)]
            decision = decisions.revoke(connection, number, who="test")
            assert decision is not None
            streams[key].undone = True
            if decision.number is not None:
                partition = DECODE.partition_of(key.encode())
                model = ReadModel(SCHEMA)
                refold(connection, model, DECODE, self.lookup, topic=TOPIC, key=key, partition=partition)

    # the truth --------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not any(self.log.partitions.values()):
            return
        self.claim(0, set(range(PARTITIONS)))
        one = self.workers[0]
        one.apply_decisions()
        while poll := self.poll(one, 7):
            one.project(poll)
        one.apply_decisions()
        self.write_the_truth()
        assert rows(self.url) == rows(self.truth_url)

    def write_the_truth(self) -> None:
        """Fold log and decisions stream by stream, with no batch, no database and nobody else in it."""
        arrivals = by_stream(DECODE(record) for record in self.log.records())
        marks = {record.position: record for record in arrivals.marks}
        with connect(self.url) as connection:
            made = connection.execute(
                f"{decisions.SELECT} WHERE d.revoked_at IS NULL AND d.number IS NOT NULL ORDER BY d.number"
            ).fetchall()
        decided: dict[str, list[Decision]] = {}
        for decision in map(decisions._loaded, made):
            decided.setdefault(decision.stream_key, []).append(decision)
        folded = []
        for key in sorted(arrivals.by_stream.keys() | decided.keys()):
            events = arrivals.by_stream.get(key, [])
            told = merged(events, decided.get(key, []), self.lookup, marks)
            folded.append(fold(Stream(key, DECODE.partition_of(key.encode())), told))
        with connect(self.truth_url) as connection, connection.transaction(), connection.cursor() as cursor:
            set_aside.mark(cursor, SCHEMA, arrivals.marks)
            ReadModel(SCHEMA).save(connection, folded)
            set_aside.scrub_if_deleted(cursor, SCHEMA)


def merged(
    events: Sequence[Any],
    made: list[Decision],
    lookup: Callable[[Any], dict[Position, Record]],
    marks: Mapping[Position, SetAside],
) -> list[Arrival]:
    """A stream's records in their order, and each decision where it took effect."""
    waiting = list(made)
    told: list[Arrival] = []
    for item in events:
        while waiting and (waiting[0].effect_offset or 0) <= item.record.position.offset:
            told.append(decided(waiting.pop(0), lookup, marks))
        told.append(item)
    return told + [decided(decision, lookup, marks) for decision in waiting]


def decided(
    decision: Decision,
    lookup: Callable[[Any], dict[Position, Record]],
    marks: Mapping[Position, SetAside],
) -> Arrival:
    mark = marks.get(decision.position)
    if decision.action == "skip":
        return Skip(decision.position, mark)
    record = lookup([decision.position])[decision.position]
    item = DECODE(record) if mark is None else DECODE.regardless_of_place(record)
    assert mark is None or not isinstance(item, Quarantined)
    return Retry(decision.position, item, mark)


def test_any_interleaving_gives_the_rows_of_the_pure_fold(migrated_database_url, another_database_url):
    with ExitStack() as sessions:
        workers = [sessions.enter_context(worker(migrated_database_url, ())) for _ in range(WORKERS)]
        for one in workers:
            one.runner.connection.cursor_factory = Cursor
        run_state_machine_as_test(
            lambda: Interleaving(migrated_database_url, another_database_url, workers),
            settings=settings(
                max_examples=25,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )
