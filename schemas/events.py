"""The thirteen events of the contract as plain frozen data, and their union ``Event``.

One class per fact, named after its CloudEvents type: ``eps.prescription.dispense-withdrawn.v1`` is
``DispenseWithdrawn``, its contract ``DispenseWithdrawnSchema``, its effect
``projector.prescription.dispense_withdrawn``.
Values are already checked and normal: ids in upper case, instants in UTC, defaults filled in (docs/events.md).
"""

from __future__ import annotations

from datetime import date, datetime

from schemas.values import value


@value()
class Organisation:
    """A prescriber, dispenser or canceller. ``address`` is one line, its parts joined with comma and space."""

    ods: str
    name: str | None = None
    telecom: str | None = None
    address: str | None = None


@value()
class Envelope:
    """What CloudEvents carries around the data.

    ``prescription_id`` is the full id in upper case, ``stream_key`` the same without its check character;
    ``key`` is the idempotency key, a 16 byte hash of source and id; ``time`` is in UTC.
    """

    source: str
    id: str
    key: bytes
    prescription_id: str
    stream_key: str
    time: datetime
    sequence: int | None = None
    traceparent: str | None = None


@value()
class PrescribedItem:
    """One medication line as prescribed; its place in ``Created.line_items`` is its item number, from 1."""

    id: str
    description: str
    code: str
    quantity: str
    unit: str
    dosage: str
    issues_authorised: int


@value()
class ItemStatus:
    """The status (vocabulary: line item) that an event gives to one item."""

    id: str
    status: str


@value()
class Created:
    """A signed prescription was accepted."""

    envelope: Envelope
    nhs_number: str
    treatment_type: str
    prescription_type: str
    prescribed_at: datetime
    signed_at: datetime
    days_supply: int
    issues_authorised: int
    dispense_window_low: date | None
    dispense_window_high: date | None
    prescribing_organisation: Organisation
    nominated_dispenser: Organisation | None
    line_items: tuple[PrescribedItem, ...]


@value()
class Issued:
    """An issue became available (0001), or will at its download date (0000)."""

    envelope: Envelope
    issue_number: int
    status: str
    nominated_download_date: date | None


@value()
class Released:
    """A dispenser downloaded an issue."""

    envelope: Envelope
    issue_number: int
    dispensing_organisation: Organisation


@value()
class Dispensed:
    """A dispense notification; with ``amends`` it replaces the issue's last one."""

    envelope: Envelope
    issue_number: int
    notification_id: str
    dispensing_organisation: Organisation
    dispensed_at: datetime
    line_items: tuple[ItemStatus, ...]
    prescription_status: str | None
    amends: str | None


@value()
class DispenseWithdrawn:
    """The last dispense notification of an issue was taken back."""

    envelope: Envelope
    issue_number: int
    notification_id: str


@value()
class Returned:
    """A dispenser gave an issue back."""

    envelope: Envelope
    issue_number: int
    keep_nomination: bool


@value()
class Cancelled:
    """A cancellation request and its outcome: ``applied``, ``pending`` or ``unsuccessful``."""

    envelope: Envelope
    cancellation_id: str
    nhs_number: str
    target: str
    line_item_id: str | None
    outcome: str
    reason_code: str
    reason_text: str
    issue_number: int | None
    cancelling_organisation: Organisation | None


@value()
class Claimed:
    """A dispenser claimed payment for an issue."""

    envelope: Envelope
    issue_number: int
    claim_id: str
    amends: str | None


@value()
class NotClaimed:
    """Nobody claimed an issue in time."""

    envelope: Envelope
    issue_number: int


@value()
class Expired:
    """An issue and every later one expired."""

    envelope: Envelope
    issue_number: int


@value()
class Nominated:
    """The nominated dispenser was replaced, or removed."""

    envelope: Envelope
    nominated_dispenser: Organisation | None


@value()
class CorrectedIssue:
    """What a correction says of one issue; ``None`` leaves a field, ``clear_dispenser`` empties the dispenser."""

    issue_number: int
    status: str | None = None
    line_items: tuple[ItemStatus, ...] = ()
    dispensing_organisation: Organisation | None = None
    clear_dispenser: bool = False
    release_date: date | None = None
    last_dispense_date: date | None = None


@value()
class Corrected:
    """An administrator set fields right."""

    envelope: Envelope
    reason: str
    current_issue_number: int | None
    issues: tuple[CorrectedIssue, ...]


@value()
class Deleted:
    """The prescription left the record."""

    envelope: Envelope


Event = (
    Created
    | Issued
    | Released
    | Dispensed
    | DispenseWithdrawn
    | Returned
    | Cancelled
    | Claimed
    | NotClaimed
    | Expired
    | Nominated
    | Corrected
    | Deleted
)
