"""The rebuild commands: what they ask of the topic, in which order they do things, and what they refuse."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from kafka.errors import KafkaError
from psycopg import errors
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from ingest import moment
from ingest.archive import Archive
from projector import building, generations, rebuild
from projector import verify as verifying
from projector.generations import Generation, NotMigrated
from projector.rebuild import AnotherRuns, WrongState, precisely
from projector.verify import Comparison, NotTogether
from rxstore import headway, loading, store
from rxstore.errors import Refused, ServerUnavailable
from rxstore.feeding import worker_options
from rxstore.fleet import make_reader
from rxstore.headway import Headway
from rxstore.probing import Prober
from rxstore.progress import Board
from rxstore.settings import Settings
from rxstore.store import Log

Done = TypeVar("Done")
Say = Callable[[str], None]

# Live stands still while the other comes up to it, so it may not be further behind than this.
VERIFY_MAX_LAG = 1_000
# To bring both generations to the same offsets.
TOGETHER_ATTEMPTS = 3
# A switch waits two seconds for readers, then lets those behind it pass and tries again.
ATTEMPTS = 20
LONGEST_PAUSE_SECONDS = 1.0
LOOK_EVERY_SECONDS = 0.5
STANDS_STILL_AFTER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a generation is behind the end of its topic, or its own; and whether it has been at every end once."""

    generation: Generation
    events: int
    ready: bool
    log: Log

    def as_json(self) -> dict[str, Any]:
        """Return one object for a script."""
        return {"generation": self.generation.name, "state": self.generation.state, "lag_events": self.events}


def stage(
    settings: Settings,
    engine: Engine,
    name: str | None,
    archive: Archive | None = None,
    *,
    keep_decisions: bool = False,
    throttle: str | None = None,
    until: datetime | None = None,
    say: Say = lambda _: None,
) -> Generation:
    """Register a generation of this version, of the settings and the topic as they are now, and make its schema.

    With ``until`` it is to be the state as of that time: where each partition ends for it is found out now and kept.

    With an archive it begins where that begins and is not fed until ``load`` is done with it; one that was stopped
    while it was loading is returned again. Decisions name offsets, so they hold for the same topic, and for another
    one only with ``keep_decisions``. ``throttle`` is a number of events a second, or ``auto``.
    """
    log = store.describe_log(settings)
    live = store.live_generation(engine)
    begins = log.first_offsets if archive is None else loading.check(archive, log)
    ends = None if until is None else _ends(settings, engine, log, begins, archive, until)
    if until is not None and any(begins.values()):
        say(
            f"warning: {log.name} no longer begins at offset 0 in {sum(1 for first in begins.values() if first)} "
            "partitions: prescriptions whose beginning was taken away are not as they were"
        )
    is_same = (live.topic, live.topic_id or log.topic_id) == (log.name, log.topic_id or live.topic_id)
    if keep_decisions and live.partitions not in {None, log.partitions}:
        raise Refused(
            f"{log.name} has {log.partitions} partitions, {live.topic} had {live.partitions}: offsets are not the "
            "same, so no decision can be kept; make them again"
        )

    def step(connection: Connection) -> Generation:
        if archive is not None and (begun := rebuild.being_loaded(connection, name, until)) is not None:
            return begun if throttle is None else _throttle(connection, begun.name, throttle)
        chosen = name or rebuild.next_name(connection)
        rebuild.stage(
            connection,
            chosen,
            topic=log.name,
            topic_id=log.topic_id,
            first_offsets=begins,
            settings=store.meaning(settings),
            who=store.somebody(),
            state="building" if archive is None else "loading",
            keep_decisions=keep_decisions and not is_same,
            until=until,
            ends=ends,
        )
        if throttle is not None:
            _throttle(connection, chosen, throttle)
        return rebuild.in_state(connection, chosen, *rebuild.CANDIDATE)

    with _refusing(), rebuild.alone(engine):
        return _step(engine, step)


def _ends(
    settings: Settings,
    engine: Engine,
    log: store.Log,
    begins: Mapping[int, int],
    archive: Archive | None,
    until: datetime,
) -> dict[int, int]:
    """Return where each partition ended at a time; Refused for one that has not come or that the log has lost."""
    with engine.connect() as connection:
        now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    if until > now:
        raise Refused(f"{precisely(until)} has not come: the database's clock says {precisely(now)}")
    ends = dict(moment.ends_at(lambda: make_reader(settings.kafka()))(log.name, begins, until))
    if archive is not None:
        for number in begins:
            if (end := moment.first_later(archive.records(number), until)) is not None:
                ends[number] = end
    nothing = {number: end for number, end in sorted(ends.items()) if end.offset <= begins[number]}
    taken = {number: end for number, end in nothing.items() if begins[number] > 0}
    if not taken and len(nothing) < len(ends):
        return {number: end.offset for number, end in ends.items()}
    known = [(end.next_at, number) for number, end in (taken or nothing).items() if end.next_at is not None]
    if not known:
        raise Refused(f"{log.name} has no event from before {precisely(until)}, and none after it")
    first_at, number = max(known) if taken else min(known)
    raise Refused(
        f"{log.name} has nothing from before {precisely(until)}: the first event "
        + (f"that is left in partition {number}" if taken else "of all")
        + f" is {log.name}:{number}:{begins[number]}, of {precisely(first_at)}. Name a later time"
        + (", or an archive that begins earlier (--archive)" if taken else "")
    )


def load(settings: Settings, engine: Engine, generation: Generation, archive: Archive, workers: int) -> Generation:
    """Fold the archive into a staged generation, then let projectors feed it from the topic."""
    log = store.describe_log(settings, generation.topic)
    options = worker_options(settings, generation, log, keep_going=False)
    with _refusing(), rebuild.alone(engine):
        loading.load(engine, generation, options, archive, workers, Prober(settings, engine))
        return _step(engine, lambda connection: rebuild.loaded(connection, generation.name, who=store.somebody()))


def lag(settings: Settings, engine: Engine, name: str) -> Lag:
    """Measure how far a generation is behind now."""
    with engine.begin() as connection:
        generation = _found(connection, name)
        ready = generation.state != "building" or rebuild.note_ready(connection, generation, who=store.somebody())
        generation = _found(connection, name)
    ends = generation.ends
    if ends is None:
        log = store.describe_log(settings, generation.topic)
    else:
        log = Log(generation.topic, generation.topic_id, dict.fromkeys(ends, 0), ends)
    with engine.connect() as connection:
        reached = rebuild.offsets(connection, generation)
    events = sum(
        max(0, end - reached.get(str(number), log.first_offsets[number])) for number, end in log.end_offsets.items()
    )
    return Lag(generation, events, ready, log)


def is_built(engine: Engine, generation: Generation) -> bool:
    """Whether every partition was read to an end that it had: from then on it is ready, and can be left alone.

    Workers note that within a second or so of coming there. Whoever feeds it alone must not leave before: nobody would.
    """
    with engine.begin() as connection:
        return rebuild.note_ready(connection, generation, who=store.somebody())


def wait(settings: Settings, engine: Engine, name: str | None, *, max_lag: int, timeout: float | None, say: Say) -> Lag:
    """Wait until a generation is ready and within a lag; return where it is then, or when time is up.

    Says what keeps it when that has lasted a while. Brokers that go away meanwhile are waited for.
    """
    with _refusing(), engine.connect() as connection:
        chosen = name or rebuild.candidate(connection).name
        rebuild.in_state(connection, chosen, "building", "ready", "live", "previous")
    until = None if timeout is None else time.monotonic() + timeout
    found = lag(settings, engine, chosen)
    now = _headway(engine, found)
    causes, since = now.kinds, time.monotonic()
    told: list[str] = []
    with Board(f"build {chosen}", "events", lambda: headway.lines(now)) as board:
        while not (found.ready and found.events <= max_lag):
            if until is not None and time.monotonic() >= until:
                break
            time.sleep(LOOK_EVERY_SECONDS)
            unreachable = None
            try:
                found = lag(settings, engine, chosen)
            except (ServerUnavailable, KafkaError) as error:
                unreachable = str(error) or type(error).__name__
            with _refusing(), engine.connect() as connection:
                rebuild.in_state(connection, chosen, "building", "ready", "live", "previous")
            now = _headway(engine, found, unreachable)
            board.advance(0)
            if now.kinds != causes:
                causes, since = now.kinds, time.monotonic()
            if causes not in ([], told) and time.monotonic() - since >= STANDS_STILL_AFTER_SECONDS:
                board.clear()
                say(f"{chosen}: {now.why}")
                told = causes
    return found


def _headway(engine: Engine, found: Lag, unreachable: str | None = None) -> Headway:
    with engine.connect() as connection:
        return headway.look(connection, found.generation, found.log, unreachable)


def throttle(engine: Engine, name: str | None, wanted: str | None) -> Generation:
    """Change how fast a generation is built, while it is: events a second, ``auto``, or None for as fast as it can."""
    with _refusing():
        return _step(engine, lambda connection: _throttle(connection, name, wanted))


def _throttle(connection: Connection, name: str | None, wanted: str | None) -> Generation:
    chosen = name or rebuild.candidate(connection).name
    return building.set_throttle(connection, chosen, wanted, who=store.somebody())


def verify(
    settings: Settings, engine: Engine, name: str | None, *, another_topic: bool = False
) -> tuple[Generation, Comparison]:
    """Compare a ready generation with the live one and enter what came of it; Refused when there is no point.

    Tries again when they do not come to the same offsets at once, as when workers have just changed.
    """
    with _refusing(), rebuild.alone(engine):
        with engine.connect() as connection:
            chosen = name or rebuild.candidate(connection).name
            rebuild.can_be_live(rebuild.in_state(connection, chosen, *rebuild.CANDIDATE))
        _within(settings, engine, chosen, VERIFY_MAX_LAG)
        with engine.connect() as connection:
            live, new = generations.live(connection), rebuild.in_state(connection, chosen, "ready")
            _check_read(settings, connection, live, new, another_topic=another_topic)
        began = time.monotonic()
        # Also where the live one's own log lost events: it can then be brought to no offset any more.
        comparison = _compared(engine, live, new, same_log=not another_topic)
        details = {
            "against": live.name,
            "definitions": {live.name: live.definition, new.name: new.definition},
            "seconds": round(time.monotonic() - began, 2),
            **comparison.as_json(),
        }
        with engine.begin() as connection:
            rebuild.note(connection, new.name, "verified", who=store.somebody(), details=details)
    return new, comparison


def _compared(engine: Engine, live: Generation, new: Generation, *, same_log: bool) -> Comparison:
    if not same_log:
        snapshot = engine.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with snapshot:
            return verifying.compare(snapshot, live, new, None)
    for attempt in range(1, TOGETHER_ATTEMPTS + 1):
        try:
            with verifying.together(engine, live, new) as (snapshot, offsets):
                return verifying.compare(snapshot, live, new, offsets)
        except NotTogether as error:
            if attempt == TOGETHER_ATTEMPTS:
                raise Refused(f"{error}: see that projectors feed both ('rxstore status'), then try again") from error
            time.sleep(LOOK_EVERY_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def _check_read(
    settings: Settings, connection: Connection, live: Generation, new: Generation, *, another_topic: bool
) -> None:
    """Refuse a generation that read nothing, something else, or not all of it, whatever its rows say."""
    if _other_topic(live, new) and not another_topic:
        raise Refused(
            f"generation {new.name} is built from another topic than {live.name} ({_topic(new)}, not {_topic(live)}): "
            "give it up and stage it from the right one, or say --another-topic when it holds the same events"
        )
    log = store.describe_log(settings, new.topic)
    if (reason := store.other_log(new, log)) is not None:
        raise Refused(reason)
    rows = connection.execute(
        text(f"SELECT topic, partition_number, epoch, caught_up_at FROM {new.schema}.checkpoint"),
    ).all()
    read = {row.partition_number for row in rows if row.topic == new.topic and row.epoch and row.caught_up_at}
    if missing := sorted(set(log.end_offsets) - read):
        raise Refused(
            f"generation {new.name} has never read partition {missing[0]} of {new.topic} to its end"
            + (f", and {len(missing) - 1} others" if missing[1:] else "")
            + ": see that a projector feeds it ('rxstore status')"
        )
    if not _has_rows(connection, new) and _has_rows(connection, live):
        raise Refused(
            f"generation {new.name} holds nothing while {live.name} does: is {new.topic} the right topic, and are the "
            "events still there?"
        )


def _other_topic(live: Generation, new: Generation) -> bool:
    has_ids = live.topic_id is not None and new.topic_id is not None
    return (
        live.topic != new.topic
        or live.partitions != new.partitions
        or (has_ids and live.topic_id != new.topic_id)
        or live.settings.get("RXSTORE_PARTITIONER") != new.settings.get("RXSTORE_PARTITIONER")
    )


def _topic(generation: Generation) -> str:
    return f"{generation.topic} with {generation.partitions} partitions and id {generation.topic_id}"


def _has_rows(connection: Connection, generation: Generation) -> bool:
    schema = generation.schema
    question = f"SELECT EXISTS (SELECT FROM {schema}.prescription) OR EXISTS (SELECT FROM {schema}.set_aside)"
    return bool(connection.execute(text(question)).scalar_one())


def accept(engine: Engine, name: str | None, digest: str, *, why: str | None) -> Generation:
    """Accept exactly the differences that the last comparison found, by their digest."""
    with _refusing(), rebuild.alone(engine), engine.begin() as connection:
        chosen = name or rebuild.candidate(connection).name
        generation = rebuild.can_be_live(rebuild.in_state(connection, chosen, "ready"))
        found = rebuild.last(connection, chosen, "verified")
        if found is None or found.details["digest"] != digest:
            last = "it was never compared" if found is None else f"its last comparison has {found.details['digest']}"
            raise Refused(f"generation {chosen} has no differences with digest {digest}: {last}")
        details = {"digest": digest, "against": found.details["against"], "why": why}
        rebuild.note(connection, chosen, "accepted", who=store.somebody(), details=details)
    return generation


def _evidence(connection: Connection, live: Generation, new: Generation) -> dict[str, Any]:
    """Return what a promotion rests on; Refused without a comparison with what is live that is clean or accepted."""
    found = rebuild.last(connection, new.name, "verified")
    if found is None or found.details["against"] != live.name:
        raise Refused(f"generation {new.name} was not compared with {live.name}: 'rxstore rebuild verify' first")
    evidence = {"digest": found.details["digest"], "verified_at": found.done_at.isoformat()}
    if found.details["clean"]:
        return evidence
    accepted = rebuild.last(connection, new.name, "accepted")
    if accepted is None or accepted.details["digest"] != found.details["digest"]:
        raise Refused(
            f"generation {new.name} differs from {live.name} and nobody has accepted how: look at 'rxstore rebuild "
            f"verify', then accept it with --accept {found.details['digest']}"
        )
    return {**evidence, "accepted_by": accepted.done_by, "accepted_at": accepted.done_at.isoformat()}


def promote(
    settings: Settings,
    engine: Engine,
    name: str | None,
    *,
    max_lag: int,
    retire_at: datetime | timedelta | None = None,
) -> tuple[str, str]:
    """Make a ready generation the live one; return its name and that of the one before.

    With ``retire_at`` projectors let the one before go at that time, or so long after now.
    """
    with _refusing(), rebuild.alone(engine):
        with engine.connect() as connection:
            chosen = name or rebuild.candidate(connection).name
            rebuild.can_be_live(rebuild.in_state(connection, chosen, *rebuild.CANDIDATE))
        behind = _within(settings, engine, chosen, max_lag)
        with engine.connect() as connection:
            live, new = generations.live(connection), rebuild.in_state(connection, chosen, "ready")
            _check_read(settings, connection, live, new, another_topic=True)

        def step(connection: Connection) -> str:
            details = {"lag_events": behind.events, "max_lag": max_lag, **_evidence(connection, live, new)}
            return rebuild.promote(connection, chosen, who=store.somebody(), details=details, retire_at=retire_at)

        return chosen, _step(engine, step)


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
        chosen = name or _to_take_away(connection, rebuild.candidate, "abandoned")
        known = generations.find(connection, chosen)
        if known is not None and known.state == "abandoned":
            return known  # what an interrupted abort left
        return rebuild.give_up(connection, chosen, who=store.somebody())

    return _take_away(engine, give_up)


def retire(engine: Engine, name: str | None) -> Generation:
    """Let the previous generation go and drop its tables."""

    def let_go(connection: Connection) -> Generation:
        chosen = name or _to_take_away(connection, rebuild.previous_generation, "retired")
        known = generations.find(connection, chosen)
        if known is not None and known.state == "retired":
            return known
        return rebuild.retire(connection, chosen, who=store.somebody())

    return _take_away(engine, let_go)


def plan_retirement(engine: Engine, name: str | None, at: datetime | timedelta | None) -> Generation:
    """Let the previous generation go at a time, or so long after now, or take such a plan back with None."""

    def plan(connection: Connection) -> Generation:
        chosen = name or rebuild.previous_generation(connection).name
        return rebuild.plan_retirement(connection, chosen, at, who=store.somebody())

    with _refusing(), rebuild.alone(engine):
        return _step(engine, plan)


def report(engine: Engine, name: str) -> dict[str, Any]:
    """Return everything that is known of a generation's way, as evidence: one document."""
    with engine.connect() as connection:
        generation = _found(connection, name)
        entries = rebuild.history(connection, name)
    return {
        "generation": generation.name,
        "state": generation.state,
        "definition": generation.definition,
        "hashes": generation.hashes,
        "settings": generation.settings,
        "topic": {"name": generation.topic, "id": generation.topic_id, "partitions": generation.partitions},
        "registered_at": generation.registered_at,
        "until": generation.until,
        "ends": generation.ends and {str(number): end for number, end in generation.ends.items()},
        "retire_at": generation.retire_at,
        "history": [{"action": one.action, "at": one.done_at, "by": one.done_by, **one.details} for one in entries],
    }


def _to_take_away(connection: Connection, find: Callable[[Connection], Generation], state: str) -> str:
    """Name the generation that is found; or else one that is let go already and whose tables still stand."""
    try:
        return find(connection).name
    except WrongState:
        for generation in rebuild.left_standing(connection):
            if generation.state == state:
                return generation.name
        raise


def _take_away(engine: Engine, step: Callable[[Connection], Generation]) -> Generation:
    """Let a generation go, then drop its tables, and those that a command which was killed in between has left."""
    with _refusing(), rebuild.alone(engine):
        generation = _step(engine, step)
        for gone in _step(engine, rebuild.left_standing):
            _step(engine, partial(rebuild.drop, generation=gone))
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
