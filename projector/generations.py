"""One whole read model in a schema of its own: registered, made by Alembic, and shown through the views.

The views of schema ``rxstore`` are all that readers see; replacing them in one transaction is the whole switch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import as_file, files
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, insert, null, select, text, update

from projector import audit_months, roles, tables, views
from projector.decisions import ACTIVE
from projector.definition import DEFINITION, hashes

# Everybody who migrates takes this lock first ("rxstore" in ASCII), so that two at once do the work once.
MIGRATION_LOCK = 0x72787374_6F7265
READER_ROLE = roles.READER
GENERATION_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")


class NotMigrated(Exception):
    """The database has no rxstore schema, or an older one: run ``rxstore migrate``."""


class MadeByLaterVersion(NotMigrated):
    """The database has a schema that this code does not know: a later version migrated it."""


class SettingsDiffer(Exception):
    """A setting that changes what events mean is not the one that the generation was built with."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A registered read model. ``settings`` are those that change what events mean, as they were when it was made.

    One that is built as of a time has that in ``until``, and in ``ends`` the offset at which each partition ends for
    it: it is never live, and once it has come there nothing more is to be done for it. ``retire_at`` is when the
    previous generation is let go, if that is planned.
    """

    name: str
    state: str
    definition: str
    hashes: dict[str, str]
    settings: dict[str, Any]
    topic: str
    topic_id: str | None
    partitions: int | None
    registered_at: datetime
    throttle: str | None = None
    until: datetime | None = None
    ends: dict[int, int] | None = None
    retire_at: datetime | None = None

    @property
    def is_fed(self) -> bool:
        """Return whether projectors feed it: one that is built as of a time only until it is complete."""
        return self.state in ACTIVE and not (self.until is not None and self.state == "ready")

    @property
    def schema(self) -> str:
        """Return the schema that holds its tables."""
        return schema_of(self.name)


def schema_of(name: str) -> str:
    """Return the schema of a generation; the name is checked here, since it goes into SQL as it is."""
    if not GENERATION_NAME.fullmatch(name):
        raise ValueError("a generation's name is 1 to 31 of a-z, 0-9 and _, and begins with a letter")
    return f"rx_{name}"


def migrate(engine: Engine, *, topic: str, settings: dict[str, Any]) -> list[str]:
    """Create or upgrade the control schema and, on a new database, the first generation. Return what was done.

    Also makes the roles that are missing, and gives each its rights; RolesMissing when this login may make none.
    """
    done: list[str] = []
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        roles.make(connection)
        before = _control_revision(connection)
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {tables.CONTROL_SCHEMA}"))
        upgrade(connection, "control", tables.CONTROL_SCHEMA)
        after = _control_revision(connection)
        if before != after:
            done.append(f"control schema: {before or 'nothing'} -> {after}")
        made = audit_months.make_ahead(connection, datetime.now(UTC))
        if made:
            done.append(f"audit: months {made[0]:%Y-%m} to {made[-1]:%Y-%m}")
        shown = connection.execute(select(tables.generation).where(tables.generation.c.state == "live")).first()
        if shown is None and connection.execute(select(tables.generation.c.name).limit(1)).first() is None:
            register(connection, "g1", state="live", topic=topic, settings=settings)
            build(connection, "g1")
            show(connection, "g1")
            done.append(f"generation g1: definition {DEFINITION}, live")
        elif shown is not None and _has_older_views(shown.hashes):
            show(connection, shown.name)
            done.append(f"views: as this version shows generation {shown.name}")
        roles.grant(connection)
    return done


def _has_older_views(live: dict[str, str]) -> bool:
    """With other tables than this version's, the views stay as the version that made the generation shows them."""
    ours = hashes()
    return live["views"] != ours["views"] and live["tables"] == ours["tables"]


def upgrade(connection: Connection, branch: str, schema: str) -> None:
    """Run one branch of the migrations in one schema, on this connection and in its transaction."""
    with as_file(files("projector") / "migrations") as directory:
        config = _config(str(directory))
        config.attributes["connection"] = connection
        config.attributes["schema"] = schema
        command.upgrade(config, f"{branch}@head")


def control_head() -> str:
    """Return the revision that this code expects of the control schema."""
    with as_file(files("projector") / "migrations") as directory:
        head = ScriptDirectory.from_config(_config(str(directory))).get_revision("control@head")
    return str(head.revision)


def _knows(revision: str) -> bool:
    with as_file(files("projector") / "migrations") as directory:
        try:
            return ScriptDirectory.from_config(_config(str(directory))).get_revision(revision) is not None
        except CommandError:
            return False


def _config(directory: str) -> Config:
    config = Config()
    config.set_main_option("script_location", directory)
    config.set_main_option("path_separator", "os")
    config.set_main_option("version_locations", f"{directory}/versions/control:{directory}/versions/read_model")
    return config


def _control_revision(connection: Connection) -> str | None:
    context = MigrationContext.configure(connection, opts={"version_table_schema": tables.CONTROL_SCHEMA})
    return context.get_current_revision()


def register(
    connection: Connection,
    name: str,
    *,
    state: str,
    topic: str,
    settings: dict[str, Any],
    topic_id: str | None = None,
    partitions: int | None = None,
    until: datetime | None = None,
    ends: Mapping[int, int] | None = None,
) -> None:
    """Enter a generation of this code's definition; what the topic is can be remembered later."""
    schema_of(name)
    connection.execute(
        insert(tables.generation).values(
            name=name,
            state=state,
            definition=DEFINITION,
            hashes=hashes(),
            settings=settings,
            topic=topic,
            topic_id=topic_id,
            partitions=partitions,
            views=tables.VIEWS,
            until=until,
            ends=null() if ends is None else {str(number): end for number, end in sorted(ends.items())},
        )
    )


def build(connection: Connection, name: str) -> None:
    """Make the schema and tables of a generation, with the rights of the roles that write there."""
    schema = schema_of(name)
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
    upgrade(connection, "read_model", schema)
    roles.grant_generation(connection, schema)


def show(connection: Connection, name: str) -> None:
    """Point every view at a generation, in the one order of views that all transactions keep.

    A generation with this version's tables is shown as this version does it, another one as the version that made it.
    """
    row = connection.execute(select(tables.generation).where(tables.generation.c.name == name)).one()
    queries = tables.VIEWS if row.hashes["tables"] == hashes()["tables"] or not row.views else row.views
    if queries is tables.VIEWS:
        connection.execute(
            update(tables.generation)
            .where(tables.generation.c.name == name)
            .values(
                hashes=tables.generation.c.hashes.concat({"views": hashes()["views"]}),
                views=tables.VIEWS,
            )
        )
    connection.execute(text("SET LOCAL lock_timeout = '2s'"))
    views.replace(connection, queries, schema_of(name))


def live(connection: Connection) -> Generation:
    """Return the live generation; NotMigrated when the schema is not what this code expects."""
    revision = _control_revision(connection)
    expected = control_head()
    if revision != expected:
        if revision is not None and not _knows(revision):
            raise MadeByLaterVersion(
                f"the database has schema revision {revision}, which a later version made: run that version here"
            )
        found = "no rxstore schema" if revision is None else f"schema revision {revision}"
        raise NotMigrated(f"the database has {found}, this version needs {expected}: run 'rxstore migrate'")
    row = connection.execute(select(tables.generation).where(tables.generation.c.state == "live")).first()
    if row is None:
        raise NotMigrated("no generation is live: run 'rxstore migrate'")
    return _loaded(row._mapping)


def find(connection: Connection, name: str) -> Generation | None:
    """Return the generation with this name; None when none ever had it."""
    row = connection.execute(select(tables.generation).where(tables.generation.c.name == name)).first()
    return None if row is None else _loaded(row._mapping)


def every(connection: Connection) -> list[Generation]:
    """Return all registered generations, oldest first."""
    rows = connection.execute(select(tables.generation).order_by(tables.generation.c.registered_at))
    return [_loaded(row._mapping) for row in rows]


def remember_topic(connection: Connection, name: str, *, topic_id: str | None, partitions: int) -> None:
    """Enter what the topic was when the generation first read it."""
    connection.execute(
        update(tables.generation)
        .where(tables.generation.c.name == name, tables.generation.c.partitions.is_(None))
        .values(topic_id=topic_id, partitions=partitions)
    )


def check_settings(generation: Generation, settings: dict[str, Any]) -> None:
    """Refuse to fold with settings that mean something else than the rows that are there."""
    for name, value in settings.items():
        built = generation.settings.get(name, value)
        if built != value:
            raise SettingsDiffer(
                f"{name} is {value}, but generation {generation.name} was built with {built}: "
                "set it back, or build a new generation"
            )


def _loaded(row: Any) -> Generation:  # noqa: ANN401 - a row's mapping
    return Generation(
        name=row["name"],
        state=row["state"],
        definition=row["definition"],
        hashes=dict(row["hashes"]),
        settings=dict(row["settings"]),
        topic=row["topic"],
        topic_id=row["topic_id"],
        partitions=row["partitions"],
        registered_at=row["registered_at"],
        throttle=row["throttle"],
        until=row["until"],
        ends=None if row["ends"] is None else {int(number): end for number, end in row["ends"].items()},
        retire_at=row["retire_at"],
    )
