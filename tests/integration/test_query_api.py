"""The API against a real PostgreSQL: what rows mean, what may not be shown, and what happens when it is away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from falcon import testing
from sqlalchemy import Engine, create_engine, event, insert, make_url, text
from sqlalchemy.exc import DBAPIError

from projector import generations, tables
from query_api import queries
from query_api.app import create_app
from query_api.database import read_only_engine
from query_api.queries import LogPosition, SearchCriteria
from query_api.settings import ApiSettings, fixed_clock
from rxstore.story import KNOWN
from schemas.incoming import event_key
from tests.conftest import new_database

SCHEMA = {"schema_translate_map": {None: "rx_g1"}}
PARTITIONS = 3
ASID = {"Spine-From-Asid": "200000000946"}
NOW = fixed_clock("2024-02-10T11:32:00Z")
AS_OF = datetime(2024, 2, 10, 11, 31, tzinfo=UTC)
NHS = "9912003489"
OTHER_NHS = "9691003120"
ID = "3AF2CB-C86002-0000BX"
KEY = ID[:-1]
SOURCE = "urn:nhs:asid:200000000946"
EVENT_KEY = event_key(SOURCE, "r-1")
R1_ID = "9BA2F6BD-14FD-6F8B-E050-D20AE3A254FDA"
PRESCRIBED_AT = datetime(2024, 2, 1, 9, 30, tzinfo=UTC)

TABLES = ("prescription", "line_item", "issue", "dispense_notification", "cancellation", "set_aside", "checkpoint")


class ReadModel:
    """Writes rows as the projector would."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._offset = 0

    def write(self, table, **row):
        with self.engine.begin() as connection:
            connection.execution_options(**SCHEMA).execute(insert(table).values(**row))

    def prescription(self, prescription_id=ID, *, statuses=("0001",), items=1, **columns):
        """A prescription with one issue for each status, whose items are all to be dispensed."""
        stream_key = prescription_id[:-1]
        known = {
            "partition_number": 1,
            "kind": "created",
            "prescription_id": prescription_id,
            "nhs_number": NHS,
            "treatment_type": "0001" if len(statuses) == 1 else "0003",
            "prescription_type": "0101",
            "prescribed_at": PRESCRIBED_AT,
            "signed_at": PRESCRIBED_AT,
            "days_supply": 28,
            "issues_authorised": len(statuses),
            "prescriber_ods": "A83008",
            "current_issue": 1,
            "version": 1,
            "last_event_at": PRESCRIBED_AT,
            "pending_cancellations": False,
            "folded_keys": b"0123456789abcdef",
            "folded_positions": b"0123456789ab",
        }
        self.write(tables.prescription, stream_key=stream_key, **known | columns)
        for number in range(1, items + 1):
            self.item(number, stream_key=stream_key)
        for number, status in enumerate(statuses, start=1):
            self.issue(number, stream_key=stream_key, status=status, item_statuses=["0007"] * items)

    def placeholder(self, **columns):
        """What an early cancellation leaves."""
        nothing = dict.fromkeys(["treatment_type", "prescription_type", "signed_at", "days_supply"])
        defaults = {"prescribed_at": datetime(2024, 2, 1, tzinfo=UTC), "pending_cancellations": True}
        self.prescription(statuses=["9005"], items=0, **nothing | defaults | {"kind": "placeholder"} | columns)

    def deleted(self, stream_key=KEY):
        self.write(
            tables.prescription,
            stream_key=stream_key,
            partition_number=1,
            kind="deleted",
            version=2,
            pending_cancellations=False,
            folded_keys=b"0123456789abcdef",
            folded_positions=b"",
        )

    def item(self, number, stream_key=KEY, **columns):
        known = {
            "item_id": item_id(number),
            "description": "Paracetamol 500mg tablets",
            "code": "322236009",
            "quantity": "28",
            "unit": "tablet",
            "dosage": "One daily",
            "issues_authorised": 1,
        }
        self.write(tables.line_item, stream_key=stream_key, item_number=number, **known | columns)

    def issue(self, number, stream_key=KEY, **columns):
        known = {"status": "0001", "version": 1, "item_statuses": ["0007"]}
        self.write(tables.issue, stream_key=stream_key, issue_number=number, **known | columns)

    def cancellation(self, stream_key=KEY, **columns):
        known = {
            "cancellation_id": "3F2504E0-4F89-41D3-9A0C-0305E82C33FF",
            "number": 1,
            "nhs_number": NHS,
            "target": "prescription",
            "state": "applied",
            "reason_code": "0001",
            "reason_text": "Prescribing Error",
            "first_issue": 1,
            "requested_at": PRESCRIBED_AT,
        }
        self.write(tables.cancellation, stream_key=stream_key, **known | columns)

    def set_aside(self, reason, *, stream_key=KEY, state="open", **columns):
        self._offset += 1
        known = {
            "topic": "events",
            "partition_number": 1,
            "record_offset": self._offset,
            "stands_at": self._offset,
            "errors": [],
            "since": PRESCRIBED_AT,
        }
        self.write(tables.set_aside, stream_key=stream_key, state=state, reason=reason, **known | columns)

    def caught_up(self, partition, at):
        self.write(
            tables.checkpoint, topic="events", partition_number=partition, next_offset=1, epoch=1, caught_up_at=at
        )

    def folded(self, *places, keys=None, **columns):
        """A prescription that remembers events at these (partition, offset), under these keys."""
        keys = keys or [bytes([number]) * 16 for number, _ in enumerate(places)]
        packed = b"".join(partition.to_bytes(4, "big") + offset.to_bytes(8, "big") for partition, offset in places)
        self.prescription(folded_keys=b"".join(keys), folded_positions=packed, **columns)

    def publisher_event(self, reason="contract_violation", *, id="r-1", **columns):
        """A record of the publisher that was set aside."""
        self.set_aside(reason, event_source=SOURCE, event_id=id, event_key=event_key(SOURCE, id), **columns)


class Api:
    """A client of the whole application, over connections of the role that may only read."""

    def __init__(self, engine: Engine, **settings) -> None:
        self.client = testing.TestClient(create_app(engine, settings=ApiSettings(clock=NOW, **settings)), headers=ASID)

    def search(self, nhs_number=NHS, **parameters):
        return self.client.simulate_get("/mm/prescriptions", params={"nhsNumber": nhs_number} | parameters)

    def retrieve(self, prescription_id=ID, **parameters):
        return self.client.simulate_get(f"/mm/prescriptions/{prescription_id}", params=parameters)

    def found(self, **parameters):
        """The ids that a search finds, in its order."""
        return list(self.search(**parameters).json.get("prescriptionList", {}))


def item_id(number):
    return f"3F2504E0-4F89-41D3-9A0C-0305E82C330{number}"


def code(result):
    assert result.status_code == 200
    return result.json["statusCode"]


def writer_of(url: str) -> Engine:
    return create_engine(make_url(url).set(drivername="postgresql+psycopg"))


def reader_url(url: str) -> str:
    """The same database as the role that may read the views and nothing else."""
    return make_url(url).update_query_dict({"options": "-crole=rxstore_reader"}).render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def url(postgres_url: str) -> Iterator[str]:
    with new_database(postgres_url, template="template0") as url:
        engine = writer_of(url)
        generations.migrate(engine, topic="events", settings={})
        with engine.begin() as connection:
            generations.remember_topic(connection, "g1", topic_id=None, partitions=PARTITIONS)
        engine.dispose()
        yield url


@pytest.fixture(scope="module")
def engine(url: str) -> Iterator[Engine]:
    engine = read_only_engine(reader_url(url))
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def writer(url: str) -> Iterator[Engine]:
    engine = writer_of(url)
    yield engine
    engine.dispose()


@pytest.fixture
def read_model(writer: Engine) -> ReadModel:
    with writer.begin() as connection:
        connection.execute(text(f"TRUNCATE {', '.join(f'rx_g1.{table}' for table in TABLES)}"))
    return ReadModel(writer)


@pytest.fixture
def api(engine: Engine, read_model: ReadModel) -> Api:
    return Api(engine)


# What rows mean


def test_an_acute_prescription_is_retrieved_whole(api, read_model):
    read_model.prescription(
        statuses=[],
        items=2,
        treatment_type="0001",
        signed_at=datetime(2025, 3, 1, 9, 15, tzinfo=UTC),
        last_event_at=datetime(2025, 3, 4, 10, 11, 12, tzinfo=UTC),
        prescriber_name="EXAMPLE SURGERY",
        prescriber_telecom="tel:01159737320",
        nominated_ods="FX999",
        nominated_name="EXAMPLE PHARMACY",
    )
    read_model.issue(
        1,
        status="0003",
        item_statuses=["0004", "0001"],
        last_dispensed_at=datetime(2025, 3, 4, 10, 11, tzinfo=UTC),
        dispenser_ods="FX999",
        dispenser_name="EXAMPLE PHARMACY",
        dispenser_telecom="tel:01234",
    )

    assert api.retrieve().json == {
        "statusCode": "0",
        "reason": "",
        "version": "1",
        "prescription": {
            "prescriptionId": ID,
            "prescriptionType": {
                "prescriptionTypeCode": "0101",
                "prescriptionTypeText": "PRIMARY CARE PRESCRIBER - MEDICAL PRESCRIBER",
            },
            "prescriptionTreatmentType": {
                "prescriptionTreatmentTypeCode": "0001",
                "prescriptionTreatmentTypeText": "Acute Prescription",
            },
            "signingDate": "20250301091500",
            "lastEventDate": "20250304101112",
            "currentIssueNumber": "1",
            "daysSupply": "28",
            "pendingCancellations": "False",
            "patientNhsNumber": NHS,
            "prescribingOrganisationODS": "A83008",
            "prescribingOrganisationName": "EXAMPLE SURGERY",
            "prescribingOrganisationContact": "01159737320",
            "nominatedDispenserODS": "FX999",
            "nominatedDispenserName": "EXAMPLE PHARMACY",
            "issue": {
                "issueNumber": "1",
                "appliedCancellations": "False",
                "lastDispenseDate": "20250304",
                "dispensingOrganisationODS": "FX999",
                "dispensingOrganisationName": "EXAMPLE PHARMACY",
                "dispensingOrganisationContact": "01234",
                "prescriptionStatus": {"statusCode": "0003", "statusText": "With dispenser active"},
                "lineItems": {
                    "1": {
                        "id": item_id(1),
                        "status": {"statusCode": "0004", "statusText": "Item not dispensed owing"},
                    },
                    "2": {"id": item_id(2), "status": {"statusCode": "0001", "statusText": "Item fully dispensed"}},
                },
            },
        },
    }


def test_a_repeat_dispensing_prescription_is_found_with_all_its_issues(api, read_model):
    read_model.prescription(statuses=[], items=1, treatment_type="0003", current_issue=2)
    read_model.issue(2, status="0000", item_statuses=["0007"])
    read_model.issue(1, status="0006", item_statuses=["0001"], released_at=datetime(2024, 2, 2, 8, tzinfo=UTC))

    assert api.search().json == {
        "statusCode": "0",
        "reason": "",
        "version": "1",
        "prescriptionList": {
            ID: {
                "prescriptionTreatmentType": {
                    "prescriptionTreatmentTypeCode": "0003",
                    "prescriptionTreatmentTypeText": "Repeat Dispensing",
                },
                "prescriptionIssueDate": "20240201093000",
                "lastEventDate": "20240201093000",
                "pendingCancellations": "False",
                "currentIssueNumber": "2",
                "patientNhsNumber": NHS,
                "issues": {
                    "1": {
                        "issueDate": "20240202",
                        "prescriptionStatus": {"statusCode": "0006", "statusText": "Dispensed"},
                        "lineItems": {"1": {"status": {"statusCode": "0001", "statusText": "Item fully dispensed"}}},
                    },
                    "2": {
                        "issueDate": "False",
                        "prescriptionStatus": {"statusCode": "0000", "statusText": "Awaiting Release Ready"},
                        "lineItems": {"1": {"status": {"statusCode": "0007", "statusText": "To Be Dispensed"}}},
                    },
                },
            }
        },
    }


def test_issues_are_listed_by_number(api, read_model):
    read_model.prescription(statuses=["0006", *["9000"] * 11])

    assert list(api.search().json["prescriptionList"][ID]["issues"]) == [str(number) for number in range(1, 13)]


@pytest.mark.parametrize("asked", [ID, ID[:-1], ID.lower()])
def test_a_prescription_is_found_by_any_form_of_its_id(api, read_model, asked):
    read_model.prescription()

    assert api.retrieve(asked).json["prescription"]["prescriptionId"] == ID


def test_a_prescription_with_a_plus_is_found(api, read_model):
    read_model.prescription("A3B4D9-Z42475-11E6B+")

    for form in ("+", "%2B", "%20", ""):
        assert api.retrieve(f"A3B4D9-Z42475-11E6B{form}").json["prescription"]["prescriptionId"][-1] == "+"


def test_a_release_1_prescription_is_found(api, read_model):
    read_model.prescription(R1_ID)

    assert api.retrieve(R1_ID).json["prescription"]["prescriptionId"] == R1_ID
    assert api.found() == [R1_ID]


def test_an_unknown_prescription_is_not_found(api, read_model):
    assert code(api.retrieve()) == "1"


def test_a_retrieve_shows_the_current_issue(api, read_model):
    read_model.prescription(statuses=["0006", "0001", "9000"], current_issue=2)

    assert api.retrieve().json["prescription"]["issue"]["issueNumber"] == "2"


def test_a_retrieve_shows_the_issue_that_is_asked_for(api, read_model):
    read_model.prescription(statuses=["0006", "0001", "9000"], current_issue=2)
    prescription = api.retrieve(issueNumber="3").json["prescription"]

    assert (prescription["issue"]["issueNumber"], prescription["currentIssueNumber"]) == ("3", "2")
    assert prescription["issue"]["prescriptionStatus"] == {
        "statusCode": "9000",
        "statusText": "Repeat dispense future instance",
    }


@pytest.mark.parametrize("issue_number", ["2", "0", "-1", "x", "99999999999"])
def test_an_issue_that_does_not_exist_leaves_the_prescription(api, read_model, issue_number):
    read_model.prescription()
    result = api.retrieve(issueNumber=issue_number)

    assert code(result) == "3"
    assert result.json["prescription"]["prescriptionId"] == ID
    assert result.json["prescription"]["issue"] == {}


@pytest.mark.parametrize(
    ("state", "first_issue", "shown"),
    [
        ("applied", 1, ["True", "True", "True"]),
        ("applied", 2, ["False", "True", "True"]),
        ("pending", 1, ["False", "False", "False"]),
        ("unsuccessful", 1, ["False", "False", "False"]),
    ],
)
def test_a_cancellation_is_applied_from_its_first_issue_on(api, read_model, state, first_issue, shown):
    read_model.prescription(statuses=["0001", "0005", "0005"])
    read_model.cancellation(state=state, first_issue=first_issue)

    assert [
        api.retrieve(issueNumber=str(number)).json["prescription"]["issue"]["appliedCancellations"]
        for number in (1, 2, 3)
    ] == shown


def test_a_placeholder_is_retrieved(api, read_model):
    read_model.placeholder(prescriber_ods="A83008")
    prescription = api.retrieve().json["prescription"]

    assert prescription["prescriptionType"] == {"prescriptionTypeCode": "", "prescriptionTypeText": ""}
    assert prescription["prescriptionTreatmentType"]["prescriptionTreatmentTypeCode"] == ""
    assert (prescription["signingDate"], prescription["daysSupply"]) == ("False", "28")
    assert (prescription["pendingCancellations"], prescription["prescribingOrganisationODS"]) == ("True", "A83008")
    assert prescription["issue"]["prescriptionStatus"]["statusCode"] == "9005"
    assert prescription["issue"]["lineItems"] == {}


def test_a_placeholder_is_found(api, read_model):
    read_model.placeholder()
    found = api.search(prescriptionStatus="9005").json["prescriptionList"][ID]

    assert found["prescriptionIssueDate"] == "20240201000000"
    assert found["prescriptionTreatmentType"]["prescriptionTreatmentTypeText"] == ""
    assert found["issues"]["1"]["lineItems"] == {}


# Searching


def test_a_search_finds_the_patients_own_prescriptions(api, read_model):
    read_model.prescription()
    read_model.prescription("48A894-C86002-00009E", nhs_number=OTHER_NHS)

    assert api.found() == [ID]


def test_the_newest_prescription_comes_first(api, read_model):
    read_model.prescription("48A894-C86002-00009E", prescribed_at=PRESCRIBED_AT - timedelta(days=1))
    read_model.prescription("0DF0C0-N82668-000039", prescribed_at=PRESCRIBED_AT + timedelta(days=1))
    read_model.prescription()

    assert api.found() == ["0DF0C0-N82668-000039", ID, "48A894-C86002-00009E"]


def test_a_search_that_finds_nothing_is_not_found(api, read_model):
    assert api.search().json == {"statusCode": "1", "reason": "Not found", "version": "1", "prescriptions": {}}


def test_an_installation_may_choose_an_empty_list(engine, read_model):
    result = Api(engine, empty_search="empty-list").search()

    assert (code(result), result.json["prescriptionList"]) == ("0", {})


@pytest.mark.parametrize(
    ("prescribed_at", "window", "is_found"),
    [
        ("2024-01-13T00:00:00Z", {}, True),
        ("2024-01-12T23:59:59Z", {}, False),
        ("2024-02-10T12:01:00Z", {}, True),
        ("2024-02-10T23:59:59.999999Z", {}, True),
        ("2024-02-11T00:00:00Z", {}, False),
        ("2024-01-05T00:00:00Z", {"earliestDate": "20240105"}, True),
        ("2024-01-04T23:59:59Z", {"earliestDate": "20240105"}, False),
        ("2024-02-05T23:59:59Z", {"latestDate": "20240205"}, True),
        ("2024-02-06T00:00:00Z", {"latestDate": "20240205"}, False),
        ("2024-01-01T12:00:00Z", {"latestDate": "20240101"}, False),
        ("2023-06-30T23:59:59Z", {"earliestDate": "20230630", "latestDate": "20230630"}, True),
        ("2024-01-03T12:00:00Z", {"earliestDate": "20240105", "latestDate": "20240101"}, False),
        ("2024-01-03T12:00:00Z", {"earliestDate": "00010101", "latestDate": "99991231"}, True),
    ],
)
def test_a_prescription_is_found_in_its_window(api, read_model, prescribed_at, window, is_found):
    read_model.prescription(prescribed_at=datetime.fromisoformat(prescribed_at))

    assert api.found(**window) == ([ID] if is_found else [])


@pytest.mark.parametrize(("status", "is_found"), [("0002", True), ("9000", True), ("0001", False)])
def test_a_status_of_any_issue_finds_the_whole_prescription(api, read_model, status, is_found):
    read_model.prescription(statuses=["0002", "9000", "9000"])
    result = api.search(prescriptionStatus=status)

    assert code(result) == ("0" if is_found else "1")
    assert not is_found or len(result.json["prescriptionList"][ID]["issues"]) == 3


@pytest.mark.parametrize(
    ("version", "found"), [("1", [R1_ID]), ("R1", [R1_ID]), ("2", [ID]), ("R2", [ID]), ("", [ID, R1_ID])]
)
def test_a_search_may_name_a_release(api, read_model, version, found):
    read_model.prescription()
    read_model.prescription(R1_ID)

    assert api.found(prescriptionVersion=version) == found


# What may not be shown


BLOCKS = [
    ("open", "unreadable", "4"),
    ("open", "contract_violation", "4"),
    ("open", "illegal_transition", "4"),
    ("open", "sequence_conflict", "4"),
    ("open", "fold_failed", "4"),
    ("open", "misrouted", "4"),
    ("parked", "sequence_gap", "4"),
    ("open", "duplicate_prescription", "2"),
]


@pytest.mark.parametrize(("state", "reason", "status"), BLOCKS)
def test_a_blocked_prescription_is_not_retrieved(api, read_model, state, reason, status):
    read_model.prescription()
    read_model.set_aside(reason, state=state)
    result = api.retrieve()

    assert code(result) == status
    assert result.json["prescription"] == {}
    assert result.headers["Rxstore-Blocked"] == ID


@pytest.mark.parametrize(("state", "reason", "status"), BLOCKS)
def test_a_blocked_prescription_is_left_out_of_a_search(api, read_model, state, reason, status):
    read_model.prescription()
    read_model.prescription("48A894-C86002-00009E")
    read_model.set_aside(reason, state=state)
    result = api.search()

    assert code(result) == "4"
    assert list(result.json["prescriptionList"]) == ["48A894-C86002-00009E"]
    assert result.headers["Rxstore-Blocked"] == ID


@pytest.mark.parametrize("state", ["retried", "repaired", "skipped"])
def test_a_block_that_is_settled_hides_nothing(api, read_model, state):
    read_model.prescription()
    read_model.set_aside("illegal_transition", state=state)

    assert code(api.retrieve()) == "0"
    assert code(api.search()) == "0"


def test_the_status_filter_does_not_hide_a_blocked_match(api, read_model):
    read_model.prescription()
    read_model.set_aside("illegal_transition")

    assert code(api.search(prescriptionStatus="0008")) == "4"


@pytest.mark.parametrize(
    "parameters", [{"latestDate": "20240131"}, {"prescriptionVersion": "R1"}, {"nhs_number": OTHER_NHS}]
)
def test_a_blocked_prescription_outside_the_search_does_not_matter(api, read_model, parameters):
    read_model.prescription()
    read_model.set_aside("illegal_transition")

    assert code(api.search(**parameters)) == "1"


@pytest.mark.parametrize(("state", "reason"), [(state, reason) for state, reason, status in BLOCKS if status == "4"])
def test_a_stream_that_is_not_created_is_blocked_by_what_is_set_aside(api, read_model, state, reason):
    read_model.set_aside(reason, state=state)
    result = api.retrieve()

    assert (code(result), result.json["prescription"]) == ("4", {})
    assert result.headers["Rxstore-Blocked"] == KEY


@pytest.mark.parametrize(
    ("state", "reason"),
    [("parked", "not_created"), ("open", "deleted"), ("skipped", "contract_violation"), ("retried", "unreadable")],
)
def test_a_stream_that_only_waits_for_its_creation_is_not_found(api, read_model, state, reason):
    read_model.set_aside(reason, state=state, nhs_number=NHS)

    assert code(api.retrieve()) == "1"
    assert code(api.search()) == "1"


def test_a_record_of_no_known_stream_blocks_nothing(api, read_model):
    read_model.set_aside("unreadable", stream_key=None, nhs_number=NHS)

    assert code(api.search()) == "1"


@pytest.mark.parametrize("reason", ["illegal_transition", "misrouted", "deleted"])
def test_a_deleted_prescription_is_not_found_whatever_is_set_aside(api, read_model, reason):
    read_model.deleted()
    read_model.set_aside(reason, nhs_number=NHS)
    result = api.retrieve()

    assert code(result) == "1"
    assert "Rxstore-Blocked" not in result.headers
    assert code(api.search()) == "1"


@pytest.mark.parametrize(("state", "reason"), [("open", "contract_violation"), ("parked", "sequence_gap")])
@pytest.mark.parametrize(
    "window", [{}, {"latestDate": "20000101"}, {"earliestDate": "20240105", "latestDate": "20240101"}]
)
def test_a_creation_that_is_set_aside_makes_every_search_for_its_patient_doubtful(
    api, read_model, state, reason, window
):
    read_model.set_aside(reason, state=state, nhs_number=NHS)
    result = api.search(**window)

    assert (code(result), result.json["prescriptionList"]) == ("4", {})
    assert result.headers["Rxstore-Blocked"] == KEY


def test_a_creation_behind_a_block_makes_a_search_doubtful(api, read_model):
    read_model.set_aside("contract_violation")
    read_model.set_aside("behind_block", state="parked", nhs_number=NHS)

    assert code(api.search()) == "4"


def test_a_creation_that_is_set_aside_does_not_hide_the_others(api, read_model):
    read_model.prescription("48A894-C86002-00009E")
    read_model.set_aside("contract_violation", nhs_number=NHS)

    assert list(api.search().json["prescriptionList"]) == ["48A894-C86002-00009E"]


@pytest.mark.parametrize(("version", "status"), [("R1", "1"), ("R2", "4"), ("", "4")])
def test_a_creation_that_is_set_aside_has_a_release(api, read_model, version, status):
    read_model.set_aside("contract_violation", nhs_number=NHS)

    assert code(api.search(prescriptionVersion=version)) == status


def test_a_placeholder_whose_creation_is_set_aside_is_named_once_and_in_full(api, read_model):
    read_model.placeholder()
    read_model.set_aside("contract_violation", nhs_number=NHS)
    read_model.set_aside("contract_violation", nhs_number=NHS)

    assert api.search().headers["Rxstore-Blocked"] == ID


def test_a_placeholder_is_doubtful_for_the_patient_of_its_creation_too(api, read_model):
    read_model.placeholder(nhs_number=OTHER_NHS)
    read_model.set_aside("contract_violation", nhs_number=NHS)

    assert api.search().headers["Rxstore-Blocked"] == ID
    assert code(api.search(OTHER_NHS)) == "4"


def test_a_second_creation_with_another_number_does_not_make_that_patient_doubtful(api, read_model):
    read_model.prescription()
    read_model.set_aside("duplicate_prescription", nhs_number=OTHER_NHS)

    assert code(api.search(OTHER_NHS)) == "1"
    assert code(api.search()) == "4"


# How fresh an answer is


def as_of(result):
    return result.headers.get("Rxstore-As-Of")


def all_caught_up(read_model):
    for partition in range(PARTITIONS):
        read_model.caught_up(partition, AS_OF - timedelta(minutes=partition))


def test_a_retrieve_that_finds_is_as_fresh_as_its_partition(api, read_model):
    all_caught_up(read_model)
    read_model.prescription()

    assert as_of(api.retrieve()) == "2024-02-10T11:30:00.000Z"
    assert as_of(api.retrieve(issueNumber="7")) == "2024-02-10T11:30:00.000Z"


def test_other_answers_are_as_fresh_as_the_partition_that_lags_most(api, read_model):
    all_caught_up(read_model)

    assert as_of(api.retrieve()) == as_of(api.search()) == "2024-02-10T11:29:00.000Z"


@pytest.mark.parametrize("partition", [0, 1, 2])
def test_freshness_is_unknown_while_a_partition_never_was_at_its_end(api, read_model, partition):
    for other in range(PARTITIONS):
        read_model.caught_up(other, None if other == partition else AS_OF)
    read_model.prescription()

    assert as_of(api.search()) is None
    assert (as_of(api.retrieve()) is None) == (partition == 1)


def test_freshness_is_unknown_while_a_partition_has_no_checkpoint(api, read_model):
    read_model.caught_up(0, AS_OF)
    read_model.caught_up(1, AS_OF)
    read_model.prescription()

    assert as_of(api.search()) is None
    assert as_of(api.retrieve()) == "2024-02-10T11:31:00.000Z"


def test_freshness_is_unknown_without_checkpoints(api, read_model):
    assert as_of(api.search()) is None
    assert as_of(api.retrieve()) is None


# How questions are asked


SEARCH_CRITERIA = SearchCriteria(nhs_number=NHS, earliest=PRESCRIBED_AT, latest=PRESCRIBED_AT)
QUESTIONS = [
    pytest.param(lambda connection: queries.prescription(connection, KEY, None), id="prescription"),
    pytest.param(lambda connection: queries.prescriptions(connection, SEARCH_CRITERIA), id="prescriptions"),
    pytest.param(lambda connection: queries.event(connection, EVENT_KEY, KEY, None), id="event"),
    pytest.param(lambda connection: queries.events(connection, SOURCE, "open", None, 10), id="events"),
    pytest.param(queries.views_status, id="views_status"),
    pytest.param(lambda connection: connection.execute(KNOWN, {"key": KEY}).all(), id="history"),
]
STATEMENTS = [
    queries.PRESCRIPTION,
    queries.PRESCRIPTIONS,
    queries.EVENT,
    queries.EVENTS,
    queries.VIEWS_STATUS,
    KNOWN,
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_one_statement(engine, read_model, question):
    read_model.prescription(statuses=["0006", "9000"], items=4)
    statements = []
    with engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
        question(connection)

    assert len(statements) == 1


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        pytest.param(queries.PRESCRIPTION, {"stream_key": KEY, "issue_number": None}, id="prescription"),
        pytest.param(
            queries.EVENT,
            {"event_key": EVENT_KEY, "stream_key": KEY, "topic": None, "partition": None, "offset": None},
            id="event",
        ),
        pytest.param(
            queries.EVENTS,
            {"source": SOURCE, "state": "open", "topic": "", "partition": -1, "offset": -1, "limit": 10},
            id="events",
        ),
        pytest.param(KNOWN, {"key": KEY}, id="history"),
        pytest.param(
            queries.PRESCRIPTIONS,
            {"nhs_number": NHS, "earliest": PRESCRIBED_AT, "latest": PRESCRIBED_AT, "release": None},
            id="prescriptions",
        ),
    ],
)
def test_a_question_reads_tables_that_grow_by_index(writer, read_model, statement, parameters):
    with writer.begin() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = connection.execute(text(f"EXPLAIN {statement.text}"), parameters).scalars().all()

    scanned = {line.split(" on ")[1].split()[0] for line in plan if "Seq Scan on" in line}
    assert scanned <= {"checkpoint", "generation"}


QUESTIONS_AND_THEIR_VIEWS = [
    pytest.param(*question.values, view, id=f"{question.id}, {view}")
    for question, statement in zip(QUESTIONS, STATEMENTS, strict=True)
    for view in tables.VIEWS
    if f"rxstore.{view} " in statement.text
]
PLANS = [
    pytest.param(0, "auto", id="first time"),
    pytest.param(12, "force_custom_plan", id="prepared, planned again"),
    pytest.param(12, "force_generic_plan", id="prepared, planned once"),
]


@pytest.mark.parametrize(("times_before", "plan_cache_mode"), PLANS)
@pytest.mark.parametrize(("question", "replaced"), QUESTIONS_AND_THEIR_VIEWS)
def test_a_question_locks_the_views_in_the_order_in_which_a_promotion_replaces_them(
    engine, writer, read_model, question, replaced, times_before, plan_cache_mode
):
    before = list(tables.VIEWS)[: list(tables.VIEWS).index(replaced)]
    with (
        engine.connect() as reader,
        writer.connect() as promotion,
        writer.connect() as observer,
        ThreadPoolExecutor(1) as pool,
    ):
        reader.execute(text(f"SET plan_cache_mode = {plan_cache_mode}"))
        for _ in range(times_before):
            question(reader)
        pid = reader.execute(text("SELECT pg_backend_pid()")).scalar_one()
        promotion.exec_driver_sql(
            f"CREATE OR REPLACE VIEW rxstore.{replaced} AS {tables.VIEWS[replaced].format(schema='rx_g1')}"
        )
        asked = pool.submit(question, reader)
        held, awaited = locks_once_waiting(observer, pid, asked)
        promotion.rollback()
        asked.result()
        reader.invalidate()

    assert awaited == {replaced}
    assert held <= set(before)


def locks_once_waiting(observer, pid, asked):
    """The views that a session has locked and the one it waits for, once it waits or has its answer."""
    statement = text("""
        SELECT c.relname, l.granted
          FROM pg_locks l
          JOIN pg_class c ON c.oid = l.relation
         WHERE l.pid = :pid AND c.relnamespace = 'rxstore'::regnamespace AND c.relkind = 'v'
    """)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        done = asked.done()
        locks = observer.execute(statement, {"pid": pid}).all()
        observer.rollback()
        awaited = {lock.relname for lock in locks if not lock.granted}
        if awaited or done:
            return {lock.relname for lock in locks if lock.granted}, awaited
    raise AssertionError("the session neither waits nor answers")


def test_the_connections_of_the_api_cannot_write(engine):
    with engine.connect() as connection, pytest.raises(DBAPIError, match=r"read-only|permission"):
        connection.execute(text("CREATE TABLE rx_g1.not_ours ()"))


# When the database is away, or not what it should be


def test_a_database_that_is_away_is_code_5():
    engine = read_only_engine("postgresql://nobody@127.0.0.1:1/rx")
    api = Api(engine)

    assert code(api.retrieve()) == code(api.search()) == "5"
    assert api.client.simulate_get("/health/ready").json == {
        "ready": False,
        "reason": "the database cannot be reached",
    }


def test_connections_that_died_are_replaced_unnoticed(api, engine, writer, read_model):
    read_model.prescription()
    assert code(api.retrieve()) == "0"
    with writer.begin() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'rxstore-api'")
        )

    assert code(api.retrieve()) == "0"


def test_a_migrated_database_is_ready(api):
    result = api.client.simulate_get("/health/ready")

    assert (result.status_code, result.json) == (200, {"ready": True, "reason": None})


def test_a_database_that_is_not_migrated_is_not_ready(database_url):
    engine = read_only_engine(database_url)
    result = Api(engine).client.simulate_get("/health/ready")
    engine.dispose()

    assert result.status_code == 503
    assert "rxstore migrate" in result.json["reason"]


def test_a_role_that_may_not_read_is_not_ready(url, writer):
    with writer.begin() as connection:
        connection.execute(text("CREATE ROLE rxstore_test_stranger"))
    stranger = make_url(url).update_query_dict({"options": "-crole=rxstore_test_stranger"})
    engine = read_only_engine(stranger.render_as_string(hide_password=False))
    result = Api(engine).client.simulate_get("/health/ready")
    engine.dispose()
    with writer.begin() as connection:
        connection.execute(text("DROP ROLE rxstore_test_stranger"))

    assert result.status_code == 503
    assert "rxstore_reader" in result.json["reason"]


def test_a_view_without_a_column_of_today_is_not_ready(api, writer):
    with writer.begin() as connection:
        connection.execute(text("ALTER VIEW rxstore.issue RENAME COLUMN released_at TO set_free_at"))
    result = api.client.simulate_get("/health/ready")
    with writer.begin() as connection:
        connection.execute(text("ALTER VIEW rxstore.issue RENAME COLUMN set_free_at TO released_at"))

    assert result.status_code == 503
    assert "older than this program" in result.json["reason"]


def test_an_installation_may_demand_a_fresh_read_model(engine, read_model):
    ready = Api(engine, ready_max_age_seconds=60).client
    assert ready.simulate_get("/health/ready").status_code == 503

    for partition in range(PARTITIONS):
        read_model.caught_up(partition, datetime.now(UTC))
    assert ready.simulate_get("/health/ready").status_code == 200


# what became of an event ----------------------------------------------------------------------------------------------


def test_the_view_of_events_cuts_them_out_of_what_a_prescription_remembers(engine, read_model):
    read_model.folded((1, 7), (1, 2**33 + 5))
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM rxstore.event WHERE stream_key = :key"), {"key": KEY}).all()
    assert [tuple(row[1:]) for row in rows] == [
        (1, bytes(16), 1, 7, False),
        (2, b"\x01" * 16, 1, 2**33 + 5, False),
    ]


def test_a_deletion_forgets_where_events_stand_and_keeps_their_keys(engine, read_model):
    read_model.deleted()
    with engine.connect() as connection:
        (row,) = connection.execute(text("SELECT * FROM rxstore.event")).all()
    assert (row.version, row.event_key, row.partition_number, row.record_offset) == (1, b"0123456789abcdef", None, None)
    assert row.deleted


def ask_event(engine, **parameters):
    known = {"source": SOURCE, "id": "r-1"}
    return Api(engine).client.simulate_get("/rxstore/events", params=known | parameters).json


def test_an_event_that_folded_is_found_by_its_stream(engine, read_model):
    read_model.folded((1, 7), (1, 8), keys=[bytes(16), EVENT_KEY])
    read_model.caught_up(1, AS_OF)
    told = ask_event(engine, subject=ID)
    assert (told["state"], told["version"], told["position"]) == ("folded", 2, "events:1:8")
    assert told["as_of"] == "2024-02-10T11:31:00.000Z"
    assert ask_event(engine)["state"] == "not_set_aside"
    assert ask_event(engine, id="r-2", subject=ID)["state"] == "not_seen"


def test_a_copy_is_a_duplicate_once_its_place_has_been_read(engine, read_model):
    read_model.folded((1, 0), keys=[EVENT_KEY])
    read_model.caught_up(1, AS_OF)
    assert ask_event(engine, subject=ID, position="events:1:0")["state"] == "folded"
    assert ask_event(engine, subject=ID, position="events:1:1")["state"] == "not_seen"
    read_model.folded((2, 0), keys=[EVENT_KEY], prescription_id=R1_ID)
    assert ask_event(engine, subject=R1_ID, position="events:1:0")["state"] == "duplicate"


def test_an_event_that_was_set_aside_is_found_with_and_without_its_subject(engine, read_model):
    read_model.publisher_event(errors=[{"path": "data", "message": "must be there"}])
    read_model.publisher_event("behind_block", state="parked")
    for told in (ask_event(engine), ask_event(engine, subject=ID)):
        assert told["state"] == "open"
        assert [(one["position"], one["state"]) for one in told["sightings"]] == [
            ("events:1:1", "open"),
            ("events:1:2", "parked"),
        ]
        assert told["sightings"][0]["errors"] == [{"path": "data", "message": "must be there"}]
        assert told["sightings"][1]["waiting_for"] == "events:1:1"
    assert ask_event(engine, subject=R1_ID)["state"] == "not_seen"
    assert ask_event(engine, position="events:1:2")["state"] == "parked"


def test_a_publisher_lists_its_own_events_and_no_others(engine, read_model):
    for number in range(3):
        read_model.publisher_event(id=f"r-{number}")
    read_model.publisher_event(id="r-9", state="skipped")
    read_model.set_aside("contract_violation", event_source="urn:somebody:else", event_id="r-1")
    client = Api(engine).client
    page = client.simulate_get("/rxstore/events", params={"source": SOURCE, "state": "open", "limit": 2}).json
    assert [one["id"] for one in page["events"]] == ["r-0", "r-1"]
    rest = {"source": SOURCE, "state": "open", "after": page["after"]}
    last = client.simulate_get("/rxstore/events", params=rest).json
    assert ([one["id"] for one in last["events"]], last["after"]) == (["r-2"], None)
    nobody = client.simulate_get("/rxstore/events", params={"source": "urn:nobody", "state": "open"}).json
    assert nobody["events"] == []


def test_status_counts_what_is_set_aside_and_how_far_each_partition_is(engine, read_model):
    read_model.prescription()
    read_model.publisher_event()
    read_model.publisher_event("behind_block", state="parked")
    read_model.set_aside("not_created", stream_key=R1_ID[:-1], state="parked")
    for partition in range(PARTITIONS):
        read_model.caught_up(partition, AS_OF)
    status = Api(engine).client.simulate_get("/rxstore/status").json
    assert (status["generation"], status["quarantined"], status["parked"], status["blocked"]) == ("g1", 1, 2, 1)
    assert status["as_of"] == "2024-02-10T11:31:00.000Z"
    assert [one["partition"] for one in status["partitions"]] == [0, 1, 2]


def test_a_position_is_passed_by_the_checkpoint_of_its_own_partition(engine, read_model):
    read_model.caught_up(1, AS_OF)
    with engine.connect() as connection:
        assert queries.has_passed(connection, "events", 1, 0) is True
        assert queries.has_passed(connection, "events", 1, 1) is False
        assert queries.has_passed(connection, "events", 2, 0) is None
        assert queries.has_passed(connection, "other", 1, 0) is None
        assert queries.event(connection, EVENT_KEY, KEY, LogPosition("events", 1, 0)).has_passed
