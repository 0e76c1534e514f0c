"""``rxstore status``: how far the projector is, and whether anything needs attention."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.settings import Settings

if TYPE_CHECKING:
    from rxstore.report import GenerationReport, Report

WATCH_SECONDS = 2.0


@click.command(epilog=example("rxstore status", "rxstore status --json | jq .verdict"))
@click.option("--watch", is_flag=True, help="Look again every two seconds, until Ctrl-C.")
@as_json
@with_settings
@click.pass_context
def command(context: click.Context, settings: Settings, watch: bool, as_json: bool) -> None:
    """How far the projector is, and whether anything needs attention.

    The verdict is following, rebuilding, lagging, stalled, attention, stopped or unknown. Exit code 0 for the first
    two, 1 for the others, 3 when the database cannot be reached.
    """
    from rxstore import store
    from rxstore.report import GOOD_VERDICTS, report

    with store.engine(settings) as engine:
        while True:
            found = report(settings, engine)
            if watch and not as_json:
                click.clear()
            click.echo(_json(found) if as_json else _text(found))
            if not watch:
                break
            time.sleep(WATCH_SECONDS)
    context.exit(0 if found.verdict in GOOD_VERDICTS else 1)


def _json(found: Report) -> str:
    import orjson

    return orjson.dumps(found.as_json(), option=orjson.OPT_UTC_Z).decode()


def _text(found: Report) -> str:
    lines = [f"verdict: {found.verdict}" + (f" ({found.why})" if found.why else "")]
    for generation in found.generations:
        lines += ["", *_generation(generation)]
    return "\n".join(lines)


def _generation(generation: GenerationReport) -> list[str]:
    from projector.rebuild import precisely

    of_time = "" if generation.until is None else f", as of {precisely(generation.until)}"
    lines = [
        f"generation {generation.name}: {generation.state}{of_time}, definition {generation.definition}",
        *([] if generation.retire_at is None else [f"  retires at     {precisely(generation.retire_at)}"]),
        f"  lag            {_known(generation.lag_events)} events, {_known(generation.lag_seconds)} s",
        f"  workers        {_known(generation.workers)}",
        f"  prescriptions  {generation.prescriptions:,}",
        f"  blocked        {generation.blocked:,}",
        f"  parked         {generation.parked:,}" + _oldest(generation),
        f"  quarantined    {generation.quarantined:,}",
        f"  fresh as of    {_known(generation.as_of)}",
        *_build(generation),
        "",
        "  partition   next offset    end offset         lag  epoch  owner",
    ]
    lines += [
        f"  {p.partition:>9} {p.next_offset:>13,} {_known(p.end_offset):>13} {_known(p.lag_events):>11}"
        f" {p.epoch:>6}  {p.owner or '-'}"
        for p in generation.partitions
    ]
    return lines


def _build(generation: GenerationReport) -> list[str]:
    from rxstore import headway

    return [] if generation.build is None else headway.lines(generation.build)


def _oldest(generation: GenerationReport) -> str:
    if generation.oldest_parked_seconds is None:
        return ""
    return f", the oldest for {generation.oldest_parked_seconds:,.0f} s"


def _known(value: object) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int | float) else str(value)
