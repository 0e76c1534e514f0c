"""The published description of the API: it is valid, it is complete, and answers keep it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from falcon import testing
from falcon.inspect import inspect_routes
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from query_api.app import routes
from query_api.settings import ApiSettings
from schemas.openapi import RETRIEVE_CODES, SEARCH_CODES, openapi_document
from schemas.outgoing import FoundIssue, retrieve_answer, retrieve_failure, search_answer, search_failure
from schemas.vocabulary import TrackerStatus
from tests.unit.test_outgoing import FOUND, ISSUE, PLACEHOLDER, PRESCRIPTION
from tests.unit.test_query_api_requests import Nothing

FOUND_PLACEHOLDER = replace(FOUND, treatment_type=None, issues=(FoundIssue(1, "9005", [], None),))


def validator(schema):
    document = openapi_document()
    return OAS31Validator({"$ref": f"#/components/schemas/{schema}", "components": document["components"]})


def test_the_document_is_valid_openapi():
    validate(openapi_document())


def test_the_document_has_exactly_the_routes():
    app = routes(Nothing(), ApiSettings())

    assert set(openapi_document()["paths"]) == {route.path for route in inspect_routes(app)}


def test_the_api_serves_the_document():
    result = testing.TestClient(routes(Nothing(), ApiSettings())).simulate_get("/openapi.json")

    assert result.headers["Content-Type"] == "application/json"
    assert result.json == openapi_document()


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ("SearchAnswer", search_answer([FOUND])),
        ("SearchAnswer", search_answer([])),
        ("SearchAnswer", search_answer([FOUND], status=TrackerStatus.FAILED_TO_PARSE)),
        ("SearchAnswer", search_answer([FOUND_PLACEHOLDER])),
        *(("SearchAnswer", search_failure(code)) for code in SEARCH_CODES if code not in "04"),
        ("RetrieveAnswer", retrieve_answer(PRESCRIPTION, ISSUE)),
        ("RetrieveAnswer", retrieve_answer(PRESCRIPTION, None)),
        ("RetrieveAnswer", retrieve_answer(PLACEHOLDER, replace(ISSUE, item_ids=[], item_statuses=[], status="9005"))),
        *(("RetrieveAnswer", retrieve_failure(code)) for code in RETRIEVE_CODES if code not in "03"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["statusCode"],
)
def test_an_answer_keeps_the_document(schema, answer):
    validator(schema).validate(answer)


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ("SearchAnswer", search_answer([FOUND]) | {"statusCode": "1", "reason": "Not found"}),
        ("SearchAnswer", search_answer([FOUND]) | {"version": "1.0"}),
        ("RetrieveAnswer", retrieve_answer(PRESCRIPTION, ISSUE) | {"statusCode": "3", "reason": "Issue not found"}),
        ("RetrieveAnswer", retrieve_answer(PRESCRIPTION, replace(ISSUE, status="0042"))),
    ],
)
def test_the_document_refuses_what_no_answer_can_be(schema, answer):
    assert not validator(schema).is_valid(answer)
