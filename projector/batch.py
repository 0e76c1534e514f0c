"""What one poll brings: records, and what became of each at the door.

Addresses travel with the payload, so that no step can lose the place of what it is working on. No I/O.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from schemas.events import Event
from schemas.values import value


@value(order=True)
class Position:
    """Kafka's address of a record; prints as the id that commands and pages use: ``topic:partition:offset``."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}:{self.offset}"


@value()
class Record:
    """What Kafka hands us, undecoded. ``timestamp_ms`` is the record's own, in milliseconds since 1970 (UTC)."""

    position: Position
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


class Reason(StrEnum):
    """Why a record was set aside (docs/events.md, "What becomes of an event")."""

    TOO_LARGE = "too_large"
    UNREADABLE = "unreadable"
    CONTRACT_VIOLATION = "contract_violation"
    UNKNOWN_TYPE = "unknown_type"
    MISROUTED = "misrouted"
    NOT_CREATED = "not_created"
    SEQUENCE_GAP = "sequence_gap"
    BEHIND_BLOCK = "behind_block"
    SEQUENCE_CONFLICT = "sequence_conflict"
    ILLEGAL_TRANSITION = "illegal_transition"
    DUPLICATE_PRESCRIPTION = "duplicate_prescription"
    DELETED = "deleted"
    FOLD_FAILED = "fold_failed"


@value()
class FieldError:
    """What is wrong and where: ``path`` like ``data.lineItems.0.id``; ``message`` never repeats the value."""

    path: str
    message: str


@value()
class Accepted:
    """A record that keeps the contract."""

    record: Record
    event: Event


@value()
class Quarantined:
    """A record that does not, with all that could still be read of it.

    ``stream_key`` is the stream it belongs to, or for ``misrouted`` the one it marks; ``None`` when unknown.
    ``event_key`` is the idempotency key when source and id were readable; ``nhs_number`` that of an unread
    ``created``, by which searches must find that something is missing.
    """

    record: Record
    reason: Reason
    errors: tuple[FieldError, ...]
    stream_key: str | None = None
    event_key: bytes | None = None
    event_source: str | None = None
    event_id: str | None = None
    event_type: str | None = None
    sequence: int | None = None
    nhs_number: str | None = None


class Decode(Protocol):
    """Reads a record: an event, or why it is none (``ingest.decode.Decoder``)."""

    def __call__(self, record: Record) -> Accepted | Quarantined:
        """Read a record that stands where it stands."""

    def regardless_of_place(self, record: Record) -> Accepted | Quarantined:
        """Read a misrouted record that is tried again: its place no longer counts."""
