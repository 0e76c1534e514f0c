"""What the commands share: settings handed to them, ``--json``, and how times and ids are read."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Concatenate, ParamSpec, TypeVar

import click

from rxstore import logs
from rxstore.errors import WrongUse
from rxstore.settings import Settings, load

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

UNITS = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
}

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a script to read, and nothing else.")


def with_settings(
    function: Callable[Concatenate[Settings, Arguments], Result],
) -> Callable[Arguments, Result]:
    """Loads the settings when the command runs, sets logging up by them, and hands them over first."""

    @functools.wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        settings = load()
        logs.configure(settings.log_level, settings.log_format)
        return function(settings, *args, **kwargs)

    return run


def instant(given: str, option: str) -> datetime:
    """The RFC 3339 instant that an option was given; WrongUse for anything else."""
    # Neither what is no instant nor one that falls into year 0 or 10000 of UTC.
    with suppress(ValueError, OverflowError):
        found = datetime.fromisoformat(given)
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    raise WrongUse(f"{option} takes an RFC 3339 instant with an offset, such as 2026-03-01T09:00:00Z")


def duration(given: str, option: str) -> timedelta:
    """The time span that an option was given, such as 7d, 36h, 90m or 30s; WrongUse for anything else, and for none."""
    found = re.fullmatch(r"([0-9]{1,6})([dhms])", given)
    if found is None or int(found[1]) == 0:
        raise WrongUse(f"{option} takes a number of days, hours, minutes or seconds, such as 7d, 36h, 90m or 30s")
    return int(found[1]) * UNITS[found[2]]


def stream_key(id_: str) -> str:
    """The stream key of a prescription id as somebody typed it; WrongUse when it is none."""
    from schemas.identifiers import InvalidPrescriptionId, parse_prescription_id

    try:
        return parse_prescription_id(id_, strict=False).stream_key
    except InvalidPrescriptionId as error:
        raise WrongUse(str(error)) from error


def example(*lines: str) -> str:
    """The examples at the end of a command's help, as they are to be typed."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])
