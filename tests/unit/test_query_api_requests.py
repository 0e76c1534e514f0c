"""Which questions a request asks, and which status code it earns instead: the published table, row by row."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from falcon import testing

from query_api.app import routes
from query_api.queries import EventFate, Retrieved, Searched, ViewsStatus
from query_api.settings import ApiSettings, fixed_clock

ASID = {"Spine-From-Asid": "200000000946"}
NHS = "9912003489"
R2 = "3AF2CB-C86002-0000BX"
R1 = "9BA2F6BD-14FD-6F8B-E050-D20AE3A254FDA"
# A quarter past midnight somewhere east of Greenwich, and still the day before in UTC.
NOW = fixed_clock("2024-02-11T00:15:00+01:00")


class Nothing:
    """A read model in which nothing is found; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def prescription(self, stream_key, issue_number):
        self.asked.append((stream_key, issue_number))
        return Retrieved(None, None, None, None)

    def prescriptions(self, criteria):
        self.asked.append(criteria)
        return Searched((), (), None)

    def live_generation(self):
        return "g1"

    def age_seconds(self):
        return 0.0

    def has_passed(self, topic, partition, offset):
        return True

    def event(self, key, stream_key, position):
        return EventFate(None, None, [], False, None)

    def events(self, source, state, after, limit):
        return [], None

    def views(self):
        return ViewsStatus("g1", "1.0", "events", 0, 0, 0, None, None, [])


class Api:
    """A client of the API over nothing."""

    def __init__(self, **settings):
        self.read_model = Nothing()
        self.client = testing.TestClient(routes(self.read_model, ApiSettings(clock=NOW, **settings)))

    def search(self, query="", headers=ASID):
        return self.client.simulate_get("/mm/prescriptions", query_string=query, headers=headers).json["statusCode"]

    def retrieve(self, prescription_id, query="", headers=ASID):
        path = f"/mm/prescriptions/{prescription_id}"
        return self.client.simulate_get(path, query_string=query, headers=headers).json["statusCode"]

    def searched(self, query):
        """What a search that is not refused asked of the read model."""
        assert self.search(f"nhsNumber={NHS}&{query}") == "1"
        return self.read_model.asked[-1]

    def retrieved(self, prescription_id, query=""):
        """What a retrieve that is not refused asked of the read model."""
        assert self.retrieve(prescription_id, query) == "1"
        return self.read_model.asked[-1]


@pytest.fixture
def api():
    return Api()


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "50"),
        ("&", "50"),
        ("format=trace-summary", "61"),
        ("unknown=1", "61"),
        ("nhsNumber=", "61"),
        ("nhsNumber=9434765918", "61"),
        ("nhsNumber=991200348", "61"),
        ("nhsNumber=991%20200%203489", "61"),
        ("nhsNumber=9912003489%0A", "61"),
        ("nhsNumber=%D9%A9912003489", "61"),
        (f"nhsnumber={NHS}", "61"),
        (f"nhsNumber={NHS}&nhsNumber={NHS}", "61"),
        (f"nhsNumber=&nhsNumber={NHS}", "61"),
        (f"nhsNumber={NHS}&earliestDate=20240230", "57"),
        (f"nhsNumber={NHS}&earliestDate=2024-02-01", "57"),
        (f"nhsNumber={NHS}&latestDate=20240132", "57"),
        (f"nhsNumber={NHS}&latestDate=00000101", "57"),
        (f"nhsNumber={NHS}&latestDate=2024021", "57"),
        (f"nhsNumber={NHS}&earliestDate=20240101&earliestDate=20240101", "57"),
        (f"nhsNumber={NHS}&prescriptionStatus=0010", "59"),
        (f"nhsNumber={NHS}&prescriptionStatus=1", "59"),
        (f"nhsNumber={NHS}&prescriptionStatus=0001&prescriptionStatus=0002", "59"),
        (f"nhsNumber={NHS}&prescriptionVersion=R3", "60"),
        (f"nhsNumber={NHS}&prescriptionVersion=r2", "60"),
        (f"nhsNumber={NHS}&prescriptionVersion=1&prescriptionVersion=2", "60"),
        (f"nhsNumber={NHS}&version=2", "53"),
        (f"nhsNumber={NHS}&version=1&version=1", "53"),
    ],
)
def test_a_search_that_breaks_a_rule_gets_its_code(api, query, code):
    assert api.search(query) == code
    assert api.read_model.asked == []


@pytest.mark.parametrize(
    "query",
    [
        f"nhsNumber={NHS}",
        f"nhsNumber={NHS}&format=trace-summary",
        f"nhsNumber={NHS}&format=something&format=else",
        f"nhsNumber={NHS}&unknown=1&unknown=2",
        f"nhsNumber={NHS}&Version=7",
        f"nhsNumber={NHS}&version=1",
        f"nhsNumber={NHS}&version=1.0",
        f"nhsNumber={NHS}&earliestDate=&latestDate=&prescriptionStatus=&prescriptionVersion=&version=&format=",
        f"nhsNumber={NHS}&prescriptionVersion=2",
        f"nhsNumber={NHS}&prescriptionStatus=0000",
        f"nhsNumber={NHS}&earliestDate=20240105&latestDate=20240101",
        f"nhsNumber={NHS}&earliestDate=00010101&latestDate=99991231",
    ],
)
def test_a_search_that_keeps_the_rules_is_asked(api, query):
    assert api.search(query) == "1"
    assert len(api.read_model.asked) == 1


HEADERS = [
    ({}, "52"),
    ({"Spine-From-Asid": "20000000094"}, "52"),
    ({"Spine-From-Asid": "20000000094A"}, "52"),
    ({"Spine-From-Asid": ""}, "52"),
    (ASID | {"Eps-TraceId": "a" * 31}, "54"),
    (ASID | {"Eps-TraceId": "a_b"}, "54"),
    (ASID | {"Spine-UserId": "12345678901"}, "55"),
    (ASID | {"Spine-RoleProfileId": "1234567890123"}, "56"),
]


@pytest.mark.parametrize(("headers", "code"), HEADERS)
def test_a_search_with_a_bad_header_gets_its_code(api, headers, code):
    assert api.search(f"nhsNumber={NHS}", headers) == code


@pytest.mark.parametrize(("headers", "code"), HEADERS)
def test_a_retrieve_with_a_bad_header_gets_its_code(api, headers, code):
    assert api.retrieve(R2, headers=headers) == code


def test_good_headers_are_accepted(api):
    good = {"Eps-TraceId": "a" * 30, "Spine-UserId": "123456789012", "Spine-RoleProfileId": "123456789012"}

    assert api.search(f"nhsNumber={NHS}", ASID | good) == "1"


@pytest.mark.parametrize(
    ("query", "headers", "code"),
    [
        ("", {}, "50"),
        ("nhsNumber=bad", {}, "52"),
        ("nhsNumber=bad&version=9", ASID, "53"),
        ("version=9", ASID | {"Eps-TraceId": "_"}, "53"),
        ("earliestDate=bad", ASID | {"Eps-TraceId": "_", "Spine-UserId": "_"}, "54"),
        ("earliestDate=bad", ASID | {"Spine-UserId": "_", "Spine-RoleProfileId": "_"}, "55"),
        ("earliestDate=bad", ASID | {"Spine-RoleProfileId": "_"}, "56"),
        ("latestDate=bad&prescriptionStatus=bad&prescriptionVersion=bad", ASID, "57"),
        ("prescriptionStatus=bad&prescriptionVersion=bad", ASID, "59"),
        ("prescriptionVersion=bad", ASID, "60"),
    ],
)
def test_the_lowest_code_of_a_search_wins(api, query, headers, code):
    assert api.search(query, headers) == code


@pytest.mark.parametrize(
    ("prescription_id", "query", "headers", "code"),
    [("ABC", "version=9", {}, "51"), (R2, "version=9", {}, "52"), (R2, "version=9", ASID | {"Eps-TraceId": "_"}, "53")],
)
def test_the_lowest_code_of_a_retrieve_wins(api, prescription_id, query, headers, code):
    assert api.retrieve(prescription_id, query, headers) == code


@pytest.mark.parametrize(
    "prescription_id",
    [
        "ABC",
        "",
        "3AF2CB-C86002-0000BY",
        "000136-ZC2D5C-11E38K",
        "3AF2CBC860020000BX",
        "3AF2CB_C86002_0000BX",
        "3AF2CB-C86002-0000BX%0A",
        "%C3%BCAF2CB-C86002-0000B",
        "3AF2CB-C86002-0000BX%00",
        "9BA2F6BD-14FD-6F8B-E050-D20AE3A254FDB",
    ],
)
def test_a_bad_prescription_id_gets_51(api, prescription_id):
    assert api.retrieve(prescription_id) == "51"


@pytest.mark.parametrize(
    ("prescription_id", "stream_key"),
    [
        (R2, R2[:-1]),
        (R2[:-1], R2[:-1]),
        (R2.lower(), R2[:-1]),
        (R1, R1[:-1]),
        (R1[:-1].lower(), R1[:-1]),
        ("A3B4D9-Z42475-11E6B+", "A3B4D9-Z42475-11E6B"),
        ("A3B4D9-Z42475-11E6B%2B", "A3B4D9-Z42475-11E6B"),
        ("A3B4D9-Z42475-11E6B%20", "A3B4D9-Z42475-11E6B"),
    ],
)
def test_a_prescription_is_looked_up_by_its_stream_key(api, prescription_id, stream_key):
    assert api.retrieved(prescription_id) == (stream_key, None)


def test_a_wrong_check_character_is_accepted_where_the_installation_says_so():
    api = Api(strict_check_character=False)

    assert api.retrieved("000136-ZC2D5C-11E38K") == ("000136-ZC2D5C-11E38", None)


def test_a_retrieve_needs_no_parameters(api):
    assert api.retrieve(R2, "") == "1"


@pytest.mark.parametrize(("query", "code"), [("version=2", "53"), ("version=1&version=1", "53"), ("version=1.0", "1")])
def test_a_retrieve_may_name_its_version(api, query, code):
    assert api.retrieve(R2, query) == code


@pytest.mark.parametrize(
    ("query", "issue_number"),
    [
        ("", None),
        ("issueNumber=", None),
        ("IssueNumber=2", None),
        ("issueNumber=2", 2),
        ("issueNumber=99", 99),
        ("issueNumber=007", 7),
    ],
)
def test_a_retrieve_asks_for_an_issue(api, query, issue_number):
    assert api.retrieved(R2, query) == (R2[:-1], issue_number)


@pytest.mark.parametrize(
    "query",
    [
        "issueNumber=0",
        "issueNumber=-1",
        "issueNumber=%2B1",
        "issueNumber=one",
        "issueNumber=1.0",
        "issueNumber=100",
        "issueNumber=99999999999999999999",
        "issueNumber=%D9%A1",
        "issueNumber=1&issueNumber=1",
    ],
)
def test_what_is_no_issue_number_asks_for_an_issue_that_cannot_exist(api, query):
    assert api.retrieved(R2, query) == (R2[:-1], 0)


@pytest.mark.parametrize(
    ("query", "earliest", "latest"),
    [
        ("", "2024-01-13", "2024-02-10"),
        ("earliestDate=20240105", "2024-01-05", "2024-02-10"),
        ("latestDate=20240205", "2024-01-13", "2024-02-05"),
        ("latestDate=20240101", "2024-01-13", "2024-01-01"),
        ("earliestDate=20231230&latestDate=20240105", "2023-12-30", "2024-01-05"),
        ("earliestDate=20240229&latestDate=20240229", "2024-02-29", "2024-02-29"),
    ],
)
def test_a_window_is_whole_days_of_utc(api, query, earliest, latest):
    criteria = api.searched(query)

    assert criteria.earliest == datetime.fromisoformat(f"{earliest}T00:00:00+00:00")
    assert criteria.latest == datetime.fromisoformat(f"{latest}T23:59:59.999999+00:00")


def test_without_a_fixed_clock_the_window_ends_today():
    api = Api()
    api.client = testing.TestClient(routes(api.read_model, ApiSettings()))
    before = datetime.now(UTC).date()

    assert before <= api.searched("").latest.date() <= datetime.now(UTC).date()


@pytest.mark.parametrize(
    ("query", "release"),
    [
        ("", None),
        ("prescriptionVersion=1", "R1"),
        ("prescriptionVersion=R1", "R1"),
        ("prescriptionVersion=2", "R2"),
        ("prescriptionVersion=R2", "R2"),
    ],
)
def test_a_search_may_name_a_release(api, query, release):
    assert api.searched(query).release == release


@pytest.mark.parametrize(
    "status",
    ["0000", "0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "9000", "9001", "9005"],
)
def test_a_search_may_name_any_of_the_thirteen_statuses(api, status):
    assert api.searched(f"prescriptionStatus={status}").status == status


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "55"),
        ({"Spine-UserId": "123456789012"}, "56"),
        ({"Spine-RoleProfileId": "123456789012"}, "55"),
        ({"Spine-UserId": "123456789012", "Spine-RoleProfileId": "123456789012"}, "1"),
    ],
)
def test_an_installation_may_demand_a_user(headers, code):
    api = Api(require_user=True)

    assert api.search(f"nhsNumber={NHS}", ASID | headers) == code
    assert api.retrieve(R2, headers=ASID | headers) == code
