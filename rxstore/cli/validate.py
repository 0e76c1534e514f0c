"""``rxstore validate``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.settings import Settings

if TYPE_CHECKING:
    from rxstore.event_file import Checked


@click.command(
    epilog=example("rxstore validate events.ndjson", "rxstore generate --prescriptions 10 | rxstore validate -")
)
@click.argument("file")
@as_json
@with_settings
def command(settings: Settings, file: str, as_json: bool) -> None:
    """Check each line of FILE (- for standard input) against the contract.

    A line is one CloudEvent in structured mode; blank lines are passed over. Each bad line is reported with its
    number, the paths and what was expected there; the exit code is then 1. With --json: one object for each bad line.
    """
    from rxstore import event_file
    from rxstore.progress import Progress

    decoder = event_file.checker(
        max_value_bytes=settings.max_value_bytes, strict_check_character=settings.check_character == "strict"
    )
    bad = 0
    with event_file.opened(file) as opened, Progress("validate", "events") as progress:
        for line in event_file.lines(opened, progress):
            checked = event_file.check(decoder, line)
            if checked.errors:
                bad += 1
                click.echo(json.dumps(_report(checked)) if as_json else f"line {checked.number}: {checked.complaint}")
    events = "1 event" if progress.done == 1 else f"{progress.done:,} events"
    click.echo(f"{events} checked in {progress.seconds:.1f} s, {bad or 'none'} bad", err=True)
    if bad:
        raise click.exceptions.Exit(1)


def _report(checked: Checked) -> dict[str, object]:
    return {
        "line": checked.number,
        "id": checked.id,
        "errors": [{"path": error.path, "message": error.message} for error in checked.errors],
    }
