"""A view never loses a column, whichever version's generation it shows: reports and the way back depend on it."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine, make_url

from projector import generations, tables


@pytest.fixture
def engine(migrated_database_url):
    made = create_engine(make_url(migrated_database_url).set(drivername="postgresql+psycopg"))
    yield made
    made.dispose()


def of_another_version(engine: Engine, **views: str) -> None:
    """Make g1 the work of a version that had other tables, and these views among ours."""
    with engine.begin() as connection:
        connection.execute(
            text('UPDATE rxstore.generation SET hashes = hashes || \'{"tables": "other"}\', views = :views'),
            {"views": json.dumps({**tables.VIEWS, **views})},
        )


def show(engine: Engine, name: str) -> None:
    with engine.begin() as connection:
        generations.show(connection, name)


def columns(engine: Engine, view: str) -> list[tuple[str, str]]:
    with engine.connect() as connection:
        found = connection.execute(
            text(
                "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
                "WHERE attrelid = to_regclass(:view) AND attnum > 0 ORDER BY attnum"
            ),
            {"view": f"rxstore.{view}"},
        )
        return [(row[0], row[1]) for row in found]


def test_a_column_that_a_generation_does_not_have_stays_as_a_null_of_its_type(engine):
    before = columns(engine, "checkpoint")
    of_another_version(engine, checkpoint="SELECT topic, next_offset FROM {schema}.checkpoint")
    show(engine, "g1")
    assert columns(engine, "checkpoint") == before
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO rx_g1.checkpoint (topic, partition_number, next_offset, epoch) VALUES ('t', 3, 4, 5)")
        )
        row = connection.execute(text("SELECT topic, partition_number, next_offset FROM rxstore.checkpoint")).one()
    assert tuple(row) == ("t", None, 4)


def test_a_column_that_only_a_later_version_has_comes_last_and_is_null_after_the_way_back(engine):
    before = columns(engine, "checkpoint")
    of_another_version(engine, checkpoint=f"SELECT 7 AS seven, c.* FROM ({tables.VIEWS['checkpoint']}) c")
    show(engine, "g1")
    assert columns(engine, "checkpoint") == [*before, ("seven", "integer")]
    with engine.begin() as connection:
        connection.execute(text("UPDATE rxstore.generation SET hashes = hashes || :ours"), {"ours": json.dumps(ours())})
    show(engine, "g1")
    assert columns(engine, "checkpoint") == [*before, ("seven", "integer")]


def test_a_view_that_a_generation_does_not_have_shows_nothing(engine):
    before = columns(engine, "line_item")
    of_another_version(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE rxstore.generation SET views = views - 'line_item'"))
        connection.execute(
            text(
                "INSERT INTO rx_g1.line_item (stream_key, item_number, item_id, description, code, quantity, unit, "
                "dosage, issues_authorised) VALUES ('k', 1, 'i', 'd', 'c', '1', 'u', 'o', 1)"
            )
        )
    show(engine, "g1")
    assert columns(engine, "line_item") == before
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM rxstore.line_item")).scalar_one() == 0


def ours() -> dict[str, str]:
    from projector.definition import hashes

    return {"tables": hashes()["tables"]}
