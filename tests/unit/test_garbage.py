"""A build's garbage is collected every few minutes, after a write."""

from __future__ import annotations

import gc
import weakref

import pytest

from projector import garbage
from projector.garbage import COLLECT_EVERY_SECONDS, BuildGarbage


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set, and a collector that only looks when it is told to."""
    now = [1_000.0]
    monkeypatch.setattr(garbage.time, "monotonic", lambda: now[0])
    gc.disable()
    yield now
    gc.enable()
    gc.unfreeze()


def test_a_cycle_that_a_build_left_is_collected_after_a_write_when_it_is_time(clock):
    of_a_build, left = BuildGarbage(clock[0]), weakref.ref(Cycle())
    of_a_build.folded()
    clock[0] += COLLECT_EVERY_SECONDS - 1
    of_a_build.written()
    assert left() is not None
    clock[0] += 1
    of_a_build.written()
    assert left() is None


def test_it_is_time_again_only_after_as_long(clock):
    of_a_build = BuildGarbage(clock[0])
    clock[0] += COLLECT_EVERY_SECONDS
    of_a_build.written()
    left = weakref.ref(Cycle())
    of_a_build.folded()
    of_a_build.written()
    assert left() is not None
    clock[0] += COLLECT_EVERY_SECONDS
    of_a_build.written()
    assert left() is None


def test_collecting_reaches_what_was_passed_over(clock):
    left = weakref.ref(Cycle())
    BuildGarbage().folded()
    gc.collect()
    assert left() is not None
    garbage.collect()
    assert left() is None
