"""What a seed means: a log that is not as it should be, and what happens to whom while it is projected. No I/O.

The same seed gives the same schedule. When its strikes fall is up to the workers: a strike waits for the n-th time
that any of them is at a certain statement, so it meets the same step of the same work, on whichever worker that is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from random import Random
from typing import TypeVar

import orjson

from rxstore.generator import GeneratedRecord, lifecycles, records
from rxstore.generator.stream import Event

T = TypeVar("T")

POOLS = 4
POOL_PRESCRIPTIONS = 600
STREAMS = (6, 14)
HEALED_STREAMS = 5
MOST_WORKERS = 3
BROKEN = "repaired late"

READ = ("prescription", "line_item", "issue", "dispense_notification", "cancellation")
# Line items never change after ``created``.
CHANGED = ("prescription", "issue", "dispense_notification", "cancellation")
SAVED = (
    *(f"DELETE {table}" for table in READ),
    *(f"COPY {table}{done}" for table in READ for done in ("", " done")),
    *(
        f"{verb} changed_{table}{done}"
        for table in CHANGED
        for verb, done in (("CREATE", ""), ("COPY", ""), ("COPY", " done"))
    ),
    *(f"UPDATE {table}" for table in CHANGED),
    "DELETE set_aside",
    "INSERT set_aside",
)

# Every statement of a worker at which it can be struck; a test sees each of them pass.
STATEMENTS = (
    "BEGIN",
    "UPDATE checkpoint.next_offset",
    "batch: SELECT decision",
    "batch: SAVEPOINT",
    *(f"batch: SELECT {table}" for table in (*READ, "set_aside")),
    *(f"batch: {statement}" for statement in SAVED),
    "batch: UPDATE set_aside",
    "batch: RELEASE",
    "batch: COMMIT",
    "place: LOCK generation",
    "place: SELECT generation",
    "place: SELECT decision",
    "place: UPDATE checkpoint.next_offset",
    "place: UPDATE decision.effect_offset",
    "place: COMMIT",
    "decision: SELECT set_aside",
    "decision: SAVEPOINT",
    *(f"decision: SELECT {table}" for table in READ),
    "decision: INSERT set_aside",
    "decision: RELEASE",
    "decision: UPDATE checkpoint.decisions_applied",
    "decision: COMMIT",
    "INSERT checkpoint",
    "UPDATE set_aside",
    "SELECT decision",
    "UPDATE checkpoint.caught_up_at",
)
COMMITS = ("batch: COMMIT", "place: COMMIT", "decision: COMMIT")


class Action(StrEnum):
    """What a strike does to the worker that it falls on, or to its connection."""

    KILL = "kill"
    PAUSE = "pause"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Strike:
    """At the ``nth`` time that a worker is at ``statement``: before the server has it, or after it was carried out.

    ``seconds`` is how long the server does not hear that the worker is gone, or how long the database stays away.
    """

    action: Action
    statement: str
    before: bool
    nth: int = 1
    seconds: float = 0.0

    def __str__(self) -> str:
        when = "before" if self.before else "after"
        return f"{self.action} {when} {self.statement} (no. {self.nth}, {self.seconds:.1f} s)"


@dataclass(frozen=True, slots=True)
class Join:
    """One worker more."""


@dataclass(frozen=True, slots=True)
class Leave:
    """One worker less, stopped cleanly; the last one stays."""

    index: int


@dataclass(frozen=True, slots=True)
class CutBroker:
    """A worker's connections to the brokers are cut, and no new one gets through for a while."""

    index: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CutDatabase:
    """The same for the database."""

    index: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Freeze:
    """A worker stands still past the session time-out, wherever it is."""

    index: int


@dataclass(frozen=True, slots=True)
class Decide:
    """An operator retries or skips a share of what is open; of one stream only, where it is named."""

    action: str
    share: float
    dice: int
    stream: str | None = None


@dataclass(frozen=True, slots=True)
class Undo:
    """An operator undoes a share of the decisions that stand; about one stream only, where it is named."""

    share: float
    dice: int
    stream: str | None = None


Act = Join | Leave | CutBroker | CutDatabase | Freeze | Decide | Undo


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the log that is published, and then what is done. ``settled``: all before it was projected."""

    records: tuple[GeneratedRecord, ...]
    acts: tuple[Act, ...]
    settled: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """One seed. ``healed`` are streams that the log itself makes whole, with the events as they were meant.

    With ``build_bytes`` each worker begins as in a generation that is being built: it folds in memory while more than a
    batch is left, and writes when so many bytes are full.
    """

    seed: int
    partitions: int
    workers: int
    batch_records: int
    stages: tuple[Stage, ...]
    strikes: tuple[Strike, ...]
    healed: dict[str, tuple[Event, ...]] = field(default_factory=dict)
    build_bytes: int = 0

    @property
    def events(self) -> int:
        """How many records it publishes."""
        return sum(len(stage.records) for stage in self.stages)

    def lines(self) -> Iterator[str]:
        """Say what will happen, in the order in which it can."""
        yield (
            f"seed {self.seed}: {self.events} records in {self.partitions} partitions, {self.workers} workers, "
            f"batches of {self.batch_records}"
            + (f", folded in memory up to {self.build_bytes:,} bytes" if self.build_bytes else "")
        )
        yield from (f"  strike: {strike}" for strike in self.strikes)
        for number, stage in enumerate(self.stages):
            after = "when all is projected" if stage.settled else "at once"
            yield f"  stage {number}, {after}: {len(stage.records)} records; " + (
                "; ".join(map(str, stage.acts)) or "nothing else"
            )


def schedule_of(seed: int) -> Schedule:
    """Return what a seed means. Seeds that follow each other kill at statements that follow each other."""
    random = Random(f"rxstore selftest {seed}")
    log, healed, revised = _log(random)
    stages = _with_revised(random, _stages(random, log), revised)
    return Schedule(
        seed=seed,
        partitions=random.choice([1, 2, 3, 4]),
        workers=random.choice([1, 1, 2, 2, 3]),
        batch_records=random.choice([2, 5, 12, 30, 100]),
        stages=stages,
        strikes=_strikes(seed, random),
        healed=healed,
        build_bytes=random.choice([0, 100_000, 10_000_000]),
    )


# what happens ---------------------------------------------------------------------------------------------------------


def _strikes(seed: int, random: Random) -> tuple[Strike, ...]:
    """One kill by turns, so that every statement is met from both sides, and some drawn ones."""
    turn, side = divmod(seed, 2)
    statement = STATEMENTS[turn % len(STATEMENTS)]
    strikes = [Strike(Action.KILL, statement, before=side == 0, nth=random.choice([1, 1, 2]), seconds=_late(random))]
    for _ in range(random.choice([0, 1, 1, 2])):
        strikes.append(
            Strike(
                random.choice([Action.KILL, Action.KILL, Action.CUT, Action.PAUSE]),
                random.choice([random.choice(STATEMENTS), random.choice(COMMITS), "batch: COMMIT", "BEGIN"]),
                before=random.random() < 0.4,
                nth=random.randint(1, 6),
                seconds=_late(random),
            )
        )
    return tuple(strikes)


def _late(random: Random) -> float:
    return round(random.choice([0.0, 0.0, random.uniform(0.1, 0.8)]), 1)


def _stages(random: Random, log: Sequence[GeneratedRecord]) -> tuple[Stage, ...]:
    """Cut the log into parts. Decisions come where something is open, and are undone where they were made."""
    count = random.choice([4, 5])
    cuts = [0, *sorted(random.sample(range(1, len(log)), count - 1)), len(log)]
    stages: list[Stage] = []
    for number in range(count):
        acts: list[Act] = []
        if number:
            if random.random() < 0.75:
                share = random.uniform(0.3, 1.0)
                acts.append(Decide(random.choice(["skip", "skip", "retry"]), share, random.getrandbits(32)))
            if number > 1 and random.random() < 0.5:
                acts.append(Undo(random.uniform(0.3, 1.0), random.getrandbits(32)))
        if random.random() < 0.35:
            acts.append(_disturbance(random))
        settled = bool(number) and random.random() < 0.6
        stages.append(Stage(tuple(log[cuts[number] : cuts[number + 1]]), tuple(acts), settled))
    return tuple(stages)


def _with_revised(random: Random, stages: Sequence[Stage], events: Sequence[Event]) -> tuple[Stage, ...]:
    """Weave in a stream about which an operator decides and thinks again, while events of it go on coming.

    It is folded again under the hands of a worker that may hold it in memory as it was, and an event of it comes at
    once: only the epoch tells the worker.
    """
    key = str(events[0]["subject"])[:-1]
    first, second, third, *others = [_record(event) for event in events]
    broken = replace(first, value=orjson.dumps(events[1] | {"id": f"{random.getrandbits(64):x}", "data": None}))
    skip = Decide("skip", 1.0, random.getrandbits(32), key)
    undo = Undo(1.0, random.getrandbits(32), key)
    woven = [
        replace(stages[0], records=(*stages[0].records, first, broken)),
        replace(stages[1], acts=(*stages[1].acts, skip), settled=True),
        replace(stages[2], records=(*stages[2].records, second), settled=True),
        replace(stages[3], records=(*stages[3].records, third), acts=(*stages[3].acts, undo), settled=True),
        Stage(tuple(others), (), settled=False),
    ]
    return (*woven, *stages[4:])


def _disturbance(random: Random) -> Act:
    index = random.randrange(MOST_WORKERS)
    possible: list[Act] = [
        Join(),
        Join(),
        Leave(index),
        Leave(index),
        CutBroker(index, round(random.uniform(0.0, 1.2), 1)),
        CutDatabase(index, round(random.uniform(0.0, 1.2), 1)),
        Freeze(index),
    ]
    return random.choice(possible)


# the log --------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=POOLS)
def _pool(number: int) -> dict[str, tuple[Event, ...]]:
    streams: dict[str, list[Event]] = {}
    for event in lifecycles(POOL_PRESCRIPTIONS, number):
        streams.setdefault(str(event["subject"]), []).append(event)
    return {subject: tuple(events) for subject, events in streams.items()}


def _log(random: Random) -> tuple[list[GeneratedRecord], dict[str, tuple[Event, ...]], tuple[Event, ...]]:
    """Draw streams of every kind, and damage them: some so that the log itself heals them, the others anyhow.

    The last is one that is left out of the log, for what ``_with_revised`` does with it.
    """
    pool = _pool(random.randrange(POOLS))
    subjects = _drawn(random, pool)
    long = [s for s in sorted(pool) if s not in subjects and len(pool[s]) > 3 and not _has(pool[s], "deleted")]
    revised = tuple(_without_sequence(event) for event in pool[random.choice(long)])
    can_heal = [subject for subject in subjects if len(pool[subject]) > 2 and not _has(pool[subject], "deleted")]
    healed = {subject: _meant(random, pool[subject]) for subject in can_heal[:HEALED_STREAMS]}
    others = [subject for subject in subjects if subject not in healed]
    streams = [_healing(random, events) for events in healed.values()]
    dirty = records(
        _interleaved(random, [list(pool[subject]) for subject in others]),
        dirty_rate=random.choice([0.0, 0.1, 0.25, 0.4]),
        seed=random.getrandbits(32),
    )
    log = _interleaved(random, [*streams, list(dirty)])
    for _ in range(random.randint(0, len(log) // 6)):
        at = random.randrange(len(log))
        if log[at].fault != BROKEN:  # a copy of it behind its repair would be broken for good
            log.insert(random.randint(at + 1, len(log)), log[at])
    return log, {subject[:-1]: events for subject, events in healed.items()}, revised


def _drawn(random: Random, pool: dict[str, tuple[Event, ...]]) -> list[str]:
    """Draw streams, some of each kind that is rare: what they make a worker say must occur under every seed."""
    subjects = sorted(pool)
    random.shuffle(subjects)
    rare = [
        [s for s in subjects if _has(pool[s], "deleted")][:1],
        [s for s in subjects if _has(pool[s], "dispense-withdrawn")][:1],
        [s for s in subjects if _is_early(pool[s])][:2],
        [s for s in subjects if _settles_pending(pool[s])][:2],
        [s for s in subjects if len(pool[s]) > 5][:5],
    ]
    drawn = dict.fromkeys([subject for some in rare for subject in some])
    drawn |= dict.fromkeys(subjects[: random.randint(*STREAMS)])
    chosen = list(drawn)
    random.shuffle(chosen)
    return chosen


def _has(events: Sequence[Event], kind: str) -> bool:
    return any(event["type"] == f"eps.prescription.{kind}.v1" for event in events)


def _is_early(events: Sequence[Event]) -> bool:
    return len(events) > 1 and not _has(events[:1], "created")


def _settles_pending(events: Sequence[Event]) -> bool:
    return sum(event["type"] == "eps.prescription.cancelled.v1" for event in events) > 1


def _meant(random: Random, events: Sequence[Event]) -> tuple[Event, ...]:
    """Return the events as they are meant; on a half of the streams without sequences, where order is all there is."""
    if random.random() < 0.5:
        return tuple(events)
    return tuple(map(_without_sequence, events))


def _without_sequence(event: Event) -> Event:
    return {name: value for name, value in event.items() if name != "sequence"}


def _healing(random: Random, events: Sequence[Event]) -> list[GeneratedRecord]:
    """Damage a stream so that it ends as if nothing had been: shuffled where sequences tell, or repaired in the end."""
    made = [_record(event) for event in events]
    if "sequence" in events[0] and random.random() < 0.5:
        random.shuffle(made)
        return made
    broken = random.randrange(1, len(made) - 1)
    repair = made[broken]
    made[broken] = replace(repair, value=orjson.dumps(events[broken] | {"data": None}), fault=BROKEN)
    made.insert(random.randint(broken + 2, len(made)), repair)
    return made


def _record(event: Event) -> GeneratedRecord:
    return GeneratedRecord(str(event["subject"])[:-1].encode(), orjson.dumps(event))


def _interleaved(random: Random, sequences: list[list[T]]) -> list[T]:
    """Merge sequences at random, each in its own order."""
    turns = [number for number, sequence in enumerate(sequences) for _ in sequence]
    random.shuffle(turns)
    waiting = [iter(sequence) for sequence in sequences]
    return [next(waiting[number]) for number in turns]
