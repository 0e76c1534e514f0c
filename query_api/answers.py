"""How a tracker answer travels: HTTP 200, never stored, with headers that say how fresh it is and what is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime

import falcon
import orjson

from schemas.outgoing import Answer

CONTENT_TYPE = "application/json; charset=UTF-8"


def send(response: falcon.Response, answer: Answer) -> None:
    """Put the answer into the response; the tracker's own status code is kept for metrics and the log."""
    response.status = falcon.HTTP_200
    response.content_type = CONTENT_TYPE
    response.cache_control = ["no-store"]
    response.data = orjson.dumps(answer)
    response.context.tracker_code = answer["statusCode"]


def send_conditionally(request: falcon.Request, response: falcon.Response, answer: Answer) -> None:
    """As ``send``, with an entity tag; a client that has exactly this body gets 304 instead."""
    send(response, answer)
    etag = entity_tag(response.data or b"")
    response.etag = etag
    known = request.if_none_match or []
    if "*" in known or etag in known:
        response.status = falcon.HTTP_304
        response.delete_header("Content-Type")


def entity_tag(body: bytes) -> str:
    """The SHA-1 of the body in hex, as the published service has it."""
    return hashlib.sha1(body, usedforsecurity=False).hexdigest()


def tell_freshness(response: falcon.Response, as_of: datetime | None, generation: str | None = None) -> None:
    """The answer is known to hold all that had been published at that instant; without one, nothing is promised.

    ``generation`` is the read model that the whole answer comes from.
    """
    if generation is not None:
        response.set_header("Rxstore-Generation", generation)
    if as_of is not None:
        instant = as_of.astimezone(UTC).isoformat(timespec="milliseconds")
        response.set_header("Rxstore-As-Of", instant.replace("+00:00", "Z"))


def tell_blocked(response: falcon.Response, prescription_ids: Iterable[str]) -> None:
    """Name the prescriptions that would belong to the answer and must not be shown."""
    response.set_header("Rxstore-Blocked", ",".join(prescription_ids))


def note_shown(response: falcon.Response, prescription_ids: Iterable[str], nhs_number: str | None = None) -> None:
    """Keep for the audit which prescriptions the answer shows, and whose, where that was not asked for."""
    response.context.shown = list(prescription_ids)
    response.context.shown_patient = nhs_number


def tell_trace_id(response: falcon.Response, trace_id: str | None) -> None:
    """Echo the caller's trace id."""
    if trace_id is not None:
        response.set_header("Eps-TraceId", trace_id)
