"""Codes and their published texts, letter for letter."""

from __future__ import annotations

import pytest

from schemas.statuses import IssueStatus, LineItemStatus
from schemas.vocabulary import (
    CANCELLATION_REASON,
    ISSUE_STATUS_NHS111,
    ISSUE_STATUS_RETRIEVE,
    ISSUE_STATUS_SEARCH,
    LINE_ITEM_STATUS,
    LINE_ITEM_STATUS_NHS111,
    TRACKER_REASON,
    TRACKER_REASON_NHS111,
    TREATMENT_TYPE,
    TrackerStatus,
    prescription_types,
    text_of,
)


def codes_of(names: type) -> set[str]:
    return {value for name, value in vars(names).items() if name.isupper()}


@pytest.mark.parametrize(
    ("code", "search", "retrieve"),
    [
        ("0000", "Awaiting Release Ready", "Awaiting release ready"),
        ("0001", "To Be Dispensed", "To be dispensed"),
        ("0002", "With Dispenser", "With dispenser"),
        ("0003", "With Dispenser - Active", "With dispenser active"),
        ("0004", "Expired", "Expired"),
        ("0005", "Cancelled", "Cancelled"),
        ("0006", "Dispensed", "Dispensed"),
        ("0007", "Not Dispensed", "Not dispensed"),
        ("0008", "Claimed", "Claimed"),
        ("0009", "No-Claimed", "No-claimed"),
        ("9000", "Repeat Dispense future instance", "Repeat dispense future instance"),
        ("9001", "Prescription future instance", "Prescription future instance"),
        ("9005", "Cancelled future instance", "Cancelled future instance"),
    ],
)
def test_an_issue_status_has_the_texts_of_its_endpoints(code, search, retrieve):
    assert (ISSUE_STATUS_SEARCH[code], ISSUE_STATUS_RETRIEVE[code]) == (search, retrieve)
    assert ISSUE_STATUS_NHS111[code] == search


@pytest.mark.parametrize(
    ("code", "tracker", "nhs111"),
    [
        ("0001", "Item fully dispensed", "Dispensed"),
        ("0002", "Item not dispensed", "Not Dispensed"),
        ("0003", "Item dispensed - partial", "Dispensed - Partial"),
        ("0004", "Item not dispensed owing", "Not Dispensed - Owing"),
        ("0005", "Item Cancelled", "Cancelled"),
        ("0006", "Expired", "Expired"),
        ("0007", "To Be Dispensed", "To be Dispensed"),
        ("0008", "Item with dispenser", "With Dispenser"),
    ],
)
def test_a_line_item_status_has_the_texts_of_its_endpoints(code, tracker, nhs111):
    assert (LINE_ITEM_STATUS[code], LINE_ITEM_STATUS_NHS111[code]) == (tracker, nhs111)


def test_every_status_of_the_fold_has_texts():
    assert codes_of(IssueStatus) == set(ISSUE_STATUS_SEARCH) == set(ISSUE_STATUS_RETRIEVE)
    assert codes_of(LineItemStatus) == set(LINE_ITEM_STATUS) == set(LINE_ITEM_STATUS_NHS111)


def test_treatment_types_have_the_only_texts_that_clients_accept():
    assert TREATMENT_TYPE == {
        "0001": "Acute Prescription",
        "0002": "Repeat Prescribing",
        "0003": "Repeat Dispensing",
    }


def test_cancellation_reasons_have_the_texts_of_the_record():
    assert CANCELLATION_REASON == {
        "0001": "Prescribing Error",
        "0002": "Clinical contra-indication",
        "0003": "Change to medication treatment regime",
        "0004": "Clinical grounds",
        "0005": "At the Patients request",
        "0006": "At the Pharmacists request",
        "0007": "Notification of Death",
        "0008": "Patient deducted - other reason",
        "0009": "Patient deducted - registered with new practice",
    }


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("0", ""),
        ("1", "Not found"),
        ("2", "No unique prescription"),
        ("3", "Issue not found"),
        ("4", "Failed to parse prescription"),
        ("5", "Unexpected exception"),
        ("50", "Query parameters have not been provided"),
        ("51", "Invalid prescription id"),
        ("52", "Invalid or missing asid"),
        ("53", "Invalid version"),
        ("54", "Invalid traceId"),
        ("55", "Invalid userId"),
        ("56", "Invalid roleProfileId"),
        ("57", "Invalid search date"),
        ("59", "Invalid search prescription state"),
        ("60", "Invalid search prescription version"),
        ("61", "Invalid or missing NHS number"),
    ],
)
def test_a_tracker_status_has_its_published_reason(code, reason):
    assert TRACKER_REASON[code] == reason


def test_there_is_no_status_58():
    assert "58" not in codes_of(TrackerStatus)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("1", "No prescriptions found matching search criteria"),
        ("5", "Unexpected exception"),
        ("6", "Prescription ID not found"),
        ("7", "Prescription Line Item ID not found"),
        ("8", "Prescription repeat instance not found"),
        ("61", "Invalid or missing NHS number"),
    ],
)
def test_the_item_endpoints_have_reasons_of_their_own(code, reason):
    assert TRACKER_REASON_NHS111[code] == reason


def test_every_tracker_status_has_a_reason_somewhere():
    assert codes_of(TrackerStatus) == set(TRACKER_REASON_NHS111)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("0001", "GENERAL PRACTITIONER PRESCRIBING"),
        ("0012", "EXTENDED FORUMULARY PRESCRIBER"),
        ("0101", "PRIMARY CARE PRESCRIBER - MEDICAL PRESCRIBER"),
        ("0009", "GENERAL PRACTITIONER PRESCRIBING: PRIVATE"),
        ("0707", "Dental Prescribing - Dentist (Wales)"),
        (
            "1004",
            "Outpatient Community Prescriber - Nurse Independent Supplementary prescriber - FP10SS (HP) Hospital "
            "outpatient prescriptions dispensed in a community pharmacy",
        ),
        ("5025", "Outpatient Community Prescriber - Paramedic Independent/Supplementary prescriber (IOM)"),
    ],
)
def test_a_prescription_type_has_the_text_of_the_record_library(code, text):
    assert text_of(prescription_types(), code) == text


@pytest.mark.parametrize("code", ["0005", "0008", "0010", "0011", "0110"])
def test_some_known_prescription_types_have_no_text(code):
    assert prescription_types()[code] == ""


@pytest.mark.parametrize("code", ["9999", "0118", "", None])
def test_an_unknown_code_and_no_code_show_as_nothing(code):
    assert text_of(prescription_types(), code) == ""


def test_the_whole_table_of_prescription_types_is_packaged():
    assert len(prescription_types()) == 127
