"""docs/api.md and the code say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from falcon.inspect import inspect_routes

from query_api.app import routes
from query_api.metrics import METRICS
from query_api.settings import ApiSettings
from schemas.openapi import RETRIEVE_CODES, SEARCH_CODES, openapi_document
from schemas.outgoing import retrieve_answer, search_answer
from schemas.vocabulary import TRACKER_REASON
from tests.unit.test_outgoing import FOUND, ISSUE, PRESCRIPTION
from tests.unit.test_query_api_requests import Nothing

DOCS = Path(__file__).parents[2].joinpath("docs", "api.md").read_text(encoding="utf-8")
CODES = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in DOCS.splitlines() if re.match(r"\| \d+ \|", line)
]
EXAMPLES = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL)]


def test_the_examples_are_the_answers_of_the_code():
    assert [search_answer([FOUND]), retrieve_answer(PRESCRIPTION, ISSUE)] == EXAMPLES


def test_every_status_code_is_explained():
    assert {row[0]: row[1] for row in CODES} == {
        code: TRACKER_REASON[code] for code in {*SEARCH_CODES, *RETRIEVE_CODES}
    }


@pytest.mark.parametrize(("column", "codes"), [(2, SEARCH_CODES), (3, RETRIEVE_CODES)])
def test_every_endpoint_has_its_codes(column, codes):
    assert {row[0] for row in CODES if row[column] == "yes"} == set(codes)


def test_every_route_is_listed():
    paths = {
        route.path.replace("prescription_id", "prescriptionId")
        for route in inspect_routes(routes(Nothing(), ApiSettings()))
    }

    assert not [path for path in paths if f"`{path}`" not in DOCS]


def test_every_metric_is_listed():
    assert not [metric.name for metric in METRICS if f"`{metric.name}`" not in DOCS]


def test_every_header_is_listed():
    components = openapi_document()["components"]
    headers = {*components["headers"], *(header["name"] for header in components["parameters"].values())}

    assert not [header for header in headers if f"`{header}`" not in DOCS]
