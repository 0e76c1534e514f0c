"""``rxstore selftest``: seeded chaos on one's own servers, and the comparison with the pure fold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.settings import Settings

if TYPE_CHECKING:
    from rxstore.selftest.trial import Outcome

DEFAULT_SEEDS = 32
DEFAULT_JOBS = 6
DIFFERENCES_SHOWN = 10


@click.command(epilog=example("rxstore selftest --seeds 1000 --jobs 8", "rxstore selftest --seed 417"))
@click.option(
    "--seeds", type=click.IntRange(min=1), default=DEFAULT_SEEDS, show_default=True, help="How many, from 0 on."
)
@click.option("--seed", type=click.IntRange(min=0), help="Only this one; prints its schedule first.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1, max=64),
    default=DEFAULT_JOBS,
    show_default=True,
    help="Seeds at a time: most of their time is waiting for time-outs.",
)
@click.option(
    "--database-url",
    help="An empty database to use, one seed at a time, where RXSTORE_DATABASE_URL's user may not create any.",
)
@as_json
@with_settings
@click.pass_context
def command(
    context: click.Context,
    settings: Settings,
    seeds: int,
    seed: int | None,
    jobs: int,
    database_url: str | None,
    as_json: bool,
) -> None:
    """Kill, pause and cut workers off on your own servers, and compare what is left with the pure fold of the log.

    Each seed publishes a log of its own, dirty events included, to a scratch topic; workers project it into a scratch
    database while they are killed at every statement of a batch, frozen past the session time-out, cut off from
    broker and database, joined by others and sent away, and while operators retry, skip and undo. In the end every
    row, every set-aside record and every answer of the API must be that of the pure fold.

    The installation itself is not touched: databases named rxstore_selftest_… and topics and groups named
    rxstore-selftest-… are made on the servers of the settings and removed again.

    Exit code 0 when everything is equal, 1 when something differs (the seed is printed), 3 when a server is away.
    """
    from rxstore.progress import Progress
    from rxstore.selftest.run import run
    from rxstore.selftest.schedule import schedule_of

    wanted = range(seeds) if seed is None else [seed]
    if seed is not None:
        for line in schedule_of(seed).lines():
            click.echo(line, err=True)
    with Progress("selftest", "seeds", total=len(wanted)) as progress:

        def heard(outcome: Outcome) -> None:
            progress.advance()
            if outcome.differences:
                click.echo(_failure(outcome), err=True)

        summary = run(settings, wanted, jobs=jobs, database_url=database_url, heard=heard)
    if as_json:
        click.echo(json.dumps(summary.as_json(), indent=2))
    else:
        click.echo("\n".join(summary.lines()))
    context.exit(1 if summary.failed else 0)


def _failure(outcome: Outcome) -> str:
    shown = [f"  {difference}" for difference in outcome.differences[:DIFFERENCES_SHOWN]]
    more = len(outcome.differences) - len(shown)
    return "\n".join(
        [
            f"seed {outcome.seed}: {len(outcome.differences)} differences; again with: "
            f"rxstore selftest --seed {outcome.seed}",
            *shown,
            *([f"  and {more} more"] if more else []),
        ]
    )
