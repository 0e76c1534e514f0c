"""``rxstore project``: from the topic to the read models, until stopped."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from dataclasses import asdict

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.settings import Settings
from rxstore.signals import stop_when_asked


@click.command(epilog=example("rxstore project --workers 2", "rxstore project --until-caught-up"))
@click.option(
    "--workers",
    type=click.IntRange(min=1, max=64),
    help="Processes on this machine for each generation that is fed; one a core by default.",
)
@click.option("--until-caught-up", is_flag=True, help="Stop once every event that is there now has been projected.")
@click.option("--keep-going", is_flag=True, help="Set everything aside even when most of it cannot be read.")
@as_json
@with_settings
def command(settings: Settings, workers: int | None, until_caught_up: bool, keep_going: bool, as_json: bool) -> None:
    """Run the projector: from the topic to the read models.

    It feeds the live generation, and beside it every generation that is being built or was live before, as far as this
    version can fold into them; what is registered or given up while it runs it notices within seconds. More machines
    join by running the same command: Kafka spreads the partitions over all workers. Ctrl-C and SIGTERM stop between
    two batches; nothing is lost or done twice however it stops.
    """
    from rxstore import store
    from rxstore.feeding import CaughtUp, Feeder

    stopping = threading.Event()
    stop_when_asked(stopping)
    with ExitStack() as stack:
        engine = stack.enter_context(store.engine(settings))
        feeder = Feeder(settings, engine, workers, keep_going, all_or_none=until_caught_up)
        if settings.metrics_bind is not None:
            from rxstore import exposition

            stack.enter_context(exposition.serving(settings.metrics_bind))
        stack.callback(feeder.stop)
        feeder.start()
        if until_caught_up:
            from rxstore.progress import Progress

            progress = stack.enter_context(Progress("project", "events"))
            feeder.run(stopping, CaughtUp(engine, tuple(feeder.fed.values()), progress))
        else:
            feeder.run(stopping)
    counts = asdict(feeder.counts)
    if as_json:
        click.echo(json.dumps(counts))
    else:
        click.echo(", ".join(f"{name} {number:,}" for name, number in counts.items()))
