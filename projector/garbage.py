"""When a worker's process looks for garbage in cycles.

Nothing of ours is in a cycle, and of the libraries little: after the start of a worker, none in a build of 700,000
events. What the collector costs is looking at objects that live, more than a microsecond for each, and a worker has
some hundred thousand of a batch, and millions when it builds a generation in memory.
"""

from __future__ import annotations

import gc

# Objects that came and did not go: well above what a batch makes, so that no batch is looked through several times.
YOUNG_OBJECTS = 1_000_000


def collect_rarely() -> None:
    """Look less often than Python does by default, which took a sixth of a worker's time, and never at modules."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 100)


def pass_over_what_lives() -> None:
    """Never look at what exists by now; it goes all the same when nobody refers to it any more."""
    gc.freeze()
