"""What a client can name: a patient's prescriptions, and one prescription. A responder asks, answers or raises."""

from __future__ import annotations

from typing import Protocol

import falcon

from query_api import answers, requests
from query_api.clients import Gate
from query_api.queries import Retrieved, SearchCriteria, Searched
from query_api.settings import ApiSettings
from query_api.waiting import Waiting
from schemas.outgoing import Answer, retrieve_answer, retrieve_failure, search_answer, search_failure
from schemas.vocabulary import TrackerStatus

DUPLICATE_PRESCRIPTION = "duplicate_prescription"


class PrescriptionQuestions(Protocol):
    """What the resources ask; ``query_api.database.Questions`` asks it of PostgreSQL."""

    def prescription(self, stream_key: str, issue_number: int | None) -> Retrieved: ...

    def prescriptions(self, criteria: SearchCriteria) -> Searched: ...


class Prescriptions:
    """/mm/prescriptions"""

    def __init__(self, questions: PrescriptionQuestions, settings: ApiSettings, waiting: Waiting, gate: Gate) -> None:
        self._questions = questions
        self._settings = settings
        self._waiting = waiting
        self._gate = gate

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Search by NHS number."""
        resp.context.format = requests.format_given(req, "trace-summary")
        answers.tell_trace_id(resp, requests.trace_id(req))
        criteria = requests.search_criteria(req, self._settings, self._gate)
        with self._waiting.waited_for(req, resp):
            searched = self._questions.prescriptions(criteria)
        answers.tell_freshness(resp, searched.as_of, searched.generation)
        if searched.blocked_ids:
            answers.tell_blocked(resp, searched.blocked_ids)
        answers.note_shown(resp, (each.prescription_id for each in searched.found))
        answers.send(resp, self._answer(searched))

    def _answer(self, searched: Searched) -> Answer:
        if searched.blocked_ids:
            return search_answer(searched.found, status=TrackerStatus.FAILED_TO_PARSE)
        if not searched.found and self._settings.empty_search == "not-found":
            return search_failure(TrackerStatus.NOT_FOUND)
        return search_answer(searched.found)


class Prescription:
    """/mm/prescriptions/{prescription_id}"""

    def __init__(self, questions: PrescriptionQuestions, settings: ApiSettings, waiting: Waiting, gate: Gate) -> None:
        self._questions = questions
        self._settings = settings
        self._waiting = waiting
        self._gate = gate

    def on_get(self, req: falcon.Request, resp: falcon.Response, prescription_id: str) -> None:
        """Retrieve one prescription and one of its issues."""
        resp.context.format = requests.format_given(req, "trace")
        answers.tell_trace_id(resp, requests.trace_id(req))
        criteria = requests.retrieve_criteria(req, prescription_id, self._settings, self._gate)
        with self._waiting.waited_for(req, resp):
            retrieved = self._questions.prescription(criteria.stream_key, criteria.issue_number)
        answers.tell_freshness(resp, retrieved.as_of, retrieved.generation)
        if retrieved.block is not None:
            answers.tell_blocked(resp, [retrieved.block.prescription_id])
        elif retrieved.prescription is not None:
            answers.note_shown(resp, [retrieved.prescription.prescription_id], retrieved.prescription.nhs_number)
        answers.send_conditionally(req, resp, _retrieve_answer(retrieved))


def _retrieve_answer(retrieved: Retrieved) -> Answer:
    if retrieved.block is not None:
        is_duplicate = retrieved.block.reason == DUPLICATE_PRESCRIPTION
        return retrieve_failure(TrackerStatus.NO_UNIQUE_PRESCRIPTION if is_duplicate else TrackerStatus.FAILED_TO_PARSE)
    if retrieved.prescription is None:
        return retrieve_failure(TrackerStatus.NOT_FOUND)
    return retrieve_answer(retrieved.prescription, retrieved.issue)
