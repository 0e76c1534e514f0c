"""What each event means for one prescription: the state, ``contradiction`` and ``evolve``. No I/O, no clock.

The state is the row: ``Prescription`` and its parts have the fields of their tables, and loading what was saved
gives the same value back. Whether an event may follow the state is ``contradiction``'s question; what it then means
is ``evolve``'s. The rules are those of docs/events.md ("What each event does"), one function per event.

The state is named tuples: as frozen as the events' dataclasses, and three times as fast to copy with a change.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, assert_never

from projector.batch import FieldError
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
from schemas.statuses import IssueStatus, LineItemStatus
from schemas.values import value

REPEAT_DISPENSING = "0003"
FUTURE_DATED_AFTER = timedelta(hours=24)

WITH_A_DISPENSER = frozenset({IssueStatus.WITH_DISPENSER, IssueStatus.WITH_DISPENSER_ACTIVE})
COMPLETED_BY_DISPENSING = frozenset({IssueStatus.DISPENSED, IssueStatus.NOT_DISPENSED})
FUTURE = frozenset({IssueStatus.REPEAT_DISPENSE_FUTURE_INSTANCE, IssueStatus.FUTURE_DATED_PRESCRIPTION})
BEFORE_RELEASE = frozenset({IssueStatus.AWAITING_RELEASE_READY, IssueStatus.TO_BE_DISPENSED})
IN_PROGRESS = BEFORE_RELEASE | WITH_A_DISPENSER | FUTURE
EXPIRABLE = IN_PROGRESS | {IssueStatus.PENDING_CANCELLATION}
FINAL = frozenset(
    {
        IssueStatus.EXPIRED,
        IssueStatus.CANCELLED,
        IssueStatus.DISPENSED,
        IssueStatus.NOT_DISPENSED,
        IssueStatus.CLAIMED,
        IssueStatus.NO_CLAIMED,
    }
)
BEYOND_CANCELLING = FINAL - {IssueStatus.CANCELLED}
AT_THE_END = FINAL - {IssueStatus.DISPENSED}

ACTIVE_ITEM = frozenset(
    {
        LineItemStatus.TO_BE_DISPENSED,
        LineItemStatus.WITH_DISPENSER,
        LineItemStatus.PARTIAL_DISPENSED,
        LineItemStatus.NOT_DISPENSED_OWING,
    }
)
UNFINISHED_ITEM = frozenset(
    {LineItemStatus.PARTIAL_DISPENSED, LineItemStatus.NOT_DISPENSED_OWING, LineItemStatus.WITH_DISPENSER}
)
CLOSED_ITEM = frozenset({LineItemStatus.CANCELLED, LineItemStatus.EXPIRED})
ITEM_AFTER_EXPIRY = {
    LineItemStatus.TO_BE_DISPENSED: LineItemStatus.EXPIRED,
    LineItemStatus.WITH_DISPENSER: LineItemStatus.EXPIRED,
    LineItemStatus.PARTIAL_DISPENSED: LineItemStatus.FULLY_DISPENSED,
    LineItemStatus.NOT_DISPENSED_OWING: LineItemStatus.NOT_DISPENSED,
}


class Kind(StrEnum):
    """A placeholder holds early cancellations only; a created prescription is the real one."""

    PLACEHOLDER = "placeholder"
    CREATED = "created"


class Prescribed(NamedTuple):
    """What ``created`` said; nothing changes it. A placeholder knows the first four fields and the canceller."""

    prescription_id: str
    nhs_number: str
    prescribed_at: datetime
    prescriber: Organisation | None
    treatment_type: str | None = None
    prescription_type: str | None = None
    signed_at: datetime | None = None
    days_supply: int | None = None
    issues_authorised: int = 1
    dispense_window_low: date | None = None
    dispense_window_high: date | None = None
    line_items: tuple[PrescribedItem, ...] = ()


class Issue(NamedTuple):
    """One issue; ``item_statuses`` are in item order; ``version`` is the prescription's when it last changed."""

    number: int
    status: str
    version: int
    item_statuses: tuple[str, ...]
    released_at: datetime | None = None
    last_dispensed_at: datetime | None = None
    completed_at: datetime | None = None
    claimed_at: datetime | None = None
    nominated_download_date: date | None = None
    dispenser: Organisation | None = None
    releasing: Organisation | None = None


@value()
class Snapshot:
    """What a dispense notification replaced in its issue, for its withdrawal."""

    status: str
    item_statuses: tuple[str, ...]
    dispenser: Organisation | None
    last_dispensed_at: datetime | None
    completed_at: datetime | None


class Notification(NamedTuple):
    """One dispense notification; ``number`` counts those of its issue from 1, withdrawn ones included."""

    issue_number: int
    id: str
    number: int
    dispensed_at: datetime
    status: str
    item_statuses: tuple[str, ...]
    dispenser_ods: str
    amends: str | None
    withdrawn: bool
    before: Snapshot


class Cancellation(NamedTuple):
    """One cancellation request; ``state`` is pending, applied or unsuccessful; ``number`` its place of arrival."""

    id: str
    number: int
    nhs_number: str
    target: str
    item_id: str | None
    state: str
    reason_code: str
    reason_text: str
    organisation_ods: str | None
    first_issue: int
    requested_at: datetime


class Prescription(NamedTuple):
    """The state of one prescription after ``version`` events."""

    kind: Kind
    version: int
    last_event_at: datetime
    current_issue: int
    prescribed: Prescribed
    nominated: Organisation | None
    issues: tuple[Issue, ...]
    notifications: tuple[Notification, ...] = ()
    cancellations: tuple[Cancellation, ...] = ()

    @property
    def pending_cancellations(self) -> bool:
        """Whether a pending cancellation acts on the current issue."""
        return any(c.state == "pending" and c.first_issue <= self.current_issue for c in self.cancellations)

    def issue(self, number: int) -> Issue | None:
        """Return the issue of that number; ``created`` makes all of them, from 1 without holes."""
        return self.issues[number - 1] if 0 < number <= len(self.issues) else None

    def item_index(self, item_id: str | None) -> int | None:
        """Return the place of a line item, from 0, or None when the prescription has no such item."""
        for index, item in enumerate(self.prescribed.line_items):
            if item.id == item_id:
                return index
        return None

    def last_notification(self, issue_number: int) -> Notification | None:
        """Return the latest notification of the issue that stands."""
        for notification in reversed(self.notifications):
            if notification.issue_number == issue_number and not notification.withdrawn:
                return notification
        return None


def has_run_its_course(state: Prescription) -> bool:
    """Say whether what may still come is rare: an amended claim, a withdrawal, a correction, a deletion."""
    # From the last issue on, which is the last one to come to its end.
    return all(issue.status in AT_THE_END for issue in reversed(state.issues))


NO_SUCH_ISSUE = FieldError("data.issueNumber", "the prescription has no such issue")
NO_SUCH_ITEM = "the prescription has no such line item"


def contradiction(state: Prescription, event: Event) -> FieldError | None:
    """Say which rule forbids ``event`` to follow ``state``, or None when it may.

    Asked only of events whose kind may follow (``projector.stream`` parks what comes before ``created`` and refuses a
    second ``created``), so those of a placeholder are its few.
    """
    match event:
        case Issued():
            return issued_contradicts(state, event)
        case Released():
            return status_contradicts(state, event.issue_number, BEFORE_RELEASE)
        case Dispensed():
            return dispensed_contradicts(state, event)
        case DispenseWithdrawn():
            return dispense_withdrawn_contradicts(state, event)
        case Returned():
            return status_contradicts(state, event.issue_number, {IssueStatus.WITH_DISPENSER})
        case Cancelled():
            return cancelled_contradicts(state, event)
        case Claimed():
            allowed = {IssueStatus.DISPENSED, IssueStatus.NO_CLAIMED, *([IssueStatus.CLAIMED] if event.amends else [])}
            return status_contradicts(state, event.issue_number, allowed)
        case NotClaimed():
            return status_contradicts(
                state, event.issue_number, {IssueStatus.DISPENSED, IssueStatus.WITH_DISPENSER_ACTIVE}
            )
        case Expired():
            return status_contradicts(state, event.issue_number, EXPIRABLE)
        case Corrected():
            return corrected_contradicts(state, event)
        case Created() | Nominated() | Deleted():
            return None
        case _:
            assert_never(event)


def evolve(state: Prescription | None, event: Event) -> Prescription | None:
    """Return the state after ``event``; None stands for no prescription, before the first event and after deletion."""
    if isinstance(event, Created):
        return created(state, event)
    if isinstance(event, Deleted):
        return None
    if state is None:
        if isinstance(event, Cancelled) and event.outcome == "pending":
            return early_cancelled(event)
        raise ValueError(f"{type(event).__name__} cannot be the first event of a prescription")
    match event:
        case Issued():
            after = issued(state, event)
        case Released():
            after = released(state, event)
        case Dispensed():
            after = dispensed(state, event)
        case DispenseWithdrawn():
            after = dispense_withdrawn(state, event)
        case Returned():
            after = returned(state, event)
        case Cancelled():
            after = cancelled(state, event)
        case Claimed():
            after = claimed(state, event)
        case NotClaimed():
            after = not_claimed(state, event)
        case Expired():
            after = expired(state, event)
        case Nominated():
            after = nominated(state, event)
        case Corrected():
            after = corrected(state, event)
        case _:
            assert_never(event)
    return after


# created --------------------------------------------------------------------------------------------------------------


def created(state: Prescription | None, event: Created) -> Prescription:
    """All issues exist from now on; cancellations that came early are applied from issue 1 and settled."""
    version = 1 if state is None else state.version + 1
    issues = tuple(
        Issue(
            number=number,
            status=_first_status(event) if number == 1 else IssueStatus.REPEAT_DISPENSE_FUTURE_INSTANCE,
            version=version,
            item_statuses=tuple(
                LineItemStatus.TO_BE_DISPENSED if number <= item.issues_authorised else LineItemStatus.EXPIRED
                for item in event.line_items
            ),
        )
        for number in range(1, event.issues_authorised + 1)
    )
    after = Prescription(
        kind=Kind.CREATED,
        version=version,
        last_event_at=event.envelope.time,
        current_issue=1,
        prescribed=Prescribed(
            prescription_id=event.envelope.prescription_id,
            nhs_number=event.nhs_number,
            prescribed_at=event.prescribed_at,
            prescriber=event.prescribing_organisation,
            treatment_type=event.treatment_type,
            prescription_type=event.prescription_type,
            signed_at=event.signed_at,
            days_supply=event.days_supply,
            issues_authorised=event.issues_authorised,
            dispense_window_low=event.dispense_window_low,
            dispense_window_high=event.dispense_window_high,
            line_items=event.line_items,
        ),
        nominated=event.nominated_dispenser,
        issues=issues,
    )
    return after if state is None else _with_early_cancellations(after, state.cancellations)


def _first_status(event: Created) -> str:
    starts = [event.prescribed_at]
    if event.treatment_type == REPEAT_DISPENSING and event.dispense_window_low is not None:
        starts.append(_midnight(event.dispense_window_low))
    future = max(starts) - event.envelope.time > FUTURE_DATED_AFTER
    return IssueStatus.FUTURE_DATED_PRESCRIPTION if future else IssueStatus.TO_BE_DISPENSED


def _with_early_cancellations(state: Prescription, early: tuple[Cancellation, ...]) -> Prescription:
    for entry in early:
        if entry.state == "pending":
            applies = entry.nhs_number == state.prescribed.nhs_number and (
                entry.target == "prescription" or state.item_index(entry.item_id) is not None
            )
            entry = entry._replace(first_issue=1, state="applied" if applies else "unsuccessful")
            if applies:
                state = _apply_cancellation(state, entry, state.version, state.last_event_at)
        state = state._replace(cancellations=(*state.cancellations, entry))
    return state


# issued, released, returned -------------------------------------------------------------------------------------------


def issued_contradicts(state: Prescription, event: Issued) -> FieldError | None:
    """An issue becomes current once, in order: never one before the current issue."""
    refused = status_contradicts(state, event.issue_number, FUTURE | BEFORE_RELEASE)
    if refused is None and event.issue_number < state.current_issue:
        return FieldError("data.issueNumber", f"the current issue is {state.current_issue} already")
    return refused


def issued(state: Prescription, event: Issued) -> Prescription:
    """The issue is current and can be downloaded, now (0001) or from its download date on (0000)."""
    issue = state.issues[event.issue_number - 1]
    version = state.version + 1
    revised = _revised(
        issue,
        version,
        status=IssueStatus.TO_BE_DISPENSED if issue.status == IssueStatus.TO_BE_DISPENSED else event.status,
        nominated_download_date=event.nominated_download_date or issue.nominated_download_date,
    )
    return _after(state, event, [revised], current_issue=event.issue_number)


def released(state: Prescription, event: Released) -> Prescription:
    """The issue is with the dispenser who downloaded it."""
    issue = state.issues[event.issue_number - 1]
    revised = _revised(
        issue,
        state.version + 1,
        status=IssueStatus.WITH_DISPENSER,
        item_statuses=_substituted(issue.item_statuses, LineItemStatus.TO_BE_DISPENSED, LineItemStatus.WITH_DISPENSER),
        dispenser=event.dispensing_organisation,
        releasing=event.dispensing_organisation,
        released_at=event.envelope.time,
    )
    return _after(state, event, [revised])


def returned(state: Prescription, event: Returned) -> Prescription:
    """The issue can be downloaded again, by anyone unless the nomination is kept; its release date stays."""
    issue = state.issues[event.issue_number - 1]
    revised = _revised(
        issue,
        state.version + 1,
        status=IssueStatus.TO_BE_DISPENSED,
        item_statuses=_substituted(issue.item_statuses, LineItemStatus.WITH_DISPENSER, LineItemStatus.TO_BE_DISPENSED),
        dispenser=None,
    )
    return _after(state, event, [revised], nominated=state.nominated if event.keep_nomination else None)


# dispensed, dispense-withdrawn ----------------------------------------------------------------------------------------


def dispensed_contradicts(state: Prescription, event: Dispensed) -> FieldError | None:
    """The notification names every item of the issue, and an amendment the issue's last notification."""
    issue = state.issue(event.issue_number)
    allowed = WITH_A_DISPENSER | COMPLETED_BY_DISPENSING if event.amends else WITH_A_DISPENSER
    refused = status_contradicts(state, event.issue_number, allowed)
    if refused is not None or issue is None:
        return refused
    if event.amends:
        last = state.last_notification(issue.number)
        if last is None or last.id != event.amends:
            return FieldError("data.amends", "not the last dispense notification of the issue")
    if any(n.id == event.notification_id and n.issue_number == issue.number for n in state.notifications):
        return FieldError("data.notificationId", "the issue already has this dispense notification")
    sent = {item.id: item.status for item in event.line_items}
    if sent.keys() != {item.id for item in state.prescribed.line_items}:
        return FieldError("data.lineItems", "not exactly the line items of the prescription")
    for index, item in enumerate(event.line_items):
        position = state.item_index(item.id)
        before = issue.item_statuses[position] if position is not None else ""
        if item.status != before and (item.status in CLOSED_ITEM or before in CLOSED_ITEM):
            return FieldError(
                f"data.lineItems.{index}.status",
                f"the item is at {before}: 0005 and 0006 are repeated, and sent for no other item",
            )
    return None


def dispensed(state: Prescription, event: Dispensed) -> Prescription:
    """Items are as sent; the issue's status is as sent, or follows from the items."""
    issue = state.issues[event.issue_number - 1]
    sent = {item.id: item.status for item in event.line_items}
    item_statuses = tuple(sent[item.id] for item in state.prescribed.line_items)
    status = event.prescription_status or _status_from_items(item_statuses)
    completed = status in COMPLETED_BY_DISPENSING
    notification = Notification(
        issue_number=issue.number,
        id=event.notification_id,
        number=1 + sum(n.issue_number == issue.number for n in state.notifications),
        dispensed_at=event.dispensed_at,
        status=status,
        item_statuses=item_statuses,
        dispenser_ods=event.dispensing_organisation.ods,
        amends=event.amends,
        withdrawn=False,
        before=Snapshot(
            status=issue.status,
            item_statuses=issue.item_statuses,
            dispenser=issue.dispenser,
            last_dispensed_at=issue.last_dispensed_at,
            completed_at=issue.completed_at,
        ),
    )
    revised = _revised(
        issue,
        state.version + 1,
        status=status,
        item_statuses=item_statuses,
        dispenser=event.dispensing_organisation,
        last_dispensed_at=event.dispensed_at,
        completed_at=_day_of(event.dispensed_at) if completed else issue.completed_at,
    )
    return _after(state, event, [revised], notifications=(*state.notifications, notification))


def _status_from_items(item_statuses: tuple[str, ...]) -> str:
    if not UNFINISHED_ITEM.isdisjoint(item_statuses):
        return IssueStatus.WITH_DISPENSER_ACTIVE
    return IssueStatus.DISPENSED if LineItemStatus.FULLY_DISPENSED in item_statuses else IssueStatus.NOT_DISPENSED


def dispense_withdrawn_contradicts(state: Prescription, event: DispenseWithdrawn) -> FieldError | None:
    """Only the issue's last notification can be withdrawn, and none once the issue is claimed or not claimed."""
    issue = state.issue(event.issue_number)
    if issue is None:
        return NO_SUCH_ISSUE
    if issue.status in {IssueStatus.CLAIMED, IssueStatus.NO_CLAIMED}:
        return FieldError("data.issueNumber", f"the issue is at {issue.status}: nothing can be withdrawn")
    last = state.last_notification(issue.number)
    if last is None or last.id != event.notification_id:
        return FieldError("data.notificationId", "not the last dispense notification of the issue")
    return None


def dispense_withdrawn(state: Prescription, event: DispenseWithdrawn) -> Prescription:
    """The issue is as before its last notification, except where the record keeps it at 0003 or shows a date."""
    issue = state.issues[event.issue_number - 1]
    withdrawn = state.last_notification(issue.number)
    if withdrawn is None:
        raise ValueError("ask dispense_withdrawn_contradicts first: the issue has no notification")
    before = withdrawn.before
    repeat_dispensing = state.prescribed.treatment_type == REPEAT_DISPENSING
    revised = _revised(
        issue,
        state.version + 1,
        status=(
            IssueStatus.WITH_DISPENSER_ACTIVE
            if repeat_dispensing and before.status == IssueStatus.WITH_DISPENSER
            else before.status
        ),
        item_statuses=before.item_statuses,
        dispenser=before.dispenser,
        last_dispensed_at=before.last_dispensed_at or issue.released_at,
        completed_at=before.completed_at,
    )
    notifications = tuple(n._replace(withdrawn=True) if n is withdrawn else n for n in state.notifications)
    return _after(state, event, [revised], notifications=notifications)


# cancelled ------------------------------------------------------------------------------------------------------------


def early_cancelled(event: Cancelled) -> Prescription:
    """A cancellation that came before its prescription leaves a placeholder, found by NHS number."""
    return Prescription(
        kind=Kind.PLACEHOLDER,
        version=1,
        last_event_at=event.envelope.time,
        current_issue=1,
        prescribed=Prescribed(
            prescription_id=event.envelope.prescription_id,
            nhs_number=event.nhs_number,
            prescribed_at=_day_of(event.envelope.time),
            prescriber=event.cancelling_organisation,
        ),
        nominated=None,
        issues=(Issue(number=1, status=IssueStatus.PENDING_CANCELLATION, version=1, item_statuses=()),),
        cancellations=(_entry(event, number=1, first_issue=1),),
    )


def cancelled_contradicts(state: Prescription, event: Cancelled) -> FieldError | None:
    """The NHS number is the prescription's; what it acts on exists, unless it was unsuccessful."""
    if state.kind is Kind.PLACEHOLDER:
        return None
    if event.nhs_number != state.prescribed.nhs_number:
        return FieldError("data.nhsNumber", "not the NHS number of the prescription")
    if event.outcome == "unsuccessful":
        return None
    if event.issue_number is not None and state.issue(event.issue_number) is None:
        return NO_SUCH_ISSUE
    if event.target == "lineItem" and state.item_index(event.line_item_id) is None:
        return FieldError("data.lineItemId", NO_SUCH_ITEM)
    return None


def cancelled(state: Prescription, event: Cancelled) -> Prescription:
    """The request is recorded; only an applied one changes issues."""
    first_issue = 1 if state.kind is Kind.PLACEHOLDER else (event.issue_number or state.current_issue)
    known = next((c for c in state.cancellations if c.id == event.cancellation_id), None)
    if known is None:
        entry = _entry(event, number=len(state.cancellations) + 1, first_issue=first_issue)
        cancellations = (*state.cancellations, entry)
    elif event.outcome == "pending" and known.state != "pending":
        return _after(state, event, [])
    else:
        entry = _entry(event, number=known.number, first_issue=first_issue)
        cancellations = tuple(entry if c is known else c for c in state.cancellations)
    after = _after(state, event, [], cancellations=cancellations)
    if entry.state != "applied":
        return after
    return _apply_cancellation(after, entry, after.version, event.envelope.time)


def _entry(event: Cancelled, *, number: int, first_issue: int) -> Cancellation:
    organisation = event.cancelling_organisation
    return Cancellation(
        id=event.cancellation_id,
        number=number,
        nhs_number=event.nhs_number,
        target=event.target,
        item_id=event.line_item_id if event.target == "lineItem" else None,
        state=event.outcome,
        reason_code=event.reason_code,
        reason_text=event.reason_text,
        organisation_ods=organisation.ods if organisation else None,
        first_issue=first_issue,
        requested_at=event.envelope.time,
    )


def _apply_cancellation(state: Prescription, entry: Cancellation, version: int, at: datetime) -> Prescription:
    cancelled_item = state.item_index(entry.item_id) if entry.target == "lineItem" else None
    revised = [
        _cancelled_issue(issue, cancelled_item, version, at)
        for issue in state.issues[entry.first_issue - 1 :]
        if issue.status not in BEYOND_CANCELLING
    ]
    state = state._replace(issues=_replaced(state.issues, revised))
    return state._replace(current_issue=_current_after_cancellation(state))


def _cancelled_issue(issue: Issue, cancelled_item: int | None, version: int, at: datetime) -> Issue:
    if cancelled_item is None:
        status = IssueStatus.CANCELLED
        items = tuple(LineItemStatus.CANCELLED if item in ACTIVE_ITEM else item for item in issue.item_statuses)
    else:
        items = tuple(
            LineItemStatus.CANCELLED if index == cancelled_item else item
            for index, item in enumerate(issue.item_statuses)
        )
        status = issue.status if not ACTIVE_ITEM.isdisjoint(items) else IssueStatus.CANCELLED
    completed = status == IssueStatus.CANCELLED and issue.status != IssueStatus.CANCELLED
    return _revised(
        issue,
        version,
        status=status,
        item_statuses=items,
        completed_at=_day_of(at) if completed else issue.completed_at,
    )


def _current_after_cancellation(state: Prescription) -> int:
    for issue in state.issues[state.current_issue - 1 :]:
        if issue.status in IN_PROGRESS:
            return issue.number
    return len(state.issues)


# claimed, not-claimed, expired ----------------------------------------------------------------------------------------


def claimed(state: Prescription, event: Claimed) -> Prescription:
    """Payment was claimed, or the claim amended."""
    revised = _revised(
        state.issues[event.issue_number - 1],
        state.version + 1,
        status=IssueStatus.CLAIMED,
        claimed_at=event.envelope.time,
    )
    return _after(state, event, [revised])


def not_claimed(state: Prescription, event: NotClaimed) -> Prescription:
    """Nobody claimed in time; the completion date is overwritten, items stay as they are."""
    revised = _revised(
        state.issues[event.issue_number - 1],
        state.version + 1,
        status=IssueStatus.NO_CLAIMED,
        completed_at=_day_of(event.envelope.time),
    )
    return _after(state, event, [revised])


def expired(state: Prescription, event: Expired) -> Prescription:
    """The issue and every later one end; the last issue becomes current."""
    version = state.version + 1
    at = _day_of(event.envelope.time)
    revised = [_expired_issue(issue, version, at) for issue in state.issues[event.issue_number - 1 :]]
    return _after(state, event, revised, current_issue=len(state.issues))


def _expired_issue(issue: Issue, version: int, at: datetime) -> Issue:
    items = tuple(ITEM_AFTER_EXPIRY.get(item, item) for item in issue.item_statuses)
    if issue.status in FINAL:
        return _revised(issue, version, item_statuses=items)
    status = IssueStatus.DISPENSED if issue.status == IssueStatus.WITH_DISPENSER_ACTIVE else IssueStatus.EXPIRED
    return _revised(issue, version, status=status, item_statuses=items, completed_at=at)


# nominated, corrected -------------------------------------------------------------------------------------------------


def nominated(state: Prescription, event: Nominated) -> Prescription:
    """Another dispenser is nominated, or none."""
    return _after(state, event, [], nominated=event.nominated_dispenser)


def corrected_contradicts(state: Prescription, event: Corrected) -> FieldError | None:
    """A correction names issues and items that exist."""
    if event.current_issue_number is not None and state.issue(event.current_issue_number) is None:
        return FieldError("data.currentIssueNumber", NO_SUCH_ISSUE.message)
    for index, issue in enumerate(event.issues):
        if state.issue(issue.issue_number) is None:
            return FieldError(f"data.issues.{index}.issueNumber", NO_SUCH_ISSUE.message)
        for place, item in enumerate(issue.line_items):
            if state.item_index(item.id) is None:
                return FieldError(f"data.issues.{index}.lineItems.{place}.id", NO_SUCH_ITEM)
    return None


def corrected(state: Prescription, event: Corrected) -> Prescription:
    """Named fields are replaced as told, without asking whether they fit together."""
    version = state.version + 1
    revised = [_corrected_issue(state, issue, version) for issue in event.issues]
    return _after(state, event, revised, current_issue=event.current_issue_number or state.current_issue)


def _corrected_issue(state: Prescription, correction: CorrectedIssue, version: int) -> Issue:
    issue = state.issues[correction.issue_number - 1]
    dispenser = None if correction.clear_dispenser else correction.dispensing_organisation or issue.dispenser
    return _revised(
        issue,
        version,
        status=correction.status or issue.status,
        item_statuses=_corrected_items(state, issue, correction.line_items),
        dispenser=dispenser,
        released_at=_midnight(correction.release_date) if correction.release_date else issue.released_at,
        last_dispensed_at=(
            _midnight(correction.last_dispense_date) if correction.last_dispense_date else issue.last_dispensed_at
        ),
    )


def _corrected_items(state: Prescription, issue: Issue, corrections: tuple[ItemStatus, ...]) -> tuple[str, ...]:
    told = {item.id: item.status for item in corrections}
    return tuple(
        told.get(item.id, status) for item, status in zip(state.prescribed.line_items, issue.item_statuses, strict=True)
    )


# what they share ------------------------------------------------------------------------------------------------------

# Nearly every event copies an issue and its prescription with a few changes: by place that takes half as long as by
# ``_replace``.
ISSUE_FIELD = {name: place for place, name in enumerate(Issue._fields)}
PRESCRIPTION_FIELD = {name: place for place, name in enumerate(Prescription._fields)}


def status_contradicts(state: Prescription, issue_number: int, allowed: Iterable[str]) -> FieldError | None:
    """Refuse an unknown issue, and one whose status is not among ``allowed``."""
    issue = state.issue(issue_number)
    if issue is None:
        return NO_SUCH_ISSUE
    if issue.status in allowed:
        return None
    return FieldError("data.issueNumber", f"the issue is at {issue.status}; allowed from {', '.join(sorted(allowed))}")


def _after(state: Prescription, event: Event, revised: list[Issue], **changes: Any) -> Prescription:  # noqa: ANN401 - mypy checks each against the fields
    fields: list[Any] = list(state)
    for name, after in changes.items():
        fields[PRESCRIPTION_FIELD[name]] = after
    fields[PRESCRIPTION_FIELD["version"]] += 1
    fields[PRESCRIPTION_FIELD["last_event_at"]] = event.envelope.time
    if revised:
        fields[PRESCRIPTION_FIELD["issues"]] = _replaced(state.issues, revised)
    return Prescription._make(fields)


def _replaced(issues: tuple[Issue, ...], revised: list[Issue]) -> tuple[Issue, ...]:
    if not revised:
        return issues
    after = list(issues)
    for issue in revised:
        after[issue.number - 1] = issue
    return tuple(after)


def _revised(issue: Issue, version: int, **changes: Any) -> Issue:  # noqa: ANN401 - as above
    """Return the issue with ``changes`` under the new version, or as it was when nothing changes."""
    fields: list[Any] = list(issue)
    for name, after in changes.items():
        fields[ISSUE_FIELD[name]] = after
    if tuple(fields) == issue:
        return issue
    fields[ISSUE_FIELD["version"]] = version
    return Issue._make(fields)


def _substituted(item_statuses: tuple[str, ...], before: str, after: str) -> tuple[str, ...]:
    return tuple(after if status == before else status for status in item_statuses)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _day_of(instant: datetime) -> datetime:
    """Return midnight of the instant's UTC day: how a date stands in an instant's column."""
    return instant.replace(hour=0, minute=0, second=0, microsecond=0)
