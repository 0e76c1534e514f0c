"""One canonical example of each event, as the payload that a publisher sends (a structured CloudEvent).

They tell of one acute prescription with one issue and two items, so that those that can follow each other do. Every
function takes overrides by name::

    released(id="r-2", time="2026-03-04T10:00:00Z")     # attributes of the envelope, by their own names
    dispensed(prescription_status="0003")               # members of data, in snake case
    created(treatment_type="0003", issues_authorised=6)
    issued(status=DROPPED)                              # leaves the member out
    issued(unknown_member=1)                            # becomes unknownMember in data

An override replaces the whole value; nothing is merged into nested objects. Events of one type share their id unless
told otherwise, so a test with two of them names at least one. ``event(payload)`` is the payload loaded.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from schemas.contract import EnvelopeSchema
from schemas.event_examples import example
from schemas.events import Event
from schemas.incoming import load

Payload: TypeAlias = dict[str, Any]


class _Dropped:
    """The type of ``DROPPED``."""


DROPPED: Final = _Dropped()

NHS_NUMBER = "9990000018"
OTHER_NHS_NUMBER = "9990000026"
PRESCRIPTION_ID = "1F3A9C-Z99901-4B7D2P"
STREAM_KEY = "1F3A9C-Z99901-4B7D2"
OTHER_PRESCRIPTION_ID = "5C08E1-Z99901-0A3F6+"
OTHER_STREAM_KEY = "5C08E1-Z99901-0A3F6"
R1_PRESCRIPTION_ID = "9BA2F6BD-14FD-6F8B-E050-D20AE3A254FDA"
FIRST_ITEM_ID = "6E1B2C30-9A54-4D07-8F21-0B7C5D3E9A11"
SECOND_ITEM_ID = "A4D8F7E2-3C19-4B60-9E75-1F2A6C8B0D22"
NOTIFICATION_ID = "C2B7A90D-5E36-4F18-A0C4-7D91E2F3B633"
CANCELLATION_ID = "D91F4E6A-2B70-4C85-B3D6-8E05A1C7F444"
CLAIM_ID = "E83A5D17-6C92-4E0B-9F48-2A70B6D1C555"
SURGERY: Payload = {
    "ods": "Z99901",
    "name": "INVENTED SURGERY",
    "telecom": "0000 000001",
    "address": "1 EXAMPLE STREET, SAMPLETON, ZZ99 1AA",
}
PHARMACY: Payload = {
    "ods": "ZX901",
    "name": "INVENTED PHARMACY",
    "telecom": "0000 000002",
    "address": "2 EXAMPLE STREET, SAMPLETON, ZZ99 1AA",
}
OTHER_PHARMACY: Payload = {"ods": "ZX902", "name": "ANOTHER INVENTED PHARMACY"}


def created(**overrides: Any) -> Payload:
    """An acute prescription for two items."""
    return _payload("eps.prescription.created.v1", overrides)


def issued(**overrides: Any) -> Payload:
    """Issue 1 became available."""
    return _payload("eps.prescription.issued.v1", overrides)


def released(**overrides: Any) -> Payload:
    """The pharmacy downloaded issue 1."""
    return _payload("eps.prescription.released.v1", overrides)


def dispensed(**overrides: Any) -> Payload:
    """The pharmacy dispensed both items of issue 1."""
    return _payload("eps.prescription.dispensed.v1", overrides)


def dispense_withdrawn(**overrides: Any) -> Payload:
    """The pharmacy took that notification back."""
    return _payload("eps.prescription.dispense-withdrawn.v1", overrides)


def returned(**overrides: Any) -> Payload:
    """The pharmacy gave issue 1 back, nomination included."""
    return _payload("eps.prescription.returned.v1", overrides)


def cancelled(**overrides: Any) -> Payload:
    """The surgery cancelled the prescription, and it was done."""
    return _payload("eps.prescription.cancelled.v1", overrides)


def claimed(**overrides: Any) -> Payload:
    """The pharmacy claimed issue 1."""
    return _payload("eps.prescription.claimed.v1", overrides)


def not_claimed(**overrides: Any) -> Payload:
    """Nobody claimed issue 1."""
    return _payload("eps.prescription.not-claimed.v1", overrides)


def expired(**overrides: Any) -> Payload:
    """Issue 1 expired."""
    return _payload("eps.prescription.expired.v1", overrides)


def nominated(**overrides: Any) -> Payload:
    """The patient chose another pharmacy."""
    return _payload("eps.prescription.nominated.v1", overrides)


def corrected(**overrides: Any) -> Payload:
    """An administrator set issue 1 to dispensed."""
    return _payload("eps.prescription.corrected.v1", overrides)


def deleted(**overrides: Any) -> Payload:
    """The prescription left the record."""
    return _payload("eps.prescription.deleted.v1", overrides)


ALL = (
    created,
    issued,
    released,
    dispensed,
    dispense_withdrawn,
    returned,
    cancelled,
    claimed,
    not_claimed,
    expired,
    nominated,
    corrected,
    deleted,
)


def event(payload: Payload, *, strict_check_character: bool = True) -> Event:
    """The payload as the fold gets it."""
    attributes = {name: value for name, value in payload.items() if name != "data"}
    return load(attributes, payload.get("data"), strict_check_character=strict_check_character)


def organisation(ods: str, name: str | None = None) -> Payload:
    """An organisation of which little is known."""
    return {"ods": ods} | ({} if name is None else {"name": name})


def prescribed_item(item_id: str, **overrides: Any) -> Payload:
    """One medication line for ``created(line_items=[...])``."""
    item = {
        "id": item_id,
        "description": "Invented 10mg tablets",
        "code": "999000031000001109",
        "quantity": "28",
        "unit": "tablet",
        "dosage": "One a day",
    }
    return _overridden(item, overrides)


def item_status(item_id: str, status: str) -> Payload:
    """One entry for ``dispensed(line_items=[...])``."""
    return {"id": item_id, "status": status}


_ATTRIBUTES = frozenset(EnvelopeSchema().fields)


def _payload(event_type: str, overrides: Payload) -> Payload:
    payload = example(event_type)
    attributes = {name: value for name, value in overrides.items() if name in _ATTRIBUTES or name == "data"}
    members = {name: value for name, value in overrides.items() if name not in attributes}
    payload = _overridden(payload, attributes)
    if members:
        payload["data"] = _overridden(payload["data"], members)
    return payload


def _overridden(original: Payload, overrides: Payload) -> Payload:
    changed = original | {_camel(name): value for name, value in overrides.items()}
    return {name: value for name, value in changed.items() if value is not DROPPED}


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))
