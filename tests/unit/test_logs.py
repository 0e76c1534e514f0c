"""What the broker client says is let through seldom; what we say ourselves always."""

from __future__ import annotations

import logging

from rxstore.logs import SELDOM_SECONDS, Seldom


def line(name: str, number: int, created: float) -> logging.LogRecord:
    record = logging.LogRecord(name, logging.ERROR, "somewhere.py", number, "the broker is away", None, None)
    record.created = created
    return record


def test_the_broker_client_says_the_same_once_a_minute():
    seldom = Seldom()
    times = [0.0, 1.0, SELDOM_SECONDS - 0.1, SELDOM_SECONDS, SELDOM_SECONDS + 1]
    assert [seldom.filter(line("kafka.net.manager", 157, at)) for at in times] == [True, False, False, True, False]


def test_another_place_in_its_code_is_another_line():
    seldom = Seldom()
    assert seldom.filter(line("kafka.net.manager", 157, 0.0))
    assert seldom.filter(line("kafka.net.manager", 248, 0.0))
    assert seldom.filter(line("kafka.net.connection", 157, 0.0))


def test_what_we_say_is_never_held_back():
    seldom = Seldom()
    assert all(seldom.filter(line("ingest.consumer", 1, 0.0)) for _ in range(3))


def test_a_clock_that_was_set_back_does_not_silence_it():
    seldom = Seldom()
    assert seldom.filter(line("kafka.net.manager", 157, 1_000.0))
    assert seldom.filter(line("kafka.net.manager", 157, 10.0))
