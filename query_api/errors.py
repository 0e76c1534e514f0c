"""Exceptions become answers, once: a tracker path answers with its own envelope, whatever happens inside.

Neither answers nor log lines repeat the message of an exception: it may quote a patient's data.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import falcon
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from query_api import answers, problems
from query_api.requests import Refused
from query_api.trail import NotWritten
from query_api.waiting import HEADER, NotReached
from schemas.outgoing import Answer
from schemas.vocabulary import TrackerStatus

logger = logging.getLogger(__name__)

TELLING_HEADERS = ("ETag", "Rxstore-As-Of", "Rxstore-Blocked", "Rxstore-Generation", HEADER)


class TrackerErrors:
    """Translates exceptions for the tracker's paths; ``failures`` has each path's way to say that it failed."""

    def __init__(self, failures: Mapping[str, Callable[[str], Answer]]) -> None:
        self._failures = failures

    def refused(self, req: falcon.Request, resp: falcon.Response, error: Refused, params: dict[str, Any]) -> None:
        """The request broke a rule."""
        answers.send(resp, self._failures[req.uri_template or ""](error.status))

    def not_reached(
        self, req: falcon.Request, resp: falcon.Response, error: NotReached, params: dict[str, Any]
    ) -> None:
        """The read model has not come to the position that the request waits for: nothing older is shown for it."""
        resp.set_header(HEADER, error.why)
        answers.send(resp, self._failures[req.uri_template or ""](TrackerStatus.UNEXPECTED))

    def not_written(
        self, req: falcon.Request, resp: falcon.Response, error: NotWritten, params: dict[str, Any]
    ) -> None:
        """There is no record of the request, so it gets no answer, not even what the headers say."""
        logger.error(
            "an answer was held back, since its audit record was not written: %s",
            outline(error.__cause__ or error),
            extra={"action": "audit_failed", "path": req.uri_template},
        )
        for name in TELLING_HEADERS:
            resp.delete_header(name)
        failure = self._failures.get(req.uri_template or "")
        if failure is None:
            raise problems.unavailable("no record could be made of this request")
        answers.send(resp, failure(TrackerStatus.UNEXPECTED))

    def unexpected(self, req: falcon.Request, resp: falcon.Response, error: Exception, params: dict[str, Any]) -> None:
        """Anything else: the database is away, or the fault is ours."""
        logger.error(
            "could not answer: %s",
            outline(error),
            extra={"action": "request_failed", "path": req.uri_template},
        )
        failure = self._failures.get(req.uri_template or "")
        if failure is None and isinstance(error, DBAPIError | PoolTimeout):
            raise problems.unavailable("the database is away or too slow")
        if failure is None:
            raise falcon.HTTPInternalServerError
        answers.send(resp, failure(TrackerStatus.UNEXPECTED))


def outline(error: BaseException) -> str:
    """What kind of error it is and where it came from, without its message.

    A refusal of the database also has a five-character code that says why.
    """
    sqlstate = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    kind = type(error).__name__ if sqlstate is None else f"{type(error).__name__} {sqlstate}"
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(
        [kind, *(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))]
    )
