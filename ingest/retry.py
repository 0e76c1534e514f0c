"""How long to wait before the same batch again: a pause that grows, with jitter, for as long as it takes."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Pauses in seconds: doubling from ``first`` up to ``most``, each between half and the whole of it."""

    first: float = 0.1
    most: float = 10.0
    attempts: int = 0

    def next_pause(self) -> float:
        """Return how long to wait now, and count the attempt."""
        pause = min(self.first * 2.0**self.attempts, self.most)
        self.attempts = min(self.attempts + 1, 32)
        return pause * (0.5 + random.random() / 2)

    def reset(self) -> None:
        """Begin again with the shortest pause: something worked."""
        self.attempts = 0
