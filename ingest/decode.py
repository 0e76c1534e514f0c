"""A record becomes an event, or is quarantined with a reason and with all that could still be read of it.

The checks run in this order: size, readable, place (as soon as the subject is valid, whatever else is wrong),
envelope, type, data. Pure: the same record and settings give the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from projector.batch import Accepted, FieldError, Quarantined, Reason, Record
from projector.defects import defect
from schemas.contract import EnvelopeSchema
from schemas.events import Event
from schemas.explanation import ReadableAttributes, readable_attributes, readable_nhs_number
from schemas.identifiers import is_stream_key
from schemas.incoming import ContractViolation, UnknownType, event_key, load, read

MAX_VALUE_BYTES = 262_144

Headers = Iterable[tuple[str, bytes | None]]

_CONTENT_TYPE = "content-type"
_ATTRIBUTE_PREFIX = "ce_"
_STRUCTURED = b"application/cloudevents"
_USUAL_HEADERS = (("content-type", b"application/cloudevents+json"),)
_ATTRIBUTES = frozenset(EnvelopeSchema().fields)

_TOO_LARGE = "send a smaller event under the same source and id, or raise the limit in a new generation"
_NO_VALUE = "must be a JSON object, not a null value: this topic has no tombstones; send a deleted event instead"
_NO_OBJECT = "must be a JSON object: in structured mode the event, in binary mode its data"
_UNKNOWN_TYPE = (
    "must be a type and version of the contract: correct it at the publisher, or deploy a release that knows it, then "
    "retry"
)
_WRONG_PARTITIONER = "the publisher partitions otherwise than the topic's setting says"
_WRONG_KEY = "must be the prescription id of the subject in upper case without its check character"


@dataclass(frozen=True, slots=True)
class Decoder:
    """Decodes records; ``partition_of`` says in which partition of the topic a key belongs."""

    partition_of: Callable[[bytes], int]
    max_value_bytes: int = MAX_VALUE_BYTES
    strict_check_character: bool = True

    def __call__(self, record: Record) -> Accepted | Quarantined:
        """The record's event, or why it has none."""
        try:
            return self._read_at_once(record) or self._decoded(record, anywhere=False)
        except Exception as error:  # a bug of ours on this one record must not stop every other prescription
            return self._failed(record, error, anywhere=False)

    def regardless_of_place(self, record: Record) -> Accepted | Quarantined:
        """The same for a misrouted record that an operator retries: its place no longer counts."""
        try:
            return self._decoded(record, anywhere=True)
        except Exception as error:
            return self._failed(record, error, anywhere=True)

    def _read_at_once(self, record: Record) -> Accepted | None:
        """The usual record, which keeps the contract in structured mode: what it is not, the other way tells."""
        value = record.value
        if record.headers != _USUAL_HEADERS or value is None or len(value) > self.max_value_bytes:
            return None
        try:
            payload = orjson.loads(value)
        except orjson.JSONDecodeError:
            return None
        if type(payload) is not dict:
            return None
        data = payload.pop("data", None)
        event = read(payload, data, strict_check_character=self.strict_check_character)
        if event is None or not self._is_place_of(event.envelope.stream_key, record):
            return None
        return Accepted(record, event)

    def _decoded(self, record: Record, *, anywhere: bool) -> Accepted | Quarantined:
        content = self._content(record)
        outcome = self._outcome(content)
        if isinstance(outcome, _Refusal):
            return self._quarantined(record, content, outcome, anywhere)
        stream_key = outcome.envelope.stream_key
        if anywhere or self._is_place_of(stream_key, record):
            return Accepted(record, outcome)
        return _described(record, content, self._readable(content), self._misrouted(stream_key, record), stream_key)

    def _failed(self, record: Record, error: Exception, *, anywhere: bool) -> Quarantined:
        """What reading a record raised on, with as much of it as can be read without raising again."""
        refusal = _Refusal(Reason.FOLD_FAILED, (defect(error, "reading it"),))
        try:
            return self._quarantined(record, self._content(record), refusal, anywhere)
        except Exception:
            return Quarantined(record, *refusal, stream_key=self._stream_of_key(record))

    def _content(self, record: Record) -> _Content:
        structured = _is_structured(record.headers)
        attributes, broken = ({}, {}) if structured else _attributes(record.headers)
        payload = self._payload(record.value)
        if isinstance(payload, _Refusal):
            return _Content(attributes, broken, None, payload)
        if structured:
            return _Content(payload, broken, payload.pop("data", None))
        return _Content(attributes, broken, payload)

    def _payload(self, value: bytes | None) -> dict[str, Any] | _Refusal:
        if value is None:
            return _refusal(Reason.UNREADABLE, "", _NO_VALUE)
        if len(value) > self.max_value_bytes:
            size = f"has {len(value)} bytes, and at most {self.max_value_bytes} are read"
            return _refusal(Reason.TOO_LARGE, "", f"{size}: {_TOO_LARGE}")
        try:
            payload = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            return _refusal(Reason.UNREADABLE, "", f"must be JSON in UTF-8, which it is not from {where} on")
        return payload if isinstance(payload, dict) else _refusal(Reason.UNREADABLE, "", _NO_OBJECT)

    def _outcome(self, content: _Content) -> Event | _Refusal:
        if content.unread is not None:
            return content.unread
        broken = content.broken_headers
        errors = [FieldError(name, message) for name, message in broken.items()]
        try:
            event = load(content.attributes, content.data, strict_check_character=self.strict_check_character)
        except ContractViolation as violation:
            errors += [FieldError(*error) for error in violation.errors if error[0] not in broken]
            return _Refusal(Reason.CONTRACT_VIOLATION, tuple(errors))
        except UnknownType:
            event = None
        if errors:
            return _Refusal(Reason.CONTRACT_VIOLATION, tuple(errors))
        return event or _refusal(Reason.UNKNOWN_TYPE, "type", _UNKNOWN_TYPE)

    def _quarantined(self, record: Record, content: _Content, refusal: _Refusal, anywhere: bool) -> Quarantined:
        readable = self._readable(content)
        stream_key = readable.subject.stream_key if readable.subject else None
        if stream_key is not None and not anywhere and not self._is_place_of(stream_key, record):
            if content.unread is None:
                return _described(record, content, readable, self._misrouted(stream_key, record), stream_key)
            stream_key = None
        return _described(record, content, readable, refusal, stream_key or self._stream_of_key(record))

    def _readable(self, content: _Content) -> ReadableAttributes:
        return readable_attributes(content.attributes, strict_check_character=self.strict_check_character)

    def _is_place_of(self, stream_key: str, record: Record) -> bool:
        key = stream_key.encode()
        return record.key == key and self.partition_of(key) == record.position.partition

    def _stream_of_key(self, record: Record) -> str | None:
        """The stream that the record's key names, when the record stands where that stream does."""
        try:
            stream_key = (record.key or b"").decode("ascii")
        except UnicodeDecodeError:
            return None
        return stream_key if is_stream_key(stream_key) and self._is_place_of(stream_key, record) else None

    def _misrouted(self, stream_key: str, record: Record) -> _Refusal:
        key = stream_key.encode()
        errors = [] if record.key == key else [FieldError("key", _WRONG_KEY)]
        here, there = record.position.partition, self.partition_of(key)
        if here != there:
            errors.append(
                FieldError("partition", f"must be {there}, where the key belongs, not {here}: {_WRONG_PARTITIONER}")
            )
        return _Refusal(Reason.MISROUTED, tuple(errors))


class _Refusal(NamedTuple):
    """Why a record has no event."""

    reason: Reason
    errors: tuple[FieldError, ...]


def _refusal(reason: Reason, path: str, message: str) -> _Refusal:
    return _Refusal(reason, (FieldError(path, message),))


class _Content(NamedTuple):
    """What a record says: attributes and data, without regard to the mode that carried them."""

    attributes: Mapping[str, Any]
    broken_headers: Mapping[str, str]
    data: object
    unread: _Refusal | None = None


def _is_structured(headers: Headers) -> bool:
    """Whether the value is the whole event: its content type says so, or nothing says that it is in headers."""
    said = False
    for name, value in headers:
        lowered = name.lower()
        if lowered == _CONTENT_TYPE:
            if value is not None and value.strip().lower().startswith(_STRUCTURED):
                return True
            said = True
        elif lowered.startswith(_ATTRIBUTE_PREFIX):
            said = True
    return not said


def _attributes(headers: Headers) -> tuple[dict[str, str | None], dict[str, str]]:
    """The attributes of binary mode, and those that cannot be told, with the reason. Extensions are left out."""
    attributes: dict[str, str | None] = {}
    broken: dict[str, str] = {}
    for header, value in headers:
        lowered = header.lower()
        name = "datacontenttype" if lowered == _CONTENT_TYPE else lowered.removeprefix(_ATTRIBUTE_PREFIX)
        if name == lowered or name not in _ATTRIBUTES:
            continue
        if name in attributes or name in broken:
            broken[name] = "must be given by one header, not by several"
            continue
        try:
            attributes[name] = None if value is None else value.decode()
        except UnicodeDecodeError:
            broken[name] = "must be UTF-8"
    return {name: text for name, text in attributes.items() if name not in broken}, broken


def _described(
    record: Record, content: _Content, readable: ReadableAttributes, refusal: _Refusal, stream_key: str | None
) -> Quarantined:
    source, event_id = readable.source, readable.id
    if source is None or event_id is None:
        source = event_id = key = None
    else:
        key = event_key(source, event_id)
    return Quarantined(
        record,
        refusal.reason,
        refusal.errors,
        stream_key=stream_key,
        event_key=key,
        event_source=source,
        event_id=event_id,
        event_type=readable.type,
        sequence=readable.sequence,
        nhs_number=readable_nhs_number(readable.type, content.data),
    )
