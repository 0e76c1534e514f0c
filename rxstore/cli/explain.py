"""``rxstore explain``: the story of one prescription."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from rxstore.cli.options import as_json, example, instant, stream_key, with_settings
from rxstore.settings import Settings

if TYPE_CHECKING:
    from kafka import KafkaConsumer

    from rxstore.story import Story

NOTHING = "none"


@click.command(
    epilog=example(
        "rxstore explain 3AF2CB-C86002-0000BX", "rxstore explain 3AF2CB-C86002-0000BX --at 2026-03-01T09:00:00Z"
    )
)
@click.argument("id_", metavar="ID")
@click.option("--at", metavar="TIME", help="As it was then: an RFC 3339 instant, such as 2026-03-01T09:00:00Z.")
@as_json
@with_settings
def command(settings: Settings, id_: str, at: str | None, as_json: bool) -> None:
    """The story of one prescription: every event with its place, what it changed, or why it did not fold.

    Operators' decisions stand where they took effect. The events are read from the topic and folded again step by
    step; nothing is written. With --at: what had arrived in the topic and been decided by then, that is, in the
    prescription's partition, everything before the first record that is stamped later, and the decisions that stood.
    Names, NHS numbers and medicines are left out.
    """
    from ingest.lookup import lookup
    from ingest.moment import ends_at
    from rxstore import store, story
    from rxstore.fleet import make_reader

    def reader() -> KafkaConsumer:
        return make_reader(settings.kafka())

    key, when = stream_key(id_), None if at is None else instant(at, "--at")
    with store.engine(settings) as engine:
        store.live_generation(engine)
        told = story.explain(engine, lookup(reader), key, at=when, ends_at=ends_at(reader))
    if told is None:
        click.echo(f"nothing is known of {key}: no event of it has been read", err=True)
        raise click.exceptions.Exit(1)
    click.echo(json.dumps(told.as_json()) if as_json else "\n".join(_page(told)))


def _page(told: Story) -> Iterator[str]:
    document = told.as_json()
    yield f"{document['prescription_id']}: {_standing(document)}"
    yield (
        f"  partition {document['partition']} of {document['topic']}, generation {document['generation']}, "
        f"as of {document['as_of'] or 'nobody knows when'}"
    )
    if document["deleted"]:
        return
    if not document["complete"]:
        yield (
            f"  the log no longer has {len(told.missing)} of its events: these are what the read model remembers; what "
            "each changed is not known"
        )
    for number, step in enumerate(document["steps"], start=1):
        yield ""
        yield from _step(number, step)
    for decision in document["decisions"]:
        if decision["revoked_at"] is not None or decision["effect_offset"] is None:
            yield ""
            yield from _without_effect(decision)
    if document["state"] is not None and document["steps"]:
        yield ""
        yield from _state(document)
    if document["as_stored"] is False:
        yield ""
        yield (
            "The rows hold something else than these events fold to now: 'rxstore rebuild prescription "
            f"{document['prescription_id']}' writes them anew."
        )


def _standing(document: dict[str, Any]) -> str:
    state = document["state"]
    if document["deleted"]:
        return "deleted. Its events are not remembered, so there is nothing more to tell"
    if state is None:
        return f"how it stood at {document['at']} cannot be told"
    at = f"at {document['at']} " if document["at"] else ""
    exists = f"version {state['version']}" if state["exists"] else "not created"
    blocked = f", blocked: {state['blocked']}" if state["blocked"] else ""
    return f"{at}{exists}{blocked}"


def _step(number: int, step: dict[str, Any]) -> Iterator[str]:
    event, decision = step["event"], step["decision"]
    if decision is not None:
        yield f"{number:>3}  {decision['at']}  decision {decision['decision']}: {decision['action']} {step['position']}"
        yield f"     by {decision['by']}: {decision['why'] or 'no reason given'}"
        yield f"     took effect at offset {decision['effect_offset']}: {_outcome(step)}"
        yield from _errors(step)
        return
    arrived = event["arrived"] if event else "at an unknown time"
    yield f"{number:>3}  {arrived}  {step['position']}  {(event and event['type']) or 'unknown type'}"
    if not step["in_log"]:
        yield "     the log no longer has it"
    if event:
        sequence = "" if event["sequence"] is None else f", sequence {event['sequence']}"
        time = "" if event["time"] is None else f", happened {event['time']}"
        yield f"     id {event['id'] or 'unknown'} from {event['source'] or 'unknown'}{sequence}{time}"
    because = f", because of {step['because_of']}" if step["because_of"] else ""
    repairs = f"; repairs {', '.join(step['repairs'])}" if step["repairs"] else ""
    yield f"     {_outcome(step)}{because}{repairs}"
    yield from _errors(step)
    yield from (f"     {line}" for line in _changes(step["changes"]))


def _outcome(step: dict[str, Any]) -> str:
    outcome = str(step["outcome"])
    if step["version"] is not None:
        outcome += f" as version {step['version']}"
    if step["reason"] is not None:
        outcome += f": {step['reason']}"
    if step["waiting_for"] is not None:
        outcome += f", waits for {step['waiting_for']}"
    return outcome


def _errors(step: dict[str, Any]) -> Iterator[str]:
    return (f"     error {error['path'] or '(record)'}: {error['message']}" for error in step["errors"])


def _changes(changes: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield one line for what changed of each issue, item statuses together, and one for the rest."""
    known = [change for change in changes if change["before"] is not None or change["after"] is not None]
    for about, group in groupby(known, key=lambda change: _about(change["path"])):
        told = [
            f"{change['path'].removeprefix(about[1])} {_plain(change['before'])} -> {_plain(change['after'])}"
            if change["before"] is not None
            else f"{change['path'].removeprefix(about[1])} {_plain(change['after'])}"
            for change in group
        ]
        yield f"{about[0]}{', '.join(told)}"


def _about(path: str) -> tuple[str, str]:
    """Return what a line about this path begins with, and the begin of the path that it then leaves out."""
    outer, _, rest = path.partition(".")
    number = rest.partition(".")[0]
    if outer == "issues":
        return f"issue {number}: ", f"issues.{number}."
    if outer == "cancellations":
        return f"cancellation {number}: ", f"cancellations.{number}."
    return "", ""


def _without_effect(decision: dict[str, Any]) -> Iterator[str]:
    yield f"     {decision['at']}  decision {decision['decision']}: {decision['action']} {decision['id']}"
    yield f"     by {decision['by']}: {decision['why'] or 'no reason given'}"
    if decision["revoked_at"] is not None:
        yield f"     revoked {decision['revoked_at']} by {decision['revoked_by']}"
    else:
        yield "     not applied yet: a running projector applies it"


def _state(document: dict[str, Any]) -> Iterator[str]:
    state = document["state"]
    yield f"So it stood at {document['at']}:" if document["at"] else "So it stands:"
    if not state["exists"]:
        yield "  not created"
    for number, issue in state.get("issues", {}).items():
        current = ", the current one" if int(number) == state["current_issue"] else ""
        items = " ".join(issue.get("items", {}).values()) or NOTHING
        yield f"  issue {number}: {issue['status']} (items {items}){current}"
    for record in state["set_aside"]:
        waits = f", waits for {record['waiting_for']}" if record["waiting_for"] else ""
        yield f"  {record['id']}: {record['state']}, {record['reason']}{waits}"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NOTHING if value is None else str(value)
