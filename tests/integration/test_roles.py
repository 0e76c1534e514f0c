"""Each role of the database may do exactly what is listed here: everything else is tried, and refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import create_engine, make_url

from projector import generations, rebuild, tables
from projector.roles import AUDIT, OPERATE, PROJECT, READER, ROLES
from tests import servers
from tests.conftest import new_database

NOBODY = "nobody"  # a login with no role at all
TABLE = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
SEQUENCE = ("SELECT", "USAGE", "UPDATE")
GENERATIONS = ("rx_g1", "rx_g2")
ROWS = ("prescription", "line_item", "issue", "dispense_notification", "cancellation", "set_aside")

VIEWS = {f"rxstore.{view}": "SELECT" for view in tables.VIEWS}
WRITES_ROWS = {f"{schema}.{table}": "SELECT INSERT UPDATE DELETE" for schema in GENERATIONS for table in ROWS}
MAY = {
    NOBODY: {},
    READER: {
        **VIEWS,
        "rxstore.alembic_version": "SELECT",
        "rxstore.audit": "INSERT",
        "rxstore.client": "SELECT",
        "rxstore.decision": "SELECT",
        "rxstore.generation": "SELECT",
    },
    AUDIT: {"rxstore.audit": "SELECT", "rxstore.audit_retired": "SELECT"},
    PROJECT: {
        **VIEWS,
        **WRITES_ROWS,
        **{f"{schema}.checkpoint": "SELECT INSERT UPDATE" for schema in GENERATIONS},
        "rxstore.alembic_version": "SELECT",
        "rxstore.decision": "SELECT UPDATE(effect_offset) UPDATE(number)",
        "rxstore.decision_number": "USAGE",
        "rxstore.generation": "SELECT UPDATE",
        "rxstore.generation_history": "SELECT INSERT",
        "rxstore.progress": "SELECT INSERT UPDATE",
    },
    OPERATE: {
        **VIEWS,
        **WRITES_ROWS,
        **{f"{schema}.checkpoint": "SELECT UPDATE" for schema in GENERATIONS},
        "rxstore.alembic_version": "SELECT",
        "rxstore.client": "SELECT INSERT UPDATE",
        "rxstore.decision": "SELECT INSERT UPDATE(revoked_at) UPDATE(revoked_by)",
        "rxstore.decision_id_seq": "SELECT UPDATE",
        "rxstore.decision_number": "SELECT UPDATE",
        "rxstore.generation": "SELECT UPDATE(retire_at) UPDATE(retire_by) UPDATE(state) UPDATE(throttle) "
        "UPDATE(throttle_p99_ms) UPDATE(throttle_rate)",
        "rxstore.generation_history": "SELECT INSERT",
        "rxstore.payload_view": "SELECT INSERT",
        "rxstore.progress": "SELECT",
    },
}

# Every relation of ours that there is, so that a table which is added cannot be forgotten here.
RELATIONS = """
SELECT c.relnamespace::regnamespace || '.' || c.relname,
       CASE WHEN c.relkind <> 'S' THEN
           (SELECT array_agg(a.attname::text ORDER BY a.attname) FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
       END
  FROM pg_class c
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
   AND (c.relnamespace IN ('rxstore'::regnamespace, 'rxstore_audit'::regnamespace)
        OR c.relnamespace::regnamespace::text LIKE 'rx\\_%')
 ORDER BY 1
"""
ON_COLUMNS = """
SELECT p || '(' || attname || ')'
  FROM unnest(%s::text[]) p, pg_attribute
 WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND has_column_privilege(%s, attrelid, attnum, p)
 ORDER BY 1
"""
REFUSED = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.ObjectNotInPrerequisiteState,  # a view that cannot be written by anybody
    psycopg.errors.WrongObjectType,  # TRUNCATE of a view
    psycopg.errors.FeatureNotSupported,  # a column of a view that is not one of a table
)


@contextmanager
def login(database_url: str, role: str) -> Iterator[str]:
    """The URL of a login that is a member of one role and of nothing else."""
    name = f"rxstore_test_{uuid.uuid4().hex[:12]}"
    made = sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'test'").format(sql.Identifier(name))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(made)
        if role != NOBODY:
            connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(name)))
        try:
            yield make_url(database_url).set(username=name, password="test").render_as_string(hide_password=False)
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture
def two_generations(migrated_database_url: str) -> str:
    """A database with a second generation, which was staged after the roles were made."""
    engine = create_engine(make_url(migrated_database_url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        rebuild.stage(
            connection, "g2", topic="events", topic_id=None, first_offsets={0: 0}, settings={}, who="the test"
        )
    engine.dispose()
    return migrated_database_url


def relations(database_url: str) -> dict[str, list[str] | None]:
    """Each table and view with its columns, each sequence with None."""
    with psycopg.connect(database_url) as connection:
        return dict(connection.execute(RELATIONS).fetchall())


def allowed(connection: psycopg.Connection, statement: str) -> bool:
    """Whether the role comes as far as doing it; nothing of it stays."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement.encode())
    except REFUSED:
        return False
    except psycopg.errors.IntegrityError:
        return True  # it was allowed to, and the row cannot be
    return True


def tried(connection: psycopg.Connection, relation: str, columns: list[str] | None) -> str:
    """Do everything to a relation, and return what was not refused."""
    if columns is None:
        statements = {
            "SELECT": f"SELECT last_value FROM {relation}",
            "USAGE": f"SELECT nextval('{relation}')",
            "UPDATE": f"SELECT setval('{relation}', 1)",
        }
        done = [name for name in SEQUENCE if allowed(connection, statements[name])]
        # Whoever may set a sequence may also draw from it.
        return " ".join(name for name in done if name != "USAGE" or "UPDATE" not in done)
    done = [
        *(["SELECT"] if allowed(connection, f"SELECT * FROM {relation} LIMIT 1") else []),
        *(["INSERT"] if allowed(connection, f"INSERT INTO {relation} DEFAULT VALUES") else []),
    ]
    updates = [column for column in columns if allowed(connection, f"UPDATE {relation} SET {column} = DEFAULT")]
    done += ["UPDATE"] if updates == columns else [f"UPDATE({column})" for column in updates]
    done += ["DELETE"] if allowed(connection, f"DELETE FROM {relation}") else []
    done += ["TRUNCATE"] if allowed(connection, f"TRUNCATE {relation}") else []
    return " ".join(done)


@pytest.mark.parametrize("role", MAY)
def test_a_role_can_do_what_is_listed_to_each_table_view_and_sequence_and_is_refused_the_rest(two_generations, role):
    there = relations(two_generations)
    with login(two_generations, role) as url, psycopg.connect(url, autocommit=True) as connection:
        found = {relation: tried(connection, relation, of) for relation, of in there.items()}
    assert {relation: done for relation, done in found.items() if done} == MAY[role]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_has_no_privilege_that_is_not_listed_not_even_on_a_column(two_generations, role):
    there = relations(two_generations)
    assert set(MAY[role]) <= set(there)
    found = {}
    with psycopg.connect(two_generations) as connection:
        for relation, columns in there.items():
            if columns is None:
                question = "SELECT p FROM unnest(%s::text[]) p WHERE has_sequence_privilege(%s, %s, p)"
                had = [row[0] for row in connection.execute(question, (list(SEQUENCE), role, relation))]
            else:
                every = [*TABLE, "REFERENCES", "TRIGGER"]
                every += ["MAINTAIN"] if connection.info.server_version >= 170000 else []
                question = "SELECT p FROM unnest(%s::text[]) p WHERE has_table_privilege(%s, %s, p)"
                had = [row[0] for row in connection.execute(question, (every, role, relation))]
                rest = [name for name in ("SELECT", "INSERT", "UPDATE", "REFERENCES") if name not in had]
                had += [row[0] for row in connection.execute(ON_COLUMNS, (rest, relation, role))]
            if had:
                found[relation] = " ".join(had)
    assert found == MAY[role]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE rxstore.mine (a int)",
        "CREATE TABLE rx_g1.mine (a int)",
        "CREATE TABLE public.mine (a int)",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        "CREATE OR REPLACE VIEW rxstore.issue AS SELECT 1",
        "CREATE FUNCTION rxstore.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER TABLE rx_g1.issue ADD COLUMN mine int",
        "ALTER TABLE rxstore.client DISABLE TRIGGER ALL",
        "ALTER VIEW rxstore.issue RENAME TO mine",
        "ALTER SCHEMA rx_g1 RENAME TO mine",
        "DROP TABLE rx_g1.issue",
        "DROP VIEW rxstore.issue",
        "DROP SCHEMA rx_g1 CASCADE",
        "COPY rxstore.generation TO PROGRAM 'true'",
        "COPY rxstore.generation FROM '/etc/passwd'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT * FROM pg_authid",
        "SET SESSION AUTHORIZATION rxstore_reader",
    ],
)
@pytest.mark.parametrize("role", ROLES)
def test_no_role_can_make_change_or_drop_anything(migrated_database_url, role, statement):
    with login(migrated_database_url, role) as url, psycopg.connect(url, autocommit=True) as connection:
        assert not allowed(connection, statement)


@pytest.mark.parametrize("role", ROLES)
def test_a_member_of_one_role_cannot_take_another(migrated_database_url, role):
    with login(migrated_database_url, role) as url, psycopg.connect(url, autocommit=True) as connection:
        taken = [other for other in ROLES if allowed(connection, f"SET LOCAL ROLE {other}")]
    assert taken == [role]


def test_no_role_can_log_in(migrated_database_url):
    with psycopg.connect(migrated_database_url) as connection:
        question = "SELECT rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls OR rolreplication"
        rows = connection.execute(f"{question} FROM pg_roles WHERE rolname = ANY(%s)", (list(ROLES),)).fetchall()
    assert rows == [(False,)] * len(ROLES)


# making them ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_server() -> Iterator[str]:
    """A server without our roles, and one login that owns databases and may make no roles."""
    with servers.own_postgres() as server:
        with psycopg.connect(server.address, autocommit=True) as connection:
            connection.execute("CREATE ROLE owner LOGIN PASSWORD 'owns'")
        yield server.address


def migrate(database_url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rxstore.cli.main", "migrate"],
        env={**os.environ, "RXSTORE_DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def owned_database(server: str) -> Iterator[str]:
    with new_database(server, template="template0") as url:
        name = str(make_url(url).database)
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO owner").format(sql.Identifier(name)))
        yield make_url(url).set(username="owner", password="owns").render_as_string(hide_password=False)


def test_an_owner_who_may_make_no_roles_is_told_the_lines_for_a_superuser_and_can_go_on_after_them(bare_server):
    with owned_database(bare_server) as url:
        done = migrate(url)
        assert done.returncode == 3
        assert "the database's user owner may not make roles" in done.stderr
        lines = re.findall(r"CREATE ROLE [a-z_]+ NOLOGIN;", done.stderr)
        assert lines == [f"CREATE ROLE {role} NOLOGIN;" for role in ROLES]
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT to_regnamespace('rxstore')").fetchone() == (None,)
        with psycopg.connect(bare_server) as connection:
            connection.execute(" ".join(lines))
        done = migrate(url)
        assert (done.returncode, done.stderr) == (0, "")
        with owned_database(bare_server) as another:
            assert migrate(another).returncode == 0
            assert migrate(another).stdout == "nothing to do: the schema is up to date\n"
            for one in (url, another):
                assert privileges(one, PROJECT, "rx_g1.issue") == "SELECT INSERT UPDATE DELETE"


def test_several_people_can_own_it_together_through_a_role_of_theirs(bare_server):
    with new_database(bare_server, template="template0") as url:
        name = str(make_url(url).database)
        with psycopg.connect(bare_server, autocommit=True) as connection:
            for role in ROLES:
                with suppress(psycopg.errors.DuplicateObject):
                    connection.execute(f"CREATE ROLE {role} NOLOGIN")
            connection.execute("CREATE ROLE owners NOLOGIN")
            connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO owners").format(sql.Identifier(name)))
            for person in ("alice", "bob"):
                connection.execute(f"CREATE ROLE {person} LOGIN PASSWORD 'knows' IN ROLE owners")
                connection.execute(f"ALTER ROLE {person} SET role = 'owners'")
        for person in ("alice", "bob"):
            done = migrate(make_url(url).set(username=person, password="knows").render_as_string(hide_password=False))
            assert done.returncode == 0, done.stderr
        with psycopg.connect(url) as connection:
            owners = connection.execute(
                "SELECT DISTINCT relowner::regrole::text FROM pg_class "
                "WHERE relnamespace IN ('rxstore'::regnamespace, 'rx_g1'::regnamespace)"
            ).fetchall()
    assert owners == [("owners",)]


def privileges(database_url: str, role: str, table: str) -> str:
    with psycopg.connect(database_url) as connection:
        question = "SELECT p FROM unnest(%s::text[]) p WHERE has_table_privilege(%s, %s, p)"
        return " ".join(row[0] for row in connection.execute(question, (list(TABLE), role, table)))


def test_an_older_database_gets_the_roles_and_their_rights_with_the_migration(two_generations):
    with psycopg.connect(two_generations) as connection:
        connection.execute("UPDATE rxstore.alembic_version SET version_num = 'c0007'")
        connection.execute("DROP TABLE rxstore.payload_view, rxstore.audit, rxstore.audit_retired")
        connection.execute("DROP SCHEMA rxstore_audit CASCADE")
        for role in (PROJECT, OPERATE):
            for schema in ("rxstore", *GENERATIONS):
                connection.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role}")
                connection.execute(f"REVOKE ALL ON SCHEMA {schema} FROM {role}")
    assert privileges(two_generations, PROJECT, "rx_g2.issue") == ""
    done = migrate(two_generations)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"control schema: c0007 -> {generations.control_head()}"
    assert privileges(two_generations, PROJECT, "rx_g2.issue") == "SELECT INSERT UPDATE DELETE"
    assert privileges(two_generations, OPERATE, "rxstore.client") == "SELECT INSERT UPDATE"


def test_rights_that_were_lost_come_back_with_the_next_migration(migrated_database_url):
    with psycopg.connect(migrated_database_url) as connection:
        connection.execute(f"REVOKE ALL ON rxstore.issue, rxstore.client FROM {READER}")
    assert migrate(migrated_database_url).returncode == 0
    assert privileges(migrated_database_url, READER, "rxstore.issue") == "SELECT"
    assert privileges(migrated_database_url, READER, "rxstore.client") == "SELECT"
