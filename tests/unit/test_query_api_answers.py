"""What every answer is like on the wire: status, headers, entity tags, and what an error may say."""

from __future__ import annotations

import hashlib
import logging
from datetime import UTC, datetime, timedelta, timezone

import pytest
from falcon import testing
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from query_api.app import routes
from query_api.queries import Block, Retrieved, Searched
from query_api.settings import ApiSettings
from tests.unit.test_outgoing import FOUND, ISSUE, PRESCRIPTION

ASID = {"Spine-From-Asid": "200000000946"}
NHS = FOUND.nhs_number
ID = PRESCRIPTION.prescription_id
SEARCH = "/mm/prescriptions"
RETRIEVE = f"/mm/prescriptions/{ID}"
AS_OF = datetime(2025, 3, 4, 11, 0, 0, 123456, tzinfo=timezone(timedelta(hours=1)))

TRACKER_PATHS = [SEARCH, RETRIEVE]
OTHER_PATHS = ["/health/live", "/health/ready", "/metrics", "/openapi.json"]


class ReadModel:
    """Answers what it was told to, or raises it."""

    def __init__(self, retrieved=None, searched=None, generation="g1", age=0.0):
        self.retrieved = retrieved or Retrieved(PRESCRIPTION, ISSUE, None, AS_OF)
        self.searched = searched or Searched((FOUND,), (), AS_OF)
        self.generation = generation
        self.age = age

    def prescription(self, stream_key, issue_number):
        return answer_or_raise(self.retrieved)

    def prescriptions(self, criteria):
        return answer_or_raise(self.searched)

    def live_generation(self):
        return answer_or_raise(self.generation)

    def age_seconds(self):
        return answer_or_raise(self.age)


def answer_or_raise(answer):
    if isinstance(answer, Exception):
        raise answer
    return answer


def client(settings=None, **answers):
    return testing.TestClient(routes(ReadModel(**answers), settings or ApiSettings()), headers=ASID)


def search(**answers):
    return client(**answers).simulate_get(SEARCH, params={"nhsNumber": NHS})


def retrieve(headers=None, **answers):
    return client(**answers).simulate_get(RETRIEVE, headers=headers)


def database_refuses(error_type, sqlstate):
    class Refusal(Exception):
        pass

    refusal = Refusal(f"something about patient {NHS}")
    refusal.sqlstate = sqlstate
    return error_type("SELECT", {"nhs_number": NHS}, refusal)


AWAY = database_refuses(OperationalError, None)


# Answers


def test_a_search_that_finds_has_a_list():
    result = search()

    assert (result.status_code, result.json["statusCode"]) == (200, "0")
    assert list(result.json["prescriptionList"]) == [FOUND.prescription_id]


def test_a_search_that_finds_nothing_is_not_found():
    assert search(searched=Searched((), (), AS_OF)).json == {
        "statusCode": "1",
        "reason": "Not found",
        "version": "1",
        "prescriptions": {},
    }


def test_an_installation_may_choose_an_empty_list():
    settings = ApiSettings(empty_search="empty-list")
    nothing = client(settings, searched=Searched((), (), AS_OF))

    assert nothing.simulate_get(SEARCH, params={"nhsNumber": NHS}).json == {
        "statusCode": "0",
        "reason": "",
        "version": "1",
        "prescriptionList": {},
    }


def test_a_search_with_a_blocked_match_shows_the_others_and_names_it():
    result = search(searched=Searched((FOUND,), ("3AF2CB-C86002-0000BX", "48A894-C86002-00009"), AS_OF))

    assert result.json["statusCode"] == "4"
    assert list(result.json["prescriptionList"]) == [FOUND.prescription_id]
    assert result.headers["Rxstore-Blocked"] == "3AF2CB-C86002-0000BX,48A894-C86002-00009"


def test_a_search_with_only_blocked_matches_has_an_empty_list():
    result = search(searched=Searched((), (ID,), AS_OF))

    assert (result.json["statusCode"], result.json["prescriptionList"]) == ("4", {})


@pytest.mark.parametrize(
    ("reason", "code", "text"),
    [
        ("illegal_transition", "4", "Failed to parse prescription"),
        ("misrouted", "4", "Failed to parse prescription"),
        (None, "4", "Failed to parse prescription"),
        ("duplicate_prescription", "2", "No unique prescription"),
    ],
)
def test_a_blocked_prescription_is_not_shown(reason, code, text):
    result = retrieve(retrieved=Retrieved(None, None, Block(ID, reason), AS_OF))

    assert result.json == {"statusCode": code, "reason": text, "version": "1", "prescription": {}}
    assert result.headers["Rxstore-Blocked"] == ID


def test_nothing_blocked_says_nothing():
    assert "Rxstore-Blocked" not in search().headers
    assert "Rxstore-Blocked" not in retrieve().headers


def test_an_unknown_prescription_is_not_found():
    assert retrieve(retrieved=Retrieved(None, None, None, AS_OF)).json == {
        "statusCode": "1",
        "reason": "Not found",
        "version": "1",
        "prescription": {},
    }


def test_an_unknown_issue_leaves_the_prescription():
    result = retrieve(retrieved=Retrieved(PRESCRIPTION, None, None, AS_OF))

    assert (result.json["statusCode"], result.json["prescription"]["issue"]) == ("3", {})
    assert result.json["prescription"]["prescriptionId"] == ID


# Headers


@pytest.mark.parametrize("path", TRACKER_PATHS)
def test_an_answer_is_json_that_nobody_keeps(path):
    headers = client().simulate_get(path, params={"nhsNumber": NHS}).headers

    assert headers["Content-Type"] == "application/json; charset=UTF-8"
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", TRACKER_PATHS)
def test_a_refusal_is_json_that_nobody_keeps(path):
    result = client().simulate_get(path, params={"version": "9"})

    assert (result.status_code, result.json["statusCode"]) == (200, "53")
    assert result.headers["Content-Type"] == "application/json; charset=UTF-8"
    assert result.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", TRACKER_PATHS)
def test_a_valid_trace_id_is_echoed_whatever_becomes_of_the_question(path):
    for params in ({"nhsNumber": NHS}, {"version": "9"}):
        result = client().simulate_get(path, params=params, headers={"Eps-TraceId": "trace-1"})
        assert result.headers["Eps-TraceId"] == "trace-1"


@pytest.mark.parametrize("path", TRACKER_PATHS)
def test_an_invalid_trace_id_is_not_echoed(path):
    result = client().simulate_get(path, params={"nhsNumber": NHS}, headers={"Eps-TraceId": "trace_1"})

    assert result.json["statusCode"] == "54"
    assert "Eps-TraceId" not in result.headers


def test_an_answer_says_how_fresh_it_is_in_utc_and_never_rounds_up():
    assert search().headers["Rxstore-As-Of"] == "2025-03-04T10:00:00.123Z"
    assert retrieve().headers["Rxstore-As-Of"] == "2025-03-04T10:00:00.123Z"


def test_an_answer_of_unknown_freshness_promises_nothing():
    assert "Rxstore-As-Of" not in search(searched=Searched((), (), None)).headers
    assert "Rxstore-As-Of" not in retrieve(retrieved=Retrieved(PRESCRIPTION, ISSUE, None, None)).headers


def test_an_answer_names_the_generation_that_it_comes_from():
    assert search(searched=Searched((), (), None, "g2")).headers["Rxstore-Generation"] == "g2"
    answered = retrieve(retrieved=Retrieved(PRESCRIPTION, ISSUE, None, None, "g2"))
    assert answered.headers["Rxstore-Generation"] == "g2"
    assert "Rxstore-Generation" not in search(searched=Searched((), (), None)).headers


# Entity tags


def test_the_entity_tag_of_a_retrieve_is_the_hash_of_its_body():
    result = retrieve()

    assert result.headers["ETag"] == f'"{hashlib.sha1(result.content, usedforsecurity=False).hexdigest()}"'


def test_a_search_has_no_entity_tag():
    assert "ETag" not in search().headers


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
def test_a_client_that_has_the_body_is_told_so(form):
    etag = retrieve().headers["ETag"]
    result = retrieve({"If-None-Match": form.format(etag)})

    assert (result.status_code, result.content) == (304, b"")
    assert result.headers["ETag"] == etag
    assert result.headers["Cache-Control"] == "no-store"
    assert "Rxstore-As-Of" in result.headers


@pytest.mark.parametrize("known", ['"other"', "other", "", ",", "W/"])
def test_a_client_that_has_another_body_gets_this_one(known):
    assert retrieve({"If-None-Match": known}).status_code == 200


# Methods and paths


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE"])
@pytest.mark.parametrize("path", [*TRACKER_PATHS, *OTHER_PATHS])
def test_no_other_method_is_allowed(path, method):
    result = client().simulate_request(method, path)

    assert result.status_code == 405
    assert result.headers["Allow"] == "GET"


@pytest.mark.parametrize(
    "path", ["/", "/mm", "/mm/prescription", "/mm/prescriptions/A/B", "/MM/prescriptions", "//mm/prescriptions"]
)
def test_an_unknown_path_is_not_found(path):
    assert client().simulate_get(path).status_code == 404


def test_an_unknown_path_is_told_where_the_known_ones_are_and_not_repeated():
    result = client().simulate_get("/mm/prescription/9912003489")

    assert "/openapi.json" in result.json["description"]
    assert "9912003489" not in result.text
    assert result.headers["Cache-Control"] == "no-store"


# Errors


@pytest.mark.parametrize(
    "error",
    [
        AWAY,
        database_refuses(ProgrammingError, "42P01"),
        PoolTimeoutError("no connection"),
        ValueError(NHS),
        KeyError(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_goes_wrong_inside_is_code_5_without_detail(error):
    assert search(searched=error).json == {
        "statusCode": "5",
        "reason": "Unexpected exception",
        "version": "1",
        "prescriptions": {},
    }
    assert retrieve(retrieved=error).json == {
        "statusCode": "5",
        "reason": "Unexpected exception",
        "version": "1",
        "prescription": {},
    }


def test_an_answer_about_an_error_is_a_tracker_answer_in_all():
    result = retrieve({"Eps-TraceId": "trace-1"}, retrieved=AWAY)

    assert result.status_code == 200
    assert result.headers["Content-Type"] == "application/json; charset=UTF-8"
    assert result.headers["Cache-Control"] == "no-store"
    assert result.headers["Eps-TraceId"] == "trace-1"
    assert "ETag" not in result.headers


def test_an_error_outside_the_tracker_is_a_server_error():
    assert client(generation=ValueError(NHS)).simulate_get("/health/ready").status_code == 500


def test_the_log_says_what_went_wrong_and_where_but_quotes_nothing(caplog):
    search(searched=database_refuses(OperationalError, "57P01"))

    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "OperationalError 57P01" in record.getMessage()
    assert "answer_or_raise" in record.getMessage()
    assert record.action == "request_failed"
    assert record.path == "/mm/prescriptions"


def test_no_log_line_names_a_patient_a_prescription_or_a_query(caplog):
    caplog.set_level(logging.DEBUG)
    search()
    search(searched=AWAY)
    retrieve(retrieved=ValueError(ID))
    client().simulate_get(f"/mm/nothing/{NHS}")

    lines = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
    assert len(lines) == 6
    assert not [line for line in lines if NHS in line or ID in line or "nhsNumber" in line]


@pytest.mark.parametrize(
    ("query", "given"),
    [
        ("", "missing"),
        ("&format=trace-summary", "published"),
        ("&format=trace", "other"),
        ("&format=1&format=2", "other"),
    ],
)
def test_the_log_notes_the_format_that_was_asked_for(caplog, query, given):
    caplog.set_level(logging.INFO, "query_api")
    client().simulate_get(SEARCH, query_string=f"nhsNumber={NHS}{query}")

    assert caplog.records[-1].format == given


# Health


def test_a_live_process_says_so():
    result = client(generation=AWAY).simulate_get("/health/live")

    assert (result.status_code, result.json) == (200, {"live": True})


def test_an_api_that_can_answer_questions_is_ready():
    result = client().simulate_get("/health/ready")

    assert (result.status_code, result.json) == (200, {"ready": True, "reason": None})


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"generation": AWAY}, "the database cannot be reached"),
        ({"generation": PoolTimeoutError("no connection")}, "the database cannot be reached"),
        ({"generation": None}, "no generation is live: run `rxstore migrate`, or promote one"),
        (
            {"retrieved": database_refuses(ProgrammingError, "42P01")},
            "the views are missing or older than this program: run `rxstore migrate`",
        ),
        (
            {"searched": database_refuses(ProgrammingError, "42703")},
            "the views are missing or older than this program: run `rxstore migrate`",
        ),
        (
            {"searched": database_refuses(ProgrammingError, "42501")},
            "the database role may not read the views: grant it rxstore_reader",
        ),
    ],
)
def test_an_api_that_cannot_answer_says_why(answers, reason):
    result = client(**answers).simulate_get("/health/ready")

    assert (result.status_code, result.json) == (503, {"ready": False, "reason": reason})


@pytest.mark.parametrize(
    ("age", "status", "reason"),
    [
        (60.0, 200, None),
        (61.0, 503, "the read model may be 61 s old: is the projector running?"),
        (None, 503, "a partition was never seen at its end: the projector is still catching up, or not running"),
    ],
)
def test_an_installation_may_demand_a_fresh_read_model(age, status, reason):
    result = client(ApiSettings(ready_max_age_seconds=60), age=age).simulate_get("/health/ready")

    assert (result.status_code, result.json["reason"]) == (status, reason)


def test_an_old_read_model_is_ready_where_nobody_demands_a_fresh_one():
    assert client(age=None).simulate_get("/health/ready").status_code == 200


# Metrics


def metrics_after(*requests):
    with_metrics = client(searched=Searched((), (ID,), datetime.now(UTC)))
    for path, params in requests:
        with_metrics.simulate_get(path, params=params)
    return with_metrics.simulate_get("/metrics").text


def test_requests_are_counted_by_path_template_and_code():
    text = metrics_after((SEARCH, {"nhsNumber": NHS}), (SEARCH, {}), (RETRIEVE, {}), ("/nothing", {}))

    for labels in (
        'http_status="200",path="/mm/prescriptions",tracker_code="4"',
        'http_status="200",path="/mm/prescriptions",tracker_code="50"',
        'http_status="200",path="/mm/prescriptions/{prescription_id}",tracker_code="0"',
        'http_status="404",path="unknown",tracker_code=""',
    ):
        assert f"rxstore_api_requests_total{{{labels}}} 1.0" in text


def test_answers_that_leave_out_a_blocked_prescription_are_counted():
    assert 'rxstore_api_blocked_answers_total{path="/mm/prescriptions"} 1.0' in metrics_after(
        (SEARCH, {"nhsNumber": NHS}), (RETRIEVE, {})
    )


def test_requests_are_timed():
    text = metrics_after((RETRIEVE, {}))

    assert 'rxstore_api_request_seconds_count{path="/mm/prescriptions/{prescription_id}"} 1.0' in text


def test_metrics_name_no_patient():
    text = metrics_after((SEARCH, {"nhsNumber": NHS}), (RETRIEVE, {}), (f"/nothing/{NHS}", {}))

    assert NHS not in text
    assert ID not in text
