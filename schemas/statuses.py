"""The status codes of issues and of line items, by name. The two sets of numbers do not line up (docs/events.md)."""

from __future__ import annotations

from typing import Final


class IssueStatus:
    """Prescription status of one issue."""

    AWAITING_RELEASE_READY: Final = "0000"
    TO_BE_DISPENSED: Final = "0001"
    WITH_DISPENSER: Final = "0002"
    WITH_DISPENSER_ACTIVE: Final = "0003"
    EXPIRED: Final = "0004"
    CANCELLED: Final = "0005"
    DISPENSED: Final = "0006"
    NOT_DISPENSED: Final = "0007"
    CLAIMED: Final = "0008"
    NO_CLAIMED: Final = "0009"
    REPEAT_DISPENSE_FUTURE_INSTANCE: Final = "9000"
    FUTURE_DATED_PRESCRIPTION: Final = "9001"
    PENDING_CANCELLATION: Final = "9005"


class LineItemStatus:
    """Status of one line item in one issue."""

    FULLY_DISPENSED: Final = "0001"
    NOT_DISPENSED: Final = "0002"
    PARTIAL_DISPENSED: Final = "0003"
    NOT_DISPENSED_OWING: Final = "0004"
    CANCELLED: Final = "0005"
    EXPIRED: Final = "0006"
    TO_BE_DISPENSED: Final = "0007"
    WITH_DISPENSER: Final = "0008"
