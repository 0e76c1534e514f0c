"""What several unit tests are given."""

from __future__ import annotations

import pytest

from rxstore import progress as progress_module


@pytest.fixture
def clock(monkeypatch):
    """Time that passes for progress only when told to."""

    class Clock:
        now = 1_000.0

        def monotonic(self) -> float:
            return self.now

    stopped = Clock()
    monkeypatch.setattr(progress_module, "time", stopped)
    return stopped
