"""Every rule of the event contract: what each event becomes, and what is refused at which path."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, date, datetime
from typing import Any, get_args

import pytest

from schemas.contract import EVENT_TYPES, ISSUE_STATUSES, LINE_ITEM_STATUSES, TYPE_OF
from schemas.events import (
    Cancelled,
    Claimed,
    Corrected,
    CorrectedIssue,
    Created,
    Deleted,
    Dispensed,
    DispenseWithdrawn,
    Event,
    Expired,
    Issued,
    ItemStatus,
    Nominated,
    NotClaimed,
    Organisation,
    PrescribedItem,
    Released,
    Returned,
)
from schemas.incoming import ContractViolation, UnknownType, event_key, load
from schemas.statuses import IssueStatus, LineItemStatus
from tests.examples import (
    ALL,
    CANCELLATION_ID,
    CLAIM_ID,
    DROPPED,
    FIRST_ITEM_ID,
    NHS_NUMBER,
    NOTIFICATION_ID,
    OTHER_PHARMACY,
    PHARMACY,
    PRESCRIPTION_ID,
    R1_PRESCRIPTION_ID,
    SECOND_ITEM_ID,
    STREAM_KEY,
    SURGERY,
    Payload,
    cancelled,
    claimed,
    corrected,
    created,
    deleted,
    dispense_withdrawn,
    dispensed,
    event,
    expired,
    issued,
    item_status,
    nominated,
    not_claimed,
    prescribed_item,
    released,
    returned,
)

Example = Callable[..., Payload]

INVENTED_SURGERY = Organisation(**SURGERY)
INVENTED_PHARMACY = Organisation(**PHARMACY)
BOTH_DISPENSED = (ItemStatus(FIRST_ITEM_ID, "0001"), ItemStatus(SECOND_ITEM_ID, "0001"))
NUL = "a\0b"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def refused(payload: Payload, *, strict_check_character: bool = True) -> dict[str, str]:
    """The errors of a payload that must not load, by path."""
    with pytest.raises(ContractViolation) as violation:
        event(payload, strict_check_character=strict_check_character)
    return dict(violation.value.errors)


def loaded(payload: Payload) -> dict[str, Any]:
    """The event's own fields, without its envelope."""
    of_event = event(payload)
    return {field.name: getattr(of_event, field.name) for field in fields(of_event) if field.name != "envelope"}


# What each example becomes


@pytest.mark.parametrize(
    ("payload", "kind", "expected"),
    [
        (issued(), Issued, {"issue_number": 1, "status": "0001", "nominated_download_date": None}),
        (released(), Released, {"issue_number": 1, "dispensing_organisation": INVENTED_PHARMACY}),
        (
            dispensed(),
            Dispensed,
            {
                "issue_number": 1,
                "notification_id": NOTIFICATION_ID,
                "dispensing_organisation": INVENTED_PHARMACY,
                "dispensed_at": datetime(2026, 3, 3, 11, 30, tzinfo=UTC),
                "line_items": BOTH_DISPENSED,
                "prescription_status": "0006",
                "amends": None,
            },
        ),
        (dispense_withdrawn(), DispenseWithdrawn, {"issue_number": 1, "notification_id": NOTIFICATION_ID}),
        (returned(), Returned, {"issue_number": 1, "keep_nomination": False}),
        (
            cancelled(),
            Cancelled,
            {
                "cancellation_id": CANCELLATION_ID,
                "nhs_number": NHS_NUMBER,
                "target": "prescription",
                "line_item_id": None,
                "outcome": "applied",
                "reason_code": "0001",
                "reason_text": "Prescribing Error",
                "issue_number": None,
                "cancelling_organisation": INVENTED_SURGERY,
            },
        ),
        (claimed(), Claimed, {"issue_number": 1, "claim_id": CLAIM_ID, "amends": None}),
        (not_claimed(), NotClaimed, {"issue_number": 1}),
        (expired(), Expired, {"issue_number": 1}),
        (nominated(), Nominated, {"nominated_dispenser": Organisation(**OTHER_PHARMACY)}),
        (
            corrected(),
            Corrected,
            {
                "reason": "The dispense notification was lost on its way",
                "current_issue_number": None,
                "issues": (
                    CorrectedIssue(
                        1,
                        "0006",
                        BOTH_DISPENSED,
                        INVENTED_PHARMACY,
                        release_date=date(2026, 3, 3),
                        last_dispense_date=date(2026, 3, 3),
                    ),
                ),
            },
        ),
        (deleted(), Deleted, {}),
    ],
)
def test_an_example_becomes_its_event(payload: Payload, kind: type[Event], expected: dict[str, Any]) -> None:
    assert type(event(payload)) is kind
    assert loaded(payload) == expected


def test_a_created_example_becomes_its_event() -> None:
    assert loaded(created()) == {
        "nhs_number": NHS_NUMBER,
        "treatment_type": "0001",
        "prescription_type": "0101",
        "prescribed_at": datetime(2026, 3, 2, 9, 15, tzinfo=UTC),
        "signed_at": datetime(2026, 3, 2, 9, 15, 20, tzinfo=UTC),
        "days_supply": 28,
        "issues_authorised": 1,
        "dispense_window_low": None,
        "dispense_window_high": None,
        "prescribing_organisation": INVENTED_SURGERY,
        "nominated_dispenser": INVENTED_PHARMACY,
        "line_items": (
            PrescribedItem(
                FIRST_ITEM_ID,
                "Invented 500mg capsules",
                "999000011000001104",
                "21",
                "capsule",
                "One to be taken three times a day",
                1,
            ),
            PrescribedItem(
                SECOND_ITEM_ID, "Invented 0.5% cream", "999000021000001106", "30", "gram", "Apply thinly twice a day", 1
            ),
        ),
    }


def test_the_envelope_becomes_what_the_fold_needs_of_it() -> None:
    payload = issued(subject=PRESCRIPTION_ID.lower(), time="2026-03-02T10:20:00.5+01:00", sequence="007")
    envelope = event(payload | {"traceparent": TRACEPARENT}).envelope

    assert (envelope.source, envelope.id) == ("urn:nhs:asid:999000000001", "example-issued-1")
    assert (envelope.prescription_id, envelope.stream_key) == (PRESCRIPTION_ID, STREAM_KEY)
    assert envelope.time == datetime(2026, 3, 2, 9, 20, 0, 500_000, tzinfo=UTC)
    assert envelope.time.tzinfo is UTC
    assert envelope.sequence == 7
    assert envelope.traceparent == TRACEPARENT
    assert envelope.key == event_key(envelope.source, envelope.id)


def test_the_idempotency_key_is_sixteen_bytes_that_tell_source_from_id() -> None:
    assert len(event_key("urn:a", "b")) == 16
    assert (
        len({event_key("urn:a", "b"), event_key("urn:ab", ""), event_key("urn:", "ab"), event_key("b", "urn:a")}) == 4
    )


def test_every_event_has_a_type_and_an_example() -> None:
    assert set(TYPE_OF) == set(get_args(Event))
    assert [TYPE_OF[type(event(example()))] for example in ALL] == list(EVENT_TYPES)


def test_the_contract_knows_every_status() -> None:
    assert set(ISSUE_STATUSES) == {code for name, code in vars(IssueStatus).items() if name.isupper()}
    assert set(LINE_ITEM_STATUSES) == {code for name, code in vars(LineItemStatus).items() if name.isupper()}


# Defaults and normal forms


@pytest.mark.parametrize(
    ("payload", "field", "expected"),
    [
        (created(days_supply=DROPPED), "days_supply", 28),
        (created(issues_authorised=DROPPED), "issues_authorised", 1),
        (created(treatment_type="0003", issues_authorised=99), "issues_authorised", 99),
        (created(prescription_type="9999"), "prescription_type", "9999"),
        (created(nominated_dispenser=None), "nominated_dispenser", None),
        (
            created(signed_at="2026-03-02t09:15:20.123456789z"),
            "signed_at",
            datetime(2026, 3, 2, 9, 15, 20, 123456, UTC),
        ),
        (created(signed_at="2026-07-01T00:30:00+01:00"), "signed_at", datetime(2026, 6, 30, 23, 30, tzinfo=UTC)),
        (created(signed_at="2026-07-01T00:30:00-00:00"), "signed_at", datetime(2026, 7, 1, 0, 30, tzinfo=UTC)),
        (created(signed_at="0001-01-01T00:00:00Z"), "signed_at", datetime(1, 1, 1, tzinfo=UTC)),
        (created(dispense_window={"low": "2026-03-02", "high": "2026-03-02"}), "dispense_window_low", date(2026, 3, 2)),
        (
            created(dispense_window={"low": "2026-03-02", "high": "2027-03-01"}),
            "dispense_window_high",
            date(2027, 3, 1),
        ),
        (issued(status=DROPPED), "status", "0001"),
        (issued(status="0000"), "status", "0000"),
        (issued(nominated_download_date="2028-02-29"), "nominated_download_date", date(2028, 2, 29)),
        (dispensed(prescription_status=DROPPED), "prescription_status", None),
        (dispensed(amends=NOTIFICATION_ID.lower()), "amends", NOTIFICATION_ID),
        (dispensed(notification_id=NOTIFICATION_ID.lower()), "notification_id", NOTIFICATION_ID),
        (
            dispensed(line_items=[item_status(FIRST_ITEM_ID.lower(), "0003")]),
            "line_items",
            (ItemStatus(FIRST_ITEM_ID, "0003"),),
        ),
        (returned(keep_nomination=DROPPED), "keep_nomination", False),
        (returned(keep_nomination=True), "keep_nomination", True),
        (cancelled(target="lineItem", line_item_id=FIRST_ITEM_ID.lower()), "line_item_id", FIRST_ITEM_ID),
        (cancelled(target="prescription", line_item_id=FIRST_ITEM_ID), "line_item_id", None),
        (cancelled(issue_number=99), "issue_number", 99),
        (cancelled(cancelling_organisation=DROPPED), "cancelling_organisation", None),
        (cancelled(reason={"code": "x", "text": ""}), "reason_text", ""),
        (claimed(amends=CLAIM_ID.lower()), "amends", CLAIM_ID),
        (nominated(nominated_dispenser=None), "nominated_dispenser", None),
        (nominated(nominated_dispenser={"ods": "A1B"}), "nominated_dispenser", Organisation("A1B")),
        (corrected(issues=[], current_issue_number=2), "current_issue_number", 2),
        (corrected(issues=[]), "issues", ()),
        (corrected(issues=[{"issueNumber": 3}]), "issues", (CorrectedIssue(3),)),
        (
            corrected(issues=[{"issueNumber": 3, "dispensingOrganisation": None}]),
            "issues",
            (CorrectedIssue(3, clear_dispenser=True),),
        ),
    ],
)
def test_what_is_left_out_has_its_default_and_what_is_sent_its_normal_form(
    payload: Payload, field: str, expected: object
) -> None:
    assert loaded(payload)[field] == expected


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("28", "28"),
        ("028.50", "028.50"),
        (0, "0"),
        (-0.0, "0"),
        (28, "28"),
        (28.0, "28"),
        (0.50, "0.5"),
        (2.25, "2.25"),
        (1e22, "10000000000000000000000"),
        (1e-7, "0.0000001"),
        (18446744073709551615, "18446744073709551615"),
    ],
)
def test_a_quantity_is_shown_as_sent_and_a_number_as_a_plain_decimal(sent: object, shown: str) -> None:
    item = event(created(line_items=[prescribed_item(FIRST_ITEM_ID, quantity=sent)]))
    assert isinstance(item, Created)
    assert item.line_items[0].quantity == shown


@pytest.mark.parametrize(("own", "expected"), [(DROPPED, 6), (1, 1), (6, 6)])
def test_an_item_is_authorised_for_as_many_issues_as_the_prescription_unless_it_says_less(
    own: object, expected: int
) -> None:
    item = prescribed_item(FIRST_ITEM_ID, issues_authorised=own)
    of_event = event(created(treatment_type="0003", issues_authorised=6, line_items=[item]))
    assert isinstance(of_event, Created)
    assert of_event.line_items[0].issues_authorised == expected


@pytest.mark.parametrize("example", ALL)
def test_members_that_nobody_knows_are_ignored(example: Example) -> None:
    extended = example(something_new={"at": [None]})
    extended["newextension"] = 1.0
    assert event(extended) == event(example())


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("subject", R1_PRESCRIPTION_ID),
        ("subject", R1_PRESCRIPTION_ID.lower()),
        ("subject", "E7ZG38-ZBACYU-V38SR+"),
        ("id", "x"),
        ("id", "é" * 128),
        ("source", "x"),
        ("source", "/a/b?c=d#e"),
        ("source", "https://[::1]/%C3%A9"),
        ("source", "u" * 200),
        ("datacontenttype", DROPPED),
        ("datacontenttype", "Application/JSON"),
        ("datacontenttype", "application/json;charset=utf-8"),
        ("datacontenttype", "application/json ; Charset=UTF-8"),
        ("sequence", 1),
        ("sequence", 2**63 - 1),
        ("sequence", "1"),
        ("sequence", "9223372036854775807"),
        ("sequence", "0" * 100 + "1"),
        ("traceparent", TRACEPARENT),
        ("traceparent", f"cc{TRACEPARENT[2:]}-what-the-future-will-be"),
    ],
)
def test_an_attribute_keeps_its_rule(attribute: str, value: object) -> None:
    event(issued(**{attribute: value}))


# What is refused, and where

LONG = {"short": "x" * 201, "medium": "x" * 501, "long": "x" * 2001}
NO_UUIDS = [
    FIRST_ITEM_ID.replace("-", ""),
    f"{{{FIRST_ITEM_ID}}}",
    f"urn:uuid:{FIRST_ITEM_ID}",
    f"{FIRST_ITEM_ID}\n",
    FIRST_ITEM_ID[:-1] + "G",
    "",
    7,
    None,
]
NO_INSTANTS = [
    "2026-03-02",
    "2026-03-02T09:15:00",
    "2026-03-02 09:15:00Z",
    "2026-03-02T09:15Z",
    "2026-03-02T09:15:00+0100",
    "2026-03-02T09:15:00+01",
    "2026-03-02T09:15:60Z",
    "2026-03-02T24:00:00Z",
    "2026-02-30T09:15:00Z",
    "2026-13-02T09:15:00Z",
    "2026-03-02T09:15:00.1234567890Z",
    "2026-03-02T09:15:00.Z",
    "2026-03-02T09:15:00+24:00",
    "2026-03-02T09:15:00Z\n",
    "20260302T091500Z",
    "2026-W10-1T09:15:00Z",
    "0000-03-02T09:15:00Z",
    "0001-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59-00:01",
    "12026-03-02T09:15:00Z",
    "\N{FULLWIDTH DIGIT TWO}026-03-02T09:15:00Z",
    1772442900,
    None,
]
NO_DATES = [
    "20260302",
    "2026-W10-1",
    "2026-061",
    "2026-3-2",
    "2026-02-29",
    "2026-03-02T00:00:00Z",
    "2026-03-02\n",
    "0000-01-01",
    20260302,
    None,
]
NO_ISSUE_NUMBERS = [0, 100, -1, 1.0, 1.5, True, "1", 2**64, None]
NO_NHS_NUMBERS = ["9990000019", "999 000 0018", "999000001", "99900000180", "9990000018\n", 9990000018, "", None]
NO_ORGANISATIONS = [
    ("", "ZX901"),
    ("", []),
    (".ods", {}),
    (".ods", {"ods": None}),
    (".ods", {"ods": "zx901"}),
    (".ods", {"ods": "ZX"}),
    (".ods", {"ods": "ZX901234567"}),
    (".ods", {"ods": "ZX901\n"}),
    (".ods", {"ods": "ZX-901"}),
    (".name", {"ods": "ZX901", "name": LONG["short"]}),
    (".name", {"ods": "ZX901", "name": None}),
    (".name", {"ods": "ZX901", "name": NUL}),
    (".telecom", {"ods": "ZX901", "telecom": LONG["short"]}),
    (".telecom", {"ods": "ZX901", "telecom": 1}),
    (".address", {"ods": "ZX901", "address": LONG["medium"]}),
    (".address", {"ods": "ZX901", "address": ["1 EXAMPLE STREET"]}),
]

BROKEN_ATTRIBUTES = [
    ("specversion", ["0.3", "1.1", 1.0, None, DROPPED]),
    ("id", ["", "x" * 129, NUL, 1, None, DROPPED]),
    (
        "source",
        ["", "a b", "\N{LATIN SMALL LETTER E WITH ACUTE}", "50%", "%zz", "u" * 201, "urn:x\n", 1, None, DROPPED],
    ),
    ("type", ["", NUL, LONG["short"], 1, None, DROPPED, ["eps.prescription.issued.v1"], {}]),
    (
        "subject",
        [
            STREAM_KEY,
            PRESCRIPTION_ID[:-1] + "Q",
            PRESCRIPTION_ID.replace("-", ""),
            f"{PRESCRIPTION_ID}\n",
            f" {PRESCRIPTION_ID}",
            f"+{PRESCRIPTION_ID[1:]}",
            R1_PRESCRIPTION_ID[:-1],
            "",
            1,
            None,
            DROPPED,
        ],
    ),
    ("time", [*NO_INSTANTS, DROPPED]),
    ("datacontenttype", ["", "text/json", "application/json;charset=latin1", "application/json\n", 1, None]),
    ("sequence", [0, -1, 1.0, True, 2**63, 1e30, "", "0", "-1", "+1", "1.0", "1\n", " 1", "9223372036854775808", None]),
    ("sequence", ["1" * 20, "0" * 200 + "1", "\N{ARABIC-INDIC DIGIT ONE}", [1]]),
    (
        "traceparent",
        [
            "",
            TRACEPARENT.upper(),
            f"ff{TRACEPARENT[2:]}",
            f"{TRACEPARENT}-more",
            f"{TRACEPARENT}\n",
            TRACEPARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
            TRACEPARENT.replace("00f067aa0ba902b7", "0" * 16),
            f"cc{TRACEPARENT[2:]}-{'x' * 200}",
            None,
        ],
    ),
    ("data", [None, DROPPED, [], "{}", 1]),
]


@pytest.mark.parametrize(
    ("attribute", "value"), [(attribute, value) for attribute, values in BROKEN_ATTRIBUTES for value in values]
)
def test_an_attribute_that_breaks_its_rule_is_named(attribute: str, value: object) -> None:
    assert list(refused(issued(**{attribute: value}))) == [attribute]


BROKEN_MEMBERS: list[tuple[Example, str, list[object]]] = [
    (created, "nhsNumber", [*NO_NHS_NUMBERS, DROPPED]),
    (created, "treatmentType", ["0004", "1", 1, None, DROPPED]),
    (created, "prescriptionType", ["101", "01010", "010a", "0101\n", 101, None, DROPPED]),
    (created, "prescribedAt", [*NO_INSTANTS, DROPPED]),
    (created, "signedAt", [*NO_INSTANTS, DROPPED]),
    (created, "daysSupply", [0, 1000, 28.0, "28", True, None]),
    (created, "issuesAuthorised", [0, 100, 1.0, "1", False, None, 2]),
    (created, "dispenseWindow", [None, [], "2026-03-02"]),
    (created, "prescribingOrganisation", [None, DROPPED]),
    (created, "nominatedDispenser", [DROPPED]),
    (created, "lineItems", [[], [{}] * 5, {}, "x", None, DROPPED]),
    *((example, "issueNumber", [*NO_ISSUE_NUMBERS, DROPPED]) for example in (issued, released, dispensed, returned)),
    *((example, "issueNumber", [*NO_ISSUE_NUMBERS, DROPPED]) for example in (dispense_withdrawn, claimed, not_claimed)),
    (expired, "issueNumber", [*NO_ISSUE_NUMBERS, DROPPED]),
    (issued, "status", ["0002", 1, None]),
    (issued, "nominatedDownloadDate", NO_DATES),
    (released, "dispensingOrganisation", [None, DROPPED]),
    (dispensed, "notificationId", [*NO_UUIDS, DROPPED]),
    (dispensed, "dispensingOrganisation", [None, DROPPED]),
    (dispensed, "dispensedAt", [*NO_INSTANTS, DROPPED]),
    (dispensed, "lineItems", [[], [{}] * 5, {}, None, DROPPED]),
    (dispensed, "prescriptionStatus", ["0002", "0005", 6, None]),
    (dispensed, "amends", NO_UUIDS),
    (dispense_withdrawn, "notificationId", [*NO_UUIDS, DROPPED]),
    (returned, "keepNomination", ["true", 1, 0, "yes", None]),
    (cancelled, "cancellationId", [*NO_UUIDS, DROPPED]),
    (cancelled, "nhsNumber", [*NO_NHS_NUMBERS, DROPPED]),
    (cancelled, "target", ["issue", "lineitem", None, DROPPED]),
    (cancelled, "lineItemId", NO_UUIDS),
    (cancelled, "outcome", ["done", None, DROPPED]),
    (cancelled, "reason", ["0001: Prescribing Error", [], None, DROPPED]),
    (cancelled, "issueNumber", NO_ISSUE_NUMBERS),
    (cancelled, "cancellingOrganisation", [None]),
    (claimed, "claimId", [*NO_UUIDS, DROPPED]),
    (claimed, "amends", NO_UUIDS),
    (nominated, "nominatedDispenser", [DROPPED]),
    (corrected, "reason", ["", LONG["long"], NUL, None, DROPPED]),
    (corrected, "currentIssueNumber", NO_ISSUE_NUMBERS),
    (corrected, "issues", [[{}] * 100, {}, None, DROPPED]),
]


@pytest.mark.parametrize(
    ("example", "member", "value"),
    [(example, member, value) for example, member, values in BROKEN_MEMBERS for value in values],
)
def test_a_member_that_breaks_its_rule_is_named(example: Example, member: str, value: object) -> None:
    payload = example()
    payload["data"][member] = value
    if value is DROPPED:
        del payload["data"][member]
    assert list(refused(payload)) == [f"data.{member}"]


@pytest.mark.parametrize(("below", "value"), NO_ORGANISATIONS)
@pytest.mark.parametrize(
    ("example", "member"),
    [
        (created, "prescribingOrganisation"),
        (created, "nominatedDispenser"),
        (released, "dispensingOrganisation"),
        (dispensed, "dispensingOrganisation"),
        (cancelled, "cancellingOrganisation"),
        (nominated, "nominatedDispenser"),
    ],
)
def test_an_organisation_that_breaks_its_rule_is_named(
    example: Example, member: str, below: str, value: object
) -> None:
    payload = example()
    payload["data"][member] = value
    assert list(refused(payload)) == [f"data.{member}{below}"]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        *(("id", value) for value in (*NO_UUIDS, DROPPED)),
        *(("description", value) for value in ("", LONG["medium"], NUL, 1, None, DROPPED)),
        *(("code", value) for value in ("", LONG["short"], NUL, 999000031000001109, None, DROPPED)),
        *(
            ("quantity", value)
            for value in (-1, -0.5, True, "", "-1", "1,5", ".5", "5.", "1e3", "28 ", "28\n", "9" * 201)
        ),
        *(("quantity", value) for value in ([28], {}, "\N{ARABIC-INDIC DIGIT ONE}", None, DROPPED)),
        *(("unit", value) for value in (LONG["short"], NUL, 1, None, DROPPED)),
        *(("dosage", value) for value in (LONG["long"], NUL, ["one"], None, DROPPED)),
        *(("issuesAuthorised", value) for value in (0, 100, 1.0, "1", True, None, 2)),
    ],
)
def test_a_prescribed_item_that_breaks_its_rule_is_named(member: str, value: object) -> None:
    payload = created()
    payload["data"]["lineItems"][1][member] = value
    if value is DROPPED:
        del payload["data"]["lineItems"][1][member]
    assert list(refused(payload)) == [f"data.lineItems.1.{member}"]


def test_the_longest_texts_are_accepted() -> None:
    texts = {
        "code": "c" * 200,
        "unit": "",
        "dosage": "\N{PILL}" * 2000,
        "description": "d" * 500,
        "quantity": "9" * 200,
    }
    event(created(line_items=[prescribed_item(FIRST_ITEM_ID, **texts)]))
    organisation = {"ods": "A1B2C3D4E5", "name": "n" * 200, "telecom": "", "address": "a" * 500}
    event(cancelled(reason={"code": "c" * 200, "text": "t" * 2000}, cancelling_organisation=organisation))
    event(corrected(reason="r" * 2000, issues=[]))


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        (created(dispense_window={"low": "2026-03-02"}), "dispenseWindow.high"),
        (created(dispense_window={"low": "2026-02-30", "high": "2026-03-02"}), "dispenseWindow.low"),
        (created(dispense_window={"low": "2026-03-03", "high": "2026-03-02"}), "dispenseWindow.high"),
        (created(treatment_type="0001", issues_authorised=2), "issuesAuthorised"),
        (created(treatment_type="0002", issues_authorised=99), "issuesAuthorised"),
        (
            created(line_items=[prescribed_item(FIRST_ITEM_ID), prescribed_item(FIRST_ITEM_ID.lower())]),
            "lineItems.1.id",
        ),
        (
            created(
                treatment_type="0003",
                issues_authorised=6,
                line_items=[prescribed_item(FIRST_ITEM_ID, issues_authorised=7)],
            ),
            "lineItems.0.issuesAuthorised",
        ),
        (created(line_items=[prescribed_item(FIRST_ITEM_ID), "x"]), "lineItems.1"),
        (created(line_items=[prescribed_item(FIRST_ITEM_ID), None]), "lineItems.1"),
        (dispensed(line_items=[item_status(FIRST_ITEM_ID, "0007")]), "lineItems.0.status"),
        (dispensed(line_items=[{"id": FIRST_ITEM_ID}]), "lineItems.0.status"),
        (dispensed(line_items=[item_status("x", "0001")]), "lineItems.0.id"),
        (
            dispensed(line_items=[item_status(FIRST_ITEM_ID, "0001"), item_status(FIRST_ITEM_ID.lower(), "0001")]),
            "lineItems.1.id",
        ),
        (cancelled(target="lineItem"), "lineItemId"),
        (cancelled(target="lineItem", line_item_id="x"), "lineItemId"),
        (cancelled(reason={"code": "", "text": "x"}), "reason.code"),
        (cancelled(reason={"code": LONG["short"], "text": "x"}), "reason.code"),
        (cancelled(reason={"text": "x"}), "reason.code"),
        (cancelled(reason={"code": "0001"}), "reason.text"),
        (cancelled(reason={"code": "0001", "text": LONG["long"]}), "reason.text"),
        (cancelled(reason={"code": "0001", "text": NUL}), "reason.text"),
        (corrected(issues=[{"issueNumber": 1}, {"issueNumber": 1}]), "issues.1.issueNumber"),
        (corrected(issues=[{"status": "0006"}]), "issues.0.issueNumber"),
        (corrected(issues=[{"issueNumber": 1, "status": "0010"}]), "issues.0.status"),
        (corrected(issues=[{"issueNumber": 1, "status": None}]), "issues.0.status"),
        (corrected(issues=[{"issueNumber": 1, "lineItems": None}]), "issues.0.lineItems"),
        (corrected(issues=[{"issueNumber": 1, "lineItems": [{}] * 5}]), "issues.0.lineItems"),
        (
            corrected(issues=[{"issueNumber": 1, "lineItems": [item_status(FIRST_ITEM_ID, "0009")]}]),
            "issues.0.lineItems.0.status",
        ),
        (
            corrected(issues=[{"issueNumber": 1, "lineItems": [item_status(FIRST_ITEM_ID, "0001")] * 2}]),
            "issues.0.lineItems.1.id",
        ),
        (corrected(issues=[{"issueNumber": 1, "dispensingOrganisation": "ZX901"}]), "issues.0.dispensingOrganisation"),
        (corrected(issues=[{"issueNumber": 1, "releaseDate": None}]), "issues.0.releaseDate"),
        (
            corrected(issues=[{"issueNumber": 1, "lastDispenseDate": "2026-03-03T00:00:00Z"}]),
            "issues.0.lastDispenseDate",
        ),
    ],
)
def test_what_is_wrong_deeper_or_between_members_is_named(payload: Payload, path: str) -> None:
    assert list(refused(payload)) == [f"data.{path}"]


@pytest.mark.parametrize("status", LINE_ITEM_STATUSES)
def test_a_correction_can_give_an_item_any_status(status: str) -> None:
    event(corrected(issues=[{"issueNumber": 1, "lineItems": [item_status(FIRST_ITEM_ID, status)]}]))


@pytest.mark.parametrize("status", ISSUE_STATUSES)
def test_a_correction_can_give_an_issue_any_status(status: str) -> None:
    event(corrected(issues=[{"issueNumber": 99, "status": status}]))


def test_everything_that_is_wrong_is_told_at_once() -> None:
    errors = refused(
        created(
            time=None,
            subject=PRESCRIPTION_ID[:-1] + "Q",
            nhs_number="9990000019",
            treatment_type="0001",
            issues_authorised=2,
            line_items=[{}, prescribed_item(FIRST_ITEM_ID), prescribed_item(FIRST_ITEM_ID, issues_authorised=3)],
        )
    )
    assert set(errors) == {
        "time",
        "subject",
        "data.nhsNumber",
        "data.issuesAuthorised",
        *(f"data.lineItems.0.{member}" for member in ("id", "description", "code", "quantity", "unit", "dosage")),
        "data.lineItems.2.id",
        "data.lineItems.2.issuesAuthorised",
    }


def test_a_rule_does_not_judge_members_that_are_themselves_broken() -> None:
    items = [prescribed_item(FIRST_ITEM_ID, issues_authorised=6)]
    assert set(refused(created(treatment_type="0003", issues_authorised="6", line_items=items))) == {
        "data.issuesAuthorised"
    }
    assert set(refused(created(treatment_type="3", issues_authorised=6, line_items=items))) == {"data.treatmentType"}


def test_an_error_says_what_was_expected() -> None:
    errors = refused(created(nhs_number="9990000019", prescribed_at=None, nominated_dispenser=1, days_supply=0))
    assert errors == {
        "data.nhsNumber": "must be ten digits, the last one the modulus 11 check digit",
        "data.prescribedAt": "must be an instant as in RFC 3339 with its offset, in the years 1 to 9999, "
        "without leap second",
        "data.nominatedDispenser": "must be an object or null",
        "data.daysSupply": "must be a whole number from 1 to 999",
    }


def test_what_a_refused_payload_took_goes_at_once_also_while_another_exception_is_handled() -> None:
    class Held(Exception):
        """Stands for whatever is being handled while a record is read."""

    payload = created(line_items=[prescribed_item(FIRST_ITEM_ID), {"id": "x"}])
    payload["data"]["prescribingOrganisation"] = {"ods": "?"}
    assert len(refused(payload)) > 1
    gc.collect()
    gc.disable()
    try:
        try:
            raise Held
        except Held as held:
            still = weakref.ref(held)
            with suppress(ContractViolation):
                event(payload)
        assert still() is None
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_violation_reads_as_a_list_of_paths() -> None:
    with pytest.raises(ContractViolation, match=r"^id: must be text of 1 to 128 characters .*; data\.issueNumber: is"):
        event(issued(id="", issue_number=DROPPED))


# Type and check character


@pytest.mark.parametrize("event_type", ["eps.prescription.issued.v2", "eps.prescription.issued", "EPS", "com.example"])
def test_a_type_that_nobody_knows_has_an_error_of_its_own(event_type: str) -> None:
    with pytest.raises(UnknownType):
        event(issued(type=event_type))


def test_the_data_of_an_unknown_type_may_say_anything() -> None:
    with pytest.raises(UnknownType):
        event(issued(type="com.example", issue_number=None))


def test_a_broken_envelope_comes_before_an_unknown_type() -> None:
    assert list(refused(issued(type="com.example", time=None))) == ["time"]


def test_a_wrong_check_character_passes_when_asked_to() -> None:
    payload = issued(subject=PRESCRIPTION_ID[:-1] + "Q")

    assert refused(payload) == {"subject": "has a wrong check character"}
    assert event(payload, strict_check_character=False).envelope.stream_key == STREAM_KEY


def test_not_verifying_check_characters_still_wants_one() -> None:
    assert list(refused(issued(subject=STREAM_KEY), strict_check_character=False)) == ["subject"]


def test_what_the_two_validators_disagree_about_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schemas.incoming.data_errors", lambda *_: [])
    monkeypatch.setattr("schemas.incoming.envelope_errors", lambda *_, **__: [])

    assert refused(issued(issue_number=0)) == {"data.issueNumber": "is refused by the JSON Schema"}
    assert refused(issued(time="x")) == {"time": "is refused by the JSON Schema"}
    assert refused(issued(data=[])) == {"data": "is refused by the JSON Schema"}
    assert refused(issued(issue_number=1.0)) == {"": "keeps the JSON Schema, but cannot be made an event"}


def test_text_that_is_no_unicode_is_refused() -> None:
    attributes = {name: value for name, value in issued().items() if name != "data"}
    with pytest.raises(ContractViolation):
        load(attributes | {"id": "\ud800"}, issued()["data"])
