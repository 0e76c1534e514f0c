"""``rxstore rebuild``: a new read model beside the live one, and single prescriptions in place."""

from __future__ import annotations

import json
import os
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rxstore.cli.options import as_json, duration, example, instant, with_settings
from rxstore.errors import WrongUse
from rxstore.settings import Settings
from rxstore.signals import stop_when_asked

if TYPE_CHECKING:
    from ingest.archive import Archive
    from projector.verify import Comparison
    from rxstore.planning import Plan

DEFAULT_MAX_LAG = 1_000
MOST_EVENTS = 1_000_000_000
# What a report says only of generations that have it.
WHEN = {"until": "as of", "retire_at": "retires at"}

max_lag = click.option(
    "--max-lag",
    type=click.IntRange(min=0),
    default=DEFAULT_MAX_LAG,
    show_default=True,
    help="How many events it may be behind the end of the topic.",
)


class Rate(click.ParamType[str]):
    """Events a second, or a word that stands for a way to find them."""

    name = "rate"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word, or the number as it is kept; click's BadParameter for anything else."""
        if value in self.words or (value.isascii() and value.isdecimal() and 1 <= int(value) <= MOST_EVENTS):
            return value if value in self.words else str(int(value))
        self.fail(f"{value!r} is neither {' nor '.join(self.words)} nor a number from 1 to {MOST_EVENTS}", param, ctx)


@click.group(
    epilog=example(
        "rxstore rebuild plan", "rxstore rebuild stage --workers 2", "rxstore rebuild prescription 3AF2CB-C86002-0000BX"
    )
)
def command() -> None:
    """Make rows anew from the topic: all of them beside the live ones, or those of single prescriptions in place.

    plan says what it would take, stage registers a new generation and builds it, throttle changes how fast, wait waits
    until it follows, verify compares it with the live one, promote makes it the live one and rollback takes that back;
    abort drops one that was not promoted, retire the one that was live before; report prints what became of it.
    """


@command.command("plan", epilog=example("rxstore rebuild plan", "rxstore rebuild plan --json | jq .seconds"))
@click.option("--workers", type=click.IntRange(min=1, max=64), help="How many would build it; one a core by default.")
@as_json
@with_settings
def plan(settings: Settings, workers: int | None, as_json: bool) -> None:
    """Say what a rebuild would read, how long it would take and what it would change. Changes nothing.

    The time is that of a sample: the first events of the fullest partition are projected by one worker, and rolled
    back. Several workers share a machine, and a build also meets prescriptions that grow; take it as an order of
    magnitude.
    """
    from rxstore import planning, store

    with store.engine(settings) as engine:
        found = planning.plan(settings, engine, workers)
    if as_json:
        import orjson

        click.echo(orjson.dumps(found.as_json(), option=orjson.OPT_UTC_Z).decode())
    else:
        click.echo("\n".join(_plan(found)))


def _plan(found: Plan) -> list[str]:
    from rxstore.progress import duration

    lines = [f"generation {found.live} is live, definition {found.live_definition}; this version folds by "]
    lines[0] += f"{found.definition} from {found.topic}"
    lines += [f"  changes   {change}" for change in found.changes] or ["  changes   nothing"]
    lines.append(f"  needed    {'yes' if found.needed else 'no: the live rows are as a rebuild would make them'}")
    lines += [f"  warning   {warning}" for warning in found.warnings]
    lines += ["", f"  {'partition':>9} {'first':>12} {'end':>12} {'events':>12} {'bytes':>14}  oldest"]
    lines += [
        f"  {one.partition:>9} {one.first_offset:>12,} {one.end_offset:>12,} {one.events:>12,}"
        f" {_known(one.bytes):>14}  {_instant(one.oldest)}"
        for one in found.partitions
    ]
    lines += [f"  {'all':>9} {'':>12} {'':>12} {found.events:>12,} {_known(found.bytes):>14}", ""]
    if found.sample is not None and found.seconds is not None:
        lines.append(
            f"  time      about {duration(found.seconds)} with {found.workers} workers: one projected "
            f"{found.sample.events:,} events at {found.sample.rate:,.0f} a second"
        )
    else:
        lines.append("  time      unknown: there is nothing to sample, or this role may make no schema")
    space = "unknown" if found.space_bytes is None else f"about {found.space_bytes / 1_000_000:,.0f} MB"
    return [*lines, f"  space     {space} in the database, beside the live tables"]


def _known(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _instant(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%dT%H:%M:%SZ}"


@command.command("report", epilog=example("rxstore rebuild report g2", "rxstore rebuild report g2 --json > g2.json"))
@click.argument("name")
@as_json
@with_settings
def report(settings: Settings, name: str, as_json: bool) -> None:
    """Print what became of a generation, with who did it, when and on what evidence, as one document.

    It stays when the tables are dropped.
    """
    import orjson

    from rxstore import rebuilding, store

    with store.engine(settings) as engine:
        found = rebuilding.report(engine, name)
    if as_json:
        click.echo(orjson.dumps(found, option=orjson.OPT_UTC_Z | orjson.OPT_INDENT_2).decode())
    else:
        click.echo("\n".join(_report(found)))


def _report(found: dict[str, Any]) -> list[str]:
    topic = found["topic"]
    lines = [
        f"generation {found['generation']}: {found['state']}, definition {found['definition']}",
        f"  registered  {_instant(found['registered_at'])}",
        *(f"  {what:11} {_instant(found[member])}" for member, what in WHEN.items() if found[member] is not None),
        f"  topic       {topic['name']}, {topic['partitions']} partitions, id {topic['id']}",
        f"  settings    {', '.join(f'{name}={value}' for name, value in found['settings'].items())}",
        f"  hashes      {', '.join(f'{name} {value}' for name, value in found['hashes'].items())}",
    ]
    for entry in found["history"]:
        lines += ["", f"{_instant(entry['at'])}  {entry['action']} by {entry['by']}"]
        lines += [
            f"  {name:11} {json.dumps(value) if isinstance(value, dict | list) else value}"
            for name, value in entry.items()
            if name not in {"at", "action", "by"} and value not in (None, {}, [])
        ]
    return lines


@command.command("stage", epilog=example("rxstore rebuild stage", "rxstore rebuild stage --name g2 --workers 2"))
@click.option("--name", help="Its name; g and the next number by default.")
@click.option(
    "--workers",
    type=click.IntRange(min=1, max=64),
    help="Build it here with so many processes, and end when it is built; without, running projectors build it.",
)
@click.option(
    "--archive",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Begin with the events of this archive, and go on in the topic where it ends.",
)
@click.option(
    "--keep-decisions",
    is_flag=True,
    help="The topic is another one with the same records at the same offsets: operators' decisions hold for it too.",
)
@click.option(
    "--throttle",
    type=Rate("auto"),
    metavar="N|auto",
    help="Fold at most N events a second, on all machines together; auto holds the API's p99 under a bound "
    "(RXSTORE_THROTTLE_P99_MS).",
)
@click.option(
    "--until",
    metavar="TIME",
    help="The state as it was then, an RFC 3339 instant such as 2026-03-01T09:00:00Z. It can never be live.",
)
@as_json
@with_settings
def stage(
    settings: Settings,
    name: str | None,
    workers: int | None,
    directory: Path | None,
    keep_decisions: bool,
    throttle: str | None,
    until: str | None,
    as_json: bool,
) -> None:
    """Register a new generation beside the live one, and build it from the topic.

    It is of this version's definition, of the settings as they are now and of the topic as it is now. Every running
    projector of this version joins within seconds; without --workers the command leaves the work to them and returns
    at once, with --workers it does it alone and returns when every event that was there has been folded. A build that
    is stopped or killed goes on where it was; one from an archive when the same command is given again.
    'rxstore rebuild throttle' changes how fast it is built.

    With --until it reads each partition up to the first record that is stamped later than TIME and stops there: what
    the system knew then, with the decisions that stood then. 'rxstore query --generation' looks at it, 'rxstore rebuild
    abort NAME' drops it. It can be staged beside another one, and another one beside it.
    """
    from projector.rebuild import precisely
    from rxstore import headway, rebuilding, store
    from rxstore.feeding import CaughtUp, Feeder
    from rxstore.progress import Board

    if until is not None and keep_decisions:
        raise WrongUse("--until and --keep-decisions exclude each other: decisions that were revoked are not kept")
    at = None if until is None else instant(until, "--until")
    stopping = threading.Event()
    with store.engine(settings) as engine:
        archive = None if directory is None else _archive(directory)
        generation = rebuilding.stage(
            settings,
            engine,
            name,
            archive,
            keep_decisions=keep_decisions,
            throttle=throttle,
            until=at,
            say=lambda told: click.echo(told, err=True),
        )
        of_time = "" if generation.until is None else f", as of {precisely(generation.until)}"
        click.echo(f"staged generation {generation.name}, definition {generation.definition}{of_time}", err=as_json)
        if archive is not None:
            generation = rebuilding.load(settings, engine, generation, archive, workers or os.cpu_count() or 1)
            click.echo(f"{generation.name} is loaded from {directory}", err=as_json)
        state = generation.state
        if workers is not None and generation.is_fed:
            stop_when_asked(stopping)
            feeder = Feeder(settings, engine, workers, only=generation.name, all_or_none=True)

            def lines() -> list[str]:
                with engine.connect() as connection:
                    return headway.lines(headway.look(connection, generation, feeder.fed[generation.name].log))

            with Board(f"build {generation.name}", "events", lines) as board:
                try:
                    feeder.start()
                    caught_up = CaughtUp(engine, tuple(feeder.fed.values()), board)
                    feeder.run(stopping, lambda: caught_up() and rebuilding.is_built(engine, generation))
                finally:
                    feeder.stop()
            found = rebuilding.lag(settings, engine, generation.name)
            state = found.generation.state
            click.echo(f"{generation.name} is {state}, {found.events:,} events behind", err=as_json)
    if as_json:
        document = {"generation": generation.name, "definition": generation.definition, "state": state}
        click.echo(json.dumps(document | ({} if until is None else {"until": until})))
    elif workers is None and generation.is_fed:
        click.echo(f"running projectors build it: 'rxstore rebuild wait {generation.name}' waits for them")
    if stopping.is_set():
        raise click.exceptions.Exit(1)


def _archive(directory: Path) -> Archive:
    from ingest.archive import Archive, ArchiveBroken

    try:
        return Archive.opened(directory)
    except ArchiveBroken as error:
        raise WrongUse(str(error)) from error


@command.command(
    "throttle",
    epilog=example("rxstore rebuild throttle 2000", "rxstore rebuild throttle g2 auto", "rxstore rebuild throttle off"),
)
@click.argument("words", nargs=-1, required=True, metavar="[NAME] N|auto|off")
@as_json
@with_settings
def throttle(settings: Settings, words: tuple[str, ...], as_json: bool) -> None:
    """Change how fast a generation is built, while it is.

    N is events a second, on all machines together; auto holds the API's p99 under RXSTORE_THROTTLE_P99_MS, as the
    builder measures it; off lets it go as fast as it can. Workers hear of it within about a second. It ends by itself
    when the generation is ready: from then on it must keep up with the topic. Without NAME it is the one that is being
    built.
    """
    from rxstore import rebuilding, store

    if len(words) > 2:
        raise WrongUse("one NAME and one of N, auto and off, please: 'rxstore rebuild throttle g2 auto'")
    wanted = Rate("auto", "off").convert(words[-1], None, None)
    with store.engine(settings) as engine:
        generation = rebuilding.throttle(engine, words[0] if words[1:] else None, None if wanted == "off" else wanted)
    told = {
        "auto": "is throttled so that the API's answers keep in time",
        "off": "is no longer throttled",
    }.get(wanted, f"is throttled to {wanted} events a second")
    _tell(as_json, {"generation": generation.name, "throttle": wanted}, f"generation {generation.name} {told}")


@command.command("wait", epilog=example("rxstore rebuild wait --timeout 3600", "rxstore rebuild wait g2 --max-lag 0"))
@click.argument("name", required=False)
@max_lag
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait at most; for ever by default.")
@as_json
@with_settings
def wait(settings: Settings, name: str | None, max_lag: int, timeout: float | None, as_json: bool) -> None:
    """Wait until a generation is built and follows the topic; exit code 1 when time is up before.

    Without NAME it is the one that is being built to be live. One as of a time is measured against where it ends.
    """
    from rxstore import rebuilding, store

    def say(told: str) -> None:
        click.echo(told, err=True)

    with store.engine(settings) as engine:
        found = rebuilding.wait(settings, engine, name, max_lag=max_lag, timeout=timeout, say=say)
    told = f"generation {found.generation.name} is {found.generation.state}, {found.events:,} events behind"
    click.echo(json.dumps(found.as_json()) if as_json else told)
    if not (found.ready and found.events <= max_lag):
        raise click.exceptions.Exit(1)


@command.command("verify", epilog=example("rxstore rebuild verify", "rxstore rebuild verify --accept 0123456789abcdef"))
@click.argument("name", required=False)
@click.option("--accept", metavar="DIGEST", help="Accept exactly the differences that were found, by their digest.")
@click.option("--why", help="Why they are accepted, for the record.")
@click.option(
    "--another-topic",
    is_flag=True,
    help="It is built from another log, which holds the same events: another topic, or this one after it lost some.",
)
@as_json
@with_settings
def verify(
    settings: Settings, name: str | None, accept: str | None, why: str | None, another_topic: bool, as_json: bool
) -> None:
    """Compare a generation that is ready with the live one, row by row; exit code 1 when they differ.

    Both are brought to the same offsets: workers stand still for a moment, then go on while a snapshot is compared.
    What differs is grouped by what it has in common; the digest names exactly these differences, and promote asks for
    a comparison that found none, or whose digest was accepted.
    """
    from rxstore import rebuilding, store

    with store.engine(settings) as engine:
        if accept is not None:
            accepted = rebuilding.accept(engine, name, accept, why=why)
            _tell(as_json, {"accepted": accept}, f"the differences {accept} of {accepted.name} are accepted")
            return
        new, found = rebuilding.verify(settings, engine, name, another_topic=another_topic)
    if as_json:
        click.echo(json.dumps({"generation": new.name, **found.as_json()}))
    else:
        click.echo("\n".join(_comparison(new.name, found)))
    if not found.is_clean:
        raise click.exceptions.Exit(1)


def _comparison(name: str, found: Comparison) -> list[str]:
    where = "at the same offsets" if found.offsets is not None else "without places in the log, which are others"
    lines = [f"generation {name} and the live one, compared {where}", ""]
    lines += [f"  {'':22} {'live':>12} {'new':>12} {'differing':>12}"]
    lines += [f"  {table:22} {c.live:>12,} {c.new:>12,} {c.differing:>12,}" for table, c in found.tables.items()]
    for generation, columns in found.only_in.items():
        lines.append(f"  only {generation} has {', '.join(columns)}: not compared")
    if found.is_clean:
        return [*lines, "", "no difference"]
    lines.append("")
    for group in found.groups:
        rows = f"{group.rows:,} rows of {group.prescriptions:,} prescriptions"
        lines.append(f"  {group.table}: {group.difference}: {rows}, such as {', '.join(group.samples)}")
    return [*lines, "", f"digest {found.digest}: 'rxstore rebuild verify --accept {found.digest}' accepts exactly this"]


@command.command("promote", epilog=example("rxstore rebuild promote", "rxstore rebuild promote g2 --retire-after 7d"))
@click.argument("name", required=False)
@max_lag
@click.option("--retire-after", metavar="SPAN", help="Let the old one go so long after, such as 7d or 36h.")
@click.option("--retire-at", metavar="TIME", help="Let the old one go then, an RFC 3339 instant.")
@as_json
@with_settings
def promote(
    settings: Settings,
    name: str | None,
    max_lag: int,
    retire_after: str | None,
    retire_at: str | None,
    as_json: bool,
) -> None:
    """Make a generation that is ready the live one, in one transaction.

    It must have been compared with what is live: without a difference, or with differences that somebody accepted.
    Everybody who asks gets the old one before and the new one after. The old one is fed on, so that 'rxstore rebuild
    rollback' loses nothing, until 'rxstore rebuild retire' or the time that --retire-after or --retire-at sets: then
    running projectors let it go. A rollback takes that back.
    """
    from projector.rebuild import precisely
    from rxstore import rebuilding, store

    due = _due(("--retire-after", retire_after), ("--retire-at", retire_at))
    with store.engine(settings) as engine:
        live, previous = rebuilding.promote(settings, engine, name, max_lag=max_lag, retire_at=due)
        planned = rebuilding.report(engine, previous)["retire_at"]
    when = None if planned is None else precisely(planned)
    document = {"live": live, "previous": previous, "retire_at": when}
    kept = f"{previous} is kept and fed on" + ("" if when is None else f" until {when}")
    _tell(as_json, document, f"generation {live} is live, {kept}")


@command.command("rollback", epilog=example("rxstore rebuild rollback"))
@max_lag
@as_json
@with_settings
def rollback(settings: Settings, max_lag: int, as_json: bool) -> None:
    """Make the generation that was live before the live one again, in one transaction.

    The other one is ready again: it is fed on and can be promoted once more, or given up.
    """
    from rxstore import rebuilding, store

    with store.engine(settings) as engine:
        live, ready = rebuilding.roll_back(settings, engine, max_lag=max_lag)
    _tell(as_json, {"live": live, "ready": ready}, f"generation {live} is live again, {ready} is ready and fed on")


@command.command("abort", epilog=example("rxstore rebuild abort", "rxstore rebuild abort g2"))
@click.argument("name", required=False)
@as_json
@with_settings
def abort(settings: Settings, name: str | None, as_json: bool) -> None:
    """Give a generation up that is being built or ready, and drop its tables; never the live or the previous one.

    One as of a time has to be named.
    """
    from rxstore import rebuilding, store

    with store.engine(settings) as engine:
        gone = rebuilding.abort(engine, name)
    _tell(as_json, {"abandoned": gone.name}, f"generation {gone.name} is abandoned and its tables are dropped")


@command.command("retire", epilog=example("rxstore rebuild retire", "rxstore rebuild retire g1 --after 7d"))
@click.argument("name", required=False)
@click.option("--after", metavar="SPAN", help="Not now but so long after, such as 7d or 36h.")
@click.option("--at", metavar="TIME", help="Not now but then, an RFC 3339 instant.")
@click.option("--keep", is_flag=True, help="Take back what was planned, and keep it.")
@as_json
@with_settings
def retire(settings: Settings, name: str | None, after: str | None, at: str | None, keep: bool, as_json: bool) -> None:
    """Let the generation go that was live before, and drop its tables: there is no rollback after this.

    With --after or --at running projectors do it then, when no rebuild command runs; 'rxstore status' shows when. They
    drop the tables if their role may, else the next 'rxstore rebuild retire' does.
    """
    from projector.rebuild import precisely
    from rxstore import rebuilding, store

    due = _due(("--after", after), ("--at", at))
    if keep and due is not None:
        raise WrongUse("--keep takes a plan back, so no time goes with it")
    with store.engine(settings) as engine:
        if due is None and not keep:
            gone = rebuilding.retire(engine, name)
            _tell(as_json, {"retired": gone.name}, f"generation {gone.name} is retired and its tables are dropped")
            return
        planned = rebuilding.plan_retirement(engine, name, due)
    when = None if planned.retire_at is None else precisely(planned.retire_at)
    sentence = "is kept until somebody lets it go" if when is None else f"will be retired at {when}"
    _tell(as_json, {"generation": planned.name, "retire_at": when}, f"generation {planned.name} {sentence}")


def _due(after: tuple[str, str | None], at: tuple[str, str | None]) -> datetime | timedelta | None:
    """Return the time that one of two options sets: a span from now on, or an instant."""
    if after[1] is not None and at[1] is not None:
        raise WrongUse(f"{after[0]} and {at[0]} exclude each other")
    if after[1] is not None:
        return duration(after[1], after[0])
    return None if at[1] is None else instant(at[1], at[0])


def _tell(as_json: bool, document: dict[str, str | None], sentence: str) -> None:
    click.echo(json.dumps(document) if as_json else sentence)


@command.command("prescription", epilog=example("rxstore rebuild prescription 3AF2CB-C86002-0000BX"))
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@as_json
@with_settings
def prescription(settings: Settings, ids: tuple[str, ...], as_json: bool) -> None:
    """Fold single prescriptions again from the topic, in place; exit code 1 when one comes out differently."""
    from rxstore import decide
    from schemas.identifiers import InvalidPrescriptionId, parse_prescription_id

    try:
        keys = [parse_prescription_id(id_, strict=False).stream_key for id_ in ids]
    except InvalidPrescriptionId as error:
        raise WrongUse(str(error)) from error
    with decide.desk(settings) as desk:
        refolded = [desk.refold_again(key) for key in keys]
    for one in refolded:
        told = "changed" if one.changed else "as it was"
        click.echo(json.dumps({"stream_key": one.key, "changed": one.changed}) if as_json else f"{one.key}: {told}")
    if any(one.changed for one in refolded):
        raise click.exceptions.Exit(1)
