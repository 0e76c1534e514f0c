"""What was found, dressed as the tracker shows it: the published shapes, member for member."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from schemas.outgoing import (
    FoundIssue,
    FoundPrescription,
    IssueDetail,
    PrescriptionDetail,
    retrieve_answer,
    retrieve_failure,
    search_answer,
    search_failure,
)
from schemas.vocabulary import TrackerStatus

FOUND = FoundPrescription(
    prescription_id="1A2B3C-A99999-4D5E67",
    treatment_type="0003",
    prescribed_at=datetime(2025, 3, 1, tzinfo=UTC),
    last_event_at=datetime(2025, 3, 3, 12, tzinfo=UTC),
    pending_cancellations=False,
    current_issue=2,
    nhs_number="9990000018",
    issues=(
        FoundIssue(1, "0006", ["0001"], datetime(2025, 3, 2, 8, 30, tzinfo=UTC)),
        FoundIssue(2, "0000", ["0007"], None),
    ),
)

PRESCRIPTION = PrescriptionDetail(
    prescription_id="0F1E2D-Y00001-3C4B5P",
    prescription_type="0101",
    treatment_type="0001",
    signed_at=datetime(2025, 3, 1, 9, 15, tzinfo=UTC),
    last_event_at=datetime(2025, 3, 4, 10, 11, 12, tzinfo=UTC),
    current_issue=1,
    days_supply=28,
    pending_cancellations=False,
    nhs_number="9990000026",
    prescriber_ods="Y00001",
    prescriber_name="EXAMPLE SURGERY",
    prescriber_telecom=None,
    nominated_ods="FX999",
    nominated_name="EXAMPLE PHARMACY",
)

ISSUE = IssueDetail(
    issue_number=1,
    status="0003",
    item_ids=["3F2504E0-4F89-41D3-9A0C-0305E82C3301"],
    item_statuses=["0004"],
    has_applied_cancellation=False,
    last_dispensed_at=datetime(2025, 3, 4, 10, 11, 12, tzinfo=UTC),
    dispenser_ods="FX999",
    dispenser_name="EXAMPLE PHARMACY",
    dispenser_telecom=None,
)

PLACEHOLDER = replace(
    PRESCRIPTION,
    prescription_type=None,
    treatment_type=None,
    signed_at=None,
    days_supply=None,
    pending_cancellations=True,
    nominated_ods=None,
    nominated_name=None,
)


def shown_prescription(prescription, issue=ISSUE):
    return retrieve_answer(prescription, issue)["prescription"]


def shown_issue(issue):
    return shown_prescription(PRESCRIPTION, issue)["issue"]


def test_a_search_answers_as_published():
    assert search_answer([FOUND]) == {
        "statusCode": "0",
        "reason": "",
        "version": "1",
        "prescriptionList": {
            "1A2B3C-A99999-4D5E67": {
                "prescriptionTreatmentType": {
                    "prescriptionTreatmentTypeCode": "0003",
                    "prescriptionTreatmentTypeText": "Repeat Dispensing",
                },
                "prescriptionIssueDate": "20250301000000",
                "lastEventDate": "20250303120000",
                "pendingCancellations": "False",
                "currentIssueNumber": "2",
                "patientNhsNumber": "9990000018",
                "issues": {
                    "1": {
                        "issueDate": "20250302",
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


def test_a_retrieve_answers_as_published():
    assert retrieve_answer(PRESCRIPTION, ISSUE) == {
        "statusCode": "0",
        "reason": "",
        "version": "1",
        "prescription": {
            "prescriptionId": "0F1E2D-Y00001-3C4B5P",
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
            "patientNhsNumber": "9990000026",
            "prescribingOrganisationODS": "Y00001",
            "prescribingOrganisationName": "EXAMPLE SURGERY",
            "prescribingOrganisationContact": "",
            "nominatedDispenserODS": "FX999",
            "nominatedDispenserName": "EXAMPLE PHARMACY",
            "issue": {
                "issueNumber": "1",
                "appliedCancellations": "False",
                "lastDispenseDate": "20250304",
                "dispensingOrganisationODS": "FX999",
                "dispensingOrganisationName": "EXAMPLE PHARMACY",
                "dispensingOrganisationContact": "",
                "prescriptionStatus": {"statusCode": "0003", "statusText": "With dispenser active"},
                "lineItems": {
                    "1": {
                        "id": "3F2504E0-4F89-41D3-9A0C-0305E82C3301",
                        "status": {"statusCode": "0004", "statusText": "Item not dispensed owing"},
                    }
                },
            },
        },
    }


def test_a_failed_search_answers_under_another_key():
    assert search_failure(TrackerStatus.INVALID_NHS_NUMBER) == {
        "statusCode": "61",
        "reason": "Invalid or missing NHS number",
        "version": "1",
        "prescriptions": {},
    }


def test_a_failed_retrieve_answers_with_an_empty_prescription():
    assert retrieve_failure(TrackerStatus.NOT_FOUND) == {
        "statusCode": "1",
        "reason": "Not found",
        "version": "1",
        "prescription": {},
    }


def test_a_missing_issue_leaves_the_prescription_and_an_empty_issue():
    answer = retrieve_answer(PRESCRIPTION, None)

    assert (answer["statusCode"], answer["reason"]) == ("3", "Issue not found")
    assert answer["prescription"] == shown_prescription(PRESCRIPTION) | {"issue": {}}


def test_a_search_with_a_blocked_match_lists_the_others():
    answer = search_answer([FOUND], status=TrackerStatus.FAILED_TO_PARSE)

    assert (answer["statusCode"], answer["reason"]) == ("4", "Failed to parse prescription")
    assert list(answer["prescriptionList"]) == ["1A2B3C-A99999-4D5E67"]


def test_prescriptions_are_listed_in_the_order_in_which_they_are_found():
    other = replace(FOUND, prescription_id="0F1E2D-Y00001-3C4B5P")

    assert list(search_answer([FOUND, other])["prescriptionList"]) == [FOUND.prescription_id, other.prescription_id]


def test_a_pending_cancellation_shows_as_a_word():
    assert shown_prescription(replace(PRESCRIPTION, pending_cancellations=True))["pendingCancellations"] == "True"


def test_an_applied_cancellation_shows_as_a_word():
    assert shown_issue(replace(ISSUE, has_applied_cancellation=True))["appliedCancellations"] == "True"


def test_an_issue_that_was_never_dispensed_has_no_dispense_date():
    assert shown_issue(replace(ISSUE, last_dispensed_at=None))["lastDispenseDate"] == "False"


def test_an_issue_without_a_dispenser_says_so():
    issue = shown_issue(replace(ISSUE, dispenser_ods=None, dispenser_name=None, dispenser_telecom=None))

    assert issue["dispensingOrganisationODS"] == "False"
    assert (issue["dispensingOrganisationName"], issue["dispensingOrganisationContact"]) == ("", "")


def test_a_prescription_without_a_nomination_says_so():
    prescription = shown_prescription(replace(PRESCRIPTION, nominated_ods=None, nominated_name=None))

    assert (prescription["nominatedDispenserODS"], prescription["nominatedDispenserName"]) == ("False", "")


def test_a_nominated_dispenser_may_have_no_name():
    prescription = shown_prescription(replace(PRESCRIPTION, nominated_name=None))

    assert (prescription["nominatedDispenserODS"], prescription["nominatedDispenserName"]) == ("FX999", "")


@pytest.mark.parametrize(
    ("telecom", "shown"),
    [
        ("tel:01159737320", "01159737320"),
        ("TEL:0115 973 7320", "0115 973 7320"),
        ("01159737320", "01159737320"),
        ("hotel:1", "hotel:1"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_telephone_number_is_shown_without_its_scheme(telecom, shown):
    prescription = shown_prescription(
        replace(PRESCRIPTION, prescriber_telecom=telecom), replace(ISSUE, dispenser_telecom=telecom)
    )

    assert prescription["prescribingOrganisationContact"] == shown
    assert prescription["issue"]["dispensingOrganisationContact"] == shown


def test_instants_are_shown_in_utc():
    summer = datetime(2025, 7, 1, 0, 30, tzinfo=timezone(timedelta(hours=1)))

    assert shown_prescription(replace(PRESCRIPTION, signed_at=summer))["signingDate"] == "20250630233000"


def test_an_instant_early_in_history_keeps_its_fourteen_digits():
    ancient = datetime(1, 2, 3, 4, 5, 6, tzinfo=UTC)

    assert shown_prescription(replace(PRESCRIPTION, signed_at=ancient))["signingDate"] == "00010203040506"


def test_an_unknown_prescription_type_shows_its_code_without_a_text():
    assert shown_prescription(replace(PRESCRIPTION, prescription_type="0998"))["prescriptionType"] == {
        "prescriptionTypeCode": "0998",
        "prescriptionTypeText": "",
    }


def test_a_placeholder_shows_no_types_no_signing_date_and_the_default_supply():
    prescription = shown_prescription(PLACEHOLDER)

    assert prescription["prescriptionType"] == {"prescriptionTypeCode": "", "prescriptionTypeText": ""}
    assert prescription["prescriptionTreatmentType"] == {
        "prescriptionTreatmentTypeCode": "",
        "prescriptionTreatmentTypeText": "",
    }
    assert (prescription["signingDate"], prescription["daysSupply"]) == ("False", "28")


def test_a_placeholder_of_an_unknown_canceller_has_no_prescriber():
    prescription = shown_prescription(replace(PLACEHOLDER, prescriber_ods=None, prescriber_name=None))

    assert (prescription["prescribingOrganisationODS"], prescription["prescribingOrganisationName"]) == ("False", "")


def test_a_found_placeholder_shows_an_issue_without_items():
    answer = search_answer([replace(FOUND, treatment_type=None, issues=(FoundIssue(1, "9005", [], None),))])

    assert answer["prescriptionList"][FOUND.prescription_id]["issues"] == {
        "1": {
            "issueDate": "False",
            "prescriptionStatus": {"statusCode": "9005", "statusText": "Cancelled future instance"},
            "lineItems": {},
        }
    }


def test_items_are_numbered_in_their_order():
    ids = [f"3F2504E0-4F89-41D3-9A0C-0305E82C330{n}" for n in range(4)]
    issue = shown_issue(replace(ISSUE, item_ids=ids, item_statuses=["0001", "0002", "0003", "0004"]))

    assert [item["id"] for item in issue["lineItems"].values()] == ids
    assert list(issue["lineItems"]) == ["1", "2", "3", "4"]


def test_items_that_do_not_match_their_statuses_are_not_shown():
    with pytest.raises(ValueError):
        retrieve_answer(PRESCRIPTION, replace(ISSUE, item_statuses=[]))
