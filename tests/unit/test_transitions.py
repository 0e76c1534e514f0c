"""Which status allows which event and what it becomes: two tables, one for issues and one for line items."""

from __future__ import annotations

import pytest

from projector.prescription import Prescription, contradiction
from schemas.events import CorrectedIssue, Event
from tests.unit.given import (
    CANCELLATION,
    ITEMS,
    NOTIFICATION,
    SECOND_CANCELLATION,
    SECOND_NOTIFICATION,
    after,
    cancelled,
    claimed,
    corrected,
    corrected_to,
    created,
    days_later,
    dispense_withdrawn,
    dispensed,
    expired,
    issued,
    item_statuses,
    nominated,
    not_claimed,
    released,
    repeat_dispensing,
    returned,
    statuses,
)

# issues ---------------------------------------------------------------------------------------------------------------

FUTURE_DATED = created(prescribed_at=days_later(2))
PARTLY = dispensed("0003", "0003")

# How an issue comes to each status; 9000 is that of issue 2, every other one that of issue 1.
REACHED_BY: dict[str, list[Event]] = {
    "0000": [FUTURE_DATED, issued(status="0000")],
    "0001": [created()],
    "0002": [created(), released()],
    "0003": [created(), released(), PARTLY],
    "0004": [created(), expired()],
    "0005": [created(), cancelled()],
    "0006": [created(), released(), dispensed()],
    "0007": [created(), released(), dispensed("0002", "0002")],
    "0008": [created(), released(), dispensed(), claimed()],
    "0009": [created(), released(), dispensed(), not_claimed()],
    "9000": [repeat_dispensing(2)],
    "9001": [FUTURE_DATED],
    "9005": [created(), corrected_to("9005")],
}


def amending(*sent: str) -> dict[str, object]:
    return {"notification_id": SECOND_NOTIFICATION, "amends": NOTIFICATION, "line_items": statuses(*sent)}


# The second item of an issue is no longer active when its last active one is cancelled.
LAST_ACTIVE_ITEM = "cancelled, last active item"
EVENTS = {
    "issued 0000": lambda **issue: issued(id="next", status="0000", **issue),
    "issued 0001": lambda **issue: issued(id="next", status="0001", **issue),
    "released": lambda **issue: released(id="next", **issue),
    "dispensed, partial": lambda **issue: dispensed("0003", "0003", id="next", notification_id=CANCELLATION, **issue),
    "dispensed, complete": lambda **issue: dispensed("0001", "0001", id="next", notification_id=CANCELLATION, **issue),
    "dispensed, none": lambda **issue: dispensed("0002", "0002", id="next", notification_id=CANCELLATION, **issue),
    "amended, partial": lambda **issue: dispensed(id="next", **amending("0003", "0003"), **issue),
    "amended, complete": lambda **issue: dispensed(id="next", **amending("0001", "0001"), **issue),
    "amended, none": lambda **issue: dispensed(id="next", **amending("0002", "0002"), **issue),
    "withdrawn": lambda **issue: dispense_withdrawn(id="next", **issue),
    "returned": lambda **issue: returned(id="next", **issue),
    "cancelled": lambda **issue: cancelled(id="next", cancellation_id=SECOND_CANCELLATION, **issue),
    LAST_ACTIVE_ITEM: lambda **issue: cancelled(
        id="next", cancellation_id=SECOND_CANCELLATION, line_item_id=ITEMS[0], **issue
    ),
    "cancelled, pending": lambda **issue: cancelled("pending", id="next", cancellation_id=SECOND_CANCELLATION, **issue),
    "claimed": lambda **issue: claimed(id="next", **issue),
    "claimed, amending": lambda **issue: claimed(id="next", amends=CANCELLATION, **issue),
    "not claimed": lambda **issue: not_claimed(id="next", **issue),
    "expired": lambda **issue: expired(id="next", **issue),
}

NO = "refused"
AMENDED_OR_WITHDRAWN = {
    "amended, partial": "0003",
    "amended, complete": "0006",
    "amended, none": "0007",
    "withdrawn": "0002",
}
LEFT_BY_CANCELLATIONS = {"cancelled": "=", LAST_ACTIVE_ITEM: "=", "cancelled, pending": "="}
CANCELLED = {"cancelled": "0005", LAST_ACTIVE_ITEM: "0005", "cancelled, pending": "="}
DISPENSED = {"dispensed, partial": "0003", "dispensed, complete": "0006", "dispensed, none": "0007"}

# What is not named is refused; "=" folds and leaves the status.
TRANSITIONS: dict[str, dict[str, str]] = {
    "0000": {"issued 0000": "=", "issued 0001": "0001", "released": "0002", "expired": "0004", **CANCELLED},
    "0001": {"issued 0000": "=", "issued 0001": "=", "released": "0002", "expired": "0004", **CANCELLED},
    "0002": {**DISPENSED, "returned": "0001", "expired": "0004", **CANCELLED},
    "0003": {**DISPENSED, **AMENDED_OR_WITHDRAWN, "not claimed": "0009", "expired": "0006", **CANCELLED},
    "0004": {**LEFT_BY_CANCELLATIONS},
    "0005": {**LEFT_BY_CANCELLATIONS},
    "0006": {
        **AMENDED_OR_WITHDRAWN,
        "claimed": "0008",
        "claimed, amending": "0008",
        "not claimed": "0009",
        **LEFT_BY_CANCELLATIONS,
    },
    "0007": {**AMENDED_OR_WITHDRAWN, **LEFT_BY_CANCELLATIONS},
    "0008": {"claimed, amending": "=", **LEFT_BY_CANCELLATIONS},
    "0009": {"claimed": "0008", "claimed, amending": "0008", **LEFT_BY_CANCELLATIONS},
    "9000": {"issued 0000": "0000", "issued 0001": "0001", "expired": "0004", **CANCELLED},
    "9001": {"issued 0000": "0000", "issued 0001": "0001", "expired": "0004", **CANCELLED},
    "9005": {"expired": "0004", **CANCELLED},
}


def at_status(status: str) -> tuple[Prescription, int]:
    """The prescription with an issue at this status, and the number of that issue."""
    number = 2 if status == "9000" else 1
    state = after(*REACHED_BY[status])
    assert state.issues[number - 1].status == status
    return state, number


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("status", TRANSITIONS)
def test_the_status_of_an_issue_decides_what_may_follow(status: str, event: str):
    state, number = at_status(status)
    if event == LAST_ACTIVE_ITEM:
        one_active = statuses(state.issues[number - 1].item_statuses[0], "0002")
        state = after(corrected(CorrectedIssue(number, line_items=one_active), id="one active"), state=state)
    following = EVENTS[event](issue_number=number)
    expected = TRANSITIONS[status].get(event, NO)
    if expected == NO:
        assert contradiction(state, following) is not None
    else:
        expected = status if expected == "=" else expected
        assert after(following, state=state).issues[number - 1].status == expected


@pytest.mark.parametrize("status", TRANSITIONS)
def test_a_nomination_and_a_correction_may_follow_any_status(status: str):
    state, number = at_status(status)
    later = after(nominated(), corrected(CorrectedIssue(number), id="c"), state=state)
    assert later.issues == state.issues


@pytest.mark.parametrize("target", TRANSITIONS)
@pytest.mark.parametrize("status", TRANSITIONS)
def test_a_correction_moves_an_issue_from_any_status_to_any_other(status: str, target: str):
    state, number = at_status(status)
    later = after(corrected_to(target, issue_number=number, id="c"), state=state)
    assert later.issues[number - 1].status == target


@pytest.mark.parametrize("status", ["0008", "0009"])
def test_no_notification_is_withdrawn_once_payment_is_settled(status: str):
    assert contradiction(at_status(status)[0], dispense_withdrawn()) is not None


@pytest.mark.parametrize("status", [status for status in TRANSITIONS if status not in {"0008", "0009"}])
def test_a_standing_notification_is_withdrawn_at_any_other_status(status: str):
    state = after(created(), released(), PARTLY, corrected_to(status))
    assert after(dispense_withdrawn(), state=state).issues[0].status == "0002"


@pytest.mark.parametrize(("status", "restored"), [("0003", "0003"), ("0006", "0003"), ("0007", "0003")])
def test_in_repeat_dispensing_a_withdrawal_never_restores_0002(status: str, restored: str):
    state = after(repeat_dispensing(2), released(), dispensed("0003", "0003", prescription_status=status))
    assert state.issues[0].status == status
    assert after(dispense_withdrawn(), state=state).issues[0].status == restored


# line items -----------------------------------------------------------------------------------------------------------

LINE_ITEM_STATUSES = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008")

# The status of the issue, what happens to it, and what becomes of an item at each status; what is not named stays.
ITEM_TRANSITIONS: list[tuple[str, str, Event, dict[str, str]]] = [
    ("issued", "0000", issued(), {}),
    ("released", "0001", released(), {"0007": "0008"}),
    ("returned", "0002", returned(), {"0008": "0007"}),
    ("expired, open", "0001", expired(), {"0007": "0006", "0008": "0006", "0003": "0001", "0004": "0002"}),
    ("expired, partly", "0003", expired(), {"0007": "0006", "0008": "0006", "0003": "0001", "0004": "0002"}),
    ("cancelled", "0001", cancelled(), {"0007": "0005", "0008": "0005", "0003": "0005", "0004": "0005"}),
    ("item cancelled", "0001", cancelled(line_item_id=ITEMS[0]), dict.fromkeys(LINE_ITEM_STATUSES, "0005")),
    ("item cancelled again", "0005", cancelled(line_item_id=ITEMS[0]), dict.fromkeys(LINE_ITEM_STATUSES, "0005")),
    ("other item cancelled", "0001", cancelled(line_item_id=ITEMS[1]), {}),
    ("cancellation pending", "0002", cancelled("pending"), {}),
    ("cancellation unsuccessful", "0002", cancelled("unsuccessful"), {}),
    ("claimed", "0006", claimed(), {}),
    ("not claimed", "0006", not_claimed(), {}),
    ("not claimed, partly", "0003", not_claimed(), {}),
    ("nominated", "0001", nominated(), {}),
]


@pytest.mark.parametrize("item", LINE_ITEM_STATUSES)
@pytest.mark.parametrize(
    ("issue", "event", "becomes"),
    [row[1:] for row in ITEM_TRANSITIONS],
    ids=[row[0] for row in ITEM_TRANSITIONS],
)
def test_the_status_of_an_item_follows_from_the_event(issue: str, event: Event, becomes: dict[str, str], item: str):
    state = after(created(), corrected_to(issue, item, "0007"))
    assert item_statuses(after(event, state=state))[0] == becomes.get(item, item)


@pytest.mark.parametrize("sent", ["0001", "0002", "0003", "0004", "0005", "0006", "0008"])
@pytest.mark.parametrize("before", LINE_ITEM_STATUSES)
def test_a_notification_moves_an_item_anywhere_but_to_and_from_the_closed_statuses(before: str, sent: str):
    state = after(created(), corrected_to("0003", before, "0008"))
    event = dispensed(sent, "0008")
    if before != sent and {"0005", "0006"} & {before, sent}:
        assert contradiction(state, event) is not None
    else:
        assert item_statuses(after(event, state=state)) == (sent, "0008")


@pytest.mark.parametrize("item", LINE_ITEM_STATUSES)
def test_a_withdrawal_restores_any_item(item: str):
    state = after(created(), corrected_to("0002", item, "0008"))
    sent = item if item in {"0005", "0006"} else "0001"
    later = after(dispensed(sent, "0001"), dispense_withdrawn(), state=state)
    assert item_statuses(later) == (item, "0008")


def test_each_issue_has_its_own_copy_of_every_item():
    state = after(repeat_dispensing(3), released(), dispensed("0001", "0002"))
    assert [issue.item_statuses for issue in state.issues] == [("0001", "0002"), ("0007", "0007"), ("0007", "0007")]
