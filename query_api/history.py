"""The history of one prescription, told by a function that this package only knows by its shape.

To tell it, events are read from the topic and folded again, which the API itself can do neither of; who starts the
server hands the function in (``rxstore serve`` does). It may be slow: so few at a time may run, on threads of their
own, and nobody waits long for one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from contextlib import suppress
from datetime import UTC, datetime
from threading import BoundedSemaphore
from typing import Any, Protocol

import falcon

from query_api import answers, problems
from schemas.identifiers import InvalidPrescriptionId, parse_prescription_id

AT_A_TIME = 2
PATIENCE_SECONDS = 10.0


class HistoryUnavailable(Exception):
    """The history cannot be told now; the message says why, and names nobody."""


class History(Protocol):
    """Tells what happened to a prescription, by its stream key, now or as it was known at an instant."""

    def __call__(self, stream_key: str, at: datetime | None) -> dict[str, Any] | None:
        """Return the answer, None when nothing is known of it; HistoryUnavailable when that cannot be told now."""


class PrescriptionHistory:
    """/rxstore/prescriptions/{prescription_id}/history"""

    def __init__(
        self, history: History | None, *, at_a_time: int = AT_A_TIME, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self._history = history
        self._patience_seconds = patience_seconds
        self._free = BoundedSemaphore(at_a_time)
        self._pool = ThreadPoolExecutor(at_a_time, thread_name_prefix="history")

    def on_get(self, req: falcon.Request, resp: falcon.Response, prescription_id: str) -> None:
        """Tell every event, what it changed or why it did not fold, and the decisions about them."""
        stream_key, at = _stream_key(prescription_id), _instant(req)
        if self._history is None:
            raise problems.not_here(
                "this server cannot read the topic: start it by 'rxstore serve' with RXSTORE_KAFKA_BOOTSTRAP_SERVERS "
                "set, or run 'rxstore explain' where that is set"
            )
        told = self._told(self._history, stream_key, at)
        if told is None:
            raise problems.unknown("no event of a prescription with this id has been read")
        answers.note_shown(resp, [stream_key])
        resp.cache_control = ["no-store"]
        resp.media = told

    def _told(self, history: History, stream_key: str, at: datetime | None) -> dict[str, Any] | None:
        if not self._free.acquire(blocking=False):
            raise problems.unavailable("other histories are being told: ask again")
        telling = self._pool.submit(history, stream_key, at)
        telling.add_done_callback(lambda _: self._free.release())
        try:
            return telling.result(self._patience_seconds)
        except TookTooLong:
            raise problems.unavailable(f"it was not told within {self._patience_seconds:g} seconds") from None
        except HistoryUnavailable as error:
            raise problems.unavailable(str(error)) from error


def _stream_key(prescription_id: str) -> str:
    try:
        return parse_prescription_id(prescription_id, strict=False).stream_key
    except InvalidPrescriptionId:
        raise problems.malformed("the path needs a prescription id, with or without its check character") from None


def _instant(request: falcon.Request) -> datetime | None:
    given = request.params.get("at")
    if not given:
        return None
    # Neither what is no instant nor one that falls into year 0 or 10000 of UTC.
    with suppress(ValueError, OverflowError):
        # A plus that was not encoded arrives as a space.
        instant = datetime.fromisoformat(str(given).replace(" ", "+"))
        if instant.tzinfo is not None:
            return instant.astimezone(UTC)
    raise problems.malformed("at takes one RFC 3339 instant with an offset, such as 2026-03-01T09:00:00Z")
