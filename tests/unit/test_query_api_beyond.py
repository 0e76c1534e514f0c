"""The paths beyond the tracker, and waiting for a position: what is asked, what is answered, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from threading import Event

import falcon
import pytest
from falcon import testing
from openapi_schema_validator import OAS31Validator
from sqlalchemy.exc import OperationalError

from query_api.app import routes
from query_api.history import HistoryUnavailable, PrescriptionHistory
from query_api.publishers import fate_of
from query_api.queries import EventFate, LogPosition, SetAsideRecord
from query_api.settings import ApiSettings
from query_api.waiting import HEADER, NotReached, Waiting
from schemas.incoming import event_key
from schemas.openapi import openapi_document
from tests.unit.test_query_api_requests import ASID, NHS, R2, Nothing

SOURCE = "urn:nhs:asid:200000000946"
AS_OF = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
HERE = LogPosition("events", 3, 17)
ELSEWHERE = LogPosition("events", 3, 5)
RETRIEVE = f"/mm/prescriptions/{R2}"
SEARCH = "/mm/prescriptions"
HISTORY = f"/rxstore/prescriptions/{R2}/history"


class ReadModel(Nothing):
    """Answers what it is told to; a callable is called."""

    def __init__(self, passed=True, fate=None, records=()):
        super().__init__()
        self.passed = passed
        self.fate = fate or EventFate(None, None, [], False, AS_OF)
        self.records = list(records)

    def has_passed(self, topic, partition, offset):
        self.asked.append((topic, partition, offset))
        return self.passed() if callable(self.passed) else self.passed

    def event(self, key, stream_key, position):
        self.asked.append((key, stream_key, position))
        if isinstance(self.fate, Exception):
            raise self.fate
        return self.fate

    def events(self, source, state, after, limit):
        self.asked.append((source, state, after, limit))
        return self.records[:limit], AS_OF


def client(read_model=None, history=None):
    return testing.TestClient(routes(read_model or ReadModel(), ApiSettings(), history=history), headers=ASID)


def record(state="open", position=HERE, reason="contract_violation"):
    errors = [{"path": "data.issueNumber", "message": "must be a whole number"}]
    return SetAsideRecord(position, R2[:-1], state, reason, None, errors, AS_OF, "r-1", "eps.prescription.released.v1")


def validate(schema, answer):
    document = openapi_document()
    OAS31Validator({"$ref": f"#/components/schemas/{schema}", "components": document["components"]}).validate(answer)


# what became of an event ----------------------------------------------------------------------------------------------


def test_an_event_is_asked_for_by_its_idempotency_key_and_stream():
    read_model = ReadModel()
    client(read_model).simulate_get("/rxstore/events", params={"source": SOURCE, "id": "r-1", "subject": R2})
    assert read_model.asked == [(event_key(SOURCE, "r-1"), R2[:-1], None)]


@pytest.mark.parametrize(
    ("fate", "position", "state", "version"),
    [
        (EventFate(2, HERE, [], False, AS_OF), None, "folded", 2),
        (EventFate(2, HERE, [], True, AS_OF), HERE, "folded", 2),
        (EventFate(2, HERE, [], True, AS_OF), ELSEWHERE, "duplicate", 2),
        (EventFate(2, HERE, [], False, AS_OF), ELSEWHERE, "not_seen", None),
        (EventFate(2, None, [], True, AS_OF), None, "folded", 2),
        (EventFate(None, None, [record()], False, AS_OF), None, "open", None),
        (EventFate(None, None, [record("parked", ELSEWHERE), record()], True, AS_OF), ELSEWHERE, "parked", None),
        (EventFate(2, HERE, [record("repaired", ELSEWHERE)], True, AS_OF), None, "folded", 2),
        (EventFate(2, HERE, [record("repaired", ELSEWHERE)], True, AS_OF), ELSEWHERE, "repaired", None),
        (EventFate(2, HERE, [record("retried", HERE)], True, AS_OF), HERE, "folded", 2),
        (EventFate(None, None, [record("skipped")], True, AS_OF), None, "skipped", None),
        (EventFate(None, None, [], False, AS_OF), None, "not_seen", None),
    ],
)
def test_the_state_of_an_event(fate, position, state, version):
    told = fate_of(fate, R2[:-1], position)
    assert (told["state"], told["version"]) == (state, version)
    assert told["as_of"] == "2026-03-02T09:00:00.000Z"
    validate("EventFate", {"source": SOURCE, "id": "r-1", "subject": R2, **told})


def test_without_its_subject_nobody_says_that_an_event_was_not_seen():
    told = fate_of(EventFate(None, None, [], False, AS_OF), None, None)
    assert told["state"] == "not_set_aside"
    assert "subject" in told["note"]


def test_a_record_is_told_with_its_reason_and_paths_and_nothing_it_says():
    answer = client(ReadModel(fate=EventFate(None, None, [record()], False, AS_OF))).simulate_get(
        "/rxstore/events", params={"source": SOURCE, "id": "r-1"}
    )
    (sighting,) = answer.json["sightings"]
    assert (sighting["position"], sighting["reason"]) == ("events:3:17", "contract_violation")
    assert sighting["errors"][0]["path"] == "data.issueNumber"
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_publishers_events_come_page_by_page():
    read_model = ReadModel(records=[record(position=LogPosition("events", 3, n)) for n in range(3)])
    page = client(read_model).simulate_get("/rxstore/events", params={"source": SOURCE, "state": "open", "limit": "2"})
    validate("SetAsideEvents", page.json)
    assert [one["position"] for one in page.json["events"]] == ["events:3:0", "events:3:1"]
    assert page.json["after"] == "events:3:1"
    assert read_model.asked == [(SOURCE, "open", None, 3)]
    last = client(read_model).simulate_get("/rxstore/events", params={"source": SOURCE, "state": "open", "limit": "3"})
    assert last.json["after"] is None


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"source": SOURCE},
        {"id": "r-1"},
        {"source": SOURCE, "id": "r-1", "state": "open"},
        {"source": SOURCE, "state": "lost"},
        {"source": SOURCE, "state": "open", "limit": "0"},
        {"source": SOURCE, "state": "open", "limit": "1001"},
        {"source": SOURCE, "state": "open", "limit": "many"},
        {"source": SOURCE, "state": "open", "after": "events:3"},
        {"source": SOURCE, "id": "r-1", "subject": "nobody"},
        {"source": SOURCE, "id": "r-1", "position": "events:x:1"},
        {"source": [SOURCE, SOURCE], "id": "r-1"},
        {"source": "\0", "id": "r-1"},
        {"source": SOURCE, "id": "r" * 3000},
    ],
    ids=str,
)
def test_a_malformed_question_about_events_is_refused_in_plain_http(params):
    answer = testing.simulate_get(
        routes(ReadModel(), ApiSettings()), "/rxstore/events", params=params, params_csv=False
    )
    assert answer.status_code == 400
    assert answer.json["title"] == "Malformed question"
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_database_that_is_away_is_503_and_says_no_more():
    away = OperationalError("SELECT", {"nhs": NHS}, Exception(NHS))
    answer = client(ReadModel(fate=away)).simulate_get("/rxstore/events", params={"source": SOURCE, "id": "r-1"})
    assert answer.status_code == 503
    assert NHS not in answer.text


def test_status_says_how_far_the_views_are():
    answer = client().simulate_get("/rxstore/status")
    assert (answer.status_code, answer.json["generation"], answer.json["blocked"]) == (200, "g1", 0)
    assert answer.headers["Cache-Control"] == "no-store"


# history --------------------------------------------------------------------------------------------------------------


def test_history_is_told_by_the_function_that_was_handed_in():
    asked = []

    def history(stream_key, at):
        asked.append((stream_key, at))
        return {"steps": []}

    answer = client(history=history).simulate_get(HISTORY, params={"at": "2026-03-02T09:00:00Z"})
    assert (answer.status_code, answer.json) == (200, {"steps": []})
    assert answer.headers["Cache-Control"] == "no-store"
    assert asked == [(R2[:-1], AS_OF)]


def test_history_without_the_topic_says_how_to_get_it():
    answer = client().simulate_get(HISTORY)
    assert answer.status_code == 501
    assert "rxstore explain" in answer.json["description"]


def test_history_of_what_nobody_knows_is_404():
    assert client(history=lambda key, at: None).simulate_get(HISTORY).status_code == 404


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/rxstore/prescriptions/nobody/history", ""),
        (HISTORY, "at=yesterday"),
        (HISTORY, "at=2026-03-02T09:00:00"),
        (HISTORY, "at=0001-01-01T00:00:00%2B14:00"),
        (HISTORY, "at=9999-12-31T23:59:59-14:00"),
    ],
)
def test_a_malformed_question_about_history_is_400(path, query):
    assert client(history=lambda key, at: {}).simulate_get(path, query_string=query).status_code == 400


@pytest.mark.parametrize(
    "error", [HistoryUnavailable("the brokers are away"), OperationalError("SELECT", {}, Exception(NHS))]
)
def test_history_while_a_server_is_away_is_503(error):
    def history(stream_key, at):
        raise error

    answer = client(history=history).simulate_get(HISTORY)
    assert answer.status_code == 503
    assert NHS not in answer.text


def test_a_history_that_takes_too_long_lets_go_of_the_request_and_few_run_at_a_time():
    go_on = Event()
    resource = PrescriptionHistory(lambda key, at: go_on.wait(30) and {}, at_a_time=1, patience_seconds=0.05)
    app = testing.TestClient(_app_with(resource))
    slow, busy = app.simulate_get(HISTORY), app.simulate_get(HISTORY)
    go_on.set()
    assert (slow.status_code, "within" in slow.json["description"]) == (503, True)
    assert (busy.status_code, "other histories" in busy.json["description"]) == (503, True)


def _app_with(resource):
    app = falcon.App()
    app.add_route("/rxstore/prescriptions/{prescription_id}/history", resource)
    return app


# waiting --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [RETRIEVE, f"{SEARCH}?nhsNumber={NHS}"])
def test_what_is_reached_is_answered(path):
    read_model = ReadModel()
    answer = client(read_model).simulate_get(f"{path}{'&' if '?' in path else '?'}waitFor=events:3:17")
    assert (answer.json["statusCode"], answer.headers[HEADER]) == ("1", "reached")
    assert read_model.asked[0] == ("events", 3, 17)


def test_without_the_parameter_nobody_waits():
    answer = client(ReadModel(passed=False)).simulate_get(RETRIEVE)
    assert answer.json["statusCode"] == "1"
    assert HEADER not in answer.headers


def test_what_is_not_reached_in_time_is_code_5_and_says_why():
    answer = client(ReadModel(passed=False)).simulate_get(RETRIEVE, query_string="waitFor=events:3:17&waitSeconds=0")
    assert (answer.status_code, answer.json["statusCode"], answer.headers[HEADER]) == (200, "5", "not-reached")
    assert "ETag" not in answer.headers


def test_what_is_reached_meanwhile_is_answered_then():
    looks = iter([False, False, True, True])
    answer = client(ReadModel(passed=lambda: next(looks))).simulate_get(RETRIEVE, query_string="waitFor=events:3:17")
    assert answer.headers[HEADER] == "reached"


def test_a_promotion_between_waiting_and_reading_shows_nothing_older():
    looks = iter([True, False])
    answer = client(ReadModel(passed=lambda: next(looks))).simulate_get(RETRIEVE, query_string="waitFor=events:3:17")
    assert (answer.json["statusCode"], answer.headers[HEADER]) == ("5", "not-reached")


@pytest.mark.parametrize(
    "query",
    [
        "waitFor=events:3",
        "waitFor=here",
        "waitFor=events:3:17&waitSeconds=soon",
        "waitFor=events:3:17&waitSeconds=-1",
        "waitFor=events:3:17&waitFor=events:3:18",
        "waitFor=events:3:9999999999999999999",
    ],
)
def test_a_malformed_wait_is_told_at_once(query):
    read_model = ReadModel()
    answer = client(read_model).simulate_get(RETRIEVE, query_string=query)
    assert (answer.json["statusCode"], answer.headers[HEADER]) == ("5", "malformed")
    assert read_model.asked == []


def test_an_unknown_partition_is_told_at_once():
    answer = client(ReadModel(passed=None)).simulate_get(RETRIEVE, query_string="waitFor=events:99:17")
    assert (answer.json["statusCode"], answer.headers[HEADER]) == ("5", "unknown-partition")


def test_the_rules_of_the_tracker_come_first():
    read_model = ReadModel(passed=False)
    answer = client(read_model).simulate_get("/mm/prescriptions/nobody", query_string="waitFor=events:3:17")
    assert answer.json["statusCode"] == "51"
    assert read_model.asked == []


class Clock:
    """A clock that moves only while somebody sleeps; ``during`` is called then."""

    def __init__(self, during=lambda: None):
        self.now = 0.0
        self.during = during

    def sleep(self, seconds):
        self.now += seconds
        self.during()


def waited(waiting, query):
    request = testing.create_req(query_string=query)
    with waiting.waited_for(request, falcon.Response()):
        pass


@pytest.mark.parametrize(("query", "seconds"), [("", 5), ("&waitSeconds=2.5", 2.5), ("&waitSeconds=600", 10)])
def test_the_time_to_wait_has_a_default_and_an_end(query, seconds):
    clock = Clock()
    waiting = Waiting(ReadModel(passed=False), clock=lambda: clock.now, sleep=clock.sleep)
    with pytest.raises(NotReached, match="not-reached"):
        waited(waiting, f"waitFor=events:3:17{query}")
    assert clock.now == pytest.approx(seconds, abs=0.1)


def test_more_than_may_wait_are_told_at_once():
    told = []

    def another():
        if not told:
            told.append(None)
            with pytest.raises(NotReached) as refused:
                waited(waiting, "waitFor=events:3:17")
            told.append(refused.value.why)

    clock = Clock(another)
    waiting = Waiting(ReadModel(passed=False), at_a_time=1, clock=lambda: clock.now, sleep=clock.sleep)
    with pytest.raises(NotReached, match="not-reached"):
        waited(waiting, "waitFor=events:3:17")
    assert told == [None, "busy"]
