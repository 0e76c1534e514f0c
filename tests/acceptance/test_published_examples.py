"""The tracker's published shapes (docs/api.md), member for member, from events."""

from __future__ import annotations

from tests import examples

SEARCHED_ID = "1A2B3C-A99999-4D5E67"
RETRIEVED_ID = "0F1E2D-Y00001-3C4B5P"
ITEM_ID = "3F2504E0-4F89-41D3-9A0C-0305E82C3301"


def one_item(status: str) -> list[dict]:
    return [{"id": ITEM_ID, "status": status}]


def prescribed_item(**overrides: object) -> dict:
    return examples.created()["data"]["lineItems"][0] | {"id": ITEM_ID, "issuesAuthorised": 1} | overrides


def repeat_dispensing() -> list[dict]:
    """Two issues: the first dispensed, the second waiting for its date."""
    pharmacy = {"ods": "FX999", "name": "EXAMPLE PHARMACY"}
    return [
        examples.created(
            subject=SEARCHED_ID,
            id="search-1",
            time="2025-03-01T08:00:00Z",
            sequence="1",
            nhs_number="9990000018",
            treatment_type="0003",
            prescribed_at="2025-03-01T00:00:00Z",
            signed_at="2025-03-01T00:00:00Z",
            issues_authorised=2,
            dispense_window=examples.DROPPED,
            line_items=[prescribed_item(issuesAuthorised=2)],
        ),
        examples.released(
            subject=SEARCHED_ID,
            id="search-2",
            time="2025-03-02T09:00:00Z",
            sequence="2",
            issue_number=1,
            dispensing_organisation=pharmacy,
        ),
        examples.dispensed(
            subject=SEARCHED_ID,
            id="search-3",
            time="2025-03-03T11:59:00Z",
            sequence="3",
            issue_number=1,
            dispensed_at="2025-03-03T11:58:00Z",
            dispensing_organisation=pharmacy,
            line_items=one_item("0001"),
            prescription_status=examples.DROPPED,
        ),
        examples.issued(
            subject=SEARCHED_ID,
            id="search-4",
            time="2025-03-03T12:00:00Z",
            sequence="4",
            issue_number=2,
            status="0000",
        ),
    ]


def partly_dispensed() -> list[dict]:
    """An acute prescription of which the pharmacy owes the one item."""
    pharmacy = {"ods": "FX999", "name": "EXAMPLE PHARMACY"}
    return [
        examples.created(
            subject=RETRIEVED_ID,
            id="retrieve-1",
            time="2025-03-01T09:16:00Z",
            sequence="1",
            nhs_number="9990000026",
            treatment_type="0001",
            prescription_type="0101",
            prescribed_at="2025-03-01T09:15:00Z",
            signed_at="2025-03-01T09:15:00Z",
            days_supply=28,
            prescribing_organisation={"ods": "Y00001", "name": "EXAMPLE SURGERY"},
            nominated_dispenser=pharmacy,
            line_items=[prescribed_item()],
        ),
        examples.released(
            subject=RETRIEVED_ID,
            id="retrieve-2",
            time="2025-03-03T10:00:00Z",
            sequence="2",
            issue_number=1,
            dispensing_organisation=pharmacy,
        ),
        examples.dispensed(
            subject=RETRIEVED_ID,
            id="retrieve-3",
            time="2025-03-04T10:11:12Z",
            sequence="3",
            issue_number=1,
            dispensed_at="2025-03-04T10:10:00Z",
            dispensing_organisation=pharmacy,
            line_items=one_item("0004"),
            prescription_status="0003",
        ),
    ]


def test_the_published_search_answer_comes_out_member_for_member(system):
    system.publish(repeat_dispensing())
    system.project()
    with system.serving() as ask:
        answer = ask(
            "/mm/prescriptions?format=trace-summary&nhsNumber=9990000018&earliestDate=20250301&latestDate=20250301"
        )
    assert answer.body == {
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


def test_the_published_detail_answer_comes_out_member_for_member(system):
    system.publish(partly_dispensed())
    system.project()
    with system.serving() as ask:
        answer = ask(f"/mm/prescriptions/{RETRIEVED_ID}?format=trace")
    assert answer.body == {
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
