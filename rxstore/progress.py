"""How far something long has come, on stderr: a bar on a terminal, a plain line every few seconds elsewhere.

Nothing is shown of what takes less than two seconds.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from tqdm import tqdm

SILENT_S = 2.0
LINE_EVERY_S = 5.0
LOOK_EVERY_S = 0.1
DRAW_EVERY_S = 1.0
ALL_EVERY_S = 30.0


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


class Board(Progress):
    """A progress that is told in lines: all of them, drawn again every second, on a terminal.

    Elsewhere the first line comes every five seconds, and the others every half minute.
    """

    def __init__(self, label: str, unit: str, lines: Callable[[], Sequence[str]]) -> None:
        super().__init__(label, unit)
        self._lines = lines
        self._drawn = 0
        self._all_at = 0.0

    def __enter__(self) -> Self:
        self._started_at = time.monotonic()
        self._line_at = self._all_at = self._started_at + SILENT_S
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def clear(self) -> None:
        """Take away what is drawn on a terminal, so that something else can be said there."""
        if self._drawn:
            sys.stderr.write(f"\x1b[{self._drawn}F\x1b[J")
            sys.stderr.flush()
            self._drawn = 0

    def _show(self, now: float) -> None:
        if now < self._line_at:
            return
        is_terminal = sys.stderr.isatty()
        self._line_at = now + (DRAW_EVERY_S if is_terminal else LINE_EVERY_S)
        first, *others = self._lines()
        told = [f"{self.label}: {' '.join(first.split())}"]
        if is_terminal or now >= self._all_at:
            self._all_at = now + ALL_EVERY_S
            told += others
        if is_terminal:
            size = shutil.get_terminal_size()
            told = [line[: size.columns - 1] for line in told][: size.lines - 1]
            self.clear()
            self._drawn = len(told)
        print("\n".join(told), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return a length of time as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
