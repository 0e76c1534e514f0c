"""Whether this process lives, and whether it can answer questions now."""

from __future__ import annotations

from typing import Protocol

import falcon
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from query_api.queries import Retrieved, SearchCriteria, Searched
from query_api.settings import ApiSettings, utc_now

MAY_NOT_READ = "42501"


class ReadinessQuestions(Protocol):
    """What readiness asks; ``query_api.database.Questions`` asks it of PostgreSQL."""

    def prescription(self, stream_key: str, issue_number: int | None) -> Retrieved: ...

    def prescriptions(self, criteria: SearchCriteria) -> Searched: ...

    def live_generation(self) -> str | None: ...

    def age_seconds(self) -> float | None: ...


class Live:
    """/health/live"""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer; that is all there is to it."""
        resp.media = {"live": True}


class Ready:
    """/health/ready"""

    def __init__(self, questions: ReadinessQuestions, settings: ApiSettings) -> None:
        self._questions = questions
        self._settings = settings

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """200 when questions can be answered, else 503 with the reason and what helps."""
        reason = self._why_not()
        resp.status = falcon.HTTP_200 if reason is None else falcon.HTTP_503
        resp.cache_control = ["no-store"]
        resp.media = {"ready": reason is None, "reason": reason}

    def _why_not(self) -> str | None:
        try:
            return self._what_is_missing()
        except ProgrammingError as error:
            if getattr(error.orig, "sqlstate", None) == MAY_NOT_READ:
                return "the database role may not read the views: grant it rxstore_reader"
            return "the views are missing or older than this program: run `rxstore migrate`"
        except (DBAPIError, PoolTimeoutError):
            return "the database cannot be reached"

    def _what_is_missing(self) -> str | None:
        """Ask the very questions that requests ask, about nothing: they need every view and column of today."""
        if self._questions.live_generation() is None:
            return "no generation is live: run `rxstore migrate`, or promote one"
        self._questions.prescription("", None)
        now = utc_now()
        self._questions.prescriptions(SearchCriteria(nhs_number="", earliest=now, latest=now))
        return self._why_stale()

    def _why_stale(self) -> str | None:
        limit = self._settings.ready_max_age_seconds
        if limit is None:
            return None
        age = self._questions.age_seconds()
        if age is None:
            return "a partition was never seen at its end: the projector is still catching up, or not running"
        return None if age <= limit else f"the read model may be {age:.0f} s old: is the projector running?"
