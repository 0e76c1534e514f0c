"""``rxstore contract``: the published contracts, generated from the code."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

from rxstore.cli.options import example, with_settings
from rxstore.settings import Settings


@click.group(epilog=example("rxstore contract json-schema > events.schema.json"))
def command() -> None:
    """Print the published contracts: JSON Schema, AsyncAPI, OpenAPI."""


@command.command("json-schema", epilog=example("rxstore contract json-schema > events.schema.json"))
def json_schema() -> None:
    """The events, as JSON Schema 2020-12."""
    from schemas.json_schema import event_schemas

    _print(event_schemas())


@command.command("asyncapi", epilog=example("rxstore contract asyncapi --partitions 12 > asyncapi.json"))
@click.option(
    "--partitions",
    type=click.IntRange(min=1),
    help="How many partitions the described topic has.  [default: 8]",
)
@with_settings
def asyncapi(settings: Settings, partitions: int | None) -> None:
    """The topic of RXSTORE_TOPIC with its messages, as AsyncAPI."""
    from rxstore.topics import DEFAULT_PARTITIONS
    from schemas.asyncapi import asyncapi_document

    _print(asyncapi_document(settings.topic, partitions or DEFAULT_PARTITIONS))


@command.command("openapi", epilog=example("rxstore contract openapi > openapi.json"))
def openapi() -> None:
    """The query API, as OpenAPI."""
    from schemas.openapi import openapi_document

    _print(openapi_document())


def _print(document: Mapping[str, object]) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))
