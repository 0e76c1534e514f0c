"""Draws that come out the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice(random.Random):
    """Built on ``random()`` and ``getrandbits()`` alone, whose sequences do not change with the Python version.

    ``choice``, ``randint``, ``sample`` and ``shuffle`` give no such promise, so nothing here uses them.
    """

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens."""
        return self.random() < probability

    def between(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return low + int(self.random() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each as likely as the others."""
        return options[int(self.random() * len(options))]

    def pick_by_share(self, options: Sequence[tuple[float, T]]) -> T:
        """One of the options, each as likely as its share of 1; the last one takes what is left."""
        drawn = self.random()
        for share, option in options[:-1]:
            if drawn < share:
                return option
            drawn -= share
        return options[-1][1]

    def uuid(self) -> str:
        """A random UUID (version 4) in upper case."""
        text = f"{self.getrandbits(128):032X}"
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-A{text[17:20]}-{text[20:]}"
