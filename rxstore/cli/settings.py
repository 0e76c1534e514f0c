"""``rxstore settings``."""

from __future__ import annotations

import json

import click

from rxstore.cli.options import as_json, example
from rxstore.settings import SETTINGS, Given, Setting, given, load


@click.command(
    epilog=example("RXSTORE_TOPIC=rehearsal rxstore settings", "rxstore settings --json | jq '.[] | select(.value)'")
)
@as_json
def command(as_json: bool) -> None:
    """Every setting with its value, default and meaning.

    A setting is an environment variable, or a line NAME=value of a .env file in the working directory; the
    environment wins. RXSTORE_DATABASE_URL and RXSTORE_KAFKA_SASL_PASSWORD can stand in a file that the variable with
    _FILE behind its name names. Passwords are masked, also those inside a URL.
    """
    written = given()
    load()
    described = [_described(setting, written.get(setting.name)) for setting in SETTINGS]
    if as_json:
        click.echo(json.dumps(described, indent=2))
    else:
        click.echo("\n\n".join(map(_paragraph, described)))


def _described(setting: Setting, written: Given | None) -> dict[str, str | None]:
    return {
        "name": setting.name,
        "value": setting.shown(setting.default if written is None else written.value),
        "origin": "default" if written is None else written.origin,
        "default": setting.default,
        "meaning": setting.meaning,
    }


def _paragraph(described: dict[str, str | None]) -> str:
    value = "(not set)" if described["value"] is None else described["value"]
    origin = "" if described["origin"] == "default" else f"  [from {described['origin']}]"
    default = "none" if described["default"] is None else described["default"]
    return f"{described['name']} = {value}{origin}\n    {described['meaning']}\n    default: {default}"
