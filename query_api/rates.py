"""How many requests each caller may make, counted by all processes of a server together."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

SLOTS = 1024
PROBES = 8
SECONDS_A_MINUTE = 60.0


class Rates:
    """A bucket for each ASID that fills evenly, by ``a_minute``, and holds a tenth of a minute's worth at most.

    Made before the processes are forked, it counts for all of them; other servers count for themselves. A table of
    fixed size holds the buckets; where it is full, the one that was longest unused makes room, and is full again when
    it comes back.

    There is no lock: a process that is killed while it holds one would stop all others. Two that count in the same
    microsecond may count one request, which lets a few more through.
    """

    def __init__(self, a_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._a_second = a_minute / SECONDS_A_MINUTE
        self._most = max(1.0, a_minute / 10)
        self._clock = clock
        self._asids: Any = multiprocessing.RawArray("q", SLOTS)
        self._levels: Any = multiprocessing.RawArray("d", SLOTS)
        self._moments: Any = multiprocessing.RawArray("d", SLOTS)

    def seconds_to_wait(self, asid: str) -> float:
        """Take one request of this ASID (12 digits) into account; 0.0 when it may be made, else when the next may."""
        number, now = int(asid), self._clock()
        slot = self._slot(number)
        if self._asids[slot] != number:
            self._asids[slot], self._levels[slot], self._moments[slot] = number, self._most, now
        level = min(self._most, self._levels[slot] + (now - self._moments[slot]) * self._a_second)
        self._moments[slot] = now
        if level < 1.0:
            self._levels[slot] = level
            return float((1.0 - level) / self._a_second)
        self._levels[slot] = level - 1.0
        return 0.0

    def _slot(self, number: int) -> int:
        probed = [(number + step) % SLOTS for step in range(PROBES)]
        for slot in probed:
            if self._asids[slot] in {number, 0}:
                return slot
        return min(probed, key=self._moments.__getitem__)
