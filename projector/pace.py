"""How fast a build may go: a bucket of events, and the rate at which the API's questions keep within a bound.

Nothing here asks a clock: ``now`` is in seconds of any clock that never goes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

# Events a second of a whole generation. An automatic throttle never goes below the first: a build always ends.
FLOOR = 100
FIRST = 1_000

GROWTH_AT_FIRST = 1.5
GROWTH = 1.1
DECREASE = 0.7
DECREASE_WHEN_FAR_OVER = 0.5
FAR_OVER = 2.0
# A build that goes slower than this part of what it may is held up by something else: more room would say nothing.
USED = 0.75

# What is let through at once: enough for a batch that is worth its transaction, and never more than this.
LEAST_SECONDS = 0.25
MOST_SECONDS = 1.0
RATE_OVER_SECONDS = 5.0


@dataclass(slots=True)
class Bucket:
    """Lets ``rate`` events a second through, after a pause at most those of one second at once. It begins empty."""

    rate: float
    at: float
    level: float = 0.0

    def set_rate(self, rate: float, now: float) -> None:
        """Go on at another rate."""
        self._fill(now)
        self.rate = rate
        self.level = min(self.level, self._most)

    def room(self, now: float) -> int:
        """Return how many events may pass now: none, or so many that a batch of them is worth it."""
        self._fill(now)
        return int(self.level) if self.level >= self._least else 0

    def wait(self, now: float) -> float:
        """Return the seconds until there is room again."""
        self._fill(now)
        return max(0.0, (self._least - self.level) / self.rate)

    def take(self, count: int) -> None:
        """Note that so many have passed."""
        self.level -= count

    @property
    def _least(self) -> float:
        return max(1.0, self.rate * LEAST_SECONDS)

    @property
    def _most(self) -> float:
        return max(1.0, self.rate * MOST_SECONDS)

    def _fill(self, now: float) -> None:
        self.level = min(self._most, self.level + max(0.0, now - self.at) * self.rate)
        self.at = max(now, self.at)


@dataclass(slots=True)
class Meter:
    """How fast an offset moved in the last seconds."""

    seen: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, now: float, offset: int) -> None:
        """Note where it stands."""
        self.seen.append((now, offset))
        while self.seen[0][0] < now - RATE_OVER_SECONDS:
            self.seen.popleft()

    @property
    def per_second(self) -> float:
        """Return its rate; 0 while there is nothing to compare with, or what was folded in memory is read again."""
        (began, first), (ended, last) = self.seen[0], self.seen[-1]
        return max(0.0, (last - first) / (ended - began)) if ended > began else 0.0


def p99(milliseconds: Sequence[float]) -> float | None:
    """Return the smallest of these times that 99 of 100 do not exceed; None when there are none."""
    ranked = sorted(milliseconds)
    return ranked[ceil(0.99 * len(ranked)) - 1] if ranked else None


@dataclass(frozen=True, slots=True)
class Adaptive:
    """The rate at which the API's p99 stays under a bound: up gently while it does, down by a factor when not.

    ``rate`` is in events a second. Until it was over for the first time it goes up faster, to find where that is.
    """

    rate: int = FIRST
    was_over: bool = False

    def after(self, measured_ms: float | None, bound_ms: float, reached: float) -> Adaptive:
        """Return the rate that comes next; ``reached`` is how many events a second were folded meanwhile.

        What could not be measured (None) counts as over: nobody knows that the bound holds.
        """
        if measured_ms is None or measured_ms > bound_ms:
            is_far = measured_ms is None or measured_ms > FAR_OVER * bound_ms
            used = min(self.rate, reached) if reached > 0 else self.rate
            return Adaptive(max(FLOOR, int(used * (DECREASE_WHEN_FAR_OVER if is_far else DECREASE))), was_over=True)
        if reached < USED * self.rate:
            return self
        return Adaptive(round(self.rate * (GROWTH if self.was_over else GROWTH_AT_FIRST)), self.was_over)
