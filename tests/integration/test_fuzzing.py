"""Requests that are damaged at random, against the read model in a real PostgreSQL: what no answer to them may be.

``python -m benchmarks.fuzzing`` sends as many as docs/security.md tells of; here it is a few thousand.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import fuzzing
from tests.fuzzing import Asked, Findings, Known, Oracle, Target
from tests.integration.projecting import rows

DAMAGED = 3_000
DOCUMENTED = 300
SEED = 2


@pytest.fixture(scope="module")
def target(postgres_url: str, migrated_template: str) -> Iterator[Target]:
    with fuzzing.filled(postgres_url, migrated_template) as filled:
        yield filled


def tracker_codes(found: Findings, path: str) -> set[str]:
    return {code for asked, _, code in found.answers if asked == path}


def test_damaged_requests_get_published_answers_and_show_nobody_else(target):
    found = fuzzing.bytes_damaged(target.api, target.known, DAMAGED, SEED)
    assert found.wrong == []
    assert found.requests == DAMAGED
    # They came far enough to be about something.
    assert {"0", "4", "52", "57", "61"} <= tracker_codes(found, "/mm/prescriptions")
    assert {"0", "3", "4", "51", "52"} <= tracker_codes(found, "/mm/prescriptions/{prescription_id}")


def test_what_schemathesis_makes_of_the_document_gets_what_the_document_says(target):
    found = fuzzing.from_the_document(target.api, target.known, DOCUMENTED, SEED)
    assert found.wrong == []
    assert found.requests >= DOCUMENTED * 0.9
    assert {"0", "52"} <= tracker_codes(found, "/mm/prescriptions")
    assert {"0", "51"} <= tracker_codes(found, "/mm/prescriptions/{prescription_id}")


def parameters() -> list[tuple[str, str]]:
    """Every parameter that the document names, with the path that takes it."""
    document = fuzzing.openapi_document()
    named = []
    for path, item in document["paths"].items():
        for parameter in item["get"].get("parameters", ()):
            reference = parameter.get("$ref", "").rpartition("/")[2]
            found = document["components"]["parameters"][reference] if reference else parameter
            named.append((path, found["name"]))
    return named


@pytest.mark.parametrize(("path", "name"), parameters())
def test_sql_in_a_parameter_is_a_value_like_any_other(target, path, name):
    oracle = Oracle(target.known)
    key, number = next(iter(target.known.patients.items()))
    given = {"nhsNumber": number, "earliestDate": "20260101"} if path == "/mm/prescriptions" else {"source": "urn:x"}
    with fuzzing.nobody_waits():
        for value in fuzzing.SQL:
            headers, query, where = dict(fuzzing.SOUND), dict(given), path.replace("{prescription_id}", key)
            if "{" + name + "}" in path:
                where = path.replace("{" + name + "}", fuzzing.quoted(value))
            elif name.startswith(("Spine", "Eps")):
                headers[name] = value.decode("latin-1")
            else:
                query[name] = value
            pairs = "&".join(f"{one}={fuzzing.quoted(text)}" for one, text in query.items())
            asked = Asked(f"{where}?{pairs}".encode(), headers)
            assert oracle.what_is_wrong(asked, fuzzing.ask(target.api, asked)) is None


def test_nothing_that_is_asked_changes_a_row(target):
    before = rows(target.database_url)
    fuzzing.bytes_damaged(target.api, target.known, DAMAGED // 10, SEED + 1)
    assert rows(target.database_url) == before


@pytest.mark.parametrize(
    ("got", "wrong"),
    [
        ((500, b"{}"), "HTTP status 500"),
        ((200, b'{"statusCode":"99","reason":"","version":"1","prescriptions":{}}'), "no published answer"),
        ((400, b'Traceback (most recent call last):\n  File "x.py", line 1'), "not published"),
        ((200, b'{"statusCode":"0","reason":"","version":"1","prescriptionList":{"%s":{}}}'), "no published answer"),
    ],
)
def test_the_oracle_sees_what_is_wrong(got, wrong):
    status, body = got
    oracle = Oracle(Known({"0A0A0A-Z90001-00001": "9990000018"}))
    answer = fuzzing.Got(status, {"cache-control": "no-store"}, body)
    assert wrong in (oracle.what_is_wrong(Asked(b"/mm/prescriptions?nhsNumber=1", {}), answer) or "")


def test_the_oracle_sees_another_patient():
    oracle = Oracle(Known({"0A0A0A-Z90001-00001": "9990000018", "0A0A0A-Z90001-00002": "9990000026"}))
    answer = fuzzing.Got(200, {"cache-control": "no-store"}, b'{"source":"9990000018"}')
    asked = Asked(b"/rxstore/events?source=urn:x&id=9990000026", {})
    assert oracle.what_is_wrong(asked, answer) == "shows a patient who was not asked for"
