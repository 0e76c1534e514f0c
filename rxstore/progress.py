"""How far something long has come, on stderr: a bar on a terminal, a plain line every few seconds elsewhere.

Nothing is shown of what takes less than two seconds.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from tqdm import tqdm

SILENT_S = 2.0
LINE_EVERY_S = 5.0
LOOK_EVERY_S = 0.1


class Progress:
    """Counts what is done. ``total`` may be unknown at first, and may be set to a better guess at any time."""

    def __init__(self, label: str, unit: str, total: float | None = None) -> None:
        self.label, self.unit, self.total = label, unit, total
        self.done = 0
        self._bar: tqdm[Any] | None = None
        self._started_at = self._look_at = self._line_at = 0.0

    @property
    def seconds(self) -> float:
        """Since the block was entered."""
        return time.monotonic() - self._started_at

    @property
    def rate(self) -> float:
        """How much was done a second, on average."""
        return self.done / max(self.seconds, 1e-6)

    def __enter__(self) -> Self:
        self._started_at = time.monotonic()
        self._line_at = self._started_at + SILENT_S
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self.label, unit=f" {self.unit}", total=self.total, delay=SILENT_S, leave=False, file=sys.stderr
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int = 1) -> None:
        """So much more is done. Cheap enough to be called for each event."""
        self.done += count
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._show(now)

    def _show(self, now: float) -> None:
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(self.done - self._bar.n)
        elif now >= self._line_at:
            self._line_at = now + LINE_EVERY_S
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        line = f"{self.label}: {self.done:,} {self.unit}, {self.rate:,.0f}/s"
        if not self.total or not self.done:
            return line
        left = max(0.0, self.total - self.done) / self.rate
        return f"{line}, {min(99, 100 * self.done / self.total):.0f} %, about {duration(left)} left"


def duration(seconds: float) -> str:
    """Return a length of time as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
