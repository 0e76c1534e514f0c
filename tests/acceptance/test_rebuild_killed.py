"""A rebuild command that is killed has not begun or is complete, whichever statement it was at; live is untouched.

Each command runs once undisturbed, through a proxy that notes what it says to PostgreSQL. Then, each time on a copy of
the database as it was before, it is killed with all its processes at one of these statements: before the server has it,
or after the server has carried it out and before the command hears of it. The seed chooses the statements.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from kafka import KafkaAdminClient
from psycopg import sql
from sqlalchemy import make_url

from rxstore.embedded import LOOPBACK
from rxstore.generator import lifecycles, records
from rxstore.selftest.proxy import Loop, database_wire
from rxstore.selftest.scratch import database_server
from tests.acceptance.conftest import System, eventually, installed, publish_records
from tests.conftest import PARTITIONS, new_database
from tests.integration.projecting import rows

pytestmark = pytest.mark.timeout(400)

SEED = 1
PRESCRIPTIONS = 250
DIRTY_RATE = 0.1
AT_ONCE = 4
REFUSED = 4

STAGE = ("rebuild", "stage", "--workers", "1")
WAIT = ("rebuild", "wait", "--max-lag", "0", "--timeout", "60")
VERIFY = ("rebuild", "verify")
PROMOTE = ("rebuild", "promote")
ROLLBACK = ("rebuild", "rollback")
ABORT = ("rebuild", "abort")
RETIRE = ("rebuild", "retire")
# Beside the two sides of its last commit, so many statements of each command are drawn.
DRAWN = {STAGE: 3, WAIT: 1, VERIFY: 2, PROMOTE: 3, ROLLBACK: 2, ABORT: 1, RETIRE: 1}
# What only the worker of 'stage' says, with what it said before: how far the build is depends on no clock.
BUILDING = (
    (("UPDATE checkpoint.next_offset",), True),
    (("COPY prescription done",), True),
    (("COPY prescription done", "COMMIT"), True),
    (("COPY prescription done", "COMMIT"), False),
)


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a command is killed: at the last of these statements, the ``nth`` time; before or after it is done."""

    command: tuple[str, ...]
    path: tuple[str, ...]
    nth: int
    before: bool

    def __str__(self) -> str:
        return f"{' '.join(self.command)}: {'before' if self.before else 'after'} {self.path[-1]} (no. {self.nth})"


@dataclass(slots=True)
class Listener:
    """Hears every statement of a command, and kills it with all its processes at the moment, if there is one."""

    moment: Moment | None = None
    group: int | None = None
    said: list[str] = field(default_factory=list)
    has_killed: bool = False
    _path: list[str] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        self._path = list(self.moment.path) if self.moment else []

    @property
    def before(self) -> bool:
        return self.moment is not None and self.moment.before

    @property
    def withholds(self) -> bool:
        return True

    def take(self, worker: int, statement: str) -> Listener | None:
        statement = statement.rpartition(": ")[2]  # in front are a worker's transactions
        self.said.append(statement)
        if self.moment is None or not self._path or statement != self._path[0]:
            return None
        if len(self._path) == 1:
            self._count += 1
            if self._count < self.moment.nth:
                return None
        self._path.pop(0)
        return None if self._path else self

    async def happen(self) -> bool:
        while self.group is None:
            await asyncio.sleep(0.01)
        os.killpg(self.group, signal.SIGKILL)
        self.has_killed = True
        return False


@dataclass(frozen=True, slots=True)
class Picture:
    """What an operator finds: the generations' states, what the views show, whose tables there are, and the history."""

    states: dict[str, str]
    shown: set[str]
    schemas: set[str]
    history: list[tuple[str, str]]

    @property
    def without_history(self) -> Picture:
        return replace(self, history=[])


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """A command that ran to its end: the database from before, both pictures, and everything it said."""

    template: str
    before: Picture
    after: Picture
    said: list[str]


@dataclass(frozen=True, slots=True)
class End:
    """How one moment ended. ``again`` is the exit code of the same command, given once more."""

    moment: Moment
    was_killed: bool
    live_is_untouched: bool
    found: Picture
    allowed: list[Picture]
    again: int
    finally_: Picture
    wanted: Picture
    rebuilt_differs: str | None


@dataclass(slots=True)
class Site:
    """Where it happens: one topic, and a database for each moment."""

    server: str
    broker: str
    topic: str
    directory: Path
    loop: Loop
    stack: ExitStack

    def copied(self, template: str) -> System:
        """An installation with a copy of a database, and with consumer groups of its own."""
        url = self.stack.enter_context(new_database(self.server, template))
        system = installed(url, self.broker, self.topic, self.directory)
        system.environment |= {
            "RXSTORE_GROUP_ID": f"group-{uuid.uuid4().hex}",
            "RXSTORE_SESSION_TIMEOUT_MS": "3000",
            "RXSTORE_BATCH_RECORDS": "60",
            # Batch by batch, so that the statements are the same ones every time; the self-test kills builds in memory.
            "RXSTORE_BUILD_MEMORY_MB": "0",
        }
        return system

    def run(self, system: System, command: tuple[str, ...], listener: Listener) -> int:
        """Run a command through the proxy to its end, whichever that is; return its exit code."""
        url = system.environment["RXSTORE_DATABASE_URL"]
        wire = self.loop.run(database_wire(0, database_server(url), listener))
        through = (
            make_url(url)
            .set(host=LOOPBACK, port=wire.port)
            .update_query_dict({"sslmode": "disable", "gssencmode": "disable"})
        )
        try:
            process = subprocess.Popen(
                system._command(command),
                env={**system._environment(), "RXSTORE_DATABASE_URL": through.render_as_string(hide_password=False)},
                cwd=self.directory,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            listener.group = process.pid
            _, complaint = process.communicate(timeout=90)
        finally:
            self.loop.call(wire.close)
        assert process.returncode in {0, -signal.SIGKILL}, complaint.decode()
        return process.returncode


def url_of(system: System) -> str:
    return system.environment["RXSTORE_DATABASE_URL"]


def picture(system: System) -> Picture:
    views = system.query(
        "SELECT pg_get_viewdef(c.oid) FROM pg_class c WHERE relnamespace = 'rxstore'::regnamespace AND relkind = 'v'"
    )
    return Picture(
        states=dict(system.query("SELECT name, state FROM rxstore.generation")),
        shown={schema for (view,) in views for schema in re.findall(r"\brx_[a-z0-9_]+(?=\.)", view)},
        schemas={name for (name,) in system.query("SELECT nspname FROM pg_namespace WHERE nspname ~ '^rx_'")},
        history=system.query("SELECT generation, action FROM rxstore.generation_history ORDER BY id"),
    )


def live_of(found: Picture) -> str:
    (name,) = [name for name, state in found.states.items() if state == "live"]
    return name


def everything(system: System, schema: str) -> dict[str, list[str]]:
    """Every row of a generation's tables as text. A hold of ``verify`` ends by itself, so it is left out."""
    tables = system.query(
        "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r'", schema
    )
    with psycopg.connect(url_of(system)) as connection:
        return {
            name: [
                row[0]
                for row in connection.execute(
                    sql.SQL(
                        "SELECT (to_jsonb(t) - '{{hold_at,hold_until}}'::text[])::text FROM {} t ORDER BY 1"
                    ).format(sql.Identifier(schema, name))
                )
            ]
            for (name,) in tables
        }


def nobody_is_left(system: System) -> None:
    """Wait until the server has noticed that the command is gone: its sessions end, and with them their locks."""
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    eventually(lambda: system.query(f"SELECT count(*) {others} AND backend_type = 'client backend'") == [(0,)], 15)


# the commands, undisturbed --------------------------------------------------------------------------------------------


def publish(broker: str, topic: str) -> None:
    lives = lifecycles(PRESCRIPTIONS, SEED, date(2026, 1, 5), 28)
    publish_records(broker, topic, records(lives, dirty_rate=DIRTY_RATE, seed=SEED))


def undisturbed(site: Site, before: System, command: tuple[str, ...]) -> tuple[Undisturbed, System]:
    """Run a command on a copy of an installation; return what it did, and the copy."""
    template = str(make_url(url_of(before)).database)
    after = site.copied(template)
    first, listener = picture(after), Listener()
    assert site.run(after, command, listener) == 0
    nobody_is_left(after)
    return Undisturbed(template, first, picture(after), listener.said), after


def way_through(site: Site, live: System) -> dict[tuple[str, ...], Undisturbed]:
    """Run every command once, each where the one before it ended."""
    done: dict[tuple[str, ...], Undisturbed] = {}
    done[STAGE], ready = undisturbed(site, live, STAGE)
    building = site.copied(str(make_url(url_of(ready)).database))
    building.execute("UPDATE rxstore.generation SET state = 'building' WHERE name = 'g2'")
    building.execute("DELETE FROM rxstore.generation_history WHERE action = 'ready'")
    done[WAIT], _ = undisturbed(site, building, WAIT)
    done[VERIFY], verified = undisturbed(site, ready, VERIFY)
    done[ABORT], _ = undisturbed(site, verified, ABORT)
    done[PROMOTE], promoted = undisturbed(site, verified, PROMOTE)
    done[ROLLBACK], _ = undisturbed(site, promoted, ROLLBACK)
    done[RETIRE], _ = undisturbed(site, promoted, RETIRE)
    return done


# the moments ----------------------------------------------------------------------------------------------------------


def moments(done: dict[tuple[str, ...], Undisturbed]) -> list[Moment]:
    """Both sides of each command's last commit, further statements that the seed draws, and those of a build."""
    random = Random(f"rebuild killed {SEED}")
    chosen: list[Moment] = []
    for command, one in done.items():
        said = staging(one.said) if command == STAGE else one.said
        last = max(at for at, statement in enumerate(said) if statement == "COMMIT")
        places = [(last, True), (last, False)]
        if command in {ABORT, RETIRE}:
            places.append((said.index("COMMIT"), True))  # nothing is let go yet
            places.append((said.index("DROP"), True))  # it is, and its tables are still there
        others = {statement: at for at, statement in enumerate(said) if statement != "COMMIT"}
        drawn = random.sample(sorted(others), DRAWN[command])
        places += [(others[statement], random.random() < 0.5) for statement in drawn]
        for at, before in places:
            nth = said[: at + 1].count(said[at])
            chosen.append(Moment(command, (said[at],), nth, before))
    chosen += [Moment(STAGE, path, random.choice([1, 2, 3]), before) for path, before in BUILDING]
    return chosen


def staging(said: list[str]) -> list[str]:
    """What ``stage`` says until the generation is registered; then its worker begins, and both speak at once."""
    return said[: said.index("COMMIT", said.index("LOCK generation")) + 1]


def allowed(moment: Moment, one: Undisturbed) -> list[Picture]:
    """As if it had not begun, complete, or what the next command goes on with."""
    may_be = [one.before, one.after]
    if moment.command == STAGE:
        staged = [entry for entry in one.after.history if entry[1] != "ready"]
        may_be.append(replace(one.after, states={**one.after.states, "g2": "building"}, history=staged))
    if moment.command in {ABORT, RETIRE}:
        may_be.append(replace(one.after, schemas=one.before.schemas))
    return may_be


def killed_at(site: Site, moment: Moment, one: Undisturbed) -> End:
    """Kill the command there, look, and give it again."""
    system = site.copied(one.template)
    schema = f"rx_{live_of(one.before)}"
    rows_before, listener = everything(system, schema), Listener(moment)
    code = site.run(system, moment.command, listener)
    nobody_is_left(system)
    found = picture(system)
    is_untouched = everything(system, schema) == rows_before
    wanted = one.after.without_history
    differs = None
    again = system.run(*moment.command).returncode
    if moment.command == STAGE:
        if found != one.before and again == REFUSED:
            wanted = finish(system, moment, wanted)
        (new,) = [name for name, state in picture(system).states.items() if state == "ready"]
        if rows(url_of(system), f"rx_{new}") != rows(url_of(system), schema):
            differs = f"{new} is not as {schema} after {moment}"
    return End(
        moment,
        was_killed=listener.has_killed and code == -signal.SIGKILL,
        live_is_untouched=is_untouched,
        found=found,
        allowed=allowed(moment, one),
        again=again,
        finally_=picture(system).without_history,
        wanted=wanted,
        rebuilt_differs=differs,
    )


def finish(system: System, moment: Moment, wanted: Picture) -> Picture:
    """Build on what was staged; or, where nothing had been built yet, give it up and stage another one."""
    if moment.path == ("COMMIT",):
        system.do(*ABORT)
        system.do(*STAGE)
        return replace(wanted, states={"g1": "live", "g2": "abandoned", "g3": "ready"}, schemas={"rx_g1", "rx_g3"})
    system.project()
    system.do(*WAIT)
    return wanted


@pytest.fixture(scope="module")
def ends(
    postgres_url: str, migrated_template: str, broker: str, admin: KafkaAdminClient, tmp_path_factory: Any
) -> Iterator[Sequence[End]]:
    """Every moment, on a topic with dirty records and a live generation that was projected from it."""
    topic = f"rxstore-test-{uuid.uuid4().hex}"
    admin.create_topics({topic: {"num_partitions": PARTITIONS, "replication_factor": 1}}, wait_for_metadata=True)
    publish(broker, topic)
    with ExitStack() as stack:
        loop = Loop()
        stack.callback(loop.close)
        site = Site(postgres_url, broker, topic, tmp_path_factory.mktemp("killed"), loop, stack)
        live = site.copied(migrated_template)
        live.project()
        done = way_through(site, live)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield list(pool.map(lambda moment: killed_at(site, moment, done[moment.command]), moments(done)))


def test_every_command_is_killed_at_twenty_and_more_different_statements_on_both_sides(ends):
    assert [str(end.moment) for end in ends if not end.was_killed] == []
    assert len({(end.moment.command, end.moment.path, end.moment.nth) for end in ends}) >= 20
    sides = Counter(end.moment.before for end in ends)
    assert min(sides.values()) >= 8


def test_the_live_rows_are_untouched_and_the_views_show_one_whole_generation(ends):
    assert [str(end.moment) for end in ends if not end.live_is_untouched] == []
    assert [str(end.moment) for end in ends if end.found.shown != {f"rx_{live_of(end.found)}"}] == []


def test_it_ends_as_if_it_had_not_begun_or_complete_or_where_the_next_command_goes_on(ends):
    assert [(str(end.moment), end.found) for end in ends if end.found not in end.allowed] == []


def test_both_are_seen_of_each_command(ends):
    for command in DRAWN:
        found = [end for end in ends if end.moment.command == command]
        assert any(end.found == end.allowed[0] for end in found), command
        assert any(end.found != end.allowed[0] for end in found), command


def test_the_same_command_again_ends_well_or_says_that_it_is_done_and_nothing_is_left_behind(ends):
    begun = [end for end in ends if end.found == end.allowed[0]]
    assert [(str(end.moment), end.again) for end in begun if end.again != 0] == []
    assert [(str(end.moment), end.again) for end in ends if end.again not in {0, REFUSED}] == []
    assert [(str(end.moment), end.finally_) for end in ends if end.finally_ != end.wanted] == []


def test_what_is_rebuilt_in_the_end_is_as_live_row_by_row(ends):
    assert [end.rebuilt_differs for end in ends if end.rebuilt_differs] == []
    assert sum(end.moment.command == STAGE for end in ends) >= 8
