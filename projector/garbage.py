"""When a worker's process looks for garbage in cycles.

Nothing of ours is in a cycle, and of the libraries little: exceptions that a client keeps with the frames they came
through. What the collector costs is looking at objects that live, a microsecond for each, and a worker has some hundred
thousand of a batch, and millions when it builds a generation in memory.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field

# Objects that came and did not go: well above what a batch makes, so that no batch is looked through several times.
YOUNG_OBJECTS = 1_000_000
COLLECT_EVERY_SECONDS = 300.0


def collect_rarely() -> None:
    """Look less often than Python does by default, which took a sixth of a worker's time, and never at modules."""
    collect()
    gc.set_threshold(YOUNG_OBJECTS, 20, 100)


def collect() -> None:
    """Look at everything once, and not again at what of it lives."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@dataclass(slots=True)
class BuildGarbage:
    """The garbage of a build: what is folded is not looked at, what lives after a write every few minutes."""

    collected_at: float = field(default_factory=time.monotonic)

    def folded(self) -> None:
        """Pass over everything that exists by now; it goes all the same when nobody refers to it any more."""
        gc.freeze()

    def written(self) -> None:
        """Collect when it is time, now that little lives."""
        if time.monotonic() - self.collected_at >= COLLECT_EVERY_SECONDS:
            collect()
            self.collected_at = time.monotonic()
