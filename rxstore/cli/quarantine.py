"""``rxstore quarantine``: what was set aside, and why."""

from __future__ import annotations

import base64
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.errors import WrongUse
from rxstore.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

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
@click.option("--state", type=click.Choice(STATES), multiple=True, help="Only these; open and parked by default.")
@as_json
@with_settings
def list_(settings: Settings, reason: str | None, stream: str | None, state: tuple[str, ...], as_json: bool) -> None:
    """Every record that is set aside, oldest first; with --json one object a line."""
    shown = 0
    for record in _records(settings, states=state or STATES[:2], reason=reason, stream=_stream_key(stream)):
        shown += 1
        click.echo(json.dumps(record) if as_json else _line(record))
    if not shown and not as_json:
        click.echo("nothing is set aside")


@command.command("show", epilog=example("rxstore quarantine show prescription-events:3:90211"))
@click.argument("id_", metavar="ID")
@click.option("--payload", is_flag=True, help="Print the record's value instead, as it was received.")
@as_json
@with_settings
def show(settings: Settings, id_: str, payload: bool, as_json: bool) -> None:
    """One record that was set aside: where it stands, why, and what it holds up.

    Its value names a patient: it is printed only when asked for.
    """
    topic, partition, offset = _position(id_)
    found = list(_records(settings, states=STATES, position=(topic, partition, offset)))
    if not found:
        raise WrongUse(f"nothing was set aside at {id_}: 'rxstore quarantine list' shows what was")
    if payload:
        _print_payload(settings, topic, partition, offset)
    elif as_json:
        click.echo(json.dumps(found[0]))
    else:
        click.echo("\n".join(_description(found[0])))


def _records(
    settings: Settings,
    *,
    states: tuple[str, ...],
    reason: str | None = None,
    stream: str | None = None,
    position: tuple[str, int, int] | None = None,
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
                    "reason": reason,
                    "stream": stream,
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


def _print_payload(settings: Settings, topic: str, partition: int, offset: int) -> None:
    from sqlalchemy import text

    from rxstore import store

    def value(connection: Connection, schema: str) -> bytes | None:
        question = text(
            f"SELECT record_value FROM {schema}.set_aside "
            "WHERE (topic, partition_number, record_offset) = (:topic, :partition, :offset)"
        )
        where = {"topic": topic, "partition": partition, "offset": offset}
        found: bytes | None = connection.execute(question, where).scalar()
        return found

    with store.engine(settings) as engine:
        schema = store.live_generation(engine).schema
        with engine.connect() as connection:
            raw = value(connection, schema)
    if raw is None:
        raise WrongUse(f"the record at {topic}:{partition}:{offset} has no value, or lost it with its prescription")
    if sys.stdout.isatty() and not raw.isascii():
        click.echo(base64.b64encode(raw).decode())
    else:
        sys.stdout.buffer.write(raw)


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
