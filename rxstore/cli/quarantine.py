"""``rxstore quarantine``: what was set aside, and why."""

from __future__ import annotations

import base64
import json
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.errors import WrongUse
from rxstore.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rxstore.decide import Applied, Outlook

STATES = ("open", "parked", "retried", "repaired", "skipped")

LIST = """
SELECT s.topic, s.partition_number, s.record_offset, s.stream_key, s.state, s.reason, s.errors, s.since, s.event_type,
       s.state = 'open' AND s.reason NOT IN ('misrouted', 'deleted') AND s.stream_key IS NOT NULL
           AND p.kind IS DISTINCT FROM 'deleted' AS blocks,
       CASE WHEN s.state = 'parked' AND s.reason = 'not_created' THEN 'created'
            WHEN s.state = 'parked' AND s.reason = 'sequence_gap' THEN 'sequence ' || coalesce(p.next_sequence, 1)
            WHEN s.state = 'parked' THEN b.id
       END AS waiting_for,
       CASE WHEN s.topic || ':' || s.partition_number || ':' || s.record_offset = b.id THEN (
           SELECT count(*) FROM {schema}.set_aside w
            WHERE w.stream_key = s.stream_key AND w.state = 'parked' AND w.stands_at > s.stands_at) ELSE 0
       END AS parked_behind
  FROM {schema}.set_aside s
  LEFT JOIN {schema}.prescription p ON p.stream_key = s.stream_key
  LEFT JOIN LATERAL (
       SELECT o.topic || ':' || o.partition_number || ':' || o.record_offset AS id FROM {schema}.set_aside o
        WHERE o.stream_key = s.stream_key AND o.state = 'open' AND o.reason NOT IN ('misrouted', 'deleted')
        ORDER BY o.stands_at LIMIT 1) b ON p.kind IS DISTINCT FROM 'deleted'
 WHERE s.state = ANY(:states)
   AND (CAST(:reason AS text) IS NULL OR s.reason = :reason)
   AND (CAST(:stream AS text) IS NULL OR s.stream_key = :stream)
   AND (CAST(:source AS text) IS NULL OR s.event_source = :source)
   AND (CAST(:older_than AS double precision) IS NULL OR s.since < now() - make_interval(secs => :older_than))
   AND (CAST(:topic AS text) IS NULL
        OR (s.topic, s.partition_number, s.record_offset) = (:topic, :partition, :offset))
 ORDER BY s.since, s.topic, s.partition_number, s.record_offset
"""


@click.group(epilog=example("rxstore quarantine list", "rxstore quarantine show prescription-events:3:90211"))
def command() -> None:
    """What was set aside, and why.

    Quarantined records (state open) wait for a repair by their publisher or for somebody to decide; parked ones fold
    by themselves when what they wait for has come.
    """


@command.command("list", epilog=example("rxstore quarantine list --reason contract_violation --json"))
@click.option("--reason", help="Only this reason code, for example contract_violation.")
@click.option("--stream", help="Only this prescription: its id, with or without the check character.")
@click.option("--source", help="Only from this publisher: its CloudEvents source.")
@click.option("--older-than", type=click.FloatRange(min=0), metavar="SECONDS", help="Only what is older than this.")
@click.option("--state", type=click.Choice(STATES), multiple=True, help="Only these; open and parked by default.")
@as_json
@with_settings
def list_(
    settings: Settings,
    reason: str | None,
    stream: str | None,
    source: str | None,
    older_than: float | None,
    state: tuple[str, ...],
    as_json: bool,
) -> None:
    """Every record that is set aside, oldest first; with --json one object a line."""
    shown = 0
    chosen = {"reason": reason, "stream": _stream_key(stream), "source": source, "older_than": older_than}
    for record in _records(settings, states=state or STATES[:2], chosen=chosen):
        shown += 1
        click.echo(json.dumps(record) if as_json else _line(record))
    if not shown and not as_json:
        click.echo("nothing is set aside")


@command.command("show", epilog=example("rxstore quarantine show prescription-events:3:90211"))
@click.argument("id_", metavar="ID")
@click.option("--payload", is_flag=True, help="Print the record's value instead, as it was received.")
@click.option("--by", "who", help="With --payload: who looks; you, as this machine knows you, by default.")
@click.option("--why", default="", help="With --payload: the reason, kept with the note that somebody looked.")
@as_json
@with_settings
def show(settings: Settings, id_: str, payload: bool, who: str | None, why: str, as_json: bool) -> None:
    """One record that was set aside: where it stands, why, and what it holds up.

    Its value names a patient: it is printed only when asked for, to whoever may read the table of what was set aside,
    and it is noted who looked, which 'rxstore quarantine viewed' shows.
    """
    topic, partition, offset = _position(id_)
    found = list(_records(settings, states=STATES, position=(topic, partition, offset)))
    if not found:
        raise WrongUse(f"nothing was set aside at {id_}: 'rxstore quarantine list' shows what was")
    if payload:
        _print_payload(settings, topic, partition, offset, who=who, why=why)
    elif as_json:
        click.echo(json.dumps(found[0]))
    else:
        click.echo("\n".join(_description(found[0])))


def _deciding(function: Callable[..., None]) -> Callable[..., None]:
    """The options that retry and skip share."""
    options = (
        click.argument("ids", nargs=-1, metavar="[ID]..."),
        click.option("--reason", help="Instead of ids: all with this reason code."),
        click.option("--stream", help="Instead of ids: all of this prescription, by its id."),
        click.option("--source", help="Instead of ids: all from this publisher, by its CloudEvents source."),
        click.option("--older-than", type=click.FloatRange(min=0), metavar="SECONDS", help="Instead of ids: by age."),
        click.option(
            "--limit",
            type=click.IntRange(min=1, max=10_000),
            default=100,
            show_default=True,
            help="The most records to decide about at once; of more that filters find, the oldest.",
        ),
        click.option("--by", "who", help="Who decides; you, as this machine knows you, by default."),
        click.option("--dry-run", is_flag=True, help="Show what each would change, and change nothing."),
        click.option("--yes", is_flag=True, help="Do not ask for the count; for scripts."),
        click.option(
            "--wait",
            "seconds",
            type=click.FloatRange(min=0),
            default=10.0,
            show_default=True,
            metavar="SECONDS",
            help="How long to wait for a projector to apply it.",
        ),
        as_json,
    )
    for option in reversed(options):
        function = option(function)
    return with_settings(function)


@command.command("retry", epilog=example("rxstore quarantine retry prescription-events:3:90211 --dry-run"))
@click.option("--why", default="", help="The reason, kept with the decision.")
@_deciding
def retry(settings: Settings, why: str, **options: Any) -> None:  # noqa: ANN401 - the options of _deciding
    """Try records again, after a fix: each folds in its place with all that waits behind it, or stays as it is."""
    _decide(settings, "retry", why=why, **options)


@command.command("skip", epilog=example("rxstore quarantine skip prescription-events:3:90211 --why 'sent by mistake'"))
@click.option("--why", required=True, help="The reason, kept with the decision.")
@_deciding
def skip(settings: Settings, why: str, **options: Any) -> None:  # noqa: ANN401 - the options of _deciding
    """Pass over records: what waits behind each folds. On one that waits for missing numbers: they will not come."""
    _decide(settings, "skip", why=why, **options)


def _decide(
    settings: Settings,
    action: str,
    *,
    ids: tuple[str, ...],
    why: str,
    who: str | None,
    dry_run: bool,
    yes: bool,
    seconds: float,
    as_json: bool,
    limit: int,
    **filters: Any,  # noqa: ANN401 - reason, stream, source, older_than
) -> None:
    from projector.batch import Position
    from rxstore import decide, store

    if bool(ids) == any(value is not None for value in filters.values()):
        raise WrongUse(
            f"say which records to {action}: ids, or one or more of --reason, --stream, --source, --older-than"
        )
    with decide.desk(settings) as desk:
        if ids:
            candidates = desk.find([Position(*_position(id_)) for id_ in dict.fromkeys(ids)], action)
            if len(candidates) > limit:
                raise WrongUse(f"{len(candidates)} ids are more than --limit {limit}: nothing was decided")
        else:
            filters["stream"] = _stream_key(filters["stream"])
            candidates = desk.search(action, limit=limit + 1, **filters)
            if len(candidates) > limit:
                candidates = candidates[:limit]
                click.echo(f"more than {limit} match: these are the oldest {limit} (--limit)", err=True)
        if dry_run:
            for outlook in desk.outlook(action, candidates):
                click.echo(json.dumps(outlook.as_json()) if as_json else "\n".join(_outlook(outlook)))
            return
        if not candidates:
            click.echo("nothing matches", err=True)
            return
        if not yes:
            _confirm(action, len(candidates))
        decisions = desk.decide(action, candidates, why=why, who=who or store.somebody())
        applied = desk.wait(decisions, seconds)
    for one in applied:
        click.echo(json.dumps(one.as_json()) if as_json else _applied(one))
    if any(one.state is None or (action == "retry" and one.state == "open") for one in applied):
        raise click.exceptions.Exit(1)


def _confirm(action: str, count: int) -> None:
    typed = click.prompt(f"this will {action} {count} records; type {count} to go on", err=True)
    if typed.strip() != str(count):
        raise WrongUse("nothing was decided: the count was not typed")


def _applied(one: Applied) -> str:
    if one.state is None:
        return (
            f"{one.id}: decision {one.decision} is recorded and not applied yet; a running projector applies it: see "
            "'rxstore status'"
        )
    if one.state == "open":
        return f"{one.id}: tried again, and refused again: see 'rxstore quarantine show {one.id}'"
    return f"{one.id}: {one.state} (decision {one.decision})"


def _outlook(outlook: Outlook) -> list[str]:
    lines = [f"{outlook.id}: would be {outlook.record_state}; {outlook.folds} events would fold"]
    before = (outlook.before or {}).get("issues", {})
    after = (outlook.after or {}).get("issues", {})
    for number in after:
        was, becomes = before.get(number), after[number]
        if was != becomes:
            lines.append(f"  issue {number}: {_issue(was)} -> {_issue(becomes)}")
    if not outlook.folds:
        lines.append("  no status changes")
    lines += [f"  still blocked by {record}" for record in outlook.still_open]
    return lines


def _issue(issue: dict[str, Any] | None) -> str:
    return "nothing" if issue is None else f"{issue['status']} (items {' '.join(issue['items']) or 'none'})"


@command.command(
    "decisions",
    epilog=example("rxstore quarantine decisions", "rxstore quarantine decisions --export decisions.ndjson"),
)
@click.option("--export", "export_to", type=click.Path(dir_okay=False, allow_dash=True), metavar="FILE")
@click.option("--import", "import_from", type=click.Path(exists=True, dir_okay=False), metavar="FILE")
@as_json
@with_settings
def decisions(settings: Settings, export_to: str | None, import_from: str | None, as_json: bool) -> None:
    """Every decision that was made: who, when, about what, why, and where it took effect.

    They are the second truth beside the topic: --export them to where backups are kept. --import enters them into an
    installation that has none and folds again the prescriptions that they come too late for.
    """
    from rxstore import decide

    with decide.desk(settings) as desk:
        if import_from is not None:
            with open(import_from, "rb") as lines:
                count = desk.load(_documents(lines))
            click.echo(json.dumps({"imported": count}) if as_json else f"{count} decisions imported")
            return
        found = list(desk.export())
    if export_to is not None:
        with click.open_file(export_to, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
        return
    for row in found:
        click.echo(json.dumps(_decision(row)) if as_json else _decision_line(_decision(row)))


def _documents(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            document = json.loads(line)
        except ValueError as error:
            raise WrongUse(f"line {number} is not JSON: the file is none that --export wrote") from error
        if not isinstance(document, dict) or not {"id", "action", "stream_key"} <= document.keys():
            raise WrongUse(f"line {number} is no decision: the file is none that --export wrote")
        found.append(document)
    return found


def _decision(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "decision": row["id"],
        "action": row["action"],
        "id": f"{row['topic']}:{row['partition_number']}:{row['record_offset']}",
        "stream_key": row["stream_key"],
        "why": row["why"],
        "by": row["decided_by"],
        "at": row["decided_at"].replace("+00:00", "Z"),
        "effect_offset": row["effect_offset"],
        "revoked": row["revoked_at"] is not None,
    }


def _decision_line(decision: dict[str, Any]) -> str:
    effect = "not applied yet" if decision["effect_offset"] is None else f"at offset {decision['effect_offset']}"
    revoked = ", revoked" if decision["revoked"] else ""
    return (
        f"{decision['decision']:>6}  {decision['at']}  {decision['action']:<5} {decision['id']}  {effect}{revoked}  "
        f"by {decision['by']}: {decision['why'] or 'no reason given'}"
    )


@command.command("undo", epilog=example("rxstore quarantine undo 12"))
@click.argument("decision", type=click.IntRange(min=1))
@click.option("--by", "who", help="Who decides; you, as this machine knows you, by default.")
@as_json
@with_settings
def undo(settings: Settings, decision: int, who: str | None, as_json: bool) -> None:
    """Revoke a decision, and fold that prescription again from the topic as if it had never been made."""
    from rxstore import decide, store

    with decide.desk(settings) as desk:
        refolded = desk.undo(decision, who=who or store.somebody())
    if as_json:
        click.echo(json.dumps({"decision": decision, "changed": refolded is not None and refolded.changed}))
    elif refolded is None:
        click.echo(f"decision {decision} is revoked; it had taken no effect")
    else:
        what = "its prescription changed" if refolded.changed else "no status changed"
        click.echo(f"decision {decision} is revoked and {refolded.key} folded again: {what}")


def _records(
    settings: Settings,
    *,
    states: tuple[str, ...],
    position: tuple[str, int, int] | None = None,
    chosen: Mapping[str, str | float | None] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    from sqlalchemy import text

    from rxstore import store

    topic, partition, offset = position or (None, None, None)
    with store.engine(settings) as engine:
        schema = store.live_generation(engine).schema
        with engine.connect() as connection:
            rows = connection.execute(
                text(LIST.format(schema=schema)),
                {
                    "states": list(states),
                    **{name: chosen.get(name) for name in ("reason", "stream", "source", "older_than")},
                    "topic": topic,
                    "partition": partition,
                    "offset": offset,
                },
            )
            return [_as_json(row) for row in rows]


def _as_json(row: Any) -> dict[str, Any]:  # noqa: ANN401 - a row of LIST
    return {
        "id": f"{row.topic}:{row.partition_number}:{row.record_offset}",
        "topic": row.topic,
        "partition": row.partition_number,
        "offset": row.record_offset,
        "stream_key": row.stream_key,
        "state": row.state,
        "reason": row.reason,
        "errors": row.errors,
        "blocks": row.blocks,
        "parked_behind": row.parked_behind,
        "waiting_for": row.waiting_for,
        "since": row.since.isoformat().replace("+00:00", "Z"),
        "event_type": row.event_type,
    }


def _print_payload(settings: Settings, topic: str, partition: int, offset: int, *, who: str | None, why: str) -> None:
    """Print what a record says, once it is kept who looks: without that note nothing is shown."""
    from sqlalchemy import insert, text

    from projector import tables
    from rxstore import store

    where = {"topic": topic, "partition": partition, "offset": offset}
    with store.engine(settings) as engine:
        schema = store.live_generation(engine).schema
        question = text(
            f"SELECT record_value FROM {schema}.set_aside "
            "WHERE (topic, partition_number, record_offset) = (:topic, :partition, :offset)"
        )
        with engine.begin() as connection:
            raw: bytes | None = connection.execute(question, where).scalar()
            if raw is None:
                raise WrongUse(
                    f"the record at {topic}:{partition}:{offset} has no value, or lost it with its prescription"
                )
            connection.execute(
                insert(tables.payload_view).values(
                    topic=topic,
                    partition_number=partition,
                    record_offset=offset,
                    viewed_by=who or store.somebody(),
                    why=why,
                )
            )
    if sys.stdout.isatty() and not raw.isascii():
        click.echo(base64.b64encode(raw).decode())
    else:
        sys.stdout.buffer.write(raw)


@command.command("viewed", epilog=example("rxstore quarantine viewed --json"))
@as_json
@with_settings
def viewed(settings: Settings, as_json: bool) -> None:
    """Who looked at what records say (show --payload), oldest first; with --json one object a line."""
    from sqlalchemy import select

    from projector import tables
    from rxstore import store

    table = tables.payload_view
    with store.engine(settings) as engine:
        store.live_generation(engine)
        with engine.connect() as connection:
            found = connection.execute(select(table).order_by(table.c.id)).all()
    for row in found:
        one = {
            "id": f"{row.topic}:{row.partition_number}:{row.record_offset}",
            "at": row.viewed_at.isoformat().replace("+00:00", "Z"),
            "by": row.viewed_by,
            "login": row.login,
            "why": row.why,
        }
        line = f"{one['at']}  {one['id']}  by {one['by']} as {one['login']}: {one['why'] or 'no reason given'}"
        click.echo(json.dumps(one) if as_json else line)
    if not found and not as_json:
        click.echo("nobody looked")


def _position(id_: str) -> tuple[str, int, int]:
    topic, _, rest = id_.partition(":")
    partition, _, offset = rest.partition(":")
    if not (topic and partition.isdecimal() and offset.isdecimal()):
        raise WrongUse("an id is topic:partition:offset, for example prescription-events:3:90211")
    return topic, int(partition), int(offset)


def _stream_key(stream: str | None) -> str | None:
    from schemas.identifiers import InvalidPrescriptionId, parse_prescription_id

    if stream is None:
        return None
    try:
        return parse_prescription_id(stream, strict=False).stream_key
    except InvalidPrescriptionId as error:
        raise WrongUse(f"--stream: {error}") from error


def _line(record: dict[str, Any]) -> str:
    waits = f" waits for {record['waiting_for']}" if record["waiting_for"] else ""
    behind = f", {record['parked_behind']} parked behind it" if record["parked_behind"] else ""
    return (
        f"{record['id']}  {record['since']}  {record['state']:<8} {record['reason']:<22} "
        f"{record['stream_key'] or 'no prescription'}{waits}{behind}"
    )


def _description(record: dict[str, Any]) -> list[str]:
    lines = [
        f"id             {record['id']}",
        f"prescription   {record['stream_key'] or 'unknown'} (without check character)",
        f"event type     {record['event_type'] or 'unknown'}",
        f"state          {record['state']}",
        f"reason         {record['reason']}",
        f"since          {record['since']}",
        f"blocks         {'yes, ' + str(record['parked_behind']) + ' parked behind it' if record['blocks'] else 'no'}",
    ]
    if record["waiting_for"]:
        lines.append(f"waiting for    {record['waiting_for']}")
    lines += [f"error          {error['path'] or '(record)'}: {error['message']}" for error in record["errors"]]
    return lines
