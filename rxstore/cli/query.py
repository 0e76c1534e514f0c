"""``rxstore query``: what the API would answer, from any generation."""

from __future__ import annotations

import sys

import click

from rxstore.cli.options import example, stream_key, with_settings
from rxstore.errors import WrongUse
from rxstore.settings import Settings

FIRST_CODE_OF_WRONG_USE = 50
STDIN = "-"
TOLD = {"rxstore-generation": "generation", "rxstore-as-of": "fresh as of", "rxstore-blocked": "blocked"}


@click.command(
    epilog=example(
        "rxstore query --generation g2 3AF2CB-C86002-0000BX --issue 2",
        "rxstore query --generation g2 --nhs-number - --earliest 20260101 < number.txt",
    )
)
@click.argument("id_", metavar="[ID]", required=False)
@click.option("--issue", type=click.IntRange(1, 99), help="Which issue of the prescription; the current one without.")
@click.option("--nhs-number", metavar="NUMBER", help="Search by it; '-' reads it from stdin, for no process list.")
@click.option("--earliest", metavar="YYYYMMDD", help="The first day of the search; 28 days before the last without.")
@click.option("--latest", metavar="YYYYMMDD", help="The last day of the search; the present day without.")
@click.option("--status", metavar="CODE", help="Search only prescriptions with an issue in this status.")
@click.option("--release", metavar="R1|R2", help="Search only prescriptions of this release.")
@click.option("--generation", "name", metavar="NAME", help="Which generation to ask; the live one without.")
@with_settings
def command(settings: Settings, /, id_: str | None, issue: int | None, name: str | None, **search: str | None) -> None:
    """Print what the API would answer, byte for byte, from the live generation or from any other.

    With ID it is the answer to a retrieve, with --nhs-number that to a search. Generation, freshness and blocked
    prescriptions, which the API tells in headers, go to stderr. Of a generation as of a time the present is that time.
    Without a server, and as the user of RXSTORE_DATABASE_URL, who must be allowed to read the generation's tables.

    Exit code 0 for status code 0, 1 for another answer, 2 when the API would refuse the question, 3 when the database
    does not answer, 4 when there is no such generation, its tables are dropped or of another shape.
    """
    from rxstore import querying, store

    _check(id_, issue, search)
    generation = None
    with store.engine(settings) as engine:
        if name is not None:
            generation = querying.generation_to_ask(engine, name)
        else:
            store.live_generation(engine)
    if generation is not None and generation.state in {"loading", "building"}:
        click.echo(f"generation {generation.name} is {generation.state}: what it has not read is not in it", err=True)
    if id_ is not None:
        answered = querying.prescription(settings, generation, id_, issue)
    else:
        answered = querying.search(settings, generation, _parameters(search))
    _print(answered.body)
    for header, what in TOLD.items():
        if header in answered.headers:
            click.echo(f"{what}: {answered.headers[header]}", err=True)
    if answered.code != "0":
        raise click.exceptions.Exit(2 if int(answered.code) >= FIRST_CODE_OF_WRONG_USE else 1)


def _check(id_: str | None, issue: int | None, search: dict[str, str | None]) -> None:
    if (id_ is None) == (search["nhs_number"] is None):
        raise WrongUse("name one prescription, or search with --nhs-number")
    if id_ is not None:
        stream_key(id_)
        if given := [name for name, value in search.items() if value is not None]:
            raise WrongUse(f"--{given[0].replace('_', '-')} is for a search, and a prescription is named")
    elif issue is not None:
        raise WrongUse("--issue is for a prescription that is named, and this is a search")


def _parameters(search: dict[str, str | None]) -> dict[str, str]:
    """Return the search as the API's parameters."""
    number = search["nhs_number"]
    if number == STDIN:
        number = sys.stdin.readline().strip()
    named = {
        "nhsNumber": number,
        "earliestDate": search["earliest"],
        "latestDate": search["latest"],
        "prescriptionStatus": search["status"],
        "prescriptionVersion": search["release"],
    }
    return {parameter: value for parameter, value in named.items() if value is not None}


def _print(body: bytes) -> None:
    """Write exactly the body; people get a line break after it."""
    sys.stdout.buffer.write(body + (b"\n" if sys.stdout.isatty() else b""))
    sys.stdout.buffer.flush()
