"""Waiting until the live read model has come to a position of the log, so that clients can read their own writes.

A publisher knows where its event stands. A question with ``waitFor=topic:partition:offset`` is answered once the live
checkpoint of that partition has passed it, and never from before: in time or not at all. Few may wait at a time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import Protocol

import falcon

from query_api.queries import LogPosition

AT_A_TIME = 4
DEFAULT_SECONDS = 5.0
MOST_SECONDS = 10.0
LOOK_EVERY_SECONDS = 0.05

HEADER = "Rxstore-Waited"
REACHED = "reached"
NOT_REACHED = "not-reached"
BUSY = "busy"
UNKNOWN_PARTITION = "unknown-partition"
MALFORMED = "malformed"

_is_position = re.compile(r"([A-Za-z0-9._-]{1,249}):([0-9]{1,9}):([0-9]{1,18})").fullmatch
_is_seconds = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?").fullmatch


class NotReached(Exception):
    """The read model has not come to the position, or nobody can tell; ``why`` is the header's value."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def log_position(given: str) -> LogPosition | None:
    """The position that ``topic:partition:offset`` names, None when it names none."""
    found = _is_position(given)
    return LogPosition(found[1], int(found[2]), int(found[3])) if found else None


class PositionQuestions(Protocol):
    """What waiting asks; ``query_api.database.Questions`` asks it of PostgreSQL."""

    def has_passed(self, topic: str, partition: int, offset: int) -> bool | None: ...


class Waiting:
    """Lets a bounded number of requests wait; the others are told at once that it is not reached."""

    def __init__(
        self,
        questions: PositionQuestions,
        *,
        at_a_time: int = AT_A_TIME,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._questions = questions
        self._places = BoundedSemaphore(at_a_time)
        self._clock = clock
        self._sleep = sleep

    @contextmanager
    def waited_for(self, request: falcon.Request, response: falcon.Response) -> Iterator[None]:
        """Run the block once the read model has come to the position that the request waits for, if to any.

        Looks again after the block: a promotion in between may have shown a generation that is not as far. Raises
        NotReached.
        """
        position, seconds = _asked(request)
        if position is None:
            yield
            return
        self._until_passed(position, seconds)
        yield
        if not self._has_passed(position):
            raise NotReached(NOT_REACHED)
        response.set_header(HEADER, REACHED)

    def _until_passed(self, position: LogPosition, seconds: float) -> None:
        if self._has_passed(position):
            return
        if not self._places.acquire(blocking=False):
            raise NotReached(BUSY)
        try:
            until = self._clock() + seconds
            while self._clock() < until:
                self._sleep(LOOK_EVERY_SECONDS)
                if self._has_passed(position):
                    return
        finally:
            self._places.release()
        raise NotReached(NOT_REACHED)

    def _has_passed(self, position: LogPosition) -> bool:
        passed = self._questions.has_passed(position.topic, position.partition, position.offset)
        if passed is None:
            raise NotReached(UNKNOWN_PARTITION)
        return passed


def _asked(request: falcon.Request) -> tuple[LogPosition | None, float]:
    given, seconds = request.params.get("waitFor"), request.params.get("waitSeconds")
    if not given:
        return None, 0.0
    position = log_position(given) if isinstance(given, str) else None
    if position is None or not (not seconds or (isinstance(seconds, str) and _is_seconds(seconds))):
        raise NotReached(MALFORMED)
    return position, min(float(seconds), MOST_SECONDS) if isinstance(seconds, str) and seconds else DEFAULT_SECONDS
