"""Instants as whole seconds since 1970 in UTC: cheap to add to, and without a time zone to get wrong."""

from __future__ import annotations

from calendar import monthrange
from datetime import date
from functools import lru_cache

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_OPENS = 9 * HOUR
_CLOSES = 18 * HOUR
_FIRST_ORDINAL = date(1970, 1, 1).toordinal()
_SUNDAY = 6


def midnight_of(day: date) -> int:
    """The instant at which the day begins."""
    return (day.toordinal() - _FIRST_ORDINAL) * DAY


def midnight(instant: int) -> int:
    """The instant at which the day of ``instant`` begins."""
    return instant - instant % DAY


@lru_cache(maxsize=4096)
def _date(day_number: int) -> date:
    return date.fromordinal(_FIRST_ORDINAL + day_number)


@lru_cache(maxsize=4096)
def _date_text(day_number: int) -> str:
    return _date(day_number).isoformat()


def date_text(instant: int) -> str:
    """The UTC date, ``YYYY-MM-DD``."""
    return _date_text(instant // DAY)


def text(instant: int) -> str:
    """RFC 3339 in UTC."""
    day_number, second = divmod(instant, DAY)
    return f"{_date_text(day_number)}T{second // HOUR:02d}:{second // MINUTE % 60:02d}:{second % MINUTE:02d}Z"


def opening_hours(instant: int) -> int:
    """``instant`` itself when pharmacies are open then, else one on the next day or hour they are; never earlier."""
    second = instant % DAY
    if second < _OPENS:
        instant += _OPENS - second + second % (_CLOSES - _OPENS)
    elif second >= _CLOSES:
        instant += DAY - second + _OPENS + second % (_CLOSES - _OPENS)
    return instant + DAY if _date(instant // DAY).weekday() == _SUNDAY else instant


def end_of_month(instant: int) -> int:
    """Midnight of the last day of the month."""
    day = _date(instant // DAY)
    return midnight(instant) + (monthrange(day.year, day.month)[1] - day.day) * DAY
