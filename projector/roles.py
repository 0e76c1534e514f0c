"""The database's group roles, and exactly what each may: ``rxstore migrate`` makes them and gives them their rights.

None of them can log in: an operator makes logins and grants them a role. The login that migrates owns everything.
Roles belong to the whole server, rights to a database, so all of this is done again in each, and by every migration:
a database that was restored on another server then has its roles and rights too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import Connection, text

from projector import tables

READER = "rxstore_reader"
PROJECT = "rxstore_project"
OPERATE = "rxstore_operate"
AUDIT = "rxstore_audit"
ROLES = (READER, PROJECT, OPERATE, AUDIT)

# Another database of the server may be making the same one at this moment.
CREATE = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = '{role}') THEN
        CREATE ROLE {role} NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END $$
"""


class RolesMissing(Exception):
    """Roles are not there, and the login that migrates may not make them: the message has the lines that do."""


class Rights(NamedTuple):
    """What a role may do with a table: privileges on all of it, and columns that it may update."""

    privileges: str
    columns: tuple[str, ...] = ()


READ = Rights("SELECT")

# Of the control schema. Readers have the views besides, which are granted where they are replaced.
CONTROL: Mapping[str, Mapping[str, Rights]] = {
    READER: {
        "alembic_version": READ,
        # Written and never read, changed or removed.
        "audit": Rights("INSERT"),
        "client": READ,
        "decision": READ,
        "generation": READ,
    },
    AUDIT: {"audit": READ, "audit_retired": READ},
    PROJECT: {
        "alembic_version": READ,
        # Give numbers and effect offsets.
        "decision": Rights("SELECT", ("effect_offset", "number")),
        # All of it, since who locks the register as a worker does must be able to update it.
        "generation": Rights("SELECT, UPDATE"),
        "generation_history": Rights("SELECT, INSERT"),
        "progress": Rights("SELECT, INSERT, UPDATE"),
    },
    OPERATE: {
        "alembic_version": READ,
        "client": Rights("SELECT, INSERT, UPDATE"),
        # Decide, and undo.
        "decision": Rights("SELECT, INSERT", ("revoked_at", "revoked_by")),
        # Note that one is ready, throttle a build, plan a retirement.
        "generation": Rights(
            "SELECT", ("retire_at", "retire_by", "state", "throttle", "throttle_p99_ms", "throttle_rate")
        ),
        "generation_history": Rights("SELECT, INSERT"),
        # Looks at payloads, and leaves a note of it first.
        "payload_view": Rights("SELECT, INSERT"),
        "progress": READ,
    },
}
SEQUENCES: Mapping[str, Mapping[str, str]] = {
    PROJECT: {"decision_number": "USAGE"},
    OPERATE: {"decision_number": "SELECT, UPDATE", "decision_id_seq": "SELECT, UPDATE"},  # an import sets both
}
# Who looks through the audit trail sees no patient elsewhere.
READERS_OF_VIEWS = (READER, PROJECT, OPERATE)
# Of a generation. An operator folds prescriptions again, which writes what a worker writes, but never a checkpoint.
CHECKPOINT: Mapping[str, str] = {PROJECT: "SELECT, INSERT, UPDATE", OPERATE: "SELECT, UPDATE"}
ROWS = "SELECT, INSERT, UPDATE, DELETE"
WRITERS = (PROJECT, OPERATE)


def make(connection: Connection) -> None:
    """Make the roles that are not there; RolesMissing when this login may not."""
    there = set(
        connection.execute(text("SELECT rolname FROM pg_roles WHERE rolname = ANY(:roles)"), {"roles": list(ROLES)})
        .scalars()
        .all()
    )
    missing = [role for role in ROLES if role not in there]
    if not missing:
        return
    row = connection.execute(
        text("SELECT rolname, rolsuper OR rolcreaterole AS may FROM pg_roles WHERE rolname = current_user")
    ).one()
    if not row.may:
        lines = " ".join(f"CREATE ROLE {role} NOLOGIN;" for role in missing)
        raise RolesMissing(
            f"the database's user {row.rolname} may not make roles, and these are missing; have a superuser run: "
            f"{lines} Then run 'rxstore migrate' again; nothing was changed"
        )
    for role in missing:
        connection.exec_driver_sql(CREATE.format(role=role))


def grant(connection: Connection) -> None:
    """Give each role its rights on the control schema, the views and every generation that stands; for their owner."""
    schema = tables.CONTROL_SCHEMA
    for role in ROLES:
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        for table, rights in CONTROL[role].items():
            connection.exec_driver_sql(f"GRANT {rights.privileges} ON {schema}.{table} TO {role}")
            if rights.columns:
                columns = ", ".join(rights.columns)
                connection.exec_driver_sql(f"GRANT UPDATE ({columns}) ON {schema}.{table} TO {role}")
        for sequence, privileges in SEQUENCES.get(role, {}).items():
            connection.exec_driver_sql(f"GRANT {privileges} ON SEQUENCE {schema}.{sequence} TO {role}")
    for view in set(tables.VIEWS).intersection(_relations(connection, schema, "v")):
        grant_view(connection, view)
    standing = connection.execute(
        text("SELECT n.nspname FROM pg_namespace n JOIN rxstore.generation g ON n.nspname = 'rx_' || g.name ORDER BY 1")
    )
    for generation in standing.scalars().all():
        grant_generation(connection, generation)


def grant_view(connection: Connection, view: str) -> None:
    """Let every role but the auditors' read a view of the control schema."""
    readers = ", ".join(READERS_OF_VIEWS)
    connection.exec_driver_sql(f"GRANT SELECT ON {tables.CONTROL_SCHEMA}.{view} TO {readers}")


def grant_generation(connection: Connection, schema: str) -> None:
    """Give the roles that write their rights on the tables of a generation, whichever version made it."""
    for role in WRITERS:
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        for table in _relations(connection, schema, "r"):
            if table != "alembic_version":
                privileges = CHECKPOINT[role] if table == "checkpoint" else ROWS
                connection.exec_driver_sql(f"GRANT {privileges} ON {schema}.{table} TO {role}")


def _relations(connection: Connection, schema: str, kind: str) -> list[str]:
    found = connection.execute(
        text(
            "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(:schema) AND relkind = :kind ORDER BY 1"
        ),
        {"schema": schema, "kind": kind},
    )
    return [str(name) for name in found.scalars()]
