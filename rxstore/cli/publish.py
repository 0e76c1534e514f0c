"""``rxstore publish``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.settings import Settings

if TYPE_CHECKING:
    from rxstore.publishing import Published


@click.command(
    epilog=example("rxstore publish events.ndjson", "rxstore generate --prescriptions 10 | rxstore publish -")
)
@click.argument("file")
@click.option("--no-validate", is_flag=True, help="Send also what breaks the contract, as it is.")
@as_json
@with_settings
def command(settings: Settings, file: str, no_validate: bool, as_json: bool) -> None:
    """Validate each line of FILE (- for standard input), send it to the topic, and wait for the acknowledgements.

    A line is one CloudEvent in structured mode. Each is sent under the stream key of its subject. At a bad line all
    before it are published, it is reported with its number, nothing after it is sent, and the exit code is 1.
    Publishing a file twice does no harm: events that are already there count as duplicates.

    With --json: one object for each event with its position, in the order of the file.
    """
    from rxstore import event_file
    from rxstore.progress import Progress
    from rxstore.publishing import publisher

    decoder = event_file.checker(
        max_value_bytes=sys.maxsize if no_validate else settings.max_value_bytes,
        strict_check_character=settings.check_character == "strict",
    )
    count = 0
    with (
        event_file.opened(file) as opened,
        publisher(settings) as to_topic,
        Progress("publish", "events") as progress,
    ):
        checked = (event_file.check(decoder, line) for line in event_file.lines(opened, progress))
        try:
            for published in to_topic.publish(checked, even_bad=no_validate):
                count += 1
                if as_json:
                    click.echo(json.dumps(_report(published)))
        finally:
            events = "1 event" if count == 1 else f"{count:,} events"
            rate = f"{count / max(progress.seconds, 1e-6):,.0f}/s"
            click.echo(f"{events} published to {settings.topic} in {progress.seconds:.1f} s ({rate})", err=True)


def _report(published: Published) -> dict[str, object]:
    position = published.position
    return {
        "line": published.line,
        "id": published.id,
        "position": str(position),
        "topic": position.topic,
        "partition": position.partition,
        "offset": position.offset,
    }
