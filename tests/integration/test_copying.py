"""Rows go into PostgreSQL as JSON that is read as CSV: whatever text they hold comes back as it was."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projector.read_model import copy_rows

# PostgreSQL holds no NUL, and UTF-8 no half of a pair.
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])) | st.sampled_from(
    ["],[", '"],["', "a\nb", "\t", "\\", '\\"', "null", "", '","', "\x01", "],[\\n"]
)
ROWS = st.lists(st.tuples(st.none() | TEXTS, st.none() | TEXTS, st.none() | st.integers(0, 9)), min_size=1, max_size=5)


@pytest.fixture
def cursor(database_url):
    with psycopg.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE copied (place serial, a text, b text, c int)")
        yield cursor


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
def test_every_text_comes_back_as_it_was(cursor, rows):
    cursor.execute("TRUNCATE copied")
    copy_rows(cursor, "copied", ("a", "b", "c"), rows)
    cursor.execute("SELECT a, b, c FROM copied ORDER BY place")
    assert cursor.fetchall() == rows
