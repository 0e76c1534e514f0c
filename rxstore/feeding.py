"""Which generations this machine feeds, and a fleet of workers for each of them.

A projector feeds every generation that its version can fold into, from that generation's own topic and by its own
settings. It looks again every few seconds: generations are registered, promoted, retired and given up while it runs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from kafka.errors import AuthorizationError, KafkaError
from psycopg import errors
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from projector import generations, rebuild
from projector.decisions import ACTIVE
from projector.generations import Generation
from projector.stream import Counts
from rxstore import broker, store
from rxstore.errors import Refused, RxstoreError, ServerUnavailable, explained
from rxstore.fleet import Fleet, WorkerOptions
from rxstore.probing import Prober
from rxstore.settings import Settings
from rxstore.store import Log

if TYPE_CHECKING:
    from rxstore.progress import Progress

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 2.0
WATCH_EVERY_SECONDS = 0.2
NOTED_WITHIN_SECONDS = 10.0
# What a worker holds besides what it has folded: libraries, a batch, the rows of a part of it, recent streams.
OWN_MEGABYTES = 500


@dataclass(frozen=True, slots=True)
class Fed:
    """A generation that this machine feeds, the topic as it was found, and the workers."""

    generation: Generation
    log: Log
    fleet: Fleet

    @property
    def ends(self) -> dict[int, int]:
        """Return where each partition ends: as the topic was found, or as of the generation's time."""
        return self.generation.ends or self.log.end_offsets


@dataclass(slots=True)
class Feeder:
    """Keeps one fleet running for each generation that may be fed. ``workers`` are processes for each.

    ``only`` names the one generation to feed, where others are somebody else's; with ``all_or_none`` it gives up as
    soon as one of them may not be fed on.
    """

    settings: Settings
    engine: Engine
    workers: int | None = None
    keep_going: bool = False
    only: str | None = None
    all_or_none: bool = False
    fed: dict[str, Fed] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    _left_out: dict[str, str] = field(default_factory=dict)
    _stopped: dict[str, str] = field(default_factory=dict)
    _looked_at: float = 0.0
    _may_not_drop: bool = False
    _prober: Prober = field(init=False)

    def __post_init__(self) -> None:
        self._prober = Prober(self.settings, self.engine)

    def start(self) -> None:
        """Start feeding; Refused, or ServerUnavailable, when there is no generation that may be fed."""
        live = store.live_generation(self.engine)
        active = self._active()
        if self.only is None and not any(store.other_settings(self.settings, one) is None for one in active):
            raise Refused(store.other_settings(self.settings, live) or "no generation is live: run 'rxstore migrate'")
        errors: dict[str, RxstoreError] = {}
        for generation in active:
            try:
                self._feed(generation)
            except RxstoreError as error:
                errors[generation.name] = error
        if not self.fed:
            raise errors.get(self.only or live.name) or Refused("no generation can be fed")
        for name, why_not in errors.items():
            self._leave_out(name, str(why_not))
        self._looked_at = time.monotonic()

    def run(self, stopping: threading.Event, finished: Callable[[], bool] = lambda: False) -> None:
        """Go on until ``stopping`` is set or ``finished()`` says so; Refused when nothing can be fed any more."""
        while not stopping.wait(WATCH_EVERY_SECONDS) and not finished():
            self.watch()

    def watch(self) -> None:
        """Look after the workers, and every few seconds at the register."""
        for name, fed in list(self.fed.items()):
            try:
                fed.fleet.watch()
            except Refused as error:
                self._stop(name)
                self._stopped[name] = str(error)
                log.error("generation %s is no longer fed: %s", name, error, extra={"action": "not_fed"})
                if self.all_or_none or not self.fed:
                    raise
        if time.monotonic() - self._looked_at >= LOOK_EVERY_SECONDS:
            self._looked_at = time.monotonic()
            try:
                self._look()
            except DBAPIError as error:
                log.warning(
                    "could not look which generations there are: %s",
                    type(error.orig).__name__,
                    extra={"action": "look"},
                )

    def stop(self) -> None:
        """Stop all workers between two batches."""
        self._prober.stop()
        for name in list(self.fed):
            self._stop(name)

    def _look(self) -> None:
        active = {generation.name: generation for generation in self._active()}
        for name in [name for name in self.fed if name not in active]:
            generation = self.fed[name].generation
            if (until := generation.until) is None:
                log.warning("generation %s is no longer to be fed", name, extra={"action": "not_fed"})
            else:
                # What was deleted at the very moment in which it was called ready.
                with self.engine.begin() as connection:
                    rebuild.erase_deleted_since(connection, generation)
                log.info(
                    "generation %s is no longer fed: it is as of %s",
                    name,
                    rebuild.precisely(until),
                    extra={"action": "complete"},
                )
            self._stop(name)
        for name, generation in active.items():
            if name in self.fed or name in self._stopped:
                continue
            try:
                self._feed(generation)
            except RxstoreError as error:
                self._leave_out(name, str(error))
        with self.engine.begin() as connection:
            for generation in active.values():
                # One as of a time is complete when it is ready: the next look lets go of it.
                if generation.state == "building" and generation.name in self.fed:
                    rebuild.note_ready(connection, generation, who=store.somebody())
        self._prober.follow(active[name] for name in self.fed)
        if self.only is None:
            self._retire()
        if not self.fed:
            raise Refused("no generation is left that this version may feed: see 'rxstore status'")

    def _retire(self) -> None:
        """Let the previous generation go when its planned time has come, and drop what is left of it a look later.

        By then other machines have noticed too. Without the right to drop tables they are left to a rebuild command.
        """
        try:
            with self.engine.begin() as connection:
                dropped = [] if self._may_not_drop else rebuild.drop_retired(connection)
        except DBAPIError as error:
            if isinstance(error.orig, errors.InsufficientPrivilege):
                self._may_not_drop = True
                log.warning(
                    "this role may not drop the tables of what was retired: 'rxstore rebuild retire' does",
                    extra={"action": "retired"},
                )
            elif not isinstance(error.orig, errors.LockNotAvailable | errors.DeadlockDetected):
                raise
            dropped = []
        for generation in dropped:
            log.info("the tables of generation %s are dropped", generation.name, extra={"action": "retired"})
        with self.engine.begin() as connection:
            gone = rebuild.retire_due(connection, by=store.somebody())
        if gone is not None:
            log.info("generation %s is retired, as was planned", gone.name, extra={"action": "retired"})
            if gone.name in self.fed:
                self._stop(gone.name)

    def _active(self) -> list[Generation]:
        """Return what is to be fed; the one that is asked for also when nothing is left to do for it."""
        with self.engine.connect() as connection:
            every = generations.every(connection)
        if self.only is not None:
            return [one for one in every if one.state in ACTIVE and one.name == self.only]
        return [one for one in every if one.is_fed]

    def _feed(self, generation: Generation) -> None:
        """Start workers for a generation; raises what speaks against it."""
        if (reason := store.other_meaning(generation)) is not None:
            raise Refused(reason)
        try:
            described = store.describe_log(self.settings, generation.topic)
            broker.check_reader(self.settings, described.name, store.group_of(self.settings, generation))
        except AuthorizationError as error:
            raise explained(error) or error from error
        except KafkaError as error:
            raise ServerUnavailable(f"the brokers do not describe {generation.topic}: {error}") from error
        if (reason := store.other_log(generation, described)) is not None:
            raise Refused(reason)
        generation = store.remember_topic(self.engine, generation, described)
        count = min(self.workers or os.cpu_count() or 1, described.partitions)
        options = worker_options(self.settings, generation, described, keep_going=self.keep_going)
        fleet = Fleet(options, count)
        self.fed[generation.name] = Fed(generation, described, fleet)
        fleet.start()
        self._left_out.pop(generation.name, None)
        log.info("feeding generation %s", generation.name, extra={"action": "feeding"})

    def _leave_out(self, name: str, reason: str) -> None:
        """Say once for each reason that a generation is not fed here."""
        if self._left_out.get(name) != reason:
            self._left_out[name] = reason
            log.warning("generation %s is not fed here: %s", name, reason, extra={"action": "not_fed"})

    def _stop(self, name: str) -> None:
        fed = self.fed.pop(name)
        fed.fleet.stop()
        self.counts.add(fed.fleet.counts)


def worker_options(settings: Settings, generation: Generation, log: Log, *, keep_going: bool) -> WorkerOptions:
    """What each worker process is told: where the servers are by the settings, what events mean by the generation's."""
    meaning = {**store.meaning(settings), **generation.settings}
    return WorkerOptions(
        database_url=settings.database(),
        kafka=settings.kafka(),
        topic=log.name,
        topic_id=log.topic_id,
        partitions=log.partitions,
        group_id=store.group_of(settings, generation),
        schema=generation.schema,
        partitioner=str(meaning["RXSTORE_PARTITIONER"]),
        strict_check_character=meaning["RXSTORE_CHECK_CHARACTER"] == "strict",
        max_value_bytes=int(meaning["RXSTORE_MAX_VALUE_BYTES"]),
        batch_records=settings.batch_records,
        build_bytes=build_bytes(settings) if generation.state in {"loading", "building"} else 0,
        session_timeout_ms=settings.session_timeout_ms,
        instance_id=settings.group_instance_id,
        keep_going=keep_going,
        log_level=settings.log_level,
        log_format=settings.log_format,
        until=generation.until,
        ends=generation.ends,
    )


def build_bytes(settings: Settings) -> int:
    """How much of a worker's memory what it has folded may take; what it takes for itself is taken off."""
    megabytes = settings.build_memory_mb
    return int(max(megabytes - OWN_MEGABYTES, megabytes / 4) * 1_000_000)


@dataclass(slots=True)
class CaughtUp:
    """The question whether every partition has reached the end that it had when it was asked for the first time.

    Once they have, a worker also notes that it saw the end, which is what answers tell as their freshness; we wait a
    moment for that, and no longer, since on a busy topic the end moves on.
    """

    engine: Engine
    fed: tuple[Fed, ...]
    progress: Progress
    _began: datetime | None = None
    _first: dict[tuple[str, int], int] = field(default_factory=dict)
    _reached_at: float | None = None

    def __call__(self) -> bool:
        """Look, and show the progress."""
        at, noted = self._stands()
        ends = {(one.generation.name, number): end for one in self.fed for number, end in one.ends.items()}
        if not self._first:
            self._first = at
            self.progress.total = sum(max(0, end - at[key]) for key, end in ends.items())
        done = sum(min(offset, ends[key]) - self._first[key] for key, offset in at.items())
        self.progress.advance(max(0, done - self.progress.done))
        if any(offset < ends[key] for key, offset in at.items()):
            return False
        self._reached_at = self._reached_at or time.monotonic()
        return noted or time.monotonic() - self._reached_at > NOTED_WITHIN_SECONDS

    def _stands(self) -> tuple[dict[tuple[str, int], int], bool]:
        at: dict[tuple[str, int], int] = {}
        noted = True
        with self.engine.connect() as connection:
            self._began = self._began or connection.execute(text("SELECT clock_timestamp()")).scalar_one()
            for one in self.fed:
                # Of a generation as of a time that is noted once, and as that time.
                began = one.generation.until or self._began
                rows = connection.execute(
                    text(
                        "SELECT partition_number, next_offset, caught_up_at >= :began FROM "
                        f"{one.generation.schema}.checkpoint WHERE topic = :topic"
                    ),
                    {"topic": one.log.name, "began": began},
                ).all()
                stands = {int(row[0]): int(row[1]) for row in rows}
                for number, begin in one.log.first_offsets.items():
                    at[one.generation.name, number] = stands.get(number, begin)
                noted = noted and sum(bool(row[2]) for row in rows) == one.log.partitions
        return at, noted
