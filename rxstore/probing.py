"""Times the API's two questions while a generation is built, and sets the rate of its automatic throttle by them.

One machine does it at a time: the one whose session holds the lock. It asks as the API does, through the views, for
prescriptions and patients that are there; what it measures is the database as the API meets it, without HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from datetime import time as time_of_day
from random import Random

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from projector import building
from projector.building import AUTO, BUILDING
from projector.generations import Generation
from projector.pace import Adaptive, p99
from projector.rebuild import REBUILD_LOCK
from query_api.database import Questions, read_only_engine
from query_api.queries import SearchCriteria
from query_api.requests import DEFAULT_WINDOW
from rxstore.settings import Settings

log = logging.getLogger(__name__)

PROBE_LOCK = REBUILD_LOCK + 1
ROUND_SECONDS = 2.0
# Two questions each: a hundred times in a round, so that a single slow one is not yet the p99.
PROBES = 50
NEW_SAMPLE_AFTER_ROUNDS = 15
STARTS = 16
KEYS_EACH = 16
TOO_MANY_ERRORS = 2  # in a round: one of a hundred may fail, as one may be slow

# By the primary key, from places that are spread over the keys: these begin with hexadecimal digits.
SAMPLE = text(
    "SELECT p.stream_key, p.nhs_number, p.prescribed_at FROM rxstore.prescription p "
    "WHERE p.stream_key >= :start AND p.prescribed_at IS NOT NULL ORDER BY p.stream_key LIMIT :keys"
)


@dataclass(frozen=True, slots=True)
class Key:
    """A prescription to ask for, and its patient."""

    stream_key: str
    criteria: SearchCriteria


@dataclass(slots=True)
class Prober:
    """A thread that runs while a generation with an automatic throttle is being built here."""

    settings: Settings
    engine: Engine
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def follow(self, fed: Iterable[Generation]) -> None:
        """Run for the one of these that is being built with an automatic throttle, or not at all."""
        paced = [one for one in fed if one.state in BUILDING and one.throttle == AUTO]
        if not paced:
            self.stop()
        elif self._thread is None or not self._thread.is_alive():
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, args=(paced[0],), name="rxstore-probe", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End after the question that is being asked."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, generation: Generation) -> None:
        """Do rounds until told to stop, or until the throttle is another one; what fails is tried again later."""
        while not self._stopping.is_set():
            try:
                with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as session:
                    held = session.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": PROBE_LOCK}).scalar_one()
                    if held:
                        try:
                            self._probe(session, generation)
                        finally:
                            session.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": PROBE_LOCK})
                        return
            except DBAPIError as error:
                log.warning(
                    "could not set the automatic throttle: %s", type(error.orig).__name__, extra={"action": "throttle"}
                )
            self._stopping.wait(ROUND_SECONDS)

    def _probe(self, session: Connection, generation: Generation) -> None:
        asking = read_only_engine(self.settings.database(), pool_size=1, application_name="rxstore-probe")
        try:
            questions = Questions(asking)
            random = Random()
            keys: list[Key] = []
            rounds = 0
            pace: Adaptive | None = None
            while (throttle := building.throttle(session, generation.name)) is not None and throttle.wanted == AUTO:
                if self._stopping.is_set():
                    return
                if rounds % NEW_SAMPLE_AFTER_ROUNDS == 0 or not keys:
                    keys = sample(asking, random)
                rounds += 1
                if pace is None or pace.rate != throttle.rate:
                    # Set anew; or, when somebody has measured, come to by another machine that has felt its way.
                    pace = Adaptive(throttle.rate, was_over=throttle.p99_ms is not None)
                began, before = time.monotonic(), building.folded(session, generation)
                measured = self._round(questions, random, keys)
                reached = (building.folded(session, generation) - before) / (time.monotonic() - began)
                pace = pace.after(measured, self.settings.throttle_p99_ms, reached)
                building.adapt(session, generation.name, pace.rate, None if measured is None else round(measured, 2))
        finally:
            asking.dispose()

    def _round(self, questions: Questions, random: Random, keys: Sequence[Key]) -> float | None:
        """Ask for two seconds and return the p99 in milliseconds; None when answers fail. Without keys there is none
        to wait for: 0.
        """
        times: list[float] = []
        errors = 0
        for _ in range(PROBES):
            began = time.monotonic()
            if keys:
                key = random.choice(keys)
                try:
                    times += ask(questions, key)
                except DBAPIError as error:
                    errors += 1
                    log.warning("a probe failed: %s", type(error.orig).__name__, extra={"action": "throttle"})
            if self._stopping.wait(max(0.0, ROUND_SECONDS / PROBES - (time.monotonic() - began))):
                break
        if errors >= TOO_MANY_ERRORS:
            return None
        return p99(times) if times else 0.0


def ask(questions: Questions, key: Key) -> list[float]:
    """Ask the API's two questions and return the milliseconds that each took."""
    began = time.perf_counter()
    questions.prescription(key.stream_key, None)
    between = time.perf_counter()
    questions.prescriptions(key.criteria)
    return [(between - began) * 1000, (time.perf_counter() - between) * 1000]


def sample(asking: Engine, random: Random) -> list[Key]:
    """Return prescriptions of the live generation from all over the keys; none where it holds none."""
    found: list[Key] = []
    with asking.connect() as connection:
        for _ in range(STARTS):
            start = f"{random.randrange(256):02X}"
            rows = connection.execute(SAMPLE, {"start": start, "keys": KEYS_EACH}).all()
            if not rows:
                rows = connection.execute(SAMPLE, {"start": "", "keys": KEYS_EACH}).all()
            found += [Key(row.stream_key, _window(row.nhs_number, row.prescribed_at)) for row in rows]
    return found


def _window(nhs_number: str, prescribed_at: datetime) -> SearchCriteria:
    """Return a search as the API makes it by default, on the day of a prescription."""
    day = prescribed_at.astimezone(UTC).date()
    return SearchCriteria(
        nhs_number,
        datetime.combine(day - DEFAULT_WINDOW, time_of_day.min, UTC),
        datetime.combine(day, time_of_day.max, UTC),
    )
