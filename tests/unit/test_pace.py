"""How fast a build may go: what a bucket lets through, and the rate that comes next for what was measured."""

from __future__ import annotations

import pytest

from projector.pace import FIRST, FLOOR, Adaptive, Bucket, Meter, p99

BOUND = 30.0


def passed(bucket: Bucket, began: float, seconds: float, step: float) -> int:
    """Take all the room there is, again and again; return how much that was."""
    count = 0
    for turn in range(int(seconds / step) + 1):
        room = bucket.room(began + turn * step)
        bucket.take(room)
        count += room
    return count


# the bucket -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1.5, 10.0, 333.0, 40_000.0])
@pytest.mark.parametrize("step", [0.01, 0.2, 0.7])
def test_a_bucket_lets_its_rate_through_and_no_more(rate, step):
    count = passed(Bucket(rate, 5.0), 5.0, 60.0, step)
    assert 0.95 * rate * 60 - 1 <= count <= rate * 60


def test_a_bucket_begins_empty():
    assert Bucket(1_000.0, 7.0).room(7.0) == 0


def test_after_a_long_pause_a_bucket_lets_one_second_through_at_once():
    assert Bucket(500.0, 0.0).room(3_600.0) == 500


def test_a_bucket_waits_until_a_batch_is_worth_it():
    bucket = Bucket(1_000.0, 0.0)
    assert bucket.room(0.2) == 0
    assert bucket.wait(0.2) == pytest.approx(0.05)
    assert bucket.room(0.26) == 260


def test_a_rate_below_one_a_second_still_lets_single_events_through():
    bucket = Bucket(0.5, 0.0)
    assert bucket.room(1.9) == 0
    assert bucket.room(2.0) == 1


def test_what_was_taken_beyond_the_room_is_made_up_for():
    bucket = Bucket(100.0, 0.0)
    bucket.take(200)
    assert bucket.wait(0.0) == pytest.approx(2.25)
    assert bucket.room(2.2) == 0
    assert bucket.room(2.3) > 0


def test_a_lower_rate_holds_at_once_for_what_has_gathered_too():
    bucket = Bucket(10_000.0, 0.0)
    bucket.room(10.0)
    bucket.set_rate(100.0, 10.0)
    assert bucket.room(10.0) == 100


def test_a_clock_that_is_asked_twice_gives_nothing_twice():
    bucket = Bucket(100.0, 0.0)
    bucket.take(bucket.room(1.0))
    assert bucket.room(1.0) == 0


# what is measured -----------------------------------------------------------------------------------------------------


def test_the_p99_of_a_hundred_is_the_second_slowest():
    assert p99([float(number) for number in range(1, 101)]) == 99.0


def test_the_p99_of_few_is_the_slowest():
    assert p99([3.0, 1.0, 2.0]) == 3.0


def test_nothing_has_no_p99():
    assert p99([]) is None


def test_a_meter_tells_the_rate_of_the_last_seconds_only():
    meter = Meter()
    for second in range(20):
        meter.note(float(second), 1_000 * second if second <= 10 else 10_000 + 10 * (second - 10))
    assert meter.per_second == 10.0


def test_a_build_that_reads_a_part_again_does_not_go_backwards():
    meter = Meter()
    meter.note(1.0, 500)
    meter.note(2.0, 100)
    assert meter.per_second == 0.0


def test_a_meter_that_saw_one_place_only_knows_no_rate():
    meter = Meter()
    meter.note(1.0, 500)
    assert meter.per_second == 0.0


# the rate that comes next ---------------------------------------------------------------------------------------------


def test_the_rate_rises_while_the_api_keeps_its_bound_and_the_build_uses_what_it_may():
    assert Adaptive(1_000).after(10.0, BOUND, 950.0).rate == 1_500
    assert Adaptive(1_000, was_over=True).after(10.0, BOUND, 950.0).rate == 1_100


def test_the_rate_falls_by_a_factor_when_the_bound_is_passed_and_rises_gently_ever_after():
    over = Adaptive(10_000).after(31.0, BOUND, 10_000.0)
    assert over == Adaptive(7_000, was_over=True)
    assert over.after(29.0, BOUND, 7_000.0).rate == 7_700


def test_the_rate_is_halved_when_the_bound_is_passed_by_far():
    assert Adaptive(10_000).after(61.0, BOUND, 10_000.0).rate == 5_000


def test_a_bound_that_cannot_be_measured_counts_as_passed():
    assert Adaptive(10_000).after(None, BOUND, 10_000.0).rate == 5_000


def test_the_rate_falls_from_what_was_reached_where_that_is_less_than_what_was_allowed():
    assert Adaptive(50_000).after(40.0, BOUND, 4_000.0).rate == 2_800


def test_the_rate_stays_while_the_build_does_not_use_it():
    assert Adaptive(10_000).after(1.0, BOUND, 3_000.0) == Adaptive(10_000)


def test_the_rate_never_falls_below_its_floor_and_comes_back_from_it():
    pace = Adaptive()
    for _ in range(100):
        pace = pace.after(500.0, BOUND, 0.0)
    assert pace.rate == FLOOR
    for _ in range(100):
        pace = pace.after(1.0, BOUND, float(pace.rate))
    assert pace.rate > 50 * FLOOR


@pytest.mark.parametrize("bearable", [700, 12_000])
def test_the_rate_settles_around_what_the_api_can_bear(bearable):
    pace, rates = Adaptive(FIRST), []
    for _ in range(200):
        pace = pace.after(10.0 if pace.rate <= bearable else 35.0, BOUND, float(pace.rate))
        rates.append(pace.rate)
    settled = rates[50:]
    assert bearable * 0.69 <= min(settled)
    assert max(settled) <= bearable * 1.11
