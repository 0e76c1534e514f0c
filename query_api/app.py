"""Every route of the API, on one page."""

from __future__ import annotations

from typing import Any, Protocol

import falcon
import orjson
from sqlalchemy import Engine

from query_api import clients, problems
from query_api.clients import Admission, Everybody, Gate, OnlyRegistered, Registered
from query_api.database import Questions
from query_api.errors import TrackerErrors
from query_api.health import Live, ReadinessQuestions, Ready
from query_api.history import History, PrescriptionHistory
from query_api.metrics import Metrics, MetricsPage, Observed
from query_api.publishers import Events, PublisherQuestions, Status
from query_api.rates import Rates
from query_api.requests import Refused
from query_api.resources import Prescription, PrescriptionQuestions, Prescriptions
from query_api.settings import ApiSettings
from query_api.trail import Audit, Audited, NotWritten
from query_api.waiting import NotReached, PositionQuestions, Waiting
from schemas.openapi import openapi_document
from schemas.outgoing import retrieve_failure, search_failure

Api = falcon.App[falcon.Request, falcon.Response]

SEARCH = "/mm/prescriptions"
RETRIEVE = "/mm/prescriptions/{prescription_id}"
INTERACTIONS = {SEARCH: clients.SEARCH, RETRIEVE: clients.RETRIEVE, **clients.OURS}
ONE_YEAR = "max-age=31536000"


class ApiQuestions(PrescriptionQuestions, ReadinessQuestions, PositionQuestions, PublisherQuestions, Protocol):
    """All that the routes ask."""


def create_app(
    engine: Engine,
    *,
    settings: ApiSettings,
    history: History | None = None,
    rates: Rates | None = None,
    audit: Audit | None = None,
) -> Api:
    """The API over a read model that this engine can read; ``history`` tells the story of a prescription.

    ``rates`` bounds how often each ASID may ask; the processes of a server share it. ``audit`` keeps a record of every
    request.
    """
    questions = Questions(engine)
    admission = (
        Registered(questions.clients, settings.clock, by_certificate=settings.by_certificate)
        if settings.only_registered
        else Everybody()
    )
    return routes(questions, settings, history=history, admission=admission, rates=rates, audit=audit)


def routes(
    questions: ApiQuestions,
    settings: ApiSettings,
    *,
    history: History | None = None,
    admission: Admission | None = None,
    rates: Rates | None = None,
    audit: Audit | None = None,
) -> Api:
    """The API over anything that answers its questions; without ``admission`` any ASID is let in."""
    gate = Gate(admission or Everybody(), rates)
    waiting = Waiting(questions)
    metrics = Metrics()
    # Answers pass them from the last to the first: a record has what is answered, and what becomes of it is counted.
    app: Api = falcon.App(
        middleware=[
            Observed(metrics),
            *([] if audit is None else [Audited(audit, INTERACTIONS, metrics.audit_records)]),
            NotStored(is_over_tls=settings.by_certificate),
            OnePathEach(),
            OnlyGet(),
            OnlyRegistered(gate),
        ]
    )

    app.add_route(SEARCH, Prescriptions(questions, settings, waiting, gate))
    app.add_route(RETRIEVE, Prescription(questions, settings, waiting, gate))
    app.add_route("/rxstore/prescriptions/{prescription_id}/history", PrescriptionHistory(history))
    app.add_route("/rxstore/events", Events(questions))
    app.add_route("/rxstore/status", Status(questions))
    app.add_route("/health/live", Live())
    app.add_route("/health/ready", Ready(questions, settings))
    app.add_route("/metrics", MetricsPage(metrics))
    app.add_route("/openapi.json", OpenApi())
    app.add_sink(no_such_path)

    errors = TrackerErrors({SEARCH: search_failure, RETRIEVE: retrieve_failure})
    app.add_error_handler(Exception, errors.unexpected)
    app.add_error_handler(Refused, errors.refused)
    app.add_error_handler(NotReached, errors.not_reached)
    app.add_error_handler(NotWritten, errors.not_written)
    return app


class OnePathEach:
    """Lets no path be written in a second way: Falcon alone takes ``//rxstore/status`` for ``/rxstore/status``.

    A proxy in front that has rules by path may take it for another one.
    """

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Refuse a path that begins with more than one slash."""
        if req.path.startswith("//"):
            no_such_path(req, resp)


class OnlyGet:
    """No other method does anything here; Falcon alone would answer OPTIONS with 200."""

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: object, params: dict[str, Any]
    ) -> None:
        """Refuse what is not GET on a path that exists."""
        if req.method != "GET":
            raise falcon.HTTPMethodNotAllowed(["GET"])


class NotStored:
    """No answer is kept by anybody on the way, errors included: nearly all of them are about patients."""

    def __init__(self, *, is_over_tls: bool) -> None:
        self._is_over_tls = is_over_tls

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: object, succeeded: bool) -> None:
        """Say so where nobody did."""
        if resp.get_header("Cache-Control") is None:
            resp.cache_control = ["no-store"]
        if self._is_over_tls:
            resp.set_header("Strict-Transport-Security", ONE_YEAR)


def no_such_path(req: falcon.Request, resp: falcon.Response, **params: Any) -> None:  # noqa: ANN401 - none
    """Answer what has no route; the path is not repeated, since it may name a patient."""
    raise problems.unknown("There is no such path here: /openapi.json lists those that there are.")


class OpenApi:
    """/openapi.json"""

    def __init__(self) -> None:
        self._document = orjson.dumps(openapi_document())

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Describe the API."""
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self._document
