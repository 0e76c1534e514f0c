"""What publishers and operators can ask beyond the tracker: what became of an event, and how far the views are."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Protocol

import falcon

from query_api import problems
from query_api.queries import EventFate, LogPosition, SetAsideRecord, ViewsStatus
from query_api.waiting import log_position
from schemas.identifiers import InvalidPrescriptionId, parse_prescription_id
from schemas.incoming import event_key

STATES = ("open", "parked", "repaired", "retried", "skipped")
# The most telling state first: what still needs something, then what is settled.
TELLING = ("open", "parked", "retried", "skipped", "repaired")
DEFAULT_LIMIT = 100
MOST = 1_000
LONGEST_TEXT = 2_048
WITHOUT_SUBJECT = "without subject only what was set aside is found: give it to learn whether the event folded"


class PublisherQuestions(Protocol):
    """What the resources ask; ``query_api.database.Questions`` asks it of PostgreSQL."""

    def event(self, key: bytes, stream_key: str | None, position: LogPosition | None) -> EventFate: ...

    def events(
        self, source: str, state: str, after: LogPosition | None, limit: int
    ) -> tuple[list[SetAsideRecord], datetime | None]: ...

    def views(self) -> ViewsStatus: ...


class Events:
    """/rxstore/events"""

    def __init__(self, questions: PublisherQuestions) -> None:
        self._questions = questions

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """What became of one event, by source and id; or a publisher's events that are set aside, by state."""
        source = _text(req, "source")
        if source is None:
            raise problems.malformed("source is required: the CloudEvents source of the publisher")
        id_, state = _text(req, "id"), _text(req, "state")
        if (id_ is None) == (state is None):
            raise problems.malformed(
                f"say either id (what became of one event) or state ({', '.join(STATES)}: which are set aside)"
            )
        resp.cache_control = ["no-store"]
        if id_ is not None:
            resp.media = self._one(req, source, id_)
        elif state is not None:
            resp.media = self._list(req, source, state)

    def _one(self, req: falcon.Request, source: str, id_: str) -> dict[str, Any]:
        stream_key, position = _stream_key(req), _position(req, "position")
        fate = self._questions.event(event_key(source, id_), stream_key, position)
        return {"source": source, "id": id_, "subject": stream_key, **fate_of(fate, stream_key, position)}

    def _list(self, req: falcon.Request, source: str, state: str) -> dict[str, Any]:
        if state not in STATES:
            raise problems.malformed(f"state must be one of {', '.join(STATES)}")
        limit = _limit(req)
        found, as_of = self._questions.events(source, state, _position(req, "after"), limit + 1)
        shown = found[:limit]
        return {
            "source": source,
            "state": state,
            "events": [{"id": record.event_id, "subject": record.stream_key, **told(record)} for record in shown],
            "after": str(shown[-1].position) if len(found) > limit else None,
            "as_of": _rfc3339(as_of),
        }


class Status:
    """/rxstore/status"""

    def __init__(self, questions: PublisherQuestions) -> None:
        self._questions = questions

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """How far the views are, and how much is set aside."""
        views = self._questions.views()
        resp.cache_control = ["no-store"]
        resp.media = {
            "generation": views.generation,
            "definition": views.definition,
            "topic": views.topic,
            "as_of": _rfc3339(views.as_of),
            "age_seconds": None if views.age_seconds is None else round(views.age_seconds, 1),
            "quarantined": views.quarantined,
            "parked": views.parked,
            "blocked": views.blocked,
            "partitions": [
                {
                    "partition": one.partition,
                    "next_offset": one.next_offset,
                    "moved_at": _rfc3339(one.moved_at),
                    "caught_up_at": _rfc3339(one.caught_up_at),
                }
                for one in views.partitions
            ],
        }


def fate_of(fate: EventFate, stream_key: str | None, position: LogPosition | None) -> dict[str, Any]:
    """Say what became of an event, or of its copy at ``position``, and list every sighting of it."""
    state = _state_at(fate, position) if position is not None else _state(fate.records, fate.version)
    if state is None:
        state = "not_seen" if stream_key is not None or position is not None else "not_set_aside"
    return {
        "state": state,
        "version": fate.version if state in {"folded", "duplicate"} else None,
        "position": None if fate.position is None else str(fate.position),
        "sightings": [told(record) for record in fate.records],
        "as_of": _rfc3339(fate.as_of),
        "note": WITHOUT_SUBJECT if stream_key is None else None,
    }


def _state(records: Iterable[SetAsideRecord], version: int | None) -> str | None:
    if version is not None:
        return "folded"
    states = {record.state for record in records}
    return next((state for state in TELLING if state in states), None)


def _state_at(fate: EventFate, position: LogPosition) -> str | None:
    """The state of the copy that stands at one position: another one that folded makes it a duplicate."""
    if fate.version is not None and fate.position == position:
        return "folded"
    for record in fate.records:
        if record.position == position:
            return record.state
    return "duplicate" if fate.version is not None and fate.has_passed else None


def told(record: SetAsideRecord) -> dict[str, Any]:
    """One record that was set aside, without what it says."""
    return {
        "position": str(record.position),
        "state": record.state,
        "reason": record.reason,
        "errors": record.errors,
        "waiting_for": record.waiting_for,
        "type": record.event_type,
        "since": _rfc3339(record.since),
    }


def _text(request: falcon.Request, name: str) -> str | None:
    given = request.params.get(name)
    if isinstance(given, list):
        raise problems.malformed(f"{name} may be given once")
    if given and (len(given) > LONGEST_TEXT or not given.isprintable()):
        raise problems.malformed(f"{name} is too long, or holds control characters")
    return given or None


def _stream_key(request: falcon.Request) -> str | None:
    given = _text(request, "subject")
    if given is None:
        return None
    # A plus that was not encoded arrives as a space; nothing else can end in one.
    repaired = f"{given[:-1]}+" if given.endswith(" ") else given
    try:
        return parse_prescription_id(repaired, strict=False).stream_key
    except InvalidPrescriptionId:
        raise problems.malformed("subject must be a prescription id") from None


def _position(request: falcon.Request, name: str) -> LogPosition | None:
    given = _text(request, name)
    position = log_position(given) if given is not None else None
    if given is not None and position is None:
        raise problems.malformed(f"{name} must be a place in the log: topic:partition:offset")
    return position


def _limit(request: falcon.Request) -> int:
    given = _text(request, "limit")
    if given is None:
        return DEFAULT_LIMIT
    if not given.isascii() or not given.isdecimal() or not 1 <= int(given) <= MOST:
        raise problems.malformed(f"limit must be a whole number from 1 to {MOST}")
    return int(given)


def _rfc3339(instant: datetime | None) -> str | None:
    if instant is None:
        return None
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
