"""How far a build is, as people read it: its lines, and the board that shows them."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime

from projector.building import Throttle
from rxstore.headway import Cause, Headway, Partition, lines
from rxstore.progress import Board

AT = datetime(2026, 3, 1, 9, 0, 7, tzinfo=UTC)
FOUND = Headway(
    done_events=1_250,
    total_events=5_000,
    events_per_second=125.4,
    left_seconds=29.9,
    event_time=AT,
    throttle=None,
    causes=[],
    partitions=[Partition(0, 1_250, 2_500, 125.4, 10.0, AT), Partition(1, 0, 2_500, 0.0, None, None)],
)


def test_the_first_line_has_the_whole_of_it():
    assert lines(FOUND)[0].split(maxsplit=1) == [
        "built",
        "1,250 of 5,000 events, 125 a second, about 0:30 left, events of 2026-03-01T09:00:07Z",
    ]


def test_every_partition_has_its_line():
    assert [line.split() for line in lines(FOUND)[-2:]] == [
        ["0", "1,250", "2,500", "50", "125", "0:10", "2026-03-01T09:00:07Z"],
        ["1", "0", "2,500", "0", "0", "-", "-"],
    ]


def test_what_the_brokers_did_not_tell_is_unknown():
    unknown = replace(
        FOUND, total_events=None, left_seconds=None, partitions=[Partition(0, 1_250, None, 125.4, None, AT)]
    )
    assert lines(unknown)[0].split(maxsplit=1)[1].startswith("1,250 events, 125 a second, events of")
    assert lines(unknown)[-1].split() == ["0", "1,250", "unknown", "-", "125", "-", "2026-03-01T09:00:07Z"]


def test_an_empty_partition_is_done():
    assert lines(replace(FOUND, partitions=[Partition(0, 0, 0, 0.0, 0.0, None)]))[-1].split()[:4] == [
        "0",
        "0",
        "0",
        "100",
    ]


def test_throttle_and_causes_stand_before_the_partitions():
    held = replace(FOUND, throttle=Throttle("auto", 800, 12.34), causes=[Cause("held", "it is held", [0])])
    assert [line.split(maxsplit=1) for line in lines(held)[1:3]] == [
        ["throttle", "auto: 800 events a second, the API's p99 is 12.3 ms"],
        ["waits", "it is held"],
    ]


def test_a_script_gets_the_throttle_beside_the_rest():
    document = replace(FOUND, throttle=Throttle("auto", 800, 12.34)).as_json()
    assert [document[name] for name in ("throttle", "throttle_events_per_second", "throttle_p99_ms")] == [
        "auto",
        800,
        12.34,
    ]
    assert FOUND.as_json()["throttle"] is None


def test_other_numbers_of_a_throttle_are_no_other_cause():
    one = replace(FOUND, causes=[Cause("throttled", "throttled to 800 events a second", [0, 1])])
    other = replace(FOUND, causes=[Cause("throttled", "throttled to 900 events a second", [1])])
    assert one.kinds == other.kinds
    assert one.kinds != replace(FOUND, causes=[Cause("lock", "session 7 holds it", [1])]).kinds


# the board ------------------------------------------------------------------------------------------------------------


def run(clock, seconds: int) -> None:
    with Board("build g2", "events", lambda: ["  the whole", "", "  a partition"]) as board:
        for _ in range(seconds):
            clock.now += 1
            board.advance(0)


def test_off_a_terminal_the_first_line_comes_often_and_the_others_seldom(clock, capsys):
    run(clock, 40)
    told = capsys.readouterr().err.splitlines()
    assert told.count("build g2: the whole") == 8
    assert told.count("  a partition") == 2


def test_nothing_is_told_of_what_takes_less_than_two_seconds(clock, capsys):
    run(clock, 1)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_the_lines_are_drawn_over_one_another_and_taken_away_at_the_end(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(clock, 4)
    drawn = capsys.readouterr().err
    assert drawn.count("  a partition") == drawn.count("\x1b[3F\x1b[J") == 3
    assert drawn.endswith("\x1b[3F\x1b[J")
