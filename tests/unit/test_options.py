"""How the commands read times and time spans."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rxstore.cli.options import duration, instant
from rxstore.errors import WrongUse


@pytest.mark.parametrize(
    ("given", "span"),
    [
        ("7d", timedelta(days=7)),
        ("36h", timedelta(hours=36)),
        ("90m", timedelta(minutes=90)),
        ("30s", timedelta(seconds=30)),
    ],
)
def test_a_span_is_a_number_and_a_unit(given, span):
    assert duration(given, "--after") == span


@pytest.mark.parametrize("given", ["", "7", "d", "0d", "-1d", "1.5h", "7 d", "1w", "7D", "1000000d", "7d\n"])
def test_anything_else_is_no_span_and_the_option_is_named(given):
    with pytest.raises(WrongUse, match="--after takes a number of days, hours, minutes or seconds"):
        duration(given, "--after")


def test_an_instant_has_an_offset():
    assert instant("2026-03-01T10:00:00+01:00", "--at") == datetime(2026, 3, 1, 9, tzinfo=UTC)


@pytest.mark.parametrize("given", ["", "yesterday", "2026-03-01", "2026-03-01T09:00:00", "0001-01-01T00:00:00+14:00"])
def test_anything_else_is_no_instant_and_the_option_is_named(given):
    with pytest.raises(WrongUse, match="--at takes an RFC 3339 instant"):
        instant(given, "--at")
