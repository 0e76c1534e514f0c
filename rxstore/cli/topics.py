"""``rxstore topics``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.settings import Settings

if TYPE_CHECKING:
    from rxstore.topics import Topic


@click.group(epilog=example("rxstore topics create --partitions 12"))
def command() -> None:
    """Create the topic, or say what differs from what the contract asks for."""


@command.command("create", epilog=example("rxstore topics create --partitions 12"))
@click.option(
    "--partitions",
    type=click.IntRange(min=1, max=10_000),
    help="How many; never to be changed later.  [default: 8 for a new topic]",
)
@as_json
@with_settings
def create(settings: Settings, partitions: int | None, as_json: bool) -> None:
    """Create the topic of RXSTORE_TOPIC: kept for good, one partition for all events of a prescription.

    When it exists already nothing is changed: what differs from the contract is named, and the exit code is then 1.
    """
    from rxstore import topics
    from rxstore.broker import admin_client

    with admin_client(settings) as admin:
        topic = topics.create(admin, settings.topic, partitions, settings.max_value_bytes)
    click.echo(json.dumps(asdict(topic)) if as_json else _sentence(topic))
    if topic.differences:
        raise click.exceptions.Exit(1)


def _sentence(topic: Topic) -> str:
    partitions = "1 partition" if topic.partitions == 1 else f"{topic.partitions} partitions"
    if topic.created:
        return f"{topic.name} created with {partitions}"
    if not topic.differences:
        return f"{topic.name} exists with {partitions} and everything the contract asks for"
    differences = "; ".join(map(str, topic.differences))
    return f"{topic.name} exists with {partitions}, but: {differences}. Mend it with kafka-configs and kafka-topics"
