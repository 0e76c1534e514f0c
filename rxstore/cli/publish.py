"""``rxstore publish``."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.errors import Refused
from rxstore.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from rxstore.outcomes import Outcome
    from rxstore.publishing import Published

WAIT_SECONDS = "30"
LINES_OF_EVENTS = 100


class WithOptionalSeconds(click.Command):
    """Lets ``--wait`` stand before the file without taking it for its number of seconds."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give ``--wait`` its default where no number follows."""
        given = [
            f"--wait={WAIT_SECONDS}" if arg == "--wait" and not _is_number(args[at + 1 : at + 2]) else arg
            for at, arg in enumerate(args)
        ]
        return super().parse_args(ctx, given)


def _is_number(words: list[str]) -> bool:
    try:
        float(words[0])
    except (IndexError, ValueError):
        return False
    return True


@click.command(
    cls=WithOptionalSeconds,
    epilog=example(
        "rxstore publish events.ndjson",
        "rxstore generate --prescriptions 10 | rxstore publish -",
        "rxstore publish events.ndjson --wait 60",
    ),
)
@click.argument("file")
@click.option("--no-validate", is_flag=True, help="Send also what breaks the contract, as it is.")
@click.option(
    "--wait",
    "seconds",
    type=click.FloatRange(min=0),
    metavar="[SECONDS]",
    help=f"Wait until the read model has them, {WAIT_SECONDS} seconds by default, and tell what became of each.",
)
@as_json
@with_settings
def command(settings: Settings, file: str, no_validate: bool, seconds: float | None, as_json: bool) -> None:
    """Validate each line of FILE (- for standard input), send it to the topic, and wait for the acknowledgements.

    A line is one CloudEvent in structured mode. Each is sent under the stream key of its subject. At a bad line all
    before it are published, it is reported with its number, nothing after it is sent, and the exit code is 1.
    Publishing a file twice does no harm: events that are already there count as duplicates.

    With --json: one object for each event with its position, in the order of the file; with --wait also its state
    (folded, duplicate, parked, open, ...), version, reason and what it waits for. With --wait the exit code is 1 when
    an event neither folded nor is a duplicate, or the time passed. That needs the database.
    """
    from rxstore import event_file, store
    from rxstore.progress import Progress
    from rxstore.publishing import BadLine, publisher

    decoder = event_file.checker(
        max_value_bytes=sys.maxsize if no_validate else settings.max_value_bytes,
        strict_check_character=settings.check_character == "strict",
    )
    count = 0
    sent: list[Published] = []
    with ExitStack() as stack:
        engine = None if seconds is None else stack.enter_context(store.engine(settings))
        if engine is not None:
            _check_topic(settings, engine)
        opened = stack.enter_context(event_file.opened(file))
        to_topic = stack.enter_context(publisher(settings))
        progress = stack.enter_context(Progress("publish", "events"))
        checked = (event_file.check(decoder, line) for line in event_file.lines(opened, progress))
        bad: BadLine | None = None
        try:
            for published in to_topic.publish(checked, even_bad=no_validate):
                count += 1
                if engine is not None:
                    sent.append(published)
                elif as_json:
                    click.echo(json.dumps(_report(published)))
        except BadLine as error:
            bad = error
        finally:
            events = "1 event" if count == 1 else f"{count:,} events"
            rate = f"{count / max(progress.seconds, 1e-6):,.0f}/s"
            click.echo(f"{events} published to {settings.topic} in {progress.seconds:.1f} s ({rate})", err=True)
        # Also where a bad line ended it: what stands before that is published, and its publisher wants to know.
        all_fine = engine is None or seconds is None or _tell(engine, sent, seconds, as_json=as_json)
        if bad is not None:
            raise bad
        if not all_fine:
            raise click.exceptions.Exit(1)


def _check_topic(settings: Settings, engine: Engine) -> None:
    """Whoever waits for what nobody reads waits in vain: say so before anything is sent."""
    from rxstore import store

    live = store.live_generation(engine)
    if live.topic != settings.topic:
        raise Refused(
            f"generation {live.name} is built from topic {live.topic}, RXSTORE_TOPIC is {settings.topic}: set it back, "
            "or publish without --wait"
        )


def _tell(engine: Engine, sent: list[Published], seconds: float, *, as_json: bool) -> bool:
    """Wait, tell what became of the events, and return whether all of them count."""
    from rxstore import outcomes

    counts: Counter[str] = Counter()
    left_out = 0
    for outcome in outcomes.wait(engine, sent, seconds):
        counts[outcome.state] += 1
        if as_json:
            click.echo(json.dumps(_report(outcome.published) | outcome.as_json()))
        elif not outcome.is_fine:
            if sum(_not_fine(counts)) <= LINES_OF_EVENTS:
                click.echo(_line(outcome))
            else:
                left_out += 1
    if left_out:
        click.echo(f"and {left_out:,} more: --json has them all", err=True)
    if not as_json:
        click.echo(outcomes.summary(counts))
    return not any(_not_fine(counts))


def _not_fine(counts: Counter[str]) -> Iterable[int]:
    from rxstore.outcomes import FINE

    return [number for state, number in counts.items() if state not in FINE]


def _line(outcome: Outcome) -> str:
    published = outcome.published
    told = [f"line {published.line}: {published.position}  {outcome.state.replace('_', ' ')}"]
    if outcome.reason is not None:
        told.append(f": {outcome.reason}")
    if outcome.waiting_for is not None:
        told.append(f", waits for {outcome.waiting_for}")
    if outcome.state == "not_seen":
        told.append(": the projector has not come to it")
    told += [f"; {error['path'] or '(record)'}: {error['message']}" for error in outcome.errors]
    return "".join(told)


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
