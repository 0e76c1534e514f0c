"""What each event does to a prescription, sentence by sentence, and what it may not follow.

Which status allows which event is a table of its own: test_transitions.py.
"""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from projector.prescription import Kind, Prescription, evolve
from schemas.events import CorrectedIssue, Event, ItemStatus
from tests.unit.given import (
    CANCELLATION,
    ITEMS,
    NHS_NUMBER,
    NOON,
    NOTIFICATION,
    OTHER_NHS_NUMBER,
    OTHER_PHARMACY,
    PHARMACY,
    PRESCRIPTION_ID,
    SECOND_CANCELLATION,
    SECOND_NOTIFICATION,
    SURGERY,
    THIRD_NOTIFICATION,
    UNKNOWN_ITEM,
    after,
    cancelled,
    claimed,
    corrected,
    corrected_to,
    created,
    day_of,
    days_later,
    deleted,
    dispense_withdrawn,
    dispensed,
    expired,
    issue_statuses,
    issued,
    item_statuses,
    midnight,
    nominated,
    not_claimed,
    prescribed_items,
    refusal,
    released,
    repeat_dispensing,
    returned,
    statuses,
)


def entry_states(state: Prescription) -> list[str]:
    return [entry.state for entry in state.cancellations]


# created --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("issues", [1, 6, 99])
def test_created_makes_every_authorised_issue(issues: int):
    state = after(repeat_dispensing(issues))
    assert [issue.number for issue in state.issues] == list(range(1, issues + 1))


def test_the_items_of_a_new_prescription_are_to_be_dispensed():
    assert item_statuses(after(created())) == ("0007", "0007")


def test_an_item_is_expired_in_the_issues_beyond_its_own():
    state = after(repeat_dispensing(4, line_items=prescribed_items(2, issues=4, last_item_issues=2)))
    assert [issue.item_statuses for issue in state.issues] == [
        ("0007", "0007"),
        ("0007", "0007"),
        ("0007", "0006"),
        ("0007", "0006"),
    ]


def test_later_issues_wait_for_theirs_and_the_first_is_current():
    state = after(repeat_dispensing(3))
    assert issue_statuses(state) == ["0001", "9000", "9000"]
    assert state.current_issue == 1


A_DAY = timedelta(hours=24)
A_SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("treatment_type", "prescribed_after", "window_low", "status"),
    [
        ("0001", -A_DAY, None, "0001"),
        ("0001", A_DAY, None, "0001"),
        ("0001", A_DAY + A_SECOND, None, "9001"),
        ("0002", A_DAY, None, "0001"),
        ("0002", A_DAY + A_SECOND, None, "9001"),
        ("0003", A_DAY, None, "0001"),
        ("0003", A_DAY + A_SECOND, None, "9001"),
        ("0003", A_DAY + A_SECOND, date(2026, 3, 2), "9001"),
        ("0003", timedelta(), date(2026, 3, 3), "0001"),
        ("0003", timedelta(), date(2026, 3, 4), "9001"),
        ("0001", timedelta(), date(2026, 3, 4), "0001"),
        ("0002", timedelta(), date(2026, 3, 4), "0001"),
    ],
)
def test_the_first_issue_is_future_dated_when_it_starts_later_than_in_24_hours(
    treatment_type: str, prescribed_after: timedelta, window_low: date | None, status: str
):
    state = after(
        created(
            treatment_type=treatment_type,
            time=NOON,
            prescribed_at=NOON + prescribed_after,
            dispense_window_low=window_low,
            dispense_window_high=window_low and date(2027, 3, 1),
        )
    )
    assert state.issues[0].status == status


@pytest.mark.parametrize(("microseconds", "status"), [(0, "0001"), (-1, "9001")])
def test_a_window_that_opens_exactly_24_hours_later_is_not_future_dated(microseconds: int, status: str):
    time = midnight(2026, 3, 2) + timedelta(microseconds=microseconds)
    state = after(repeat_dispensing(1, time=time, dispense_window_low=date(2026, 3, 3)))
    assert state.issues[0].status == status


def test_created_keeps_what_was_prescribed():
    event = repeat_dispensing(
        3,
        prescribed_at=days_later(-1),
        signed_at=days_later(-2),
        days_supply=7,
        dispense_window_low=date(2026, 3, 2),
        dispense_window_high=date(2027, 3, 1),
    )
    prescribed = after(event).prescribed
    assert prescribed.prescription_id == PRESCRIPTION_ID
    assert prescribed.nhs_number == NHS_NUMBER
    assert prescribed.prescriber == SURGERY
    for name in (
        "treatment_type",
        "prescription_type",
        "prescribed_at",
        "signed_at",
        "days_supply",
        "issues_authorised",
        "dispense_window_low",
        "dispense_window_high",
        "line_items",
    ):
        assert getattr(prescribed, name) == getattr(event, name), name


@pytest.mark.parametrize("nominee", [None, PHARMACY])
def test_created_nominates_a_dispenser_or_none(nominee):
    assert after(created(nominated_dispenser=nominee)).nominated == nominee


def test_created_is_the_first_version_of_the_prescription_and_its_issues():
    state = after(repeat_dispensing(2, time=days_later(3)))
    assert state.kind is Kind.CREATED
    assert state.version == 1
    assert [issue.version for issue in state.issues] == [1, 1]
    assert state.last_event_at == days_later(3)


def test_a_new_issue_has_no_dates_and_no_dispenser():
    (issue,) = after(created()).issues
    assert (issue.released_at, issue.last_dispensed_at, issue.completed_at, issue.claimed_at) == (None,) * 4
    assert (issue.nominated_download_date, issue.dispenser, issue.releasing) == (None,) * 3


# early cancellations --------------------------------------------------------------------------------------------------


def test_a_pending_cancellation_of_nothing_leaves_a_placeholder():
    state = after(cancelled("pending", time=days_later(0.25)))
    assert state.kind is Kind.PLACEHOLDER
    assert issue_statuses(state) == ["9005"]
    assert item_statuses(state) == ()
    assert state.prescribed.prescribed_at == midnight(2026, 3, 2)
    assert state.prescribed.nhs_number == NHS_NUMBER
    assert state.prescribed.prescriber == SURGERY
    assert state.current_issue == 1
    assert state.version == 1
    assert state.issues[0].version == 1
    assert state.last_event_at == days_later(0.25)
    assert state.pending_cancellations
    assert state.prescribed.prescription_id == PRESCRIPTION_ID
    assert state.prescribed.issues_authorised == 1
    assert state.issues[0].number == 1
    assert [(entry.number, entry.first_issue) for entry in state.cancellations] == [(1, 1)]


def test_a_placeholder_needs_no_cancelling_organisation():
    assert after(cancelled("pending", cancelling_organisation=None)).prescribed.prescriber is None


def test_a_placeholder_shows_the_first_nhs_number_and_compares_no_other():
    state = after(
        cancelled("pending"),
        cancelled("pending", id="c-2", cancellation_id=SECOND_CANCELLATION, nhs_number=OTHER_NHS_NUMBER),
        cancelled("unsuccessful", id="c-3", cancellation_id=SECOND_CANCELLATION, nhs_number=OTHER_NHS_NUMBER),
    )
    assert state.prescribed.nhs_number == NHS_NUMBER
    assert entry_states(state) == ["pending", "unsuccessful"]


def test_an_early_cancellation_names_items_and_issues_that_nobody_knows_yet():
    state = after(
        cancelled("pending"),
        cancelled("pending", id="c-2", cancellation_id=SECOND_CANCELLATION, line_item_id=UNKNOWN_ITEM, issue_number=7),
    )
    assert state.pending_cancellations


def test_early_cancellations_are_applied_when_the_prescription_arrives():
    state = after(cancelled("pending"), repeat_dispensing(3, time=days_later(1)))
    assert issue_statuses(state) == ["0005", "0005", "0005"]
    assert [item_statuses(state, number) for number in (1, 2, 3)] == [("0005", "0005")] * 3
    assert entry_states(state) == ["applied"]
    assert not state.pending_cancellations
    assert state.current_issue == 3


def test_early_cancellations_are_applied_from_issue_1_whatever_issue_they_name():
    state = after(cancelled("pending", issue_number=2), repeat_dispensing(3))
    assert issue_statuses(state) == ["0005", "0005", "0005"]
    assert state.cancellations[0].first_issue == 1


def test_early_cancellations_are_applied_in_the_order_of_their_arrival():
    state = after(
        cancelled("pending", line_item_id=ITEMS[1]),
        cancelled("pending", id="c-2", cancellation_id=SECOND_CANCELLATION, line_item_id=ITEMS[0]),
        created(),
    )
    assert [entry.id for entry in state.cancellations] == [CANCELLATION, SECOND_CANCELLATION]
    assert entry_states(state) == ["applied", "applied"]
    assert issue_statuses(state) == ["0005"]


def test_an_early_cancellation_of_one_item_leaves_the_other_to_be_dispensed():
    state = after(cancelled("pending", line_item_id=ITEMS[1]), created())
    assert issue_statuses(state) == ["0001"]
    assert item_statuses(state) == ("0007", "0005")


@pytest.mark.parametrize(
    "wrong",
    [{"nhs_number": OTHER_NHS_NUMBER}, {"line_item_id": UNKNOWN_ITEM}],
    ids=["another NHS number", "an unknown item"],
)
def test_an_early_cancellation_that_does_not_fit_is_settled_as_unsuccessful(wrong: dict[str, str]):
    state = after(cancelled("pending", **wrong), created())
    assert entry_states(state) == ["unsuccessful"]
    assert issue_statuses(state) == ["0001"]
    assert not state.pending_cancellations


def test_each_early_cancellation_is_compared_with_its_own_nhs_number():
    state = after(
        cancelled("pending", nhs_number=OTHER_NHS_NUMBER),
        cancelled("pending", id="c-2", cancellation_id=SECOND_CANCELLATION),
        created(),
    )
    assert entry_states(state) == ["unsuccessful", "applied"]
    assert state.prescribed.nhs_number == NHS_NUMBER
    assert issue_statuses(state) == ["0005"]


def test_an_early_cancellation_that_was_unsuccessful_is_not_applied():
    state = after(cancelled("pending"), cancelled("unsuccessful", id="c-2"), created())
    assert entry_states(state) == ["unsuccessful"]
    assert issue_statuses(state) == ["0001"]


def test_the_prescription_after_its_placeholder_is_the_next_version():
    state = after(cancelled("pending"), repeat_dispensing(2, time=days_later(1)))
    assert state.kind is Kind.CREATED
    assert state.version == 2
    assert [issue.version for issue in state.issues] == [2, 2]
    assert state.last_event_at == days_later(1)
    assert state.prescribed.prescriber == SURGERY
    assert len(state.prescribed.line_items) == 2


def test_an_early_cancellation_completes_the_issues_on_the_day_the_prescription_arrived():
    state = after(cancelled("pending"), created(time=days_later(1)))
    assert state.issues[0].completed_at == day_of(days_later(1))


def test_a_placeholder_can_expire():
    state = after(cancelled("pending"), expired(time=days_later(180)))
    assert issue_statuses(state) == ["0004"]
    assert state.issues[0].completed_at == day_of(days_later(180))
    assert state.version == 2


def test_created_folds_on_an_expired_placeholder_and_its_cancellations_apply():
    state = after(cancelled("pending"), expired(), created(prescribing_organisation=SURGERY))
    assert state.kind is Kind.CREATED
    assert issue_statuses(state) == ["0005"]
    assert entry_states(state) == ["applied"]


# issued ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["0000", "0001"])
def test_issued_gives_the_issue_its_status_and_makes_it_current(status: str):
    state = after(repeat_dispensing(3), issued(issue_number=2, status=status))
    assert issue_statuses(state) == ["0001", status, "9000"]
    assert state.current_issue == 2


def test_issued_leaves_an_issue_that_can_be_downloaded_as_it_is():
    state = after(created(), issued(status="0000"))
    assert issue_statuses(state) == ["0001"]
    assert state.issues[0].version == 1
    assert state.version == 2


def test_issued_keeps_the_download_date():
    state = after(
        repeat_dispensing(2), issued(issue_number=2, status="0000", nominated_download_date=date(2026, 3, 23))
    )
    assert state.issues[1].nominated_download_date == date(2026, 3, 23)


def test_an_issue_that_becomes_available_keeps_the_download_date_it_had():
    state = after(
        repeat_dispensing(2),
        issued(issue_number=2, status="0000", nominated_download_date=date(2026, 3, 23)),
        issued(id="i-2", issue_number=2),
    )
    assert state.issues[1].nominated_download_date == date(2026, 3, 23)


def test_a_new_download_date_alone_changes_an_issue_at_0001():
    state = after(created(), issued(nominated_download_date=date(2026, 3, 23)))
    assert state.issues[0].version == 2


def test_issued_leaves_the_items():
    state = after(
        repeat_dispensing(2, line_items=prescribed_items(2, issues=2, last_item_issues=1)), issued(issue_number=2)
    )
    assert item_statuses(state, 2) == ("0007", "0006")


def test_no_issue_before_the_current_one_is_issued():
    state = after(repeat_dispensing(3), issued(issue_number=2))
    assert refusal(state, issued(id="i-2", issue_number=1)).path == "data.issueNumber"


def test_the_current_issue_can_be_issued_again():
    assert after(repeat_dispensing(3), issued(issue_number=2), issued(id="i-2", issue_number=2)).current_issue == 2


# released, returned ---------------------------------------------------------------------------------------------------


def test_a_released_issue_is_with_the_dispenser():
    state = after(created(), released(time=days_later(1), dispensing_organisation=OTHER_PHARMACY))
    (issue,) = state.issues
    assert issue.status == "0002"
    assert issue.item_statuses == ("0008", "0008")
    assert issue.dispenser == OTHER_PHARMACY
    assert issue.releasing == OTHER_PHARMACY
    assert issue.released_at == days_later(1)


def test_release_leaves_cancelled_and_expired_items():
    state = after(
        repeat_dispensing(2, line_items=prescribed_items(3, issues=2, last_item_issues=1)),
        cancelled(line_item_id=ITEMS[1]),
        issued(issue_number=2),
        released(issue_number=2),
    )
    assert item_statuses(state, 2) == ("0008", "0005", "0006")


def test_an_issue_is_released_early_while_it_awaits_its_download_date():
    state = after(repeat_dispensing(2), issued(issue_number=2, status="0000"), released(issue_number=2))
    assert issue_statuses(state) == ["0001", "0002"]
    assert item_statuses(state, 1) == ("0007", "0007")


def test_a_returned_issue_can_be_downloaded_again():
    state = after(created(), released(time=days_later(1)), returned(time=days_later(2)))
    (issue,) = state.issues
    assert issue.status == "0001"
    assert issue.item_statuses == ("0007", "0007")
    assert issue.dispenser is None
    assert issue.released_at == days_later(1)


def test_a_return_leaves_cancelled_items():
    state = after(created(), cancelled(line_item_id=ITEMS[0]), released(), returned())
    assert item_statuses(state) == ("0005", "0007")


@pytest.mark.parametrize(("keep", "nominee"), [(False, None), (True, PHARMACY)])
def test_a_return_clears_the_nomination_unless_it_is_kept(keep: bool, nominee):
    assert after(created(), released(), returned(keep_nomination=keep)).nominated == nominee


def test_a_returned_issue_is_released_to_another_dispenser():
    state = after(
        created(),
        released(time=days_later(1)),
        returned(),
        released(id="r-2", time=days_later(3), dispensing_organisation=OTHER_PHARMACY),
    )
    (issue,) = state.issues
    assert (issue.dispenser, issue.releasing, issue.released_at) == (OTHER_PHARMACY, OTHER_PHARMACY, days_later(3))


# dispensed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (("0001", "0001", "0004", "0004"), "0003"),
        (("0003", "0001", "0001", "0001"), "0003"),
        (("0001", "0001", "0001", "0008"), "0003"),
        (("0004", "0002", "0002", "0002"), "0003"),
        (("0008", "0008", "0008", "0008"), "0003"),
        (("0002", "0001", "0001", "0001"), "0006"),
        (("0001", "0001", "0001", "0001"), "0006"),
        (("0002", "0002", "0002", "0001"), "0006"),
        (("0002", "0002", "0002", "0002"), "0007"),
    ],
)
def test_without_a_status_of_its_own_the_issue_follows_its_items(sent: tuple[str, ...], status: str):
    state = after(created(line_items=prescribed_items(4)), released(), dispensed(*sent))
    assert issue_statuses(state) == [status]
    assert item_statuses(state) == sent


@pytest.mark.parametrize(
    ("sent", "status"),
    [(("0001", "0005"), "0006"), (("0002", "0005"), "0007"), (("0003", "0005"), "0003")],
)
def test_cancelled_items_do_not_keep_an_issue_from_being_complete(sent: tuple[str, ...], status: str):
    state = after(created(), cancelled(line_item_id=ITEMS[1]), released(), dispensed(*sent))
    assert issue_statuses(state) == [status]


def test_expired_items_do_not_keep_an_issue_from_being_complete():
    state = after(
        repeat_dispensing(2, line_items=prescribed_items(2, issues=2, last_item_issues=1)),
        issued(issue_number=2),
        released(issue_number=2),
        dispensed("0002", "0006", issue_number=2),
    )
    assert issue_statuses(state) == ["0001", "0007"]


@pytest.mark.parametrize("status", ["0003", "0006", "0007"])
def test_the_status_that_is_sent_stands_whatever_the_items_say(status: str):
    assert issue_statuses(after(created(), released(), dispensed(prescription_status=status))) == [status]


def test_items_are_found_by_their_ids_and_not_by_their_order():
    state = after(
        created(),
        released(),
        dispensed(line_items=(ItemStatus(ITEMS[1], "0002"), ItemStatus(ITEMS[0], "0001"))),
    )
    assert item_statuses(state) == ("0001", "0002")


def test_whoever_dispenses_is_the_dispenser():
    state = after(created(), released(), dispensed(dispensing_organisation=OTHER_PHARMACY))
    assert state.issues[0].dispenser == OTHER_PHARMACY
    assert state.issues[0].releasing == PHARMACY


def test_the_last_dispense_date_is_when_it_was_dispensed():
    state = after(created(), released(), dispensed(time=days_later(2), dispensed_at=days_later(1)))
    assert state.issues[0].last_dispensed_at == days_later(1)
    assert state.last_event_at == days_later(2)


@pytest.mark.parametrize(
    ("status", "completed"), [("0003", None), ("0006", midnight(2026, 3, 3)), ("0007", midnight(2026, 3, 3))]
)
def test_an_issue_is_complete_on_the_day_it_was_dispensed(status: str, completed):
    state = after(
        created(),
        released(),
        dispensed(prescription_status=status, dispensed_at=days_later(1), time=days_later(4)),
    )
    assert state.issues[0].completed_at == completed


def test_dispensing_does_not_move_the_current_issue_nor_touch_another():
    before = after(repeat_dispensing(2), released())
    state = after(dispensed(), state=before)
    assert state.current_issue == 1
    assert state.issues[1] == before.issues[1]


def test_an_issue_is_dispensed_in_parts():
    state = after(
        created(),
        released(),
        dispensed("0003", "0001"),
        dispensed("0001", "0001", id="d-2", notification_id=SECOND_NOTIFICATION),
    )
    assert issue_statuses(state) == ["0006"]
    assert [(n.id, n.number, n.withdrawn) for n in state.notifications] == [
        (NOTIFICATION, 1, False),
        (SECOND_NOTIFICATION, 2, False),
    ]


def test_a_notification_is_kept_with_what_it_said():
    state = after(
        created(),
        released(),
        dispensed("0003", "0001", dispensed_at=days_later(1), dispensing_organisation=OTHER_PHARMACY),
    )
    (notification,) = state.notifications
    assert notification.issue_number == 1
    assert notification.dispensed_at == days_later(1)
    assert notification.status == "0003"
    assert notification.item_statuses == ("0003", "0001")
    assert notification.dispenser_ods == OTHER_PHARMACY.ods
    assert notification.amends is None


def test_the_same_notification_id_may_stand_in_another_issue():
    state = after(
        repeat_dispensing(2),
        released(),
        dispensed(),
        issued(issue_number=2),
        released(id="r-2", issue_number=2),
        dispensed(id="d-2", issue_number=2),
    )
    assert issue_statuses(state) == ["0006", "0006"]
    assert [(n.issue_number, n.number) for n in state.notifications] == [(1, 1), (2, 1)]


@pytest.mark.parametrize(
    ("first", "sent", "status"),
    [
        (("0001", "0001"), ("0001", "0002"), "0006"),
        (("0001", "0001"), ("0002", "0002"), "0007"),
        (("0001", "0001"), ("0003", "0001"), "0003"),
        (("0002", "0002"), ("0001", "0002"), "0006"),
        (("0002", "0002"), ("0004", "0002"), "0003"),
        (("0003", "0001"), ("0004", "0001"), "0003"),
    ],
)
def test_an_amendment_replaces_what_the_last_notification_said(first, sent, status: str):
    state = after(
        created(),
        released(),
        dispensed(*first),
        dispensed(*sent, id="d-2", notification_id=SECOND_NOTIFICATION, amends=NOTIFICATION),
    )
    assert issue_statuses(state) == [status]
    assert item_statuses(state) == sent
    assert state.notifications[1].amends == NOTIFICATION


def test_an_amendment_back_to_0003_keeps_the_completion_date():
    state = after(
        created(),
        released(),
        dispensed(dispensed_at=days_later(1)),
        dispensed(
            "0003",
            "0001",
            id="d-2",
            notification_id=SECOND_NOTIFICATION,
            amends=NOTIFICATION,
            dispensed_at=days_later(2),
        ),
    )
    assert issue_statuses(state) == ["0003"]
    assert state.issues[0].completed_at == day_of(days_later(1))
    assert state.issues[0].last_dispensed_at == days_later(2)


def test_an_amendment_that_completes_the_issue_completes_it_on_its_own_day():
    state = after(
        created(),
        released(),
        dispensed(dispensed_at=days_later(1)),
        dispensed(
            "0002",
            "0002",
            id="d-2",
            notification_id=SECOND_NOTIFICATION,
            amends=NOTIFICATION,
            dispensed_at=days_later(2),
        ),
    )
    assert state.issues[0].completed_at == day_of(days_later(2))


def test_an_issue_that_is_not_the_current_one_can_be_amended():
    state = after(
        repeat_dispensing(2),
        released(),
        dispensed(),
        issued(issue_number=2),
        dispensed("0002", "0002", id="d-2", notification_id=SECOND_NOTIFICATION, amends=NOTIFICATION),
    )
    assert issue_statuses(state) == ["0007", "0001"]
    assert state.current_issue == 2


# dispense-withdrawn ---------------------------------------------------------------------------------------------------


def test_withdrawing_the_only_notification_puts_the_issue_back_with_the_dispenser():
    before = after(created(), released(time=days_later(1), dispensing_organisation=OTHER_PHARMACY))
    state = after(dispensed(dispensed_at=days_later(2)), dispense_withdrawn(time=days_later(3)), state=before)
    (issue,) = state.issues
    assert issue.status == "0002"
    assert issue.item_statuses == ("0008", "0008")
    assert issue.dispenser == OTHER_PHARMACY
    assert issue.completed_at is None
    assert issue.version == state.version == 4
    assert state.last_event_at == days_later(3)


def test_where_there_was_no_last_dispense_date_a_withdrawal_leaves_the_release_date():
    state = after(created(), released(time=days_later(1)), dispensed(dispensed_at=days_later(2)), dispense_withdrawn())
    assert state.issues[0].last_dispensed_at == days_later(1)


def test_withdrawing_the_second_notification_leaves_what_the_first_said():
    first = after(created(), released(), dispensed("0003", "0001", dispensed_at=days_later(1)))
    state = after(
        dispensed("0001", "0001", id="d-2", notification_id=SECOND_NOTIFICATION, dispensed_at=days_later(2)),
        dispense_withdrawn(notification_id=SECOND_NOTIFICATION),
        state=first,
    )
    assert state.issues[0]._replace(version=0) == first.issues[0]._replace(version=0)


def test_after_a_withdrawal_the_notification_before_it_is_the_last_one():
    state = after(
        created(),
        released(),
        dispensed("0003", "0001"),
        dispensed("0001", "0001", id="d-2", notification_id=SECOND_NOTIFICATION),
        dispense_withdrawn(notification_id=SECOND_NOTIFICATION),
    )
    amended = after(
        dispensed("0002", "0001", id="d-3", notification_id=THIRD_NOTIFICATION, amends=NOTIFICATION), state=state
    )
    withdrawn = after(dispense_withdrawn(id="w-2", notification_id=NOTIFICATION), state=state)
    assert issue_statuses(amended) == ["0006"]
    assert issue_statuses(withdrawn) == ["0002"]


def test_withdrawing_an_amendment_leaves_what_it_amended():
    state = after(
        created(),
        released(),
        dispensed(dispensed_at=days_later(1)),
        dispensed(
            "0002",
            "0002",
            id="d-2",
            notification_id=SECOND_NOTIFICATION,
            amends=NOTIFICATION,
            dispensed_at=days_later(2),
        ),
        dispense_withdrawn(notification_id=SECOND_NOTIFICATION),
    )
    (issue,) = state.issues
    assert issue.status == "0006"
    assert issue.item_statuses == ("0001", "0001")
    assert issue.completed_at == day_of(days_later(1))
    assert issue.last_dispensed_at == days_later(1)


def test_in_repeat_dispensing_a_restored_0002_becomes_0003():
    state = after(repeat_dispensing(2), released(), dispensed(), dispense_withdrawn())
    assert issue_statuses(state) == ["0003", "9000"]
    assert item_statuses(state) == ("0008", "0008")


def test_in_repeat_dispensing_any_other_status_is_restored_as_it_was():
    state = after(
        repeat_dispensing(2),
        released(),
        dispensed("0001", "0001"),
        dispensed("0002", "0002", id="d-2", notification_id=SECOND_NOTIFICATION, amends=NOTIFICATION),
        dispense_withdrawn(notification_id=SECOND_NOTIFICATION),
    )
    assert issue_statuses(state) == ["0006", "9000"]


def test_a_withdrawal_does_not_move_the_current_issue_back():
    state = after(repeat_dispensing(2), released(), dispensed(), issued(issue_number=2), dispense_withdrawn())
    assert issue_statuses(state) == ["0003", "0001"]
    assert state.current_issue == 2


def test_a_notification_of_an_issue_that_was_cancelled_since_can_be_withdrawn():
    state = after(created(), released(), dispensed("0003", "0001"), cancelled(), dispense_withdrawn())
    assert issue_statuses(state) == ["0002"]
    assert item_statuses(state) == ("0008", "0008")
    assert state.issues[0].completed_at is None


# cancelled ------------------------------------------------------------------------------------------------------------


def test_cancelling_the_prescription_cancels_the_current_and_every_later_issue():
    state = after(repeat_dispensing(3), released(), dispensed(), issued(issue_number=2), cancelled(time=days_later(9)))
    assert issue_statuses(state) == ["0006", "0005", "0005"]
    assert item_statuses(state, 1) == ("0001", "0001")
    assert item_statuses(state, 3) == ("0005", "0005")
    assert state.issues[1].completed_at == day_of(days_later(9))


def test_cancelling_the_prescription_leaves_items_that_are_no_longer_active():
    state = after(
        created(line_items=prescribed_items(4)), released(), dispensed("0001", "0002", "0003", "0004"), cancelled()
    )
    assert item_statuses(state) == ("0001", "0002", "0005", "0005")


def test_a_cancellation_acts_from_the_issue_it_names():
    state = after(repeat_dispensing(4), cancelled(issue_number=3))
    assert issue_statuses(state) == ["0001", "9000", "0005", "0005"]
    assert state.current_issue == 1
    assert state.cancellations[0].first_issue == 3


def test_a_cancellation_may_act_on_issues_before_the_current_one():
    state = after(repeat_dispensing(3), issued(issue_number=2), cancelled(issue_number=1))
    assert issue_statuses(state) == ["0005", "0005", "0005"]


@pytest.mark.parametrize("status", ["0004", "0006", "0007", "0008", "0009"])
@pytest.mark.parametrize("target", [{}, {"line_item_id": ITEMS[0]}], ids=["prescription", "line item"])
def test_an_issue_that_is_done_is_left_as_it_is_items_included(status: str, target: dict[str, str]):
    before = after(created(), corrected_to(status, "0007", "0003"))
    state = after(cancelled(**target), state=before)
    assert state.issues == before.issues
    assert entry_states(state) == ["applied"]


def test_each_issue_is_treated_by_itself():
    state = after(
        repeat_dispensing(3),
        corrected_to("0006", "0001", "0001", issue_number=2),
        cancelled(),
    )
    assert issue_statuses(state) == ["0005", "0006", "0005"]


def test_a_cancelled_item_leaves_the_issue_while_another_is_active():
    state = after(created(), cancelled(line_item_id=ITEMS[0]))
    assert issue_statuses(state) == ["0001"]
    assert item_statuses(state) == ("0005", "0007")
    assert state.issues[0].completed_at is None


@pytest.mark.parametrize("other", ["0001", "0002", "0005", "0006"])
def test_cancelling_the_last_active_item_cancels_the_issue(other: str):
    state = after(created(), corrected_to("0003", "0008", other), cancelled(line_item_id=ITEMS[0], time=days_later(5)))
    assert issue_statuses(state) == ["0005"]
    assert item_statuses(state) == ("0005", other)
    assert state.issues[0].completed_at == day_of(days_later(5))


@pytest.mark.parametrize("other", ["0003", "0004", "0007", "0008"])
def test_an_active_item_keeps_the_issue_from_being_cancelled(other: str):
    state = after(created(), corrected_to("0003", "0008", other), cancelled(line_item_id=ITEMS[0]))
    assert issue_statuses(state) == ["0003"]


def test_cancelling_an_item_can_cancel_a_later_issue_and_not_the_current_one():
    items = prescribed_items(2, issues=4, last_item_issues=2)
    state = after(repeat_dispensing(4, line_items=items), issued(issue_number=2), cancelled(line_item_id=ITEMS[0]))
    assert issue_statuses(state) == ["0001", "0001", "0005", "0005"]
    assert [item_statuses(state, number) for number in (2, 3, 4)] == [
        ("0005", "0007"),
        ("0005", "0006"),
        ("0005", "0006"),
    ]
    assert state.current_issue == 2


def test_an_item_is_cancelled_also_in_an_issue_that_is_cancelled_already():
    state = after(
        created(),
        corrected_to("0003", "0001", "0007"),
        cancelled(),
        cancelled(id="c-2", cancellation_id=SECOND_CANCELLATION, line_item_id=ITEMS[0]),
    )
    assert issue_statuses(state) == ["0005"]
    assert item_statuses(state) == ("0005", "0005")


def test_an_issue_that_was_cancelled_keeps_its_completion_date():
    state = after(
        created(),
        corrected_to("0003", "0001", "0007"),
        cancelled(time=days_later(1)),
        cancelled(id="c-2", cancellation_id=SECOND_CANCELLATION, line_item_id=ITEMS[0], time=days_later(2)),
    )
    assert state.issues[0].completed_at == day_of(days_later(1))


@pytest.mark.parametrize("status", ["0000", "0001", "0002", "0003", "9000", "9001"])
def test_after_a_cancellation_the_first_open_issue_from_the_current_one_is_current(status: str):
    state = after(repeat_dispensing(4), corrected_to("0006"), corrected_to(status, issue_number=3))
    state = after(corrected_to("0007", issue_number=2), cancelled(issue_number=4), state=state)
    assert state.current_issue == 3


def test_after_a_cancellation_of_everything_the_last_issue_is_current():
    assert after(repeat_dispensing(3), cancelled()).current_issue == 3


def test_after_a_cancellation_no_issue_before_the_current_one_becomes_current():
    state = after(repeat_dispensing(3), issued(issue_number=2), cancelled())
    assert issue_statuses(state) == ["0001", "0005", "0005"]
    assert state.current_issue == 3


@pytest.mark.parametrize("outcome", ["pending", "unsuccessful"])
def test_a_cancellation_that_is_not_applied_changes_no_issue(outcome: str):
    before = after(repeat_dispensing(2), released())
    state = after(cancelled(outcome, time=days_later(1)), state=before)
    assert state.issues == before.issues
    assert state.current_issue == before.current_issue
    assert state.version == 3
    assert state.last_event_at == days_later(1)


@pytest.mark.parametrize(("outcome", "state"), [("applied", "applied"), ("unsuccessful", "unsuccessful")])
def test_a_pending_cancellation_is_settled_by_its_id(outcome: str, state: str):
    settled = after(created(), released(), cancelled("pending"), cancelled(outcome, id="c-2"))
    assert entry_states(settled) == [state]
    assert not settled.pending_cancellations


def test_an_unsuccessful_cancellation_leaves_other_pending_ones():
    state = after(
        created(),
        released(),
        cancelled("pending"),
        cancelled("unsuccessful", id="c-2", cancellation_id=SECOND_CANCELLATION),
    )
    assert state.pending_cancellations


@pytest.mark.parametrize("settled_as", ["applied", "unsuccessful"])
def test_pending_after_it_was_settled_changes_nothing(settled_as: str):
    before = after(created(), released(), cancelled("pending"), cancelled(settled_as, id="c-2"))
    state = after(cancelled("pending", id="c-3", reason_text="again", time=days_later(1)), state=before)
    assert state == before._replace(version=before.version + 1, last_event_at=days_later(1))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("pending", "pending"),
        ("pending", "applied"),
        ("pending", "unsuccessful"),
        ("applied", "applied"),
        ("applied", "unsuccessful"),
        ("unsuccessful", "unsuccessful"),
        ("unsuccessful", "applied"),
    ],
)
def test_otherwise_the_latest_use_of_a_cancellation_id_replaces_the_entry(first: str, second: str):
    state = after(
        created(),
        cancelled(first),
        cancelled(second, id="c-2", reason_code="0002", reason_text="Clinical", time=days_later(1)),
    )
    (entry,) = state.cancellations
    assert entry.state == second
    assert (entry.reason_code, entry.reason_text, entry.requested_at) == ("0002", "Clinical", days_later(1))
    assert entry.number == 1


def test_a_cancellation_applied_again_acts_as_it_says_now():
    state = after(
        created(), cancelled(line_item_id=ITEMS[0]), cancelled(id="c-2", line_item_id=ITEMS[1], time=days_later(1))
    )
    assert item_statuses(state) == ("0005", "0005")
    assert issue_statuses(state) == ["0005"]
    assert [entry.item_id for entry in state.cancellations] == [ITEMS[1]]


@pytest.mark.parametrize(
    ("events", "pending"),
    [
        ([], False),
        ([cancelled("pending")], True),
        ([cancelled("pending", issue_number=1)], True),
        ([cancelled("pending", issue_number=2)], False),
        ([cancelled("pending", issue_number=2), issued(issue_number=2)], True),
        ([cancelled("pending"), issued(issue_number=3)], True),
        ([cancelled("applied")], False),
        ([cancelled("unsuccessful")], False),
        ([cancelled("pending"), cancelled("unsuccessful", id="c-2", line_item_id=UNKNOWN_ITEM)], False),
        ([cancelled("pending", line_item_id=ITEMS[0])], True),
    ],
)
def test_pending_cancellations_are_those_that_act_on_the_current_issue(events: list[Event], pending: bool):
    assert after(repeat_dispensing(3), released(), *events).pending_cancellations is pending


@pytest.mark.parametrize("wrong", [{"line_item_id": UNKNOWN_ITEM}, {"issue_number": 9}])
def test_an_unsuccessful_cancellation_may_name_an_item_or_issue_that_does_not_exist(wrong):
    before = after(created(), released(), cancelled("pending"))
    state = after(cancelled("unsuccessful", id="c-2", **wrong), state=before)
    assert entry_states(state) == ["unsuccessful"]
    assert state.issues == before.issues


def test_a_cancellation_is_kept_with_what_it_said():
    state = after(
        created(),
        cancelled("pending", line_item_id=ITEMS[1], reason_code="0003", reason_text="Error", time=days_later(1)),
    )
    (entry,) = state.cancellations
    assert (entry.id, entry.number, entry.nhs_number) == (CANCELLATION, 1, NHS_NUMBER)
    assert (entry.target, entry.item_id, entry.first_issue) == ("lineItem", ITEMS[1], 1)
    assert (entry.reason_code, entry.reason_text) == ("0003", "Error")
    assert (entry.organisation_ods, entry.requested_at) == (SURGERY.ods, days_later(1))


# claimed, not-claimed, expired ----------------------------------------------------------------------------------------


def test_a_claimed_issue_keeps_the_time_of_the_claim():
    before = after(created(), released(), dispensed(dispensed_at=days_later(1)))
    state = after(claimed(time=days_later(8)), state=before)
    assert state.issues[0] == before.issues[0]._replace(status="0008", claimed_at=days_later(8), version=4)


def test_a_claim_does_not_move_the_current_issue():
    state = after(repeat_dispensing(2), released(), dispensed(), issued(issue_number=2), claimed())
    assert issue_statuses(state) == ["0008", "0001"]
    assert state.current_issue == 2


def test_an_amended_claim_overwrites_the_time_of_the_claim():
    state = after(
        created(),
        released(),
        dispensed(),
        claimed(time=days_later(8)),
        claimed(id="k-2", claim_id=SECOND_CANCELLATION, amends=UNKNOWN_ITEM, time=days_later(9)),
    )
    assert issue_statuses(state) == ["0008"]
    assert state.issues[0].claimed_at == days_later(9)


def test_not_claimed_overwrites_the_completion_date_and_leaves_the_items():
    state = after(created(), released(), dispensed(dispensed_at=days_later(1)), not_claimed(time=days_later(181)))
    assert issue_statuses(state) == ["0009"]
    assert item_statuses(state) == ("0001", "0001")
    assert state.issues[0].completed_at == day_of(days_later(181))
    assert state.issues[0].claimed_at is None


def test_not_claimed_completes_an_issue_that_is_partly_dispensed():
    state = after(created(), released(), dispensed("0003", "0004"), not_claimed(time=days_later(181)))
    assert issue_statuses(state) == ["0009"]
    assert item_statuses(state) == ("0003", "0004")
    assert state.issues[0].completed_at == day_of(days_later(181))


def test_a_claim_after_not_claimed_keeps_the_completion_date():
    state = after(created(), released(), dispensed(), not_claimed(time=days_later(181)), claimed(time=days_later(182)))
    assert issue_statuses(state) == ["0008"]
    assert state.issues[0].completed_at == day_of(days_later(181))


def test_expiry_ends_the_issue_and_every_later_one_and_the_last_is_current():
    state = after(
        repeat_dispensing(4), released(), dispensed(), issued(issue_number=2), expired(issue_number=2, time=NOON)
    )
    assert issue_statuses(state) == ["0006", "0004", "0004", "0004"]
    assert state.current_issue == 4
    assert [issue.completed_at for issue in state.issues[1:]] == [day_of(NOON)] * 3


def test_expiry_of_a_partly_dispensed_issue_makes_it_dispensed():
    state = after(
        repeat_dispensing(2),
        released(),
        dispensed("0003", "0004", dispensed_at=days_later(1)),
        expired(time=days_later(180)),
    )
    assert issue_statuses(state) == ["0006", "0004"]
    assert item_statuses(state) == ("0001", "0002")
    assert state.issues[0].completed_at == day_of(days_later(180))


@pytest.mark.parametrize("status", ["0004", "0005", "0006", "0007", "0008", "0009"])
def test_expiry_leaves_a_later_issue_that_is_final_but_not_its_items(status: str):
    before = after(repeat_dispensing(2), corrected_to(status, "0003", "0004", issue_number=2))
    state = after(expired(), state=before)
    assert issue_statuses(state) == ["0004", status]
    assert item_statuses(state, 2) == ("0001", "0002")
    assert state.issues[1].completed_at == before.issues[1].completed_at


def test_expiry_keeps_the_completion_date_of_a_later_issue_that_is_final():
    state = after(
        repeat_dispensing(2),
        issued(issue_number=2),
        released(issue_number=2),
        dispensed(issue_number=2, dispensed_at=days_later(1)),
        expired(time=days_later(180)),
    )
    assert issue_statuses(state) == ["0004", "0006"]
    assert state.issues[1].completed_at == day_of(days_later(1))


# nominated, corrected, deleted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("nominee", [None, OTHER_PHARMACY])
def test_a_nomination_replaces_the_nominated_dispenser_and_nothing_else(nominee):
    before = after(created())
    state = after(nominated(nominated_dispenser=nominee, time=days_later(1)), state=before)
    assert state == before._replace(nominated=nominee, version=2, last_event_at=days_later(1))


def test_a_correction_replaces_the_fields_it_names():
    state = after(
        repeat_dispensing(2),
        corrected(
            CorrectedIssue(
                issue_number=2,
                status="0006",
                line_items=(ItemStatus(ITEMS[1], "0001"),),
                dispensing_organisation=OTHER_PHARMACY,
                release_date=date(2026, 3, 20),
                last_dispense_date=date(2026, 3, 21),
            ),
            current_issue_number=2,
        ),
    )
    issue = state.issues[1]
    assert issue.status == "0006"
    assert issue.item_statuses == ("0007", "0001")
    assert issue.dispenser == OTHER_PHARMACY
    assert issue.released_at == midnight(2026, 3, 20)
    assert issue.last_dispensed_at == midnight(2026, 3, 21)
    assert state.current_issue == 2


def test_a_correction_leaves_the_fields_it_does_not_name():
    before = after(created(), released(), dispensed())
    state = after(corrected(CorrectedIssue(1), time=days_later(1)), state=before)
    assert state == before._replace(version=4, last_event_at=days_later(1))


def test_a_correction_can_take_the_dispenser_away():
    state = after(created(), released(), corrected(CorrectedIssue(1, clear_dispenser=True)))
    assert state.issues[0].dispenser is None
    assert state.issues[0].status == "0002"


def test_a_correction_of_several_issues_changes_each():
    state = after(repeat_dispensing(3), corrected(CorrectedIssue(1, "0006"), CorrectedIssue(3, "0005")))
    assert issue_statuses(state) == ["0006", "9000", "0005"]


def test_a_correction_may_change_the_current_issue_alone():
    state = after(repeat_dispensing(2), corrected(current_issue_number=2))
    assert state.current_issue == 2
    assert [issue.version for issue in state.issues] == [1, 1]


@pytest.mark.parametrize("events", [[created()], [cancelled("pending")], [created(), released(), dispensed()]])
def test_a_deleted_prescription_leaves_the_read_models(events: list[Event]):
    assert evolve(after(*events), deleted()) is None


# versions and the last event ------------------------------------------------------------------------------------------

THREE_ISSUES = repeat_dispensing(3)
DISPENSED_ONCE = (THREE_ISSUES, released(), dispensed())


@pytest.mark.parametrize(
    ("before", "event", "changed"),
    [
        ([THREE_ISSUES], issued(issue_number=2), [2]),
        ([THREE_ISSUES], issued(), []),
        ([THREE_ISSUES], released(), [1]),
        ([THREE_ISSUES, released()], dispensed(), [1]),
        ([THREE_ISSUES, released()], returned(), [1]),
        ([*DISPENSED_ONCE], dispense_withdrawn(), [1]),
        ([*DISPENSED_ONCE], claimed(), [1]),
        ([*DISPENSED_ONCE], not_claimed(), [1]),
        ([*DISPENSED_ONCE, claimed()], claimed(id="k-2", amends=CANCELLATION, time=days_later(1)), [1]),
        ([*DISPENSED_ONCE], cancelled(), [2, 3]),
        ([THREE_ISSUES], cancelled(issue_number=2), [2, 3]),
        ([THREE_ISSUES], cancelled(line_item_id=ITEMS[0]), [1, 2, 3]),
        ([THREE_ISSUES], cancelled("pending"), []),
        ([THREE_ISSUES], cancelled("unsuccessful"), []),
        ([THREE_ISSUES, cancelled()], cancelled(id="c-2", cancellation_id=SECOND_CANCELLATION), []),
        (
            [THREE_ISSUES, cancelled(line_item_id=ITEMS[0])],
            cancelled(id="c-2", cancellation_id=SECOND_CANCELLATION, line_item_id=ITEMS[0]),
            [],
        ),
        ([THREE_ISSUES], expired(issue_number=2), [2, 3]),
        ([THREE_ISSUES, cancelled(issue_number=2)], expired(), [1]),
        ([THREE_ISSUES], nominated(), []),
        ([THREE_ISSUES], corrected(CorrectedIssue(3, release_date=date(2026, 3, 2))), [3]),
        ([THREE_ISSUES], corrected(CorrectedIssue(1, status="0001"), CorrectedIssue(2, status="0001")), [2]),
        ([THREE_ISSUES], corrected(CorrectedIssue(2, line_items=statuses("0005"))), [2]),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "envelope") else None,
)
def test_an_event_raises_the_version_of_the_prescription_and_of_the_issues_it_changed(
    before: list[Event], event: Event, changed: list[int]
):
    state = after(*before)
    later = after(event, state=state)
    assert later.version == state.version + 1
    assert [issue.number for issue in later.issues if issue.version == later.version] == changed
    untouched = [issue for issue in later.issues if issue.number not in changed]
    assert untouched == [issue for issue in state.issues if issue.number not in changed]


def test_the_last_event_time_is_that_of_the_event_folded_last_even_if_earlier():
    state = after(created(time=days_later(2)), nominated(time=days_later(1)))
    assert state.last_event_at == days_later(1)


# what does not fold ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("issue_number", [0, 3, 99])
@pytest.mark.parametrize(
    "make",
    [issued, released, dispensed, dispense_withdrawn, returned, claimed, not_claimed, expired, cancelled],
    ids=lambda make: make.__name__,
)
def test_an_unknown_issue_is_refused(make, issue_number: int):
    state = after(repeat_dispensing(2), released(), dispensed("0003", "0003"))
    assert refusal(state, make(id="x", issue_number=issue_number)).path == "data.issueNumber"


def test_a_pending_cancellation_of_an_unknown_issue_is_refused():
    assert refusal(after(created()), cancelled("pending", issue_number=2)).path == "data.issueNumber"


@pytest.mark.parametrize("outcome", ["applied", "pending"])
def test_a_cancellation_of_an_unknown_item_is_refused(outcome: str):
    assert refusal(after(created()), cancelled(outcome, line_item_id=UNKNOWN_ITEM)).path == "data.lineItemId"


@pytest.mark.parametrize("outcome", ["applied", "pending", "unsuccessful"])
def test_a_cancellation_for_another_nhs_number_is_refused(outcome: str):
    assert refusal(after(created()), cancelled(outcome, nhs_number=OTHER_NHS_NUMBER)).path == "data.nhsNumber"


@pytest.mark.parametrize(
    "line_items",
    [
        statuses("0001"),
        statuses("0001", "0001", "0001"),
        (ItemStatus(ITEMS[0], "0001"), ItemStatus(UNKNOWN_ITEM, "0001")),
    ],
    ids=["one missing", "one too many", "one unknown"],
)
def test_a_notification_for_other_items_is_refused(line_items):
    state = after(created(), released())
    assert refusal(state, dispensed(line_items=line_items)).path == "data.lineItems"


@pytest.mark.parametrize("closed", ["0005", "0006"])
@pytest.mark.parametrize("sent", ["0001", "0002", "0003", "0004", "0005", "0006", "0008"])
def test_a_closed_item_repeats_its_status(closed: str, sent: str):
    state = after(created(), corrected_to("0002", "0008", closed))
    event = dispensed("0001", sent)
    if sent == closed:
        assert item_statuses(after(event, state=state)) == ("0001", closed)
    else:
        assert refusal(state, event).path == "data.lineItems.1.status"


@pytest.mark.parametrize("before", ["0001", "0002", "0003", "0004", "0007", "0008"])
@pytest.mark.parametrize("sent", ["0005", "0006"])
def test_no_item_is_closed_by_a_notification(before: str, sent: str):
    state = after(created(), corrected_to("0003", "0001", before))
    assert refusal(state, dispensed("0001", sent)).path == "data.lineItems.1.status"


def test_the_refused_item_is_named_by_its_place_in_the_event():
    state = after(created(), released())
    event = dispensed(line_items=(ItemStatus(ITEMS[1], "0005"), ItemStatus(ITEMS[0], "0001")))
    assert refusal(state, event).path == "data.lineItems.0.status"


def test_an_amendment_of_nothing_is_refused():
    state = after(created(), released())
    assert refusal(state, dispensed(amends=NOTIFICATION)).path == "data.amends"


@pytest.mark.parametrize("last", ["0003", "0001"])
def test_an_amendment_of_an_earlier_notification_is_refused(last: str):
    state = after(
        created(),
        released(),
        dispensed("0003", "0003"),
        dispensed("0001", last, id="d-2", notification_id=SECOND_NOTIFICATION),
    )
    event = dispensed(id="d-3", notification_id=THIRD_NOTIFICATION, amends=NOTIFICATION)
    assert refusal(state, event).path == "data.amends"


def test_an_amendment_of_a_withdrawn_notification_is_refused():
    state = after(created(), released(), dispensed("0003", "0003"), dispense_withdrawn())
    event = dispensed(id="d-2", notification_id=SECOND_NOTIFICATION, amends=NOTIFICATION)
    assert refusal(state, event).path == "data.amends"


def test_an_amendment_of_another_issues_notification_is_refused():
    state = after(
        repeat_dispensing(2), released(), dispensed(), issued(issue_number=2), released(id="r-2", issue_number=2)
    )
    event = dispensed(id="d-2", issue_number=2, notification_id=SECOND_NOTIFICATION, amends=NOTIFICATION)
    assert refusal(state, event).path == "data.amends"


@pytest.mark.parametrize("withdrawn", [False, True])
def test_a_notification_id_that_the_issue_already_has_is_refused(withdrawn: bool):
    events = [dispense_withdrawn()] if withdrawn else []
    state = after(created(), released(), dispensed("0003", "0001"), *events)
    assert refusal(state, dispensed(id="d-2")).path == "data.notificationId"


def test_an_amendment_needs_an_id_of_its_own():
    state = after(created(), released(), dispensed())
    assert refusal(state, dispensed(id="d-2", amends=NOTIFICATION)).path == "data.notificationId"


def test_only_the_last_notification_is_withdrawn():
    state = after(
        created(),
        released(),
        dispensed("0003", "0003"),
        dispensed("0003", "0001", id="d-2", notification_id=SECOND_NOTIFICATION),
    )
    assert refusal(state, dispense_withdrawn()).path == "data.notificationId"


@pytest.mark.parametrize("events", [[], [dispensed("0003", "0003"), dispense_withdrawn()]], ids=["none", "withdrawn"])
def test_a_notification_that_does_not_stand_is_not_withdrawn(events: list[Event]):
    state = after(created(), released(), *events)
    assert refusal(state, dispense_withdrawn(id="w-2")).path == "data.notificationId"


@pytest.mark.parametrize("event", [claimed(), not_claimed()], ids=["claimed", "not claimed"])
def test_nothing_is_withdrawn_once_payment_is_settled(event: Event):
    state = after(created(), released(), dispensed(), event)
    assert refusal(state, dispense_withdrawn()).path == "data.issueNumber"


@pytest.mark.parametrize(
    ("event", "path"),
    [
        (corrected(current_issue_number=3), "data.currentIssueNumber"),
        (corrected(CorrectedIssue(2), CorrectedIssue(3)), "data.issues.1.issueNumber"),
        (
            corrected(CorrectedIssue(1, line_items=(*statuses("0001"), ItemStatus(UNKNOWN_ITEM, "0001")))),
            "data.issues.0.lineItems.1.id",
        ),
    ],
    ids=["unknown current issue", "unknown issue", "unknown item"],
)
def test_a_correction_of_what_does_not_exist_is_refused(event: Event, path: str):
    assert refusal(after(repeat_dispensing(2)), event).path == path


@pytest.mark.parametrize(
    "event",
    [
        cancelled(nhs_number=OTHER_NHS_NUMBER),
        cancelled(line_item_id=UNKNOWN_ITEM),
        dispensed(line_items=(ItemStatus(UNKNOWN_ITEM, "0001"),)),
        dispensed(amends=SECOND_NOTIFICATION),
        dispense_withdrawn(),
        corrected(CorrectedIssue(1, line_items=(ItemStatus(UNKNOWN_ITEM, "0001"),))),
    ],
    ids=lambda event: type(event).__name__,
)
def test_a_refusal_never_repeats_an_identifier(event: Event):
    message = refusal(after(created(), released()), event).message
    assert message
    for value in (NHS_NUMBER, OTHER_NHS_NUMBER, UNKNOWN_ITEM, *ITEMS, NOTIFICATION, SECOND_NOTIFICATION):
        assert value not in message


@pytest.mark.parametrize(
    "event",
    [issued(), released(), cancelled("applied"), cancelled("unsuccessful"), expired(), nominated(), claimed()],
    ids=lambda event: type(event).__name__,
)
def test_nothing_but_created_and_a_pending_cancellation_begins_a_prescription(event: Event):
    with pytest.raises(ValueError, match="cannot be the first event"):
        evolve(None, event)


def test_a_withdrawal_that_was_not_asked_for_is_a_defect_of_the_caller():
    with pytest.raises(ValueError, match="no notification"):
        evolve(after(created(), released()), dispense_withdrawn())
