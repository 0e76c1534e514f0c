"""``rxstore migrate``: the schema as this version needs it."""

from __future__ import annotations

import json

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.settings import Settings


@click.command(epilog=example("rxstore migrate"))
@as_json
@with_settings
def command(settings: Settings, as_json: bool) -> None:
    """Create or upgrade the schema of the database.

    Safe to run twice, and by two at once: whoever comes second finds the work done. On a new database it also makes
    generation g1, the first read model, and points the views at it.
    """
    from projector import generations
    from rxstore import store

    with store.engine(settings) as engine:
        done = generations.migrate(engine, topic=settings.topic, settings=store.meaning(settings))
    if as_json:
        click.echo(json.dumps({"done": done}))
    else:
        click.echo("\n".join(done) if done else "nothing to do: the schema is up to date")
