"""The texts that people see for codes: each endpoint has its own, so rows hold codes and answers choose.

Spelling, letter case and missing hyphens are those of the published service, slips included: clients match the texts
exactly. A code that has no text, or that nobody knows, shows as the empty string.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from schemas.statuses import IssueStatus, LineItemStatus

# Title case in searches, sentence case where one prescription is retrieved.
ISSUE_STATUS_SEARCH: Final[Mapping[str, str]] = MappingProxyType(
    {
        IssueStatus.AWAITING_RELEASE_READY: "Awaiting Release Ready",
        IssueStatus.TO_BE_DISPENSED: "To Be Dispensed",
        IssueStatus.WITH_DISPENSER: "With Dispenser",
        IssueStatus.WITH_DISPENSER_ACTIVE: "With Dispenser - Active",
        IssueStatus.EXPIRED: "Expired",
        IssueStatus.CANCELLED: "Cancelled",
        IssueStatus.DISPENSED: "Dispensed",
        IssueStatus.NOT_DISPENSED: "Not Dispensed",
        IssueStatus.CLAIMED: "Claimed",
        IssueStatus.NO_CLAIMED: "No-Claimed",
        IssueStatus.REPEAT_DISPENSE_FUTURE_INSTANCE: "Repeat Dispense future instance",
        IssueStatus.FUTURE_DATED_PRESCRIPTION: "Prescription future instance",
        IssueStatus.PENDING_CANCELLATION: "Cancelled future instance",
    }
)

ISSUE_STATUS_RETRIEVE: Final[Mapping[str, str]] = MappingProxyType(
    {
        IssueStatus.AWAITING_RELEASE_READY: "Awaiting release ready",
        IssueStatus.TO_BE_DISPENSED: "To be dispensed",
        IssueStatus.WITH_DISPENSER: "With dispenser",
        IssueStatus.WITH_DISPENSER_ACTIVE: "With dispenser active",
        IssueStatus.EXPIRED: "Expired",
        IssueStatus.CANCELLED: "Cancelled",
        IssueStatus.DISPENSED: "Dispensed",
        IssueStatus.NOT_DISPENSED: "Not dispensed",
        IssueStatus.CLAIMED: "Claimed",
        IssueStatus.NO_CLAIMED: "No-claimed",
        IssueStatus.REPEAT_DISPENSE_FUTURE_INSTANCE: "Repeat dispense future instance",
        IssueStatus.FUTURE_DATED_PRESCRIPTION: "Prescription future instance",
        IssueStatus.PENDING_CANCELLATION: "Cancelled future instance",
    }
)

ISSUE_STATUS_NHS111: Final = ISSUE_STATUS_SEARCH

LINE_ITEM_STATUS: Final[Mapping[str, str]] = MappingProxyType(
    {
        LineItemStatus.FULLY_DISPENSED: "Item fully dispensed",
        LineItemStatus.NOT_DISPENSED: "Item not dispensed",
        LineItemStatus.PARTIAL_DISPENSED: "Item dispensed - partial",
        LineItemStatus.NOT_DISPENSED_OWING: "Item not dispensed owing",
        LineItemStatus.CANCELLED: "Item Cancelled",
        LineItemStatus.EXPIRED: "Expired",
        LineItemStatus.TO_BE_DISPENSED: "To Be Dispensed",
        LineItemStatus.WITH_DISPENSER: "Item with dispenser",
    }
)

# The item endpoint says "To be Dispensed" of an item where it says "To Be Dispensed" of its prescription.
LINE_ITEM_STATUS_NHS111: Final[Mapping[str, str]] = MappingProxyType(
    {
        LineItemStatus.FULLY_DISPENSED: "Dispensed",
        LineItemStatus.NOT_DISPENSED: "Not Dispensed",
        LineItemStatus.PARTIAL_DISPENSED: "Dispensed - Partial",
        LineItemStatus.NOT_DISPENSED_OWING: "Not Dispensed - Owing",
        LineItemStatus.CANCELLED: "Cancelled",
        LineItemStatus.EXPIRED: "Expired",
        LineItemStatus.TO_BE_DISPENSED: "To be Dispensed",
        LineItemStatus.WITH_DISPENSER: "With Dispenser",
    }
)

TREATMENT_TYPE: Final[Mapping[str, str]] = MappingProxyType(
    {"0001": "Acute Prescription", "0002": "Repeat Prescribing", "0003": "Repeat Dispensing"}
)

CANCELLATION_REASON: Final[Mapping[str, str]] = MappingProxyType(
    {
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
)


class TrackerStatus:
    """The statusCode of a tracker answer, by name. There is no 58, and 6 to 8 belong to the item endpoints."""

    SUCCESS: Final = "0"
    NOT_FOUND: Final = "1"
    NO_UNIQUE_PRESCRIPTION: Final = "2"
    ISSUE_NOT_FOUND: Final = "3"
    FAILED_TO_PARSE: Final = "4"
    UNEXPECTED: Final = "5"
    PRESCRIPTION_ID_NOT_FOUND: Final = "6"
    LINE_ITEM_ID_NOT_FOUND: Final = "7"
    REPEAT_INSTANCE_NOT_FOUND: Final = "8"
    NO_PARAMETERS: Final = "50"
    INVALID_PRESCRIPTION_ID: Final = "51"
    INVALID_ASID: Final = "52"
    INVALID_VERSION: Final = "53"
    INVALID_TRACE_ID: Final = "54"
    INVALID_USER_ID: Final = "55"
    INVALID_ROLE_PROFILE_ID: Final = "56"
    INVALID_SEARCH_DATE: Final = "57"
    INVALID_SEARCH_STATE: Final = "59"
    INVALID_SEARCH_VERSION: Final = "60"
    INVALID_NHS_NUMBER: Final = "61"


TRACKER_REASON: Final[Mapping[str, str]] = MappingProxyType(
    {
        TrackerStatus.SUCCESS: "",
        TrackerStatus.NOT_FOUND: "Not found",
        TrackerStatus.NO_UNIQUE_PRESCRIPTION: "No unique prescription",
        TrackerStatus.ISSUE_NOT_FOUND: "Issue not found",
        TrackerStatus.FAILED_TO_PARSE: "Failed to parse prescription",
        TrackerStatus.UNEXPECTED: "Unexpected exception",
        TrackerStatus.NO_PARAMETERS: "Query parameters have not been provided",
        TrackerStatus.INVALID_PRESCRIPTION_ID: "Invalid prescription id",
        TrackerStatus.INVALID_ASID: "Invalid or missing asid",
        TrackerStatus.INVALID_VERSION: "Invalid version",
        TrackerStatus.INVALID_TRACE_ID: "Invalid traceId",
        TrackerStatus.INVALID_USER_ID: "Invalid userId",
        TrackerStatus.INVALID_ROLE_PROFILE_ID: "Invalid roleProfileId",
        TrackerStatus.INVALID_SEARCH_DATE: "Invalid search date",
        TrackerStatus.INVALID_SEARCH_STATE: "Invalid search prescription state",
        TrackerStatus.INVALID_SEARCH_VERSION: "Invalid search prescription version",
        TrackerStatus.INVALID_NHS_NUMBER: "Invalid or missing NHS number",
    }
)

# The item endpoints share the codes from 50 on; what became of a well-formed question has texts of its own there.
TRACKER_REASON_NHS111: Final[Mapping[str, str]] = MappingProxyType(
    {
        **TRACKER_REASON,
        TrackerStatus.NOT_FOUND: "No prescriptions found matching search criteria",
        TrackerStatus.PRESCRIPTION_ID_NOT_FOUND: "Prescription ID not found",
        TrackerStatus.LINE_ITEM_ID_NOT_FOUND: "Prescription Line Item ID not found",
        TrackerStatus.REPEAT_INSTANCE_NOT_FOUND: "Prescription repeat instance not found",
    }
)


@cache
def prescription_types() -> Mapping[str, str]:
    """Every known prescription type code with its text, which is empty for five of them.

    The texts change over the years, so they are packaged as data.
    """
    table = files("schemas").joinpath("data", "prescription_types.json").read_text(encoding="utf-8")
    return MappingProxyType(json.loads(table))


def text_of(texts: Mapping[str, str], code: str | None) -> str:
    """The text that one endpoint shows for a code; empty for an unknown code and where there is no code."""
    return texts.get(code or "", "")
