"""The rebuild commands: what they ask of the topic, in which order they do things, and what they refuse."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from psycopg import errors
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from projector import generations, rebuild
from projector.generations import Generation, NotMigrated
from projector.rebuild import AnotherRuns, WrongState
from rxstore import store
from rxstore.errors import Refused, ServerUnavailable
from rxstore.progress import Progress
from rxstore.settings import Settings

Done = TypeVar("Done")

# A switch waits two seconds for readers, then lets those behind it pass and tries again.
ATTEMPTS = 20
LONGEST_PAUSE_SECONDS = 1.0
LOOK_EVERY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a generation is behind the end of its topic, and whether it has been at every end once."""

    generation: Generation
    events: int
    ready: bool

    def as_json(self) -> dict[str, Any]:
        """Return one object for a script."""
        return {"generation": self.generation.name, "state": self.generation.state, "lag_events": self.events}


def stage(settings: Settings, engine: Engine, name: str | None) -> Generation:
    """Register a generation of this version, of the settings and the topic as they are now, and make its schema."""
    log = store.describe_log(settings)
    store.live_generation(engine)

    def step(connection: Connection) -> Generation:
        chosen = name or rebuild.next_name(connection)
        rebuild.stage(
            connection,
            chosen,
            topic=log.name,
            topic_id=log.topic_id,
            first_offsets=log.first_offsets,
            settings=store.meaning(settings),
            who=store.somebody(),
        )
        return rebuild.in_state(connection, chosen, "building")

    with _refusing(), rebuild.alone(engine):
        return _step(engine, step)


def lag(settings: Settings, engine: Engine, name: str) -> Lag:
    """Measure how far a generation is behind now."""
    with engine.begin() as connection:
        generation = _found(connection, name)
        ready = generation.state != "building" or rebuild.note_ready(connection, generation, who=store.somebody())
        generation = _found(connection, name)
    log = store.describe_log(settings, generation.topic)
    with engine.connect() as connection:
        reached = rebuild.offsets(connection, generation)
    events = sum(
        max(0, end - reached.get(str(number), log.first_offsets[number])) for number, end in log.end_offsets.items()
    )
    return Lag(generation, events, ready)


def wait(settings: Settings, engine: Engine, name: str | None, *, max_lag: int, timeout: float | None) -> Lag:
    """Wait until a generation is ready and within a lag; return where it is then, or when time is up."""
    with _refusing(), engine.connect() as connection:
        chosen = name or rebuild.candidate(connection).name
        rebuild.in_state(connection, chosen, "building", "ready", "live", "previous")
    until = None if timeout is None else time.monotonic() + timeout
    found = lag(settings, engine, chosen)
    with Progress(f"build {chosen}", "events", found.events) as progress:
        first = found.events
        while not (found.ready and found.events <= max_lag):
            if until is not None and time.monotonic() >= until:
                break
            time.sleep(LOOK_EVERY_SECONDS)
            found = lag(settings, engine, chosen)
            with _refusing(), engine.connect() as connection:
                rebuild.in_state(connection, chosen, "building", "ready", "live", "previous")
            progress.advance(max(0, first - found.events - progress.done))
    return found


def promote(settings: Settings, engine: Engine, name: str | None, *, max_lag: int) -> tuple[str, str]:
    """Make a ready generation the live one; return its name and that of the one before."""
    with _refusing(), rebuild.alone(engine):
        with engine.connect() as connection:
            chosen = name or rebuild.candidate(connection).name
            rebuild.in_state(connection, chosen, *rebuild.CANDIDATE)
        behind = _within(settings, engine, chosen, max_lag)
        return chosen, _step(
            engine,
            lambda connection: rebuild.promote(
                connection, chosen, who=store.somebody(), details={"lag_events": behind.events, "max_lag": max_lag}
            ),
        )


def roll_back(settings: Settings, engine: Engine, *, max_lag: int) -> tuple[str, str]:
    """Make the previous generation the live one again; return its name and that of the one that was promoted."""
    with _refusing(), rebuild.alone(engine):
        with engine.connect() as connection:
            chosen = rebuild.previous_generation(connection).name
        behind = _within(settings, engine, chosen, max_lag)
        return _step(
            engine,
            lambda connection: rebuild.roll_back(
                connection, who=store.somebody(), details={"lag_events": behind.events, "max_lag": max_lag}
            ),
        )


def abort(engine: Engine, name: str | None) -> Generation:
    """Give a candidate up and drop its tables."""

    def give_up(connection: Connection) -> Generation:
        chosen = name or rebuild.candidate(connection).name
        known = generations.find(connection, chosen)
        if known is not None and known.state == "abandoned":
            return known  # what an interrupted abort left
        return rebuild.give_up(connection, chosen, who=store.somebody())

    return _take_away(engine, give_up)


def retire(engine: Engine, name: str | None) -> Generation:
    """Let the previous generation go and drop its tables."""

    def let_go(connection: Connection) -> Generation:
        chosen = name or rebuild.previous_generation(connection).name
        known = generations.find(connection, chosen)
        if known is not None and known.state == "retired":
            return known
        return rebuild.retire(connection, chosen, who=store.somebody())

    return _take_away(engine, let_go)


def _take_away(engine: Engine, step: Callable[[Connection], Generation]) -> Generation:
    with _refusing(), rebuild.alone(engine):
        generation = _step(engine, step)
        _step(engine, lambda connection: rebuild.drop(connection, generation))
    return generation


def _within(settings: Settings, engine: Engine, name: str, max_lag: int) -> Lag:
    found = lag(settings, engine, name)
    if found.events > max_lag:
        raise Refused(
            f"generation {name} is {found.events:,} events behind, more than {max_lag:,} (--max-lag): "
            f"'rxstore rebuild wait {name}' first, and see that a projector feeds it"
        )
    return found


def _found(connection: Connection, name: str) -> Generation:
    generation = generations.find(connection, name)
    if generation is None:
        raise Refused(f"there is no generation {name}: 'rxstore status' shows which there are")
    return generation


def _step(engine: Engine, step: Callable[[Connection], Done]) -> Done:
    """Do one transaction, again and again while readers or workers hold what it needs."""
    for _ in range(ATTEMPTS):
        try:
            with engine.begin() as connection:
                return step(connection)
        except OperationalError as error:
            if not isinstance(error.orig, errors.LockNotAvailable | errors.DeadlockDetected):
                raise
        time.sleep(random.uniform(0.1, LONGEST_PAUSE_SECONDS))
    raise ServerUnavailable(
        "somebody holds the views or tables that have to change: end long transactions and try again; nothing was "
        "changed"
    )


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (AnotherRuns, WrongState, NotMigrated) as error:
        raise Refused(str(error)) from error
