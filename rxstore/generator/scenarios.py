"""What happens to prescriptions: the usual way, and every turn that the contract knows, each a scenario of its own.

``SCENARIOS`` is the list, with how often each one comes. A sample that is large enough has every one at least once.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from rxstore.generator.course import Course
from rxstore.generator.dice import Dice
from rxstore.generator.instants import DAY, opening_hours
from rxstore.generator.prescribing import Wanted
from schemas.statuses import IssueStatus, LineItemStatus

DISPENSED = LineItemStatus.FULLY_DISPENSED
NOT_DISPENSED = LineItemStatus.NOT_DISPENSED
PARTLY = LineItemStatus.PARTIAL_DISPENSED
OWING = LineItemStatus.NOT_DISPENSED_OWING
UNTOUCHED = LineItemStatus.WITH_DISPENSER

SHARE_WITH_TWO_NOTIFICATIONS = 0.05
SHARE_WITH_AN_ITEM_NOT_DISPENSED = 0.02
SHARE_RETURNED = 0.008
SHARE_DISPENSED_BY_ANOTHER = 0.01
SHARE_AT_REST = 0.004

SHELF_LIFE_DAYS = 182
CLAIM_PERIOD_DAYS = 180


# parts of many scenarios ----------------------------------------------------------------------------------------------


def collect(course: Course) -> None:
    """A dispenser downloads the current issue within days."""
    course.wait_hours(0.2, 60)
    course.released()


def hand_over(course: Course) -> None:
    """The current issue is dispensed: mostly at once, sometimes with something owed for a day or two."""
    course.wait_hours(0.1, 26)
    if course.dice.chance(SHARE_WITH_TWO_NOTIFICATIONS):
        course.dispensed(course.dice.pick((PARTLY, OWING)), DISPENSED)
        course.wait_hours(4, 60)
        course.dispensed(DISPENSED)
    elif course.open_items() > 1 and course.dice.chance(SHARE_WITH_AN_ITEM_NOT_DISPENSED):
        course.dispensed(NOT_DISPENSED, DISPENSED)
    elif course.dice.chance(SHARE_DISPENSED_BY_ANOTHER):
        course.dispensed(DISPENSED, dispenser=course.another_dispenser())
    else:
        course.dispensed(DISPENSED)


def claim(course: Course) -> None:
    """The dispenser claims for the current issue."""
    course.until(course.claim_time())
    course.claimed()


def complete(course: Course) -> bool:
    """The current issue is claimed, and meanwhile the next one of an eRD opens, if the horizon lets it.

    The claim and the download date come in whichever order they fall. Returns whether the next issue can be
    downloaded.
    """
    finished = course.current
    claim_at = course.claim_time()
    if not course.has_next():
        course.until(claim_at)
        course.claimed()
        return False
    ready_at = course.open_next()
    if claim_at <= ready_at:
        course.until(claim_at)
        course.claimed(finished)
    if course.issue().status == IssueStatus.AWAITING_RELEASE_READY and ready_at <= course.horizon:
        course.until(ready_at)
        course.issued()
    if claim_at > ready_at:
        course.until(claim_at)
        course.claimed(finished)
    return course.issue().status == IssueStatus.TO_BE_DISPENSED and course.now <= course.horizon


def go_on(course: Course) -> None:
    """All that is left when the current issue is dispensed and nothing unusual happens any more."""
    while complete(course):
        course.until(opening_hours(course.now + course.dice.between(0, 6) * DAY))
        collect(course)
        hand_over(course)


def take_the_usual_way(course: Course) -> None:
    """All that is left when the current issue can be downloaded and nothing unusual happens any more."""
    collect(course)
    hand_over(course)
    go_on(course)


def reach_the_next_issue(course: Course) -> None:
    """An eRD's current issue is dispensed and claimed, and the next one has come to its download date."""
    collect(course)
    course.wait_hours(0.1, 26)
    course.dispensed(DISPENSED)
    finished = course.current
    ready_at = course.open_next()
    course.wait_hours(24, 72)
    course.claimed(finished)
    course.until(ready_at)
    course.issued()


def usual(course: Course) -> None:
    """Created, downloaded, dispensed, claimed; with eRD again for each issue."""
    course.created()
    if course.dice.chance(SHARE_AT_REST):
        course.rests_after = course.dice.between(1, 3)
    collect(course)
    if course.dice.chance(SHARE_RETURNED):
        course.wait_hours(1, 50)
        course.returned(keep_nomination=course.dice.chance(0.2))
        collect(course)
    hand_over(course)
    go_on(course)


# at rest when the file ends -------------------------------------------------------------------------------------------


def waits_for_a_dispenser(course: Course) -> None:
    """0001, items 0007."""
    course.created()


def is_with_a_dispenser(course: Course) -> None:
    """0002, items 0008."""
    course.created()
    collect(course)


def is_partly_dispensed(course: Course) -> None:
    """0003 with items 0003, 0004, 0001 and 0008 side by side."""
    is_with_a_dispenser(course)
    course.wait_hours(1, 20)
    course.dispensed(PARTLY, OWING, DISPENSED, UNTOUCHED)


def waits_for_its_claim(course: Course) -> None:
    """0006."""
    is_with_a_dispenser(course)
    course.wait_hours(1, 20)
    course.dispensed(DISPENSED)


# dispensed in other ways ----------------------------------------------------------------------------------------------


def partly_dispensed_first(course: Course) -> None:
    is_with_a_dispenser(course)
    course.wait_hours(1, 20)
    course.dispensed(PARTLY, DISPENSED)
    course.wait_hours(4, 60)
    course.dispensed(DISPENSED)
    go_on(course)


def owed_twice(course: Course) -> None:
    """Three notifications: owing, then partial, then all."""
    is_with_a_dispenser(course)
    for status in (OWING, PARTLY, DISPENSED):
        course.wait_hours(4, 60)
        course.dispensed(status, DISPENSED)
    go_on(course)


def one_item_not_dispensed(course: Course) -> None:
    is_with_a_dispenser(course)
    course.wait_hours(1, 20)
    course.dispensed(NOT_DISPENSED, DISPENSED)
    go_on(course)


def dispensed_by_another(course: Course) -> None:
    is_with_a_dispenser(course)
    course.wait_hours(1, 20)
    course.dispensed(DISPENSED, dispenser=course.another_dispenser())
    go_on(course)


def not_dispensed(course: Course) -> None:
    """0007; nobody claims."""
    is_with_a_dispenser(course)
    course.wait_hours(20, 200)
    course.dispensed(NOT_DISPENSED)


def returned(course: Course) -> None:
    is_with_a_dispenser(course)
    course.wait_hours(1, 50)
    course.returned()
    take_the_usual_way(course)


def returned_with_its_nomination(course: Course) -> None:
    is_with_a_dispenser(course)
    course.wait_hours(1, 50)
    course.returned(keep_nomination=True)
    take_the_usual_way(course)


def amended(course: Course) -> None:
    """The dispenser corrects a notification; one that said everything becomes one that owes."""
    is_with_a_dispenser(course)
    course.wait_hours(1, 20)
    course.dispensed(DISPENSED)
    course.wait_hours(1, 20)
    course.dispensed(OWING, DISPENSED, amends=True)
    course.wait_hours(4, 60)
    course.dispensed(DISPENSED)
    go_on(course)


def amended_to_not_dispensed(course: Course) -> None:
    is_with_a_dispenser(course)
    course.wait_hours(1, 20)
    course.dispensed(DISPENSED)
    course.wait_hours(1, 20)
    course.dispensed(NOT_DISPENSED, amends=True)


def withdrawn(course: Course) -> None:
    """The only notification is withdrawn and sent again."""
    is_with_a_dispenser(course)
    course.wait_hours(1, 20)
    course.dispensed(DISPENSED)
    course.wait_hours(1, 20)
    course.withdrawn()
    hand_over(course)
    go_on(course)


def second_notification_withdrawn(course: Course) -> None:
    is_with_a_dispenser(course)
    course.wait_hours(1, 20)
    course.dispensed(PARTLY, DISPENSED)
    course.wait_hours(4, 60)
    course.dispensed(DISPENSED)
    course.wait_hours(1, 20)
    course.withdrawn()
    course.wait_hours(4, 60)
    course.dispensed(DISPENSED)
    go_on(course)


def amendment_withdrawn(course: Course) -> None:
    is_with_a_dispenser(course)
    course.wait_hours(1, 20)
    course.dispensed(DISPENSED)
    course.wait_hours(1, 20)
    course.dispensed(OWING, amends=True)
    course.wait_hours(1, 20)
    course.withdrawn()
    go_on(course)


def withdrawn_then_returned(course: Course) -> None:
    """The wrong patient's: back to the shelf of all."""
    is_with_a_dispenser(course)
    course.wait_hours(1, 20)
    course.dispensed(DISPENSED)
    course.wait_minutes(5, 50)
    course.withdrawn()
    course.wait_minutes(1, 20)
    course.returned()


# claims ---------------------------------------------------------------------------------------------------------------


def claim_amended(course: Course) -> None:
    waits_for_its_claim(course)
    claim(course)
    course.wait_hours(24, 72)
    course.claimed(amends=True)


def not_claimed(course: Course) -> None:
    waits_for_its_claim(course)
    course.wait_for_night(CLAIM_PERIOD_DAYS)
    course.not_claimed()


def never_completed_nor_claimed(course: Course) -> None:
    """0009 from 0003: the items stay as they were."""
    is_partly_dispensed(course)
    course.wait_for_night(CLAIM_PERIOD_DAYS)
    course.not_claimed()


def claimed_after_all(course: Course) -> None:
    not_claimed(course)
    course.wait_hours(20, 90)
    course.claimed()


# expired --------------------------------------------------------------------------------------------------------------


def expired_on_the_shelf(course: Course) -> None:
    course.created()
    course.wait_for_night(SHELF_LIFE_DAYS)
    course.expired()


def expired_with_a_dispenser(course: Course) -> None:
    is_with_a_dispenser(course)
    course.wait_for_night(SHELF_LIFE_DAYS)
    course.expired()


def expired_partly_dispensed(course: Course) -> None:
    """0003 becomes 0006, owing items not dispensed; what was dispensed is claimed."""
    is_partly_dispensed(course)
    course.wait_for_night(SHELF_LIFE_DAYS)
    course.expired()
    course.wait_hours(20, 90)
    course.claimed()


# cancelled ------------------------------------------------------------------------------------------------------------


def cancelled_on_the_shelf(course: Course) -> None:
    course.created()
    course.wait_hours(0.2, 40)
    course.cancel("applied")


def one_item_cancelled(course: Course) -> None:
    course.created()
    course.wait_minutes(5, 200)
    course.cancel("applied", item=0)
    take_the_usual_way(course)


def cancelled_item_by_item(course: Course) -> None:
    """The last item's cancellation is the prescription's."""
    course.created()
    course.wait_minutes(5, 200)
    for item in range(len(course.prescribed.item_ids)):
        course.wait_minutes(0, 1)
        course.cancel("applied", item=item)


def cancelled_with_a_dispenser_then_returned(course: Course) -> None:
    is_with_a_dispenser(course)
    course.wait_hours(1, 30)
    pending = course.cancel("pending")
    course.wait_hours(1, 30)
    course.returned()
    course.settle(pending, "applied")


def cancelled_with_a_dispenser_too_late(course: Course) -> None:
    """Dispensed all the same: the cancellation is unsuccessful."""
    is_with_a_dispenser(course)
    course.wait_hours(1, 10)
    pending = course.cancel("pending")
    course.wait_hours(1, 20)
    course.dispensed(DISPENSED)
    course.settle(pending, "unsuccessful")
    go_on(course)


def item_cancelled_with_a_dispenser(course: Course) -> None:
    """The dispenser leaves the item out: for that issue the cancellation counts as applied and changes nothing."""
    is_with_a_dispenser(course)
    course.wait_hours(1, 10)
    pending = course.cancel("pending", item=0)
    course.wait_hours(1, 20)
    course.dispensed(NOT_DISPENSED, DISPENSED)
    course.settle(pending, "applied")
    claim(course)


def two_cancellations_with_a_dispenser(course: Course) -> None:
    """One of an item, then one of the whole; the return lets both apply."""
    is_with_a_dispenser(course)
    course.wait_hours(1, 10)
    of_item = course.cancel("pending", item=1)
    course.wait_hours(1, 10)
    of_prescription = course.cancel("pending")
    course.wait_hours(1, 20)
    course.returned()
    course.settle(of_item, "applied")
    course.settle(of_prescription, "applied")


def cancellation_not_settled(course: Course) -> None:
    """Still pending when the file ends."""
    is_with_a_dispenser(course)
    course.wait_hours(1, 30)
    course.cancel("pending")


def cancellation_refused(course: Course) -> None:
    """Asked for after everything was dispensed."""
    waits_for_its_claim(course)
    course.wait_hours(1, 30)
    course.cancel("unsuccessful")
    claim(course)


def cancellation_of_an_item_refused(course: Course) -> None:
    waits_for_its_claim(course)
    course.wait_hours(1, 30)
    course.cancel("unsuccessful", item=0)
    claim(course)


# cancelled before it was created --------------------------------------------------------------------------------------


def cancelled_early(course: Course) -> None:
    course.cancel_early()
    course.wait_minutes(1, 600)
    course.created()


def item_cancelled_early(course: Course) -> None:
    course.cancel_early(item=0)
    course.wait_minutes(1, 600)
    course.created()
    take_the_usual_way(course)


def cancelled_early_and_never_created(course: Course) -> None:
    """9005 when the file ends."""
    course.cancel_early()


def cancelled_early_expired_never_created(course: Course) -> None:
    """0004 without an item."""
    course.cancel_early()
    course.wait_for_night(SHELF_LIFE_DAYS)
    course.expired()


def cancelled_early_expired_then_created(course: Course) -> None:
    """A placeholder that expired makes room for its prescription all the same."""
    course.cancel_early()
    course.wait_for_night(3)
    course.expired()
    course.wait_hours(10, 90)
    course.created()


def cancelled_early_unsuccessfully(course: Course) -> None:
    """Withdrawn by the prescriber before the prescription came: nothing is cancelled."""
    early = course.cancel_early()
    course.wait_minutes(1, 30)
    course.settle(early, "unsuccessful")
    course.wait_minutes(1, 30)
    course.created()
    take_the_usual_way(course)


def unknown_item_cancelled_early(course: Course) -> None:
    course.cancel_early(unknown_item=True)
    course.wait_minutes(1, 600)
    course.created()
    take_the_usual_way(course)


def cancelled_early_for_another_patient(course: Course) -> None:
    """Two items are cancelled early, once under an NHS number that is not the prescription's."""
    course.cancel_early(item=0)
    course.wait_minutes(1, 30)
    course.cancel_early(item=1, for_another_patient=True)
    course.wait_minutes(1, 600)
    course.created()
    take_the_usual_way(course)


def placeholder_deleted(course: Course) -> None:
    course.cancel_early()
    course.wait_for_night(180)
    course.deleted()


# nominated, corrected, deleted ----------------------------------------------------------------------------------------


def nomination_changed(course: Course) -> None:
    course.created()
    course.wait_hours(0.2, 30)
    course.nominate(course.another_dispenser())
    take_the_usual_way(course)


def nomination_removed(course: Course) -> None:
    course.created()
    course.wait_hours(0.2, 30)
    course.nominate(None)
    take_the_usual_way(course)


def nominated_later(course: Course) -> None:
    course.created()
    course.wait_hours(0.2, 30)
    course.nominate(course.another_dispenser())
    take_the_usual_way(course)


def corrected_to_dispensed(course: Course) -> None:
    """Dispensed while the network was away; set right by an administrator, then claimed."""
    course.created()
    course.wait_hours(20, 90)
    course.corrected(
        "Dispensed from the printed token during an outage",
        status=IssueStatus.DISPENSED,
        item_status=DISPENSED,
        dispenser=course.another_dispenser(),
    )
    claim(course)


def reset_by_an_administrator(course: Course) -> None:
    """Taken back from a dispenser who closed down."""
    is_with_a_dispenser(course)
    course.wait_hours(50, 200)
    course.corrected(
        "Reset: the dispenser has closed",
        status=IssueStatus.TO_BE_DISPENSED,
        item_status=LineItemStatus.TO_BE_DISPENSED,
        clear_dispenser=True,
        current=1,
    )
    take_the_usual_way(course)


def cancelled_then_deleted(course: Course) -> None:
    cancelled_on_the_shelf(course)
    course.wait_for_night(180)
    course.deleted()


def claimed_then_deleted(course: Course) -> None:
    waits_for_its_claim(course)
    claim(course)
    course.wait_for_night(36)
    course.deleted()


# dated ahead ----------------------------------------------------------------------------------------------------------


def dated_ahead(course: Course) -> None:
    """9001 until its day comes."""
    course.created(days_ahead=course.dice.between(2, 20))
    course.until(course.night_of(course.prescribed_at))
    course.issued()
    take_the_usual_way(course)


def dated_ahead_and_nominated_for_download(course: Course) -> None:
    """9001, then 0000, then 0001."""
    course.created(days_ahead=course.dice.between(10, 20))
    course.wait_for_night()
    course.issued(status=IssueStatus.AWAITING_RELEASE_READY)
    course.until(course.night_of(course.prescribed_at))
    course.issued()
    take_the_usual_way(course)


def dated_ahead_at_rest(course: Course) -> None:
    """9001 when the file ends."""
    course.created(days_ahead=60)


def dated_ahead_then_cancelled(course: Course) -> None:
    course.created(days_ahead=course.dice.between(2, 20))
    course.wait_hours(1, 20)
    course.cancel("applied")


# repeat dispensing ----------------------------------------------------------------------------------------------------


def all_issues(course: Course) -> None:
    """An eRD that is followed to its last issue, whatever the horizon."""
    course.horizon = course.now + 3 * 365 * DAY
    course.created()
    take_the_usual_way(course)


def issues_at_rest(course: Course) -> None:
    """Issue 1 claimed, issue 2 waiting for its download date (0000), the others future (9000)."""
    course.horizon = course.now
    course.created()
    take_the_usual_way(course)


def window_opens_later(course: Course) -> None:
    """An eRD whose dispense window begins in some days is future dated too."""
    course.created(window_days_ahead=5)
    course.until(course.night_of(course.now + 5 * DAY))
    course.issued()
    take_the_usual_way(course)


def downloaded_before_its_date(course: Course) -> None:
    """Issue 2 is released by id while it is at 0000."""
    course.created()
    collect(course)
    course.wait_hours(0.1, 26)
    course.dispensed(DISPENSED)
    course.open_next()
    course.wait_hours(20, 90)
    course.claimed(1)
    take_the_usual_way(course)


def first_issue_dispensed_late(course: Course) -> None:
    """The download date of issue 2 is past when issue 1 is dispensed: it opens at once (0001)."""
    course.created()
    course.wait_hours(55 * 24, 65 * 24)
    course.released()
    course.wait_hours(1, 20)
    course.dispensed(DISPENSED)
    course.open_next()
    course.wait_hours(1, 20)
    course.claimed(1)
    take_the_usual_way(course)


def cancelled_between_issues(course: Course) -> None:
    """Issue 2 and all later ones are cancelled; issue 1 stays claimed."""
    course.created()
    reach_the_next_issue(course)
    course.wait_hours(1, 60)
    course.cancel("applied")


def item_cancelled_between_issues(course: Course) -> None:
    course.created()
    reach_the_next_issue(course)
    course.wait_hours(1, 60)
    course.cancel("applied", item=0)
    take_the_usual_way(course)


def item_cancellation_ends_later_issues(course: Course) -> None:
    """The item that is left has fewer issues: the ones beyond them are cancelled, the current one is not."""
    course.created()
    course.wait_hours(1, 20)
    course.cancel("applied", item=0)
    collect(course)
    course.wait_hours(1, 20)
    course.dispensed(DISPENSED)
    go_on(course)


def later_issues_cancelled(course: Course) -> None:
    """Pending for the issue at the dispenser, who dispenses it; applied from the next issue on."""
    is_with_a_dispenser(course)
    course.wait_hours(1, 10)
    pending = course.cancel("pending")
    course.wait_hours(1, 20)
    course.dispensed(DISPENSED)
    course.settle(pending, "applied", number=2)
    course.until(course.claim_time())
    course.claimed(1)


def expired_between_issues(course: Course) -> None:
    course.created()
    reach_the_next_issue(course)
    course.wait_for_night(SHELF_LIFE_DAYS)
    course.expired()


def withdrawn_after_the_next_issue_opened(course: Course) -> None:
    """Issue 1 goes back to 0003 with items at 0008, issue 2 stays current."""
    course.created()
    collect(course)
    course.wait_hours(0.1, 26)
    course.dispensed(DISPENSED)
    course.open_next()
    course.wait_hours(1, 20)
    course.withdrawn(1)
    course.wait_hours(1, 20)
    course.dispensed(DISPENSED, number=1)
    course.wait_hours(20, 90)
    course.claimed(1)


def issue_not_claimed(course: Course) -> None:
    """Nobody claims issue 2; issue 3 opens all the same, its download date long past."""
    course.created()
    reach_the_next_issue(course)
    collect(course)
    course.wait_hours(1, 20)
    course.dispensed(DISPENSED)
    course.wait_for_night(CLAIM_PERIOD_DAYS)
    course.not_claimed()
    course.open_next()


# how often each comes -------------------------------------------------------------------------------------------------

PER = 100_000
FORCED_FROM = 200

ANY = Wanted()
ONE_ISSUE = Wanted(repeat_dispensing=False)
ONE_ISSUE_TWO_ITEMS = Wanted(repeat_dispensing=False, items=2)
TWO_ITEMS = Wanted(items=2)
ERD = Wanted(repeat_dispensing=True)
ERD_OF_THREE = Wanted(repeat_dispensing=True, issues_authorised=3, shorter_item=False)


@dataclass(frozen=True, slots=True)
class Scenario:
    """``share`` of 100,000 prescriptions play it; ``wanted`` is what it needs of its prescription."""

    play: Callable[[Course], None]
    share: int
    wanted: Wanted

    @property
    def name(self) -> str:
        """As tables show it."""
        return self.play.__name__.replace("_", " ")


USUAL = Scenario(usual, 0, ANY)
SCENARIOS = (
    Scenario(waits_for_a_dispenser, 150, ANY),
    Scenario(is_with_a_dispenser, 150, ANY),
    Scenario(is_partly_dispensed, 50, Wanted(items=4)),
    Scenario(waits_for_its_claim, 100, ONE_ISSUE),
    Scenario(partly_dispensed_first, 100, ANY),
    Scenario(owed_twice, 60, ANY),
    Scenario(one_item_not_dispensed, 50, TWO_ITEMS),
    Scenario(dispensed_by_another, 50, ANY),
    Scenario(not_dispensed, 700, ONE_ISSUE),
    Scenario(returned, 100, ANY),
    Scenario(returned_with_its_nomination, 40, Wanted(nominated=True)),
    Scenario(amended, 200, ANY),
    Scenario(amended_to_not_dispensed, 20, ONE_ISSUE),
    Scenario(withdrawn, 150, ANY),
    Scenario(second_notification_withdrawn, 40, ANY),
    Scenario(amendment_withdrawn, 20, ANY),
    Scenario(withdrawn_then_returned, 20, ONE_ISSUE),
    Scenario(claim_amended, 300, ONE_ISSUE),
    Scenario(not_claimed, 200, ONE_ISSUE),
    Scenario(never_completed_nor_claimed, 40, Wanted(repeat_dispensing=False, items=4)),
    Scenario(claimed_after_all, 30, ONE_ISSUE),
    Scenario(expired_on_the_shelf, 900, ANY),
    Scenario(expired_with_a_dispenser, 150, ANY),
    Scenario(expired_partly_dispensed, 80, Wanted(repeat_dispensing=False, items=4)),
    Scenario(cancelled_on_the_shelf, 400, ANY),
    Scenario(one_item_cancelled, 300, TWO_ITEMS),
    Scenario(cancelled_item_by_item, 150, ANY),
    Scenario(cancelled_with_a_dispenser_then_returned, 120, ANY),
    Scenario(cancelled_with_a_dispenser_too_late, 100, ANY),
    Scenario(item_cancelled_with_a_dispenser, 50, ONE_ISSUE_TWO_ITEMS),
    Scenario(two_cancellations_with_a_dispenser, 20, TWO_ITEMS),
    Scenario(cancellation_not_settled, 40, ANY),
    Scenario(cancellation_refused, 80, ONE_ISSUE),
    Scenario(cancellation_of_an_item_refused, 40, ONE_ISSUE),
    Scenario(cancelled_early, 120, ANY),
    Scenario(item_cancelled_early, 40, TWO_ITEMS),
    Scenario(cancelled_early_and_never_created, 40, ANY),
    Scenario(cancelled_early_expired_never_created, 20, ANY),
    Scenario(cancelled_early_expired_then_created, 10, ANY),
    Scenario(cancelled_early_unsuccessfully, 20, ANY),
    Scenario(unknown_item_cancelled_early, 10, ANY),
    Scenario(cancelled_early_for_another_patient, 10, TWO_ITEMS),
    Scenario(placeholder_deleted, 10, ANY),
    Scenario(nomination_changed, 300, ANY),
    Scenario(nomination_removed, 80, Wanted(nominated=True)),
    Scenario(nominated_later, 80, Wanted(nominated=False)),
    Scenario(corrected_to_dispensed, 60, ONE_ISSUE),
    Scenario(reset_by_an_administrator, 40, ONE_ISSUE),
    Scenario(cancelled_then_deleted, 30, ANY),
    Scenario(claimed_then_deleted, 30, ONE_ISSUE),
    Scenario(dated_ahead, 500, ANY),
    Scenario(dated_ahead_and_nominated_for_download, 50, ANY),
    Scenario(dated_ahead_at_rest, 60, ANY),
    Scenario(dated_ahead_then_cancelled, 30, ANY),
    Scenario(all_issues, 10, ERD),
    Scenario(issues_at_rest, 100, ERD_OF_THREE),
    Scenario(window_opens_later, 100, ERD),
    Scenario(downloaded_before_its_date, 100, ERD),
    Scenario(first_issue_dispensed_late, 60, ERD),
    Scenario(cancelled_between_issues, 60, ERD),
    Scenario(item_cancelled_between_issues, 30, Wanted(repeat_dispensing=True, items=2, shorter_item=False)),
    Scenario(
        item_cancellation_ends_later_issues,
        20,
        Wanted(repeat_dispensing=True, issues_authorised=4, items=2, shorter_item=True),
    ),
    Scenario(later_issues_cancelled, 40, ERD_OF_THREE),
    Scenario(expired_between_issues, 40, ERD_OF_THREE),
    Scenario(withdrawn_after_the_next_issue_opened, 30, ERD_OF_THREE),
    Scenario(issue_not_claimed, 20, ERD_OF_THREE),
)
_UP_TO = tuple(accumulate(scenario.share for scenario in SCENARIOS))


def draw(dice: Dice) -> Scenario:
    """Mostly the usual one."""
    place = bisect(_UP_TO, dice.random() * PER)
    return SCENARIOS[place] if place < len(SCENARIOS) else USUAL


def forced(prescriptions: int) -> dict[int, Scenario]:
    """Which prescriptions, by index, play a scenario without a draw, so that none is missing in a sample.

    They are spread evenly. A sample of fewer than 200 is left to the draw.
    """
    if prescriptions < FORCED_FROM:
        return {}
    apart = prescriptions / len(SCENARIOS)
    return {int((number + 0.5) * apart): scenario for number, scenario in enumerate(SCENARIOS)}
