"""A seed is run again when a server did not answer the self-test itself, and only then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from projector.stream import Counts
from rxstore.errors import ServerUnavailable
from rxstore.selftest.comparison import Found
from rxstore.selftest.run import ATTEMPTS, Runs, Summary
from rxstore.selftest.trial import Outcome


class Benches:
    """Benches whose trials fail as told, one after the other, and then succeed."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.made = self.closed = 0

    @contextmanager
    def make(self) -> Iterator[Benches]:
        self.made += 1
        yield self
        self.closed += 1

    def trial(self, schedule) -> Outcome:
        if self.failures:
            raise self.failures.pop(0)
        return Outcome(schedule.seed, 0, 0.0, (), Counter(), Counter(), Counts(), Found())


def test_a_seed_is_run_again_on_a_new_bench_after_a_server_did_not_answer():
    benches = Benches(ServerUnavailable("away"), ServerUnavailable("away"))
    runs = Runs(benches.make, wait_seconds=0)
    outcome = runs.outcome(7)
    runs.close()
    assert (outcome.seed, outcome.again) == (7, 2)
    assert (benches.made, benches.closed) == (3, 3)


def test_a_server_that_stays_away_ends_the_run():
    with pytest.raises(ServerUnavailable, match="away"):
        Runs(Benches(*[ServerUnavailable("away")] * ATTEMPTS).make, wait_seconds=0).outcome(7)


def test_a_defect_is_not_run_again():
    benches = Benches(AssertionError("a defect"))
    with pytest.raises(AssertionError, match="a defect"):
        Runs(benches.make, wait_seconds=0).outcome(7)
    assert benches.made == 1


def test_the_summary_says_how_often_seeds_were_run_again():
    summary = Summary(at="now", versions={}, session_timeout_ms=1000, jobs=1, left_out=())
    runs = Runs(Benches(ServerUnavailable("away")).make, wait_seconds=0)
    summary.add(runs.outcome(3))
    summary.add(runs.outcome(4))
    assert summary.as_json()["again"] == 1
    assert "  run again      1 times a server did not answer the self-test itself" in summary.lines()
