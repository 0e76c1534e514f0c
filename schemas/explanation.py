"""What is wrong with a payload that the hot path of ``schemas.incoming`` refused, member by member.

Slow and thorough, by marshmallow. No message ever repeats a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from marshmallow import ValidationError

from schemas.contract import EVENT_TYPES, TYPE_OF, Broken, ContractSchema, EnvelopeSchema
from schemas.events import Created
from schemas.identifiers import InvalidPrescriptionId, PrescriptionId, is_nhs_number, parse_prescription_id

Json = Mapping[str, Any]

_ENVELOPE = EnvelopeSchema()
_DATA = {event_type: schema() for event_type, (_, schema) in EVENT_TYPES.items()}


@dataclass(frozen=True, slots=True)
class ReadableAttributes:
    """The attributes that keep the contract, whatever is wrong with the others."""

    subject: PrescriptionId | None
    source: str | None
    id: str | None
    type: str | None
    sequence: int | None


def readable_attributes(attributes: Json, *, strict_check_character: bool = True) -> ReadableAttributes:
    """What can still be read of the envelope of a refused payload."""
    good, _ = _loaded(_ENVELOPE, attributes)
    subject = None
    if not [*_envelope_rules(good, strict_check_character)] and "subject" in good:
        subject = parse_prescription_id(good["subject"], strict=False)
    return ReadableAttributes(subject, good.get("source"), good.get("id"), good.get("type"), good.get("sequence"))


def readable_nhs_number(event_type: str | None, data: object) -> str | None:
    """The patient of a ``created`` that may be broken elsewhere."""
    if event_type != TYPE_OF[Created] or not isinstance(data, dict):
        return None
    number = data.get("nhsNumber")
    return number if isinstance(number, str) and is_nhs_number(number) else None


def envelope_errors(attributes: Json, data: object, *, strict_check_character: bool) -> list[Broken]:
    """What is wrong with the attributes, the data being an object among them."""
    good, broken = _loaded(_ENVELOPE, attributes)
    broken.extend(_envelope_rules(good, strict_check_character))
    if not isinstance(data, dict):
        broken.append(("data", "is required: an object"))
    return broken


def data_errors(event_type: str, data: Json) -> list[Broken]:
    """What is wrong with the data of an event of a known type, each path beginning with ``data.``."""
    _, broken = _loaded(_DATA[event_type], data)
    return [(f"data.{path}", message) for path, message in broken]


def _loaded(schema: ContractSchema, original: Json) -> tuple[dict[str, Any], list[Broken]]:
    """The members that could be loaded, and what is wrong with the others."""
    try:
        return schema.load(original), []
    except ValidationError as error:
        messages: dict[Any, Any] = error.normalized_messages()  # type: ignore[no-untyped-call] # marshmallow types it not
        # A schema runs its rules only when every field is good; here those that can be judged are judged anyway.
        broken = dict.fromkeys([*_flat(messages), *schema.rules(_without_broken(original, messages))])
        return error.valid_data if isinstance(error.valid_data, dict) else {}, [*broken]


def _envelope_rules(good: Json, strict_check_character: bool) -> Iterator[Broken]:
    if "subject" in good:
        try:
            parse_prescription_id(good["subject"], strict=strict_check_character)
        except InvalidPrescriptionId as error:
            yield "subject", str(error)


def _flat(messages: Mapping[Any, Any], path: str = "") -> Iterator[Broken]:
    """Marshmallow's nested messages with dotted paths."""
    for key, value in messages.items():
        here = path if key == "_schema" else f"{path}.{key}" if path else str(key)
        if isinstance(value, dict):
            yield from _flat(value, here)
        else:
            yield from ((here, message) for message in value)


def _without_broken(original: object, messages: object) -> Any:  # noqa: ANN401 - JSON
    """The same JSON with ``None``, not known, wherever something is wrong."""
    if isinstance(messages, dict) and isinstance(original, dict):
        broken = {key: _without_broken(original[key], below) for key, below in messages.items() if key in original}
        return {**original, **broken}
    if isinstance(messages, dict) and isinstance(original, list):
        return [_without_broken(value, messages[i]) if i in messages else value for i, value in enumerate(original)]
    return None
