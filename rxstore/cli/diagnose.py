"""``rxstore diagnose``: what is wrong, and the next command to run."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.errors import ServerUnavailable
from rxstore.settings import Settings

if TYPE_CHECKING:
    from rxstore.diagnosis.findings import Finding


@click.command(epilog=example("rxstore diagnose", "rxstore diagnose --json | jq -r '.findings[].code'"))
@as_json
@with_settings
@click.pass_context
def command(context: click.Context, settings: Settings, as_json: bool) -> None:
    """Look at everything and say what is wrong, what it means for patients, and the next command to run.

    Settings, database, topic, brokers, projectors, checkpoints, locks, and what was set aside; what cannot be looked
    at is told too. Nothing is changed. Exit code 0 without findings, 1 with some, 3 when the database cannot be
    reached, so that next to nothing could be checked.
    """
    from rxstore.diagnosis.look import Diagnosis

    found = Diagnosis(settings).look()
    if as_json:
        click.echo(json.dumps({"findings": [finding.as_json() for finding in found.findings]}))
    else:
        click.echo("\n\n".join(map(_text, found.findings)) or "no findings")
    if not found.database:
        context.exit(ServerUnavailable.exit_code)
    context.exit(1 if found.findings else 0)


def _text(finding: Finding) -> str:
    sentence = textwrap.fill(finding.message, 100, initial_indent="  ", subsequent_indent="  ", break_long_words=False)
    return f"{finding.severity} {finding.code}\n{sentence}.\n  next: {finding.command}\n  page: {finding.page}"
