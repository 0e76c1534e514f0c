"""What the commands share: settings handed to them, and ``--json``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import click

from rxstore import logs
from rxstore.settings import Settings, load

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

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


def example(*lines: str) -> str:
    """The examples at the end of a command's help, as they are to be typed."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])
