"""What was found becomes the tracker's JSON: every scalar a string, every oddity of the published service on purpose.

Found values are plain (codes, instants, booleans, None); this is the one place where they are dressed. A date or an
organisation code that is missing shows as ``"False"``, a name or a phone number as the empty string (docs/api.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from schemas.vocabulary import (
    ISSUE_STATUS_RETRIEVE,
    ISSUE_STATUS_SEARCH,
    LINE_ITEM_STATUS,
    TRACKER_REASON,
    TREATMENT_TYPE,
    TrackerStatus,
    prescription_types,
    text_of,
)

Answer = dict[str, object]

VERSION: Final = "1"
MISSING: Final = "False"
DEFAULT_DAYS_SUPPLY: Final = 28

_telephone_scheme = re.compile(r"\Atel:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FoundIssue:
    """An issue as a search shows it; ``item_statuses`` stand in item order."""

    issue_number: int
    status: str
    item_statuses: Sequence[str]
    released_at: datetime | None


@dataclass(frozen=True, slots=True)
class FoundPrescription:
    """A prescription as a search shows it, with all its issues. A placeholder has no treatment type."""

    prescription_id: str
    treatment_type: str | None
    prescribed_at: datetime
    last_event_at: datetime
    pending_cancellations: bool
    current_issue: int
    nhs_number: str
    issues: Sequence[FoundIssue]


@dataclass(frozen=True, slots=True)
class IssueDetail:
    """The one issue that a retrieve shows; ``item_ids`` and ``item_statuses`` stand in item order."""

    issue_number: int
    status: str
    item_ids: Sequence[str]
    item_statuses: Sequence[str]
    has_applied_cancellation: bool
    last_dispensed_at: datetime | None
    dispenser_ods: str | None
    dispenser_name: str | None
    dispenser_telecom: str | None


@dataclass(frozen=True, slots=True)
class PrescriptionDetail:
    """A prescription as a retrieve shows it. A placeholder has no types, no signing time and no days of supply."""

    prescription_id: str
    prescription_type: str | None
    treatment_type: str | None
    signed_at: datetime | None
    last_event_at: datetime
    current_issue: int
    days_supply: int | None
    pending_cancellations: bool
    nhs_number: str
    prescriber_ods: str | None
    prescriber_name: str | None
    prescriber_telecom: str | None
    nominated_ods: str | None
    nominated_name: str | None


def search_answer(found: Iterable[FoundPrescription], *, status: str = TrackerStatus.SUCCESS) -> Answer:
    """Code 0, or 4 when a match is missing because it is blocked; the list is what can be shown."""
    return _envelope(status, "prescriptionList", {each.prescription_id: _found(each) for each in found})


def search_failure(status: str) -> Answer:
    """A failed search answers under another key than a successful one, as published."""
    return _envelope(status, "prescriptions", {})


def retrieve_answer(prescription: PrescriptionDetail, issue: IssueDetail | None) -> Answer:
    """Code 0, or without the issue that was asked for code 3: the prescription with an empty issue."""
    status = TrackerStatus.ISSUE_NOT_FOUND if issue is None else TrackerStatus.SUCCESS
    shown = _prescription(prescription) | {"issue": {} if issue is None else _issue(issue)}
    return _envelope(status, "prescription", shown)


def retrieve_failure(status: str) -> Answer:
    """Nothing to show."""
    return _envelope(status, "prescription", {})


def _envelope(status: str, payload_key: str, payload: Answer) -> Answer:
    return {"statusCode": status, "reason": TRACKER_REASON[status], "version": VERSION, payload_key: payload}


def _found(found: FoundPrescription) -> Answer:
    return {
        "prescriptionTreatmentType": _treatment_type(found.treatment_type),
        "prescriptionIssueDate": _instant(found.prescribed_at),
        "lastEventDate": _instant(found.last_event_at),
        "pendingCancellations": str(found.pending_cancellations),
        "currentIssueNumber": str(found.current_issue),
        "patientNhsNumber": found.nhs_number,
        "issues": {str(issue.issue_number): _found_issue(issue) for issue in found.issues},
    }


def _found_issue(issue: FoundIssue) -> Answer:
    return {
        "issueDate": _date(issue.released_at),
        "prescriptionStatus": _status(ISSUE_STATUS_SEARCH, issue.status),
        "lineItems": {
            str(number): {"status": _status(LINE_ITEM_STATUS, status)}
            for number, status in enumerate(issue.item_statuses, start=1)
        },
    }


def _prescription(prescription: PrescriptionDetail) -> Answer:
    return {
        "prescriptionId": prescription.prescription_id,
        "prescriptionType": {
            "prescriptionTypeCode": prescription.prescription_type or "",
            "prescriptionTypeText": text_of(prescription_types(), prescription.prescription_type),
        },
        "prescriptionTreatmentType": _treatment_type(prescription.treatment_type),
        "signingDate": _instant(prescription.signed_at),
        "lastEventDate": _instant(prescription.last_event_at),
        "currentIssueNumber": str(prescription.current_issue),
        "daysSupply": str(prescription.days_supply or DEFAULT_DAYS_SUPPLY),
        "pendingCancellations": str(prescription.pending_cancellations),
        "patientNhsNumber": prescription.nhs_number,
        "prescribingOrganisationODS": prescription.prescriber_ods or MISSING,
        "prescribingOrganisationName": prescription.prescriber_name or "",
        "prescribingOrganisationContact": _telephone(prescription.prescriber_telecom),
        "nominatedDispenserODS": prescription.nominated_ods or MISSING,
        "nominatedDispenserName": prescription.nominated_name or "",
    }


def _issue(issue: IssueDetail) -> Answer:
    items = zip(issue.item_ids, issue.item_statuses, strict=True)
    return {
        "issueNumber": str(issue.issue_number),
        "appliedCancellations": str(issue.has_applied_cancellation),
        "lastDispenseDate": _date(issue.last_dispensed_at),
        "dispensingOrganisationODS": issue.dispenser_ods or MISSING,
        "dispensingOrganisationName": issue.dispenser_name or "",
        "dispensingOrganisationContact": _telephone(issue.dispenser_telecom),
        "prescriptionStatus": _status(ISSUE_STATUS_RETRIEVE, issue.status),
        "lineItems": {
            str(number): {"id": item_id, "status": _status(LINE_ITEM_STATUS, status)}
            for number, (item_id, status) in enumerate(items, start=1)
        },
    }


def _treatment_type(code: str | None) -> Answer:
    return {
        "prescriptionTreatmentTypeCode": code or "",
        "prescriptionTreatmentTypeText": text_of(TREATMENT_TYPE, code),
    }


def _status(texts: Mapping[str, str], code: str) -> Answer:
    return {"statusCode": code, "statusText": text_of(texts, code)}


def _instant(value: datetime | None) -> str:
    # strftime does not pad the year on every platform.
    return MISSING if value is None else f"{value.astimezone(UTC):%Y%m%d%H%M%S}".zfill(14)


def _date(value: datetime | None) -> str:
    return _instant(value)[:8]


def _telephone(telecom: str | None) -> str:
    return _telephone_scheme.sub("", telecom or "")
