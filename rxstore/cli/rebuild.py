"""``rxstore rebuild``: rows made anew from the topic."""

from __future__ import annotations

import json

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.errors import WrongUse
from rxstore.settings import Settings


@click.group(epilog=example("rxstore rebuild prescription 3AF2CB-C86002-0000BX"))
def command() -> None:
    """Make rows anew from the topic."""


@command.command("prescription", epilog=example("rxstore rebuild prescription 3AF2CB-C86002-0000BX"))
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@as_json
@with_settings
def prescription(settings: Settings, ids: tuple[str, ...], as_json: bool) -> None:
    """Fold single prescriptions again from the topic, in place; exit code 1 when one comes out differently."""
    from projector.runner import connect
    from rxstore import decide
    from schemas.identifiers import InvalidPrescriptionId, parse_prescription_id

    try:
        keys = [parse_prescription_id(id_, strict=False).stream_key for id_ in ids]
    except InvalidPrescriptionId as error:
        raise WrongUse(str(error)) from error
    with decide.desk(settings) as desk, connect(settings.database()) as session:
        refolded = []
        for key in keys:
            with session.transaction():
                refolded.append(desk.refold(session, key))
    for one in refolded:
        told = "changed" if one.changed else "as it was"
        click.echo(json.dumps({"stream_key": one.key, "changed": one.changed}) if as_json else f"{one.key}: {told}")
    if any(one.changed for one in refolded):
        raise click.exceptions.Exit(1)
