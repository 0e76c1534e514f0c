"""One prescription's course: each method makes one event happen, provided that the contract lets it fold.

The model of the statuses is small and its own, so that tests can hold it against what the projector makes of the
events. Scenarios decide what happens; nothing here draws lots about that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rxstore.generator.dice import Dice
from rxstore.generator.instants import DAY, HOUR, MINUTE, date_text, end_of_month, midnight, opening_hours, text
from rxstore.generator.prescribing import PHARMACIES, SPINE, Prescribed, Publisher, pharmacy
from schemas.statuses import IssueStatus, LineItemStatus

WITH_A_DISPENSER = (IssueStatus.WITH_DISPENSER, IssueStatus.WITH_DISPENSER_ACTIVE)
COMPLETED_BY_DISPENSING = (IssueStatus.DISPENSED, IssueStatus.NOT_DISPENSED)
BEFORE_RELEASE = (IssueStatus.AWAITING_RELEASE_READY, IssueStatus.TO_BE_DISPENSED)
FUTURE = (IssueStatus.REPEAT_DISPENSE_FUTURE_INSTANCE, IssueStatus.FUTURE_DATED_PRESCRIPTION)
IN_PROGRESS = BEFORE_RELEASE + WITH_A_DISPENSER + FUTURE
EXPIRABLE = (*IN_PROGRESS, IssueStatus.PENDING_CANCELLATION)
BEYOND_CANCELLING = (
    IssueStatus.EXPIRED,
    *COMPLETED_BY_DISPENSING,
    IssueStatus.CLAIMED,
    IssueStatus.NO_CLAIMED,
)

OPEN_ITEM = (LineItemStatus.WITH_DISPENSER, LineItemStatus.PARTIAL_DISPENSED, LineItemStatus.NOT_DISPENSED_OWING)
ACTIVE_ITEM = (LineItemStatus.TO_BE_DISPENSED, *OPEN_ITEM)
CLOSED_ITEM = (LineItemStatus.CANCELLED, LineItemStatus.EXPIRED)
ITEM_AFTER_EXPIRY = {
    LineItemStatus.TO_BE_DISPENSED: LineItemStatus.EXPIRED,
    LineItemStatus.WITH_DISPENSER: LineItemStatus.EXPIRED,
    LineItemStatus.PARTIAL_DISPENSED: LineItemStatus.FULLY_DISPENSED,
    LineItemStatus.NOT_DISPENSED_OWING: LineItemStatus.NOT_DISPENSED,
}

CANCELLATION_REASONS = (
    ("0001", "Prescribing Error"),
    ("0002", "Clinical contra-indication"),
    ("0003", "Change to medication treatment regime"),
    ("0004", "Clinical grounds"),
    ("0005", "At the Patients request"),
    ("0006", "At the Pharmacists request"),
    ("0007", "Notification of Death"),
    ("0008", "Patient deducted - other reason"),
    ("0009", "Patient deducted - registered with new practice"),
)
ANOTHER_NHS_NUMBERS = ("9990406480", "9990406707")


class AtRest(Exception):
    """The prescription stays as it is."""


class Impossible(Exception):
    """A scenario wants an event that the contract would refuse: a defect of the scenario."""


class Step(NamedTuple):
    """One event of a course, without what all events share."""

    time: int
    source: str
    type: str
    data: dict[str, object]


@dataclass(slots=True)
class Notification:
    """A dispense notification that stands, and what a withdrawal brings back."""

    id: str
    status_before: str
    items_before: list[str]
    dispenser_before: Publisher | None


@dataclass(slots=True)
class Issue:
    """``items`` are line item statuses in item order."""

    number: int
    status: str
    items: list[str]
    dispenser: Publisher | None = None
    notifications: list[Notification] = field(default_factory=list)
    claim_id: str | None = None


@dataclass(slots=True)
class Cancellation:
    """A cancellation request and what became of it; ``item`` is the place of a line item, from 0."""

    id: str
    item: int | None
    reason: dict[str, object]
    state: str
    applies_to_created: bool = True


@dataclass(slots=True)
class Course:
    """What has happened to one prescription so far. ``horizon`` is the time after which eRD opens no more issues."""

    dice: Dice
    prescribed: Prescribed
    now: int
    horizon: int
    rests_after: int | None = None
    steps: list[Step] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    current: int = 1
    nominated: Publisher | None = None
    prescribed_at: int = 0
    is_created: bool = False
    is_deleted: bool = False
    cancellations: list[Cancellation] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    issue_statuses: set[str] = field(default_factory=set)
    item_statuses: set[str] = field(default_factory=set)

    # time -------------------------------------------------------------------------------------------------------------

    def wait_hours(self, low: float, high: float) -> None:
        """Some time passes, until a pharmacy is open."""
        self.now = opening_hours(self.now + self.dice.between(int(low * HOUR), int(high * HOUR)))

    def wait_minutes(self, low: int, high: int) -> None:
        """A short time passes."""
        self.now += self.dice.between(low * MINUTE, high * MINUTE)

    def wait_for_night(self, nights: int = 1) -> None:
        """The hours in which Spine's batches run have come."""
        self.until(self.night_of(self.now + nights * DAY))

    def until(self, instant: int) -> None:
        """Time passes until then; nothing happens in the past."""
        self.now = max(self.now, instant)

    def night_of(self, day: int) -> int:
        """When a batch reaches this prescription on a day."""
        return midnight(day) + self.dice.between(2 * HOUR, 5 * HOUR)

    def claim_time(self) -> int:
        """When a claim follows a dispense notification of now: some days later or at the end of the month."""
        if self.dice.chance(0.5):
            return opening_hours(self.now + self.dice.between(DAY, 10 * DAY))
        return opening_hours(max(end_of_month(self.now) - self.dice.between(0, 2) * DAY, self.now + HOUR))

    # created, issued --------------------------------------------------------------------------------------------------

    def created(self, *, days_ahead: int = 0, window_days_ahead: int = 0) -> None:
        """The prescription arrives, perhaps dated some days ahead (at least two, or it counts as today's)."""
        self._allow(not self.is_created and not self.is_deleted)
        prescribed = self.prescribed
        signed_at = self.now - self.dice.between(5, 15 * MINUTE)
        at_midnight = days_ahead or self.dice.chance(0.1)
        self.prescribed_at = midnight(self.now) + days_ahead * DAY if at_midnight else signed_at
        data: dict[str, object] = {
            "nhsNumber": prescribed.nhs_number,
            "treatmentType": prescribed.treatment_type,
            "prescriptionType": prescribed.prescription_type,
            "prescribedAt": text(self.prescribed_at),
            "signedAt": text(signed_at),
            "daysSupply": prescribed.days_supply,
            "issuesAuthorised": prescribed.issues_authorised,
            "prescribingOrganisation": prescribed.prescriber.organisation,
            "nominatedDispenser": prescribed.nominated.organisation if prescribed.nominated else None,
            "lineItems": prescribed.line_items,
        }
        window_low = midnight(self.prescribed_at) + window_days_ahead * DAY
        if prescribed.is_repeat_dispensing or self.dice.chance(0.5):
            data["dispenseWindow"] = {"low": date_text(window_low), "high": date_text(window_low + 364 * DAY)}
        self._happens("created", prescribed.prescriber, data)
        self.is_created = True
        self.nominated = prescribed.nominated
        starts = max(self.prescribed_at, window_low) if prescribed.is_repeat_dispensing else self.prescribed_at
        self._make_issues(future_dated=starts > self.now + DAY)
        self._apply_early_cancellations()

    def _make_issues(self, *, future_dated: bool) -> None:
        prescribed = self.prescribed
        self.current = 1
        first = IssueStatus.FUTURE_DATED_PRESCRIPTION if future_dated else IssueStatus.TO_BE_DISPENSED
        self.issues = [
            Issue(
                number,
                IssueStatus.REPEAT_DISPENSE_FUTURE_INSTANCE if number > 1 else first,
                [
                    LineItemStatus.TO_BE_DISPENSED if number <= own else LineItemStatus.EXPIRED
                    for own in prescribed.item_issues
                ],
            )
            for number in range(1, prescribed.issues_authorised + 1)
        ]
        self.issue_statuses.update([issue.status for issue in self.issues])
        self.item_statuses.update(self.issues[0].items, self.issues[-1].items)
        if future_dated:
            self.paths.add("future dated")
        if len(set(prescribed.item_issues)) > 1:
            self.paths.add("item with fewer issues than the prescription")

    def _apply_early_cancellations(self) -> None:
        for cancellation in self.cancellations:
            if cancellation.state != "pending":
                continue
            if cancellation.applies_to_created:
                self._apply(cancellation, 1)
                self.paths.add("early cancellation applied when created")
            else:
                cancellation.state = "unsuccessful"
                self.paths.add("early cancellation unsuccessful when created")

    def issued(self, number: int | None = None, status: str = IssueStatus.TO_BE_DISPENSED) -> None:
        """An issue becomes current: at its download date, or from it on (0000)."""
        number = number or self.current
        issue = self._issue(number, (*FUTURE, *BEFORE_RELEASE))
        self._allow(number >= self.current)
        data: dict[str, object] = {"issueNumber": number}
        if status == IssueStatus.AWAITING_RELEASE_READY or self.dice.chance(0.5):
            data["status"] = status
        if number > 1:
            data["nominatedDownloadDate"] = date_text(self.download_date(number))
        self._happens("issued", SPINE, data)
        if issue.status == IssueStatus.AWAITING_RELEASE_READY and status == IssueStatus.TO_BE_DISPENSED:
            self.paths.add("download date reached")
        if issue.status != IssueStatus.TO_BE_DISPENSED:
            self._set_status(issue, status)
        if number > 1:
            self.paths.add("later issue opened")
        self.current = number

    def has_next(self) -> bool:
        """Whether an issue follows that has not come up yet."""
        following = self.issues[self.current : self.current + 1]
        return any(issue.status == IssueStatus.REPEAT_DISPENSE_FUTURE_INSTANCE for issue in following)

    def open_next(self) -> int:
        """The next issue waits for its download date, or is open at once when that is past. Returns when it is open."""
        number = self.current + 1
        past = self.download_date(number) < midnight(self.now)
        self.issued(number, IssueStatus.TO_BE_DISPENSED if past else IssueStatus.AWAITING_RELEASE_READY)
        return self.now if past else max(self.night_of(self.download_date(number)), self.now)

    def download_date(self, number: int) -> int:
        """The day from which a later issue can be downloaded: a week before the earlier ones are used up."""
        days = self.prescribed.days_supply * (number - 1) - 7
        return midnight(self.prescribed_at) + days * DAY

    # released, returned -----------------------------------------------------------------------------------------------

    def dispenser(self) -> Publisher:
        """Who would download the prescription: the nominated dispenser, or for most the one near them."""
        if self.nominated:
            return self.nominated
        return self.prescribed.local_pharmacy if self.dice.chance(0.8) else self.another_dispenser()

    def another_dispenser(self) -> Publisher:
        """Any pharmacy."""
        return pharmacy(self.dice.between(0, PHARMACIES - 1))

    def released(self, number: int | None = None, dispenser: Publisher | None = None) -> None:
        """A dispenser downloads the issue."""
        issue = self._issue(number, BEFORE_RELEASE)
        dispenser = dispenser or self.dispenser()
        data = {"issueNumber": issue.number, "dispensingOrganisation": dispenser.organisation}
        self._happens("released", dispenser, data)
        if issue.status == IssueStatus.AWAITING_RELEASE_READY:
            self.paths.add("released before its download date")
        self._set_status(issue, IssueStatus.WITH_DISPENSER)
        self._replace_items(issue, {LineItemStatus.TO_BE_DISPENSED: LineItemStatus.WITH_DISPENSER})
        issue.dispenser = dispenser

    def returned(self, number: int | None = None, *, keep_nomination: bool = False) -> None:
        """The dispenser gives the issue back."""
        issue = self._issue(number, (IssueStatus.WITH_DISPENSER,))
        data: dict[str, object] = {"issueNumber": issue.number}
        if keep_nomination:
            data["keepNomination"] = True
        self._happens("returned", issue.dispenser or SPINE, data)
        self.paths.add("returned, nomination kept" if keep_nomination else "returned")
        self._set_status(issue, IssueStatus.TO_BE_DISPENSED)
        self._replace_items(issue, {LineItemStatus.WITH_DISPENSER: LineItemStatus.TO_BE_DISPENSED})
        issue.dispenser = None
        if not keep_nomination:
            self.nominated = None

    # dispensed, dispense-withdrawn ------------------------------------------------------------------------------------

    def dispensed(
        self, *item_statuses: str, number: int | None = None, amends: bool = False, dispenser: Publisher | None = None
    ) -> None:
        """A dispense notification: ``item_statuses`` are for the items still open (or, when it amends the last
        notification, for all but cancelled and expired ones) in their order, the last one for all that are left.
        """
        issue = self._issue(number, WITH_A_DISPENSER + COMPLETED_BY_DISPENSING if amends else WITH_A_DISPENSER)
        self._allow(not amends or bool(issue.notifications))
        dispenser = dispenser or issue.dispenser or self.dispenser()
        items = _with(issue.items, item_statuses, keep=CLOSED_ITEM if amends else None)
        status = _status_from(items)
        notification_id = self.dice.uuid()
        data: dict[str, object] = {
            "issueNumber": issue.number,
            "notificationId": notification_id,
            "dispensingOrganisation": dispenser.organisation,
            "dispensedAt": text(self.now - self.dice.between(0, 20 * MINUTE)),
            "lineItems": self._item_list(items),
        }
        if self.dice.chance(0.7):
            data["prescriptionStatus"] = status
        if amends:
            data["amends"] = issue.notifications[-1].id
        self._happens("dispensed", dispenser, data)
        self._name_the_notification(issue, items, status, dispenser, amends=amends)
        issue.notifications.append(Notification(notification_id, issue.status, issue.items, issue.dispenser))
        self._set_items(issue, items)
        self._set_status(issue, status)
        issue.dispenser = dispenser

    def _name_the_notification(
        self, issue: Issue, items: Sequence[str], status: str, dispenser: Publisher, *, amends: bool
    ) -> None:
        if amends:
            self.paths.add("amended")
        elif issue.notifications:
            self.paths.add("two or more dispense notifications")
        if dispenser is not issue.dispenser:
            self.paths.add("dispensed by another than released it")
        if LineItemStatus.NOT_DISPENSED in items:
            self.paths.add("not dispensed" if status == IssueStatus.NOT_DISPENSED else "one item not dispensed")

    def withdrawn(self, number: int | None = None) -> None:
        """The last dispense notification is taken back."""
        beyond = (IssueStatus.CLAIMED, IssueStatus.NO_CLAIMED)
        issue = self.issues[(number or self.current) - 1]
        self._allow(bool(issue.notifications) and issue.status not in beyond)
        last = issue.notifications[-1]
        data = {"issueNumber": issue.number, "notificationId": last.id}
        self._happens("dispense-withdrawn", issue.dispenser or SPINE, data)
        issue.notifications.pop()
        self._set_items(issue, last.items_before)
        issue.dispenser = last.dispenser_before
        self.paths.add("withdrawn")
        if self.prescribed.is_repeat_dispensing and last.status_before == IssueStatus.WITH_DISPENSER:
            self.paths.add("withdrawn to with dispenser active (eRD)")
            self._set_status(issue, IssueStatus.WITH_DISPENSER_ACTIVE)
        else:
            self._set_status(issue, last.status_before)

    # cancelled --------------------------------------------------------------------------------------------------------

    def cancel(self, outcome: str, *, item: int | None = None, number: int | None = None) -> Cancellation:
        """A new request to cancel the prescription, or the line item at a place from 0."""
        code, reason = self.dice.pick(CANCELLATION_REASONS)
        cancellation = Cancellation(self.dice.uuid(), item, {"code": code, "text": reason}, outcome)
        self._cancelled(cancellation, outcome, number)
        self.cancellations.append(cancellation)
        self.paths.add(f"cancellation of {_target(item)} {outcome}")
        return cancellation

    def settle(self, cancellation: Cancellation, outcome: str, number: int | None = None) -> None:
        """What became of a pending cancellation."""
        self._allow(cancellation.state == "pending")
        self._cancelled(cancellation, outcome, number)
        cancellation.state = outcome
        self.paths.add(f"pending cancellation of {_target(cancellation.item)} {outcome}")

    def cancel_early(
        self, *, item: int | None = None, unknown_item: bool = False, for_another_patient: bool = False
    ) -> Cancellation:
        """A request to cancel a prescription that has not come yet."""
        self._allow(not self.is_created and not self.is_deleted)
        code, reason = self.dice.pick(CANCELLATION_REASONS)
        cancellation = Cancellation(
            self.dice.uuid(),
            item,
            {"code": code, "text": reason},
            "pending",
            applies_to_created=not unknown_item and not for_another_patient,
        )
        own = self.prescribed.nhs_number
        another = next(number for number in ANOTHER_NHS_NUMBERS if number != own) if for_another_patient else None
        self._cancelled(cancellation, "pending", None, unknown_item=unknown_item, nhs_number=another)
        self.cancellations.append(cancellation)
        self.paths.add("early cancellation")
        if not self.issues:
            self.issues = [Issue(1, "", [])]
            self._set_status(self.issues[0], IssueStatus.PENDING_CANCELLATION)
        return cancellation

    def _cancelled(
        self,
        cancellation: Cancellation,
        outcome: str,
        number: int | None,
        *,
        unknown_item: bool = False,
        nhs_number: str | None = None,
    ) -> None:
        self._allow(self.is_created or outcome == "pending" or bool(self.issues))
        prescribed = self.prescribed
        data: dict[str, object] = {
            "cancellationId": cancellation.id,
            "nhsNumber": nhs_number or prescribed.nhs_number,
            "target": "prescription",
            "outcome": outcome,
            "reason": cancellation.reason,
        }
        if unknown_item:
            data |= {"target": "lineItem", "lineItemId": self.dice.uuid()}
        elif cancellation.item is not None:
            data |= {"target": "lineItem", "lineItemId": prescribed.item_ids[cancellation.item]}
        if number is not None:
            data["issueNumber"] = number
        if not self.is_created or self.dice.chance(0.8):
            data["cancellingOrganisation"] = prescribed.prescriber.organisation
        self._happens("cancelled", prescribed.prescriber, data)
        if outcome == "applied":
            self._apply(cancellation, number or self.current)

    def _apply(self, cancellation: Cancellation, first_issue: int) -> None:
        cancellation.state = "applied"
        for issue in self.issues[first_issue - 1 :]:
            if issue.status not in BEYOND_CANCELLING:
                self._cancel_issue(issue, cancellation.item)
        in_progress = (issue.number for issue in self.issues[self.current - 1 :] if issue.status in IN_PROGRESS)
        self.current = next(in_progress, len(self.issues))

    def _cancel_issue(self, issue: Issue, item: int | None) -> None:
        if item is None:
            self._replace_items(issue, dict.fromkeys(ACTIVE_ITEM, LineItemStatus.CANCELLED))
        else:
            items = issue.items.copy()
            items[item] = LineItemStatus.CANCELLED
            self._set_items(issue, items)
        if not any(status in ACTIVE_ITEM for status in issue.items):
            self._set_status(issue, IssueStatus.CANCELLED)

    # claimed, not-claimed, expired ------------------------------------------------------------------------------------

    def claimed(self, number: int | None = None, *, amends: bool = False) -> None:
        """The dispenser claims payment for the issue, or changes the claim."""
        allowed = (IssueStatus.DISPENSED, IssueStatus.NO_CLAIMED)
        issue = self._issue(number, (*allowed, IssueStatus.CLAIMED) if amends else allowed)
        claim_id = self.dice.uuid()
        data: dict[str, object] = {"issueNumber": issue.number, "claimId": claim_id}
        if amends and issue.claim_id:
            data["amends"] = issue.claim_id
            self.paths.add("claim amended")
        self._happens("claimed", issue.dispenser or SPINE, data)
        if issue.status == IssueStatus.NO_CLAIMED:
            self.paths.add("claimed after all")
        issue.claim_id = claim_id
        self._set_status(issue, IssueStatus.CLAIMED)

    def not_claimed(self, number: int | None = None) -> None:
        """Nobody claimed the issue in time."""
        issue = self._issue(number, (IssueStatus.DISPENSED, IssueStatus.WITH_DISPENSER_ACTIVE))
        self._happens("not-claimed", SPINE, {"issueNumber": issue.number})
        self.paths.add("not claimed")
        self._set_status(issue, IssueStatus.NO_CLAIMED)

    def expired(self, number: int | None = None) -> None:
        """The issue expires, and every later one with it."""
        first = self._issue(number, EXPIRABLE)
        self._happens("expired", SPINE, {"issueNumber": first.number})
        self.paths.add(f"expired from {first.status}")
        for issue in self.issues[first.number - 1 :]:
            self._replace_items(issue, ITEM_AFTER_EXPIRY)
            if issue.status == IssueStatus.WITH_DISPENSER_ACTIVE:
                self._set_status(issue, IssueStatus.DISPENSED)
            elif issue.status in EXPIRABLE:
                self._set_status(issue, IssueStatus.EXPIRED)
        self.current = len(self.issues)

    # nominated, corrected, deleted ------------------------------------------------------------------------------------

    def nominate(self, dispenser: Publisher | None) -> None:
        """The patient nominates another dispenser, or none."""
        self._allow(self.is_created and not self.is_deleted)
        organisation = dispenser.organisation if dispenser else None
        self._happens("nominated", self.prescribed.prescriber, {"nominatedDispenser": organisation})
        self.paths.add("nomination changed" if dispenser else "nomination removed")
        self.nominated = dispenser

    def corrected(
        self,
        reason: str,
        *,
        number: int = 1,
        status: str | None = None,
        item_status: str | None = None,
        dispenser: Publisher | None = None,
        clear_dispenser: bool = False,
        current: int | None = None,
    ) -> None:
        """An administrator sets an issue right; with a dispenser also the dates that go with one."""
        self._allow(self.is_created and not self.is_deleted)
        issue = self.issues[number - 1]
        items = issue.items if item_status is None else [item_status] * len(issue.items)
        correction: dict[str, object] = {"issueNumber": number}
        if status is not None:
            correction["status"] = status
        if item_status is not None:
            correction["lineItems"] = self._item_list(items)
        if dispenser is not None:
            correction["dispensingOrganisation"] = dispenser.organisation
            correction["releaseDate"] = correction["lastDispenseDate"] = date_text(self.now)
        elif clear_dispenser:
            correction["dispensingOrganisation"] = None
        data: dict[str, object] = {"reason": reason, "issues": [correction]}
        if current is not None:
            data["currentIssueNumber"] = current
        self._happens("corrected", SPINE, data)
        self.paths.add("corrected")
        self._set_items(issue, items)
        self._set_status(issue, status or issue.status)
        if dispenser is not None or clear_dispenser:
            issue.dispenser = dispenser
        self.current = current or self.current

    def deleted(self) -> None:
        """The prescription leaves the record."""
        self._allow(bool(self.issues) and not self.is_deleted)
        self._happens("deleted", SPINE, {})
        self.paths.add("deleted" if self.is_created else "placeholder deleted")
        self.is_deleted = True

    # what they share --------------------------------------------------------------------------------------------------

    def issue(self) -> Issue:
        """The current one."""
        return self.issues[self.current - 1]

    def open_items(self) -> int:
        """How many items of the current issue are with a dispenser and not finished."""
        return sum(item in OPEN_ITEM for item in self.issue().items)

    def _allow(self, holds: bool) -> None:
        if not holds:
            raise Impossible("the contract lets no such event fold here")

    def _issue(self, number: int | None, allowed: Collection[str]) -> Issue:
        self._allow(bool(self.issues) and not self.is_deleted)
        issue = self.issues[(number or self.current) - 1]
        self._allow(issue.status in allowed)
        return issue

    def _happens(self, kind: str, publisher: Publisher, data: dict[str, object]) -> None:
        if len(self.steps) == self.rests_after:
            raise AtRest
        self.steps.append(Step(self.now, publisher.source, f"eps.prescription.{kind}.v1", data))

    def _item_list(self, statuses: Sequence[str]) -> list[dict[str, str]]:
        pairs = zip(self.prescribed.item_ids, statuses, strict=True)
        return [{"id": item_id, "status": status} for item_id, status in pairs]

    def _set_status(self, issue: Issue, status: str) -> None:
        issue.status = status
        self.issue_statuses.add(status)

    def _set_items(self, issue: Issue, items: list[str]) -> None:
        issue.items = items
        self.item_statuses.update(items)

    def _replace_items(self, issue: Issue, replacements: dict[str, str]) -> None:
        self._set_items(issue, [replacements.get(status, status) for status in issue.items])


def _target(item: int | None) -> str:
    return "the prescription" if item is None else "a line item"


def _with(items: Sequence[str], statuses: Sequence[str], keep: Collection[str] | None) -> list[str]:
    """Items that are open (``keep`` None), or not among those to keep, get the statuses in turn, the last one again."""
    left = list(statuses)
    after = []
    for item in items:
        if item not in OPEN_ITEM if keep is None else item in keep:
            after.append(item)
        else:
            after.append(left[0])
            if len(left) > 1:
                left.pop(0)
    return after


def _status_from(items: Collection[str]) -> str:
    if any(item in OPEN_ITEM for item in items):
        return IssueStatus.WITH_DISPENSER_ACTIVE
    return IssueStatus.DISPENSED if LineItemStatus.FULLY_DISPENSED in items else IssueStatus.NOT_DISPENSED
