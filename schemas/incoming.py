"""A payload becomes an event, or an exception that says what is wrong with it.

The hot path asks the JSON Schema that is derived from ``schemas.contract``, compiled, then builds the event by plain
code; what JSON Schema cannot say is checked on the way, by the functions that the marshmallow fields and schemas call
too. What this refuses, marshmallow loads once more, to explain it with every path (``schemas.explanation``). Both
accept the same payloads; should they ever not, the payload is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import jsonschema_rs

from schemas.contract import (
    DEFAULT_DAYS_SUPPLY,
    DEFAULT_ISSUED_STATUS,
    DEFAULT_ISSUES_AUTHORISED,
    EVENT_TYPES,
    TYPE_OF,
    Broken,
    ContractSchema,
    EnvelopeSchema,
)
from schemas.events import (
    Cancelled,
    Claimed,
    Corrected,
    CorrectedIssue,
    Created,
    Deleted,
    Dispensed,
    DispenseWithdrawn,
    Envelope,
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
from schemas.explanation import data_errors, envelope_errors
from schemas.fields import (
    calendar_date,
    instant,
    nhs_number,
    quantity_text,
    sequence_number,
    traceparent,
    whole,
)
from schemas.identifiers import PrescriptionId, parse_prescription_id
from schemas.json_schema import compiled

__all__ = ["EVENT_TYPES", "TYPE_OF", "ContractViolation", "UnknownType", "event_key", "load"]

Json = Mapping[str, Any]


class ContractViolation(ValueError):
    """The payload breaks the contract; ``errors`` holds each path with a message that never repeats the value."""

    def __init__(self, errors: Iterable[Broken]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(f"{path}: {message}" for path, message in self.errors))


class UnknownType(ValueError):
    """The envelope keeps the contract, but its type or the type's version is none of the contract's."""


def event_key(source: str, id: str) -> bytes:
    """The idempotency key: 16 bytes, the same for the same source and id."""
    return blake2b(f"{source}\0{id}".encode(), digest_size=16).digest()


def read(attributes: Json, data: object, *, strict_check_character: bool = True) -> Event | None:
    """The same event as ``load``, or ``None`` where that explains what is wrong."""
    try:
        return _read(attributes, data, strict_check_character)
    except ValueError:
        return None


def load(attributes: Json, data: object, *, strict_check_character: bool = True) -> Event:
    """The event that these CloudEvents attributes and this data are, both as orjson reads them.

    Raises ``ContractViolation``, or ``UnknownType`` when nothing but the type is wrong.
    """
    event = read(attributes, data, strict_check_character=strict_check_character)
    if event is None:
        raise _refusal(attributes, data, strict_check_character)
    return event


def _read(attributes: Json, data: object, strict_check_character: bool) -> Event | None:
    """The hot path: ``None`` or any ``ValueError`` when the payload breaks the contract."""
    if not _ENVELOPE.is_valid(attributes):
        return None
    kind = _KINDS.get(attributes["type"])
    if kind is None or not isinstance(data, dict) or not kind.is_valid(data):
        return None
    if kind.rules is not None and next(kind.rules(data), None) is not None:
        return None
    return kind.event(_envelope(attributes, strict_check_character), data)


def _refusal(attributes: Json, data: object, strict_check_character: bool) -> ContractViolation | UnknownType:
    broken = envelope_errors(attributes, data, strict_check_character=strict_check_character)
    event_type = attributes.get("type")
    if not isinstance(event_type, str) or event_type not in EVENT_TYPES:
        return ContractViolation(broken) if broken else UnknownType()
    if isinstance(data, dict):
        broken += data_errors(event_type, data)
    return ContractViolation(broken or _disagreement(attributes, data, _KINDS[event_type]))


def _disagreement(attributes: Json, data: object, kind: _Kind) -> list[Broken]:
    """What the JSON Schema refused although marshmallow finds nothing wrong, which would be a bug of the contract."""
    broken = [*_paths(_ENVELOPE, attributes), *_paths(kind.validator, data, "data")]
    return [(path, "is refused by the JSON Schema") for path in broken] or [
        ("", "keeps the JSON Schema, but cannot be made an event")
    ]


def _paths(validator: jsonschema_rs.Draft202012Validator, value: object, *above: str) -> Iterator[str]:
    for error in validator.iter_errors(value):
        yield ".".join((*above, *map(str, error.instance_path)))


# The events of one prescription come near each other; what they have in common is then taken apart once.
@lru_cache(maxsize=65_536)
def _prescription_id(text: str, strict: bool) -> PrescriptionId:
    return parse_prescription_id(text, strict=strict)


def _envelope(attributes: Json, strict_check_character: bool) -> Envelope:
    source, event_id = attributes["source"], attributes["id"]
    prescription_id = _prescription_id(attributes["subject"], strict_check_character)
    sequence = attributes.get("sequence")
    context = attributes.get("traceparent")
    return Envelope(
        source,
        event_id,
        event_key(source, event_id),
        prescription_id.full,
        prescription_id.stream_key,
        instant(attributes["time"]),
        None if sequence is None else sequence_number(sequence),
        None if context is None else traceparent(context),
    )


def _organisation(data: Json | None) -> Organisation | None:
    if data is None:
        return None
    return Organisation(data["ods"], data.get("name"), data.get("telecom"), data.get("address"))


def _required_organisation(data: Json) -> Organisation:
    return Organisation(data["ods"], data.get("name"), data.get("telecom"), data.get("address"))


def _date(text: str | None) -> date | None:
    return None if text is None else calendar_date(text)


def _created(envelope: Envelope, data: Json) -> Created:
    window = data.get("dispenseWindow")
    issues_authorised = whole(data.get("issuesAuthorised", DEFAULT_ISSUES_AUTHORISED))
    return Created(
        envelope,
        nhs_number(data["nhsNumber"]),
        data["treatmentType"],
        data["prescriptionType"],
        instant(data["prescribedAt"]),
        instant(data["signedAt"]),
        whole(data.get("daysSupply", DEFAULT_DAYS_SUPPLY)),
        issues_authorised,
        window and calendar_date(window["low"]),
        window and calendar_date(window["high"]),
        _required_organisation(data["prescribingOrganisation"]),
        _organisation(data["nominatedDispenser"]),
        tuple(
            PrescribedItem(
                item["id"].upper(),
                item["description"],
                item["code"],
                quantity_text(item["quantity"]),
                item["unit"],
                item["dosage"],
                whole(item.get("issuesAuthorised", issues_authorised)),
            )
            for item in data["lineItems"]
        ),
    )


def _item_statuses(line_items: list[Json]) -> tuple[ItemStatus, ...]:
    return tuple([ItemStatus(item["id"].upper(), item["status"]) for item in line_items])


def _issued(envelope: Envelope, data: Json) -> Issued:
    return Issued(
        envelope,
        whole(data["issueNumber"]),
        data.get("status", DEFAULT_ISSUED_STATUS),
        _date(data.get("nominatedDownloadDate")),
    )


def _released(envelope: Envelope, data: Json) -> Released:
    return Released(envelope, whole(data["issueNumber"]), _required_organisation(data["dispensingOrganisation"]))


def _dispensed(envelope: Envelope, data: Json) -> Dispensed:
    return Dispensed(
        envelope,
        whole(data["issueNumber"]),
        data["notificationId"].upper(),
        _required_organisation(data["dispensingOrganisation"]),
        instant(data["dispensedAt"]),
        _item_statuses(data["lineItems"]),
        data.get("prescriptionStatus"),
        _upper(data.get("amends")),
    )


def _dispense_withdrawn(envelope: Envelope, data: Json) -> DispenseWithdrawn:
    return DispenseWithdrawn(envelope, whole(data["issueNumber"]), data["notificationId"].upper())


def _returned(envelope: Envelope, data: Json) -> Returned:
    return Returned(envelope, whole(data["issueNumber"]), data.get("keepNomination", False))


def _cancelled(envelope: Envelope, data: Json) -> Cancelled:
    target = data["target"]
    issue_number = data.get("issueNumber")
    return Cancelled(
        envelope,
        data["cancellationId"].upper(),
        nhs_number(data["nhsNumber"]),
        target,
        data["lineItemId"].upper() if target == "lineItem" else None,
        data["outcome"],
        data["reason"]["code"],
        data["reason"]["text"],
        None if issue_number is None else whole(issue_number),
        _organisation(data.get("cancellingOrganisation")),
    )


def _claimed(envelope: Envelope, data: Json) -> Claimed:
    return Claimed(envelope, whole(data["issueNumber"]), data["claimId"].upper(), _upper(data.get("amends")))


def _not_claimed(envelope: Envelope, data: Json) -> NotClaimed:
    return NotClaimed(envelope, whole(data["issueNumber"]))


def _expired(envelope: Envelope, data: Json) -> Expired:
    return Expired(envelope, whole(data["issueNumber"]))


def _nominated(envelope: Envelope, data: Json) -> Nominated:
    return Nominated(envelope, _organisation(data["nominatedDispenser"]))


def _corrected(envelope: Envelope, data: Json) -> Corrected:
    current = data.get("currentIssueNumber")
    return Corrected(
        envelope,
        data["reason"],
        None if current is None else whole(current),
        tuple(map(_corrected_issue, data["issues"])),
    )


def _corrected_issue(data: Json) -> CorrectedIssue:
    dispenser = _organisation(data.get("dispensingOrganisation"))
    return CorrectedIssue(
        whole(data["issueNumber"]),
        data.get("status"),
        _item_statuses(data.get("lineItems", [])),
        dispenser,
        dispenser is None and "dispensingOrganisation" in data,
        _date(data.get("releaseDate")),
        _date(data.get("lastDispenseDate")),
    )


def _deleted(envelope: Envelope, _data: Json) -> Deleted:
    return Deleted(envelope)


def _upper(text: str | None) -> str | None:
    return None if text is None else text.upper()


class _Kind(NamedTuple):
    """All that the hot path needs of one type of event."""

    validator: jsonschema_rs.Draft202012Validator
    is_valid: Callable[[Any], bool]
    rules: Callable[[Json], Iterator[Broken]] | None
    event: Callable[[Envelope, Json], Event]


_EVENT_OF: dict[type[Event], Callable[[Envelope, Json], Event]] = {
    Created: _created,
    Issued: _issued,
    Released: _released,
    Dispensed: _dispensed,
    DispenseWithdrawn: _dispense_withdrawn,
    Returned: _returned,
    Cancelled: _cancelled,
    Claimed: _claimed,
    NotClaimed: _not_claimed,
    Expired: _expired,
    Nominated: _nominated,
    Corrected: _corrected,
    Deleted: _deleted,
}


def _kinds() -> tuple[jsonschema_rs.Draft202012Validator, dict[str, _Kind]]:
    envelope, *validators = compiled(EnvelopeSchema, *(schema for _, schema in EVENT_TYPES.values()))
    kinds = {}
    for (name, (event, schema)), validator in zip(EVENT_TYPES.items(), validators, strict=True):
        rules = None if schema.rules is ContractSchema.rules else schema.rules
        kinds[name] = _Kind(validator, validator.is_valid, rules, _EVENT_OF[event])
    return envelope, kinds


_ENVELOPE, _KINDS = _kinds()
