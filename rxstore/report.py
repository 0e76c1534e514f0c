"""How far the projector is and what needs attention: facts from the database and the brokers, and one verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from kafka.errors import KafkaError
from sqlalchemy import Connection, Engine, text

from projector import generations
from projector.building import BUILDING
from projector.generations import Generation
from rxstore import broker, headway, store
from rxstore.errors import ServerUnavailable
from rxstore.headway import Headway
from rxstore.settings import Settings
from rxstore.store import Log

# A view is behind once it has not been whole for this long; shorter is the ordinary time of a batch.
LAGGING_AFTER = timedelta(seconds=30)
# Workers that hold partitions, with events to read, and no checkpoint moving for this long: something is stuck.
STALLED_AFTER = timedelta(seconds=30)
# Where the broker does not tell who is in a group, workers count as gone after this long without a sign of life.
SILENT_AFTER = timedelta(seconds=15)
PARKED_TOO_LONG = timedelta(hours=1)
GOOD_VERDICTS = frozenset({"following", "rebuilding"})

WAITING = """
SELECT count(DISTINCT s.stream_key) FILTER (
           WHERE (s.state = 'open' AND s.reason <> 'deleted' OR s.state = 'parked' AND s.reason = 'sequence_gap')
             AND p.kind IS DISTINCT FROM 'deleted') AS blocked,
       count(*) FILTER (WHERE s.state = 'parked') AS parked,
       count(*) FILTER (WHERE s.state = 'open') AS quarantined,
       extract(epoch FROM now() - min(s.since) FILTER (WHERE s.state = 'parked')) AS oldest_parked_seconds
  FROM {schema}.set_aside s
  LEFT JOIN {schema}.prescription p ON p.stream_key = s.stream_key
 WHERE s.state IN ('open', 'parked')
"""


@dataclass(frozen=True, slots=True)
class PartitionReport:
    """One partition of a generation; the end and the lag are None when the brokers could not be asked."""

    topic: str
    partition: int
    next_offset: int
    end_offset: int | None
    lag_events: int | None
    owner: str | None
    epoch: int


@dataclass(frozen=True, slots=True)
class GenerationReport:
    """One generation. ``lag_seconds`` is how old the oldest partition's knowledge is while events wait, else 0.

    ``build`` is how far it is while it is being built.
    One that is built as of a time, ``until``, is measured against the ends that the partitions had then.
    """

    name: str
    state: str
    definition: str
    lag_events: int | None
    lag_seconds: float | None
    prescriptions: int
    blocked: int
    parked: int
    quarantined: int
    oldest_parked_seconds: float | None
    workers: int | None
    moved_at: datetime | None
    as_of: datetime | None
    build: Headway | None = None
    until: datetime | None = None
    retire_at: datetime | None = None
    partitions: list[PartitionReport] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether nothing more is to be done for it: it is as of a time, and has come there."""
        return self.until is not None and self.state == "ready"

    def as_json(self) -> dict[str, Any]:
        """Return the members that scripts are written against, partitions last."""
        return {**asdict(self), "build": None if self.build is None else self.build.as_json()}


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict, why, and the generations it is drawn from."""

    verdict: str
    why: str | None
    generations: list[GenerationReport]

    def as_json(self) -> dict[str, Any]:
        """Return the document of ``status --json``."""
        return {
            "verdict": self.verdict,
            "why": self.why,
            "generations": [generation.as_json() for generation in self.generations],
        }


def report(settings: Settings, engine: Engine) -> Report:
    """Look at everything; what the brokers cannot tell is left out and said."""
    live = store.live_generation(engine)
    log, workers, unknown = _ask_brokers(settings, engine)
    ends = {} if log is None else log.end_offsets
    with engine.connect() as connection:
        now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        found = [
            replace(
                of_generation(connection, generation, ends, workers.get(generation.name), now),
                build=_build(settings, connection, generation, log, unknown),
            )
            for generation in generations.every(connection)
            if generation.state in {"loading", "building", "ready", "live", "previous"}
        ]
    verdict, why = _verdict(found, unknown, now)
    if ends and live.partitions is not None and live.partitions != len(ends):
        verdict = "stalled"
        why = f"the topic has {len(ends)} partitions, {live.name} was built from {live.partitions}: no worker goes on"
    return Report(verdict, why, found)


def _build(
    settings: Settings, connection: Connection, generation: Generation, log: Log | None, unknown: str | None
) -> Headway | None:
    """Look how far a generation is that is being built, also from another topic than the configured one."""
    if generation.state not in BUILDING:
        return None
    if log is not None and generation.topic != log.name:
        try:
            log = store.describe_log(settings, generation.topic)
        except (KafkaError, ServerUnavailable) as error:
            log, unknown = None, str(error) or type(error).__name__
    return headway.look(connection, generation, log, unknown)


def _ask_brokers(settings: Settings, engine: Engine) -> tuple[Log | None, dict[str, int], str | None]:
    """Return the topic, the members of each generation's group, and why not if it did not work."""
    try:
        log = store.describe_log(settings)
        with engine.connect() as connection:
            known = generations.every(connection)
        workers = _ask_groups(settings, {store.group_of(settings, generation): generation.name for generation in known})
    except (KafkaError, ServerUnavailable) as error:
        return None, {}, str(error) or type(error).__name__
    return log, workers, None


def _ask_groups(settings: Settings, groups: dict[str, str]) -> dict[str, int]:
    """Return how many members each group has; nothing of it from a broker that does not describe groups."""
    with broker.admin_client(settings) as admin:
        described = broker.describe_groups(admin, groups) or {}
    return {groups[name]: len(group.get("members") or ()) for name, group in described.items() if name in groups}


def of_generation(
    connection: Connection, generation: Generation, ends: dict[int, int], workers: int | None, now: datetime
) -> GenerationReport:
    """Look at one generation; ``ends`` is empty and ``workers`` None where the brokers could not be asked."""
    schema = generation.schema
    ends = ends if generation.ends is None else generation.ends
    rows = connection.execute(
        text(
            f"SELECT topic, partition_number, next_offset, epoch, owner, moved_at, caught_up_at "
            f"FROM {schema}.checkpoint ORDER BY topic, partition_number"
        )
    ).all()
    partitions = [
        PartitionReport(
            row.topic,
            row.partition_number,
            row.next_offset,
            ends.get(row.partition_number),
            None if row.partition_number not in ends else max(0, ends[row.partition_number] - row.next_offset),
            row.owner,
            row.epoch,
        )
        for row in rows
    ]
    lag_events = _lag_events(partitions, ends)
    caught_up = [row.caught_up_at for row in rows]
    as_of = min(caught_up) if caught_up and all(caught_up) else None
    waiting = connection.execute(text(WAITING.format(schema=schema))).one()
    count = connection.execute(text(f"SELECT count(*) FROM {schema}.prescription WHERE kind <> 'deleted'"))
    oldest = waiting.oldest_parked_seconds
    return GenerationReport(
        name=generation.name,
        state=generation.state,
        definition=generation.definition,
        lag_events=lag_events,
        lag_seconds=_lag_seconds(lag_events, as_of, now),
        prescriptions=count.scalar_one(),
        blocked=waiting.blocked,
        parked=waiting.parked,
        quarantined=waiting.quarantined,
        oldest_parked_seconds=None if oldest is None else round(float(oldest), 1),
        workers=workers,
        moved_at=max((row.moved_at for row in rows if row.moved_at), default=None),
        as_of=as_of,
        until=generation.until,
        retire_at=generation.retire_at,
        partitions=partitions,
    )


def _lag_events(partitions: list[PartitionReport], ends: dict[int, int]) -> int | None:
    """Count what waits, also in partitions that nobody has claimed yet."""
    if not ends:
        return None
    claimed = {partition.partition for partition in partitions}
    unclaimed = sum(end for partition, end in ends.items() if partition not in claimed)
    return unclaimed + sum(partition.lag_events or 0 for partition in partitions)


def _lag_seconds(lag_events: int | None, as_of: datetime | None, now: datetime) -> float | None:
    if lag_events == 0:
        return 0.0
    if lag_events is None or as_of is None:
        return None
    return round(max(0.0, (now - as_of).total_seconds()), 1)


def _verdict(found: list[GenerationReport], unknown: str | None, now: datetime) -> tuple[str, str | None]:
    live = next((generation for generation in found if generation.state == "live"), None)
    if live is None:
        return "stopped", "no generation is live: run 'rxstore migrate'"
    if unknown is not None:
        return "unknown", unknown
    if live.workers == 0 or (live.workers is None and is_silent(live, now)):
        return "stopped", "no projector holds a partition: run 'rxstore project'"
    behind = bool(live.lag_events)
    if behind and stands_still(live, now):
        return "stalled", f"events wait and no checkpoint has moved for {STALLED_AFTER.seconds} s: look at its log"
    if behind and (live.lag_seconds is None or live.lag_seconds > LAGGING_AFTER.seconds):
        return "lagging", f"{live.lag_events:,} events wait"
    if live.blocked:
        return "attention", f"{live.blocked:,} prescriptions are blocked: see 'rxstore quarantine list'"
    if live.oldest_parked_seconds is not None and live.oldest_parked_seconds > PARKED_TOO_LONG.seconds:
        return "attention", "events have been parked for over an hour: see 'rxstore quarantine list'"
    if any(one.state in {"loading", "building", "ready"} and not one.is_complete for one in found):
        return "rebuilding", None
    return "following", None


def stands_still(live: GenerationReport, now: datetime) -> bool:
    """Whether events wait and nothing moved; after a silence, the last word is that the end was seen."""
    signs = [at for at in (live.moved_at, live.as_of) if at is not None]
    return not signs or now - max(signs) > STALLED_AFTER


def is_silent(live: GenerationReport, now: datetime) -> bool:
    """Whether no worker has said a word lately: one that has nothing to do says every second that it saw the end."""
    said = [at for at in (live.moved_at, live.as_of) if at is not None]
    return not said or now - max(said) > SILENT_AFTER
