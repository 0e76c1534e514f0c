"""The migrated database is the declared one, made once however often and by however many it is asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine, make_url

from projector import generations, tables
from projector.definition import DEFINITION, hashes

SETTINGS = {"check_character": "strict"}


@pytest.fixture
def engine(database_url):
    url = make_url(database_url).set(drivername="postgresql+psycopg")
    engine = create_engine(url)
    yield engine
    engine.dispose()


def migrate(engine: Engine) -> list[str]:
    return generations.migrate(engine, topic="events", settings=SETTINGS)


def test_migrations_build_exactly_the_declared_tables_of_a_read_model(engine):
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL search_path = rx_g1"))
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "version_table_schema": "rx_g1",
                "include_name": lambda name, kind, _: kind != "table" or name != "alembic_version",
            },
        )
        assert compare_metadata(context, tables.READ_MODEL) == []


def test_migrations_build_exactly_the_declared_control_tables(engine):
    migrate(engine)
    with engine.begin() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "include_schemas": True,
                "include_name": lambda name, kind, _: (
                    name == "rxstore" if kind == "schema" else kind != "table" or name != "alembic_version"
                ),
            },
        )
        assert compare_metadata(context, tables.CONTROL) == []


def test_migrating_twice_does_nothing_the_second_time(engine):
    assert migrate(engine) != []
    assert migrate(engine) == []


def test_two_who_migrate_at_once_do_the_work_once(engine):
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: migrate(engine), range(2)))
    assert sorted(map(bool, done)) == [False, True]


def test_a_new_database_has_one_live_generation_of_this_definition(engine):
    migrate(engine)
    with engine.begin() as connection:
        generation = generations.live(connection)
        stored = connection.execute(text("SELECT hashes FROM rxstore.generation")).scalar()
    assert (generation.name, generation.definition, generation.settings) == ("g1", DEFINITION, SETTINGS)
    assert stored == hashes()


def test_an_empty_database_is_reported_as_not_migrated(engine):
    with engine.begin() as connection, pytest.raises(generations.NotMigrated, match="rxstore migrate"):
        generations.live(connection)


def test_an_older_control_schema_is_reported_as_not_migrated(engine):
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE rxstore.alembic_version SET version_num = 'c0000'"))
        with pytest.raises(generations.NotMigrated, match="c0000"):
            generations.live(connection)


def test_a_setting_that_changes_meaning_is_refused_on_a_generation_built_with_another(engine):
    migrate(engine)
    with engine.begin() as connection:
        generation = generations.live(connection)
    with pytest.raises(generations.SettingsDiffer, match="check_character"):
        generations.check_settings(generation, {"check_character": "lenient"})
    generations.check_settings(generation, SETTINGS)


def columns_of(engine: Engine, view: str) -> list[str]:
    with engine.begin() as connection:
        rows = connection.execute(
            text(
                "SELECT column_name FROM information_schema.columns "
                "WHERE table_schema = 'rxstore' AND table_name = :view ORDER BY ordinal_position"
            ),
            {"view": view},
        )
        return [row[0] for row in rows]


# What reports are written against: columns may be added, never renamed (docs/architecture.md, "Views").
PROMISED = {
    "prescription": "stream_key prescription_id release nhs_number treatment_type prescription_type prescribed_at "
    "signed_at days_supply issues_authorised current_issue version last_event_at pending_cancellations blocked "
    "prescriber_ods prescriber_name prescriber_telecom prescriber_address nominated_ods nominated_name "
    "nominated_telecom nominated_address",
    "issue": "stream_key issue_number status version item_statuses released_at last_dispensed_at completed_at "
    "claimed_at nominated_download_date dispenser_ods dispenser_name dispenser_telecom dispenser_address",
    "line_item": "stream_key item_number item_id description code quantity unit dosage issues_authorised",
    "issue_line_item": "stream_key issue_number item_number status item_id description code quantity unit dosage "
    "issues_authorised",
    "dispense_notification": "stream_key issue_number notification_id dispensed_at status item_statuses "
    "dispenser_ods amends withdrawn",
    "cancellation": "stream_key cancellation_id target item_id state reason_code reason_text organisation_ods "
    "first_issue requested_at",
    "set_aside": "topic partition_number record_offset stream_key state reason waiting_for errors since",
}


@pytest.mark.parametrize("view", PROMISED)
def test_a_view_has_the_promised_columns(engine, view):
    migrate(engine)
    assert set(PROMISED[view].split()) <= set(columns_of(engine, view))


def as_reader(database_url: str, statement: str) -> None:
    with psycopg.connect(database_url, options="-c role=rxstore_reader") as connection:
        connection.execute(statement)


@pytest.mark.parametrize("view", tables.VIEWS)
def test_the_reader_role_reads_every_view(engine, database_url, view):
    migrate(engine)
    as_reader(database_url, f"SELECT * FROM rxstore.{view}")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM rx_g1.prescription",
        "SELECT record_value FROM rx_g1.set_aside",
        "INSERT INTO rxstore.line_item (stream_key) VALUES ('x')",
        "UPDATE rxstore.generation SET state = 'failed'",
        "DELETE FROM rxstore.checkpoint",
        "CREATE TABLE rxstore.mine (a int)",
    ],
)
def test_the_reader_role_can_do_nothing_else(engine, database_url, statement):
    migrate(engine)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_reader(database_url, statement)
