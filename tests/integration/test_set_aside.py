"""What a batch asks about records that were set aside costs what its own streams have, whatever others have."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from projector import set_aside
from projector.runner import connect
from tests.integration.projecting import SCHEMA

OTHERS = 3_000
ASKED = 500
INDEX_ENTRIES_READ = (
    "SELECT sum(pg_stat_get_xact_tuples_returned(i.indexrelid))::int FROM pg_index i "
    f"WHERE i.indrelid = '{SCHEMA}.set_aside'::regclass"
)


def key(number: int) -> str:
    return f"{number:06X}-Z90001-00000"


@pytest.fixture
def connection(migrated_database_url: str) -> Iterator[psycopg.Connection]:
    """A projector's session, where every other stream has a parked record, and nobody has looked at the tables yet."""
    with connect(migrated_database_url) as made:
        made.execute(
            f"INSERT INTO {SCHEMA}.set_aside (topic, partition_number, record_offset, stream_key, stands_at, state, "
            "reason, errors, since) SELECT 'events', 0, n, lpad(upper(to_hex(n)), 6, '0') || '-Z90001-00000', n, "
            "'parked', 'not_created', '[]', now() FROM generate_series(0, %s) n WHERE n %% 2 = 0",
            (2 * OTHERS,),
        )
        yield made


@pytest.mark.parametrize("analyzed", [False, True])
def test_what_waits_is_looked_up_by_the_streams_of_the_batch(connection, analyzed):
    if analyzed:
        connection.execute(f"ANALYZE {SCHEMA}.set_aside")
    asked = [key(number) for number in range(ASKED)]
    for _ in range(12):  # until the server plans the statement once for all
        waiting = set_aside.load_waiting(connection, SCHEMA, asked)
    assert waiting == {key(number): ((), True) for number in range(0, ASKED, 2)}
    with connection.transaction():
        (before,) = connection.execute(INDEX_ENTRIES_READ).fetchone()
        set_aside.load_waiting(connection, SCHEMA, asked)
        (after,) = connection.execute(INDEX_ENTRIES_READ).fetchone()
    assert 0 < after - before <= 2 * ASKED
