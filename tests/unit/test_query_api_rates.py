"""How often a caller may ask, and how many requests wait for a thread."""

from __future__ import annotations

import multiprocessing

import pytest
from falcon import testing

from query_api.app import routes
from query_api.rates import SLOTS, Rates
from query_api.settings import ApiSettings
from query_api.worker import Queue
from tests.unit.test_query_api_answers import ID, ReadModel

ASID, OTHER = "200000000946", "200000000947"


class Clock:
    """A clock that is set by hand."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_tenth_of_a_minute_s_worth_may_come_at_once():
    rates = Rates(600, Clock())
    assert [rates.seconds_to_wait(ASID) for _ in range(60)] == [0.0] * 60
    assert rates.seconds_to_wait(ASID) == pytest.approx(0.1)


def test_the_next_request_may_be_made_after_the_seconds_that_were_told():
    clock = Clock()
    rates = Rates(600, clock)
    while (wait := rates.seconds_to_wait(ASID)) == 0.0:
        pass
    clock.seconds += wait
    assert rates.seconds_to_wait(ASID) == pytest.approx(0.0)


def test_the_rate_holds_over_a_minute():
    clock = Clock()
    rates = Rates(600, clock)
    allowed = 0
    for _ in range(6_000):
        clock.seconds += 0.01
        allowed += rates.seconds_to_wait(ASID) == 0.0
    assert 600 <= allowed <= 661


def test_one_asid_does_not_use_up_what_another_may():
    rates = Rates(10, Clock())
    assert rates.seconds_to_wait(ASID) == 0.0
    assert rates.seconds_to_wait(ASID) > 0.0
    assert rates.seconds_to_wait(OTHER) == 0.0


def test_more_asids_than_there_is_room_for_are_counted_still():
    rates = Rates(10, Clock())
    assert all(rates.seconds_to_wait(f"{number:012d}") == 0.0 for number in range(1, 3 * SLOTS))


def test_processes_count_together():
    rates = Rates(20, Clock())
    context = multiprocessing.get_context("fork")
    other = context.Process(target=rates.seconds_to_wait, args=(ASID,))
    other.start()
    other.join()
    assert [rates.seconds_to_wait(ASID) > 0.0 for _ in range(2)] == [False, True]


@pytest.mark.parametrize("path", [f"/mm/prescriptions/{ID}", "/rxstore/status"])
def test_who_asks_too_often_is_told_with_429_when_to_come_back(path):
    client = testing.TestClient(routes(ReadModel(), ApiSettings(), rates=Rates(10, Clock())))
    first, second = (client.simulate_get(path, headers={"Spine-From-Asid": ASID}) for _ in range(2))
    assert first.status_code != 429
    assert (second.status_code, second.headers["Retry-After"]) == (429, "6")
    assert second.headers["Cache-Control"] == "no-store"


def test_health_is_told_however_often_it_is_asked():
    client = testing.TestClient(routes(ReadModel(), ApiSettings(), rates=Rates(1, Clock())))
    headers = {"Spine-From-Asid": ASID}
    assert {client.simulate_get("/health/live", headers=headers).status_code for _ in range(20)} == {200}


def test_what_finds_the_queue_full_is_refused_at_once_and_let_in_when_there_is_room():
    queue = Queue(4)
    assert [queue.enters(str(number)) for number in range(4)] == [None] * 4
    assert queue.enters("late") == "full"
    queue.leaves("0")
    assert queue.enters("late") is None


def test_one_caller_does_not_fill_the_queue_alone():
    queue = Queue(4)
    assert [queue.enters("greedy") for _ in range(4)] == [None, None, None, "caller"]
    assert queue.enters("another") is None
