"""``rxstore generate``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import islice
from typing import BinaryIO

import click

from rxstore.cli.options import as_json, example
from rxstore.errors import WrongUse
from rxstore.generator import Tally, lines
from rxstore.generator.stream import (
    DEFAULT_DAYS,
    DEFAULT_PRESCRIPTIONS,
    DEFAULT_SEED,
    DEFAULT_START,
    FIRST_START,
    LAST_START,
    MOST_DAYS,
)
from rxstore.progress import Progress
from schemas.vocabulary import ISSUE_STATUS_SEARCH, LINE_ITEM_STATUS, TREATMENT_TYPE

STANDARD_OUTPUT = "-"
LINES_AT_A_TIME = 512


def _date(_context: click.Context, _parameter: click.Parameter, value: datetime) -> datetime:
    if not FIRST_START <= value.date() <= LAST_START:
        raise click.BadParameter(f"must be between {FIRST_START} and {LAST_START}")
    return value


@click.command(
    epilog=example(
        "rxstore generate --prescriptions 20000 --seed 1 > events.ndjson",
        "rxstore generate --prescriptions 2000 --output events.ndjson --json | jq .issues_by_final_status",
    )
)
@click.option("--prescriptions", type=click.IntRange(min=1), default=DEFAULT_PRESCRIPTIONS, show_default=True)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=DEFAULT_SEED,
    show_default=True,
    help="Any number; another one gives other prescriptions.",
)
@click.option(
    "--start",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="DATE",
    callback=_date,
    default=DEFAULT_START.isoformat(),
    show_default=True,
    help="The day on which the first prescriptions are created.",
)
@click.option(
    "--days",
    type=click.IntRange(min=1, max=MOST_DAYS),
    default=DEFAULT_DAYS,
    show_default=True,
    help="For how many days prescriptions are created; later events of theirs may fall after that.",
)
@click.option("--no-sequences", is_flag=True, help="No stream has sequences.  [default: most have]")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    default=STANDARD_OUTPUT,
    help="Write the events there; an existing file is replaced.  [default: standard output]",
)
@as_json
def command(
    prescriptions: int, seed: int, start: datetime, days: int, no_sequences: bool, output: str, as_json: bool
) -> None:
    """Write synthetic lifecycles as NDJSON, one CloudEvent a line, in publish order.

    Every event folds, and from 200 prescriptions on every status and turn of the lifecycle is met; a table of what
    was made ends the command on standard error. The same arguments give the same bytes. Patients, organisations and
    ids are invented: NHS numbers are of the 999 range, which nobody has.

    With --json, which needs --output, the table goes to standard output.
    """
    if as_json and output == STANDARD_OUTPUT:
        raise click.UsageError("--json prints the table where the events go: write them to a file with --output FILE")
    tally = Tally()
    made = lines(prescriptions, seed, start.date(), days, sequences=not no_sequences, tally=tally)
    with _opened(output) as file, Progress("generate", "events") as progress:
        _write(file, _counted(made, prescriptions, tally, progress))
    if as_json:
        click.echo(json.dumps(tally.document(), indent=2))
    else:
        click.echo(_table(tally), err=True)


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == STANDARD_OUTPUT:
        yield sys.stdout.buffer
        return
    try:
        with open(name, "wb") as file:
            yield file
    except OSError as error:
        raise WrongUse(f"{name} cannot be written: {error.strerror}") from error


def _counted(made: Iterator[bytes], prescriptions: int, tally: Tally, progress: Progress) -> Iterator[list[bytes]]:
    while some := list(islice(made, LINES_AT_A_TIME)):
        yield some
        # The tally has all events of every prescription that was begun.
        progress.total = tally.events * prescriptions / tally.prescriptions
        progress.advance(len(some))


def _write(file: BinaryIO, made: Iterable[list[bytes]]) -> None:
    whole = 0
    try:
        for some in made:
            whole += file.write(b"\n".join(some) + b"\n")
        file.flush()
    except BaseException:
        # No half line stays behind in a file of ours. What standard output is nobody knows: it may hold more.
        if file is not sys.stdout.buffer:
            with suppress(OSError):
                file.truncate(whole)
        raise


# the table ------------------------------------------------------------------------------------------------------------


def _table(tally: Tally) -> str:
    counts = tally.counts()
    return "\n".join(
        [
            f"{tally.events:,} events of {tally.prescriptions:,} prescriptions "
            f"({tally.deleted:,} deleted in the end, {tally.without_sequences:,} without sequences)",
            *_section("events by type", counts["events_by_type"]),
            *_section(
                "prescriptions by treatment type", counts["prescriptions_by_treatment_type"], texts=TREATMENT_TYPE
            ),
            *_section(
                "issues by status at the end, and prescriptions that met it",
                counts["issues_by_final_status"],
                counts["prescriptions_by_issue_status_met"],
                texts=ISSUE_STATUS_SEARCH,
            ),
            *_section(
                "line items of all issues by status at the end, and prescriptions that met it",
                counts["line_items_by_final_status"],
                counts["prescriptions_by_line_item_status_met"],
                texts=LINE_ITEM_STATUS,
            ),
            *_section("prescriptions by path", counts["prescriptions_by_path"]),
        ]
    )


def _section(
    title: str,
    counts: Mapping[str, int],
    met: Mapping[str, int] | None = None,
    *,
    texts: Mapping[str, str] | None = None,
) -> Iterator[str]:
    yield f"\n{title}"
    for name, count in counts.items():
        label = f"{name} {texts.get(name, '')}" if texts else name
        yield f"  {label:<54}{count:>12,}" + (f"{met[name]:>12,}" if met else "")
