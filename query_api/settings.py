"""What an installation may choose about the tracker's answers; each choice is explained in docs/api.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal


def utc_now() -> datetime:
    """The present, from which a search without dates counts back."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """The defaults are the documented ones.

    With ``only_registered`` nobody but the clients of the register is let in, with ``by_certificate`` each by a
    certificate that is registered for it.

    With ``ready_max_age_seconds`` the API is ready only while every partition was seen at its end that recently.
    """

    clock: Callable[[], datetime] = utc_now
    empty_search: Literal["not-found", "empty-list"] = "not-found"
    require_user: bool = False
    strict_check_character: bool = True
    ready_max_age_seconds: float | None = None
    only_registered: bool = False
    by_certificate: bool = False


def fixed_clock(instant: str) -> Callable[[], datetime]:
    """A present that stands still at an RFC 3339 instant: for tests and demos."""
    present = datetime.fromisoformat(instant)
    if present.tzinfo is None:
        raise ValueError("must be an RFC 3339 instant with an offset")
    return lambda: present
