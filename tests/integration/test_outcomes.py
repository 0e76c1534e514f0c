"""What became of published events, asked in bulk of rows that a worker wrote."""

from __future__ import annotations

import orjson
import pytest
from sqlalchemy import create_engine, make_url

from projector.batch import Position
from rxstore.outcomes import Outcome, wait
from rxstore.publishing import Published
from schemas.incoming import event_key
from tests import examples
from tests.integration.projecting import DECODE, TOPIC, Log, worker

KEY = examples.STREAM_KEY.encode()
HEADERS = (("content-type", b"application/cloudevents+json"),)


@pytest.fixture
def engine(migrated_database_url):
    made = create_engine(make_url(migrated_database_url).set(drivername="postgresql+psycopg"))
    yield made
    made.dispose()


def sent(log: Log, line: int, payload: dict, **where: int) -> Published:
    """Append an event to the log, as its publisher would."""
    record = log.append(KEY, orjson.dumps(payload), HEADERS, **where)
    return Published(line, payload["id"], record.position, KEY.decode(), event_key(payload["source"], payload["id"]))


def told(engine, published) -> list[tuple]:
    return [_short(outcome) for outcome in wait(engine, published, seconds=0)]


def _short(outcome: Outcome) -> tuple:
    return outcome.state, outcome.version, outcome.reason


def test_each_event_is_told_in_the_order_in_which_it_was_published(engine, migrated_database_url):
    log = Log()
    events = [
        examples.created(),
        examples.created(),
        examples.claimed(),
        examples.released(),
        examples.dispensed(notification_id="none"),
    ]
    published = [sent(log, line, payload) for line, payload in enumerate(events, start=1)]
    with worker(migrated_database_url, log=log) as one:
        one.project(list(log.records()))
    assert told(engine, published) == [
        ("folded", 1, None),
        ("duplicate", 1, None),
        ("open", None, "illegal_transition"),
        ("parked", None, "behind_block"),
        ("open", None, "contract_violation"),
    ]


def test_what_no_checkpoint_has_passed_is_not_seen_even_where_a_copy_folded(engine, migrated_database_url):
    log = Log()
    first = sent(log, 1, examples.created())
    with worker(migrated_database_url, log=log) as one:
        one.project(list(log.records()))
    copy = sent(log, 2, examples.created())
    assert told(engine, [first, copy]) == [("folded", 1, None), ("not_seen", None, None)]


def test_of_a_deleted_prescription_only_its_keys_tell(engine, migrated_database_url):
    log = Log()
    published = [sent(log, 1, examples.created()), sent(log, 2, examples.deleted()), sent(log, 3, examples.released())]
    with worker(migrated_database_url, log=log) as one:
        one.project(list(log.records()))
    assert told(engine, published) == [("folded", 1, None), ("folded", 2, None), ("open", None, "deleted")]


def test_a_record_that_cannot_be_read_is_told_by_its_place(engine, migrated_database_url):
    log = Log()
    record = log.append(KEY, b"{no json", HEADERS)
    with worker(migrated_database_url, log=log) as one:
        one.project(list(log.records()))
    assert told(engine, [Published(1, None, record.position)]) == [("open", None, "unreadable")]


def test_nothing_is_asked_about_nothing(engine):
    assert told(engine, []) == []
    partition = DECODE.partition_of(KEY)
    assert told(engine, [Published(1, "x", Position(TOPIC, partition, 0))]) == [("not_seen", None, None)]
