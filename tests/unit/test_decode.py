"""A record becomes an event or is quarantined: every reason, the order of the checks, and what can still be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.decode import Decoder
from projector.batch import Accepted, Position, Quarantined, Reason, Record
from schemas.incoming import event_key
from tests.examples import (
    ALL,
    DROPPED,
    NHS_NUMBER,
    OTHER_STREAM_KEY,
    PRESCRIPTION_ID,
    STREAM_KEY,
    Payload,
    cancelled,
    created,
    event,
    issued,
)

PLACES = {STREAM_KEY.encode(): 3, OTHER_STREAM_KEY.encode(): 5}
STRUCTURED = (("content-type", b"application/cloudevents+json"),)
KEY = STREAM_KEY.encode()
SOURCE = "urn:nhs:asid:999000000001"
WRONG_CHECK = PRESCRIPTION_ID[:-1] + "Q"

Headers = tuple[tuple[str, bytes | None], ...]


def partition_of(key: bytes) -> int:
    return PLACES.get(key, 0)


decode = Decoder(partition_of)


def structured(
    payload: object, *, key: bytes | None = KEY, partition: int = 3, headers: Headers = STRUCTURED
) -> Record:
    value = payload if payload is None or isinstance(payload, bytes) else orjson.dumps(payload)
    return Record(Position("prescription-events", partition, 42), 1_772_442_930_000, key, value, headers)


def headers_of(payload: Payload) -> Headers:
    """The attributes of a payload as binary mode carries them."""
    return tuple(
        ("content-type" if name == "datacontenttype" else f"ce_{name}", str(value).encode())
        for name, value in payload.items()
        if name != "data"
    )


def binary(payload: Payload, *, value: object = ..., headers: Headers | None = None, **place: Any) -> Record:
    data = payload["data"] if value is ... else value
    return structured(data, headers=headers_of(payload) if headers is None else headers, **place)


def quarantined(record: Record, by: Callable[[Record], Accepted | Quarantined] = decode) -> Quarantined:
    decoded = by(record)
    assert isinstance(decoded, Quarantined)
    assert decoded.record is record
    assert decoded.errors
    return decoded


def paths(item: Quarantined) -> list[str]:
    return [error.path for error in item.errors]


# Accepted


@pytest.mark.parametrize("example", ALL)
def test_a_structured_record_becomes_its_event(example: Callable[[], Payload]) -> None:
    record = structured(example())
    assert decode(record) == Accepted(record, event(example()))


@pytest.mark.parametrize("example", ALL)
def test_a_binary_record_becomes_the_same_event(example: Callable[[], Payload]) -> None:
    record = binary(example())
    assert decode(record) == Accepted(record, event(example()))


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("traceparent", b"whatever tracing puts there"),),
        (("Content-Type", b"application/cloudevents+json; charset=utf-8"),),
        (("CONTENT-TYPE", b"Application/CloudEvents+JSON"),),
        (*STRUCTURED, ("ce_type", b"eps.prescription.deleted.v1"), ("ce_subject", b"x")),
    ],
)
def test_a_record_is_structured_when_its_content_type_says_so_or_nothing_says_otherwise(headers: Headers) -> None:
    assert decode(structured(issued(), headers=headers)) == Accepted(
        structured(issued(), headers=headers), event(issued())
    )


def test_header_names_are_read_in_any_case_and_extensions_are_ignored() -> None:
    headers = tuple((name.upper(), value) for name, value in headers_of(issued(sequence=7)))
    extensions: Headers = (("ce_new", b"\xff"), ("ce_new", None), ("other", b"\xff"), ("ce_data", b"1"))
    decoded = decode(binary(issued(), headers=headers + extensions))

    assert isinstance(decoded, Accepted)
    assert decoded.event == event(issued(sequence="7"))


def test_binary_mode_needs_no_content_type() -> None:
    assert isinstance(decode(binary(issued(datacontenttype=DROPPED))), Accepted)


def test_check_characters_are_verified_unless_switched_off() -> None:
    record = structured(issued(subject=WRONG_CHECK))

    assert paths(quarantined(record)) == ["subject"]
    assert isinstance(Decoder(partition_of, strict_check_character=False)(record), Accepted)


def test_decoding_is_a_function_of_the_record() -> None:
    record = structured(created(nhs_number="x"))
    assert decode(record) == decode(record) == Decoder(partition_of)(record)


# Every reason


def test_a_value_over_the_limit_is_too_large() -> None:
    value = orjson.dumps(issued())
    exact = Decoder(partition_of, max_value_bytes=len(value))
    short = Decoder(partition_of, max_value_bytes=len(value) - 1)
    item = quarantined(structured(value), short)

    assert isinstance(exact(structured(value)), Accepted)
    assert item.reason is Reason.TOO_LARGE
    assert str(len(value)) in item.errors[0].message


def test_the_limit_is_256_kib_unless_told_otherwise() -> None:
    assert quarantined(structured(b" " * 262_144)).reason is Reason.UNREADABLE
    assert quarantined(structured(b" " * 262_145)).reason is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"1",
        b'{"id": NaN}',
        b'{"id": 1e999}',
        b'{"id": "\xff"}',
        b'{"id": "\\ud800"}',
        b"\xef\xbb\xbf{}",
        b"<xml/>",
        b"[" * 2000,
    ],
)
@pytest.mark.parametrize("headers", [STRUCTURED, headers_of(issued())])
def test_what_is_no_json_object_is_unreadable(value: bytes | None, headers: Headers) -> None:
    item = quarantined(structured(value, headers=headers))

    assert item.reason is Reason.UNREADABLE
    assert paths(item) == [""]


def test_a_broken_contract_is_told_path_by_path() -> None:
    item = quarantined(structured(issued(time=None, issue_number=0)))

    assert item.reason is Reason.CONTRACT_VIOLATION
    assert paths(item) == ["time", "data.issueNumber"]


@pytest.mark.parametrize("event_type", ["eps.prescription.issued.v2", "com.example.other"])
def test_an_unknown_type_or_version_says_what_to_do(event_type: str) -> None:
    item = quarantined(structured(issued(type=event_type)))

    assert item.reason is Reason.UNKNOWN_TYPE
    assert paths(item) == ["type"]
    assert "deploy" in item.errors[0].message
    assert item.event_type == event_type


@pytest.mark.parametrize(
    ("key", "partition", "wrong"),
    [
        (None, 3, ["key"]),
        (b"", 3, ["key"]),
        (PRESCRIPTION_ID.encode(), 3, ["key"]),
        (STREAM_KEY.lower().encode(), 3, ["key"]),
        (b"\xff", 3, ["key"]),
        (OTHER_STREAM_KEY.encode(), 5, ["key", "partition"]),
        (KEY, 5, ["partition"]),
    ],
)
def test_a_record_in_another_place_than_its_subjects_is_misrouted(
    key: bytes | None, partition: int, wrong: list[str]
) -> None:
    item = quarantined(structured(issued(), key=key, partition=partition))

    assert item.reason is Reason.MISROUTED
    assert item.stream_key == STREAM_KEY
    assert paths(item) == wrong


def test_a_misrouted_record_that_an_operator_retries_is_read_wherever_it_stands() -> None:
    record = structured(issued(), key=None, partition=5)
    assert decode.regardless_of_place(record) == Accepted(record, event(issued()))


def test_a_misrouted_record_that_breaks_the_contract_too_says_so_when_it_is_retried() -> None:
    item = quarantined(structured(issued(time=None), key=None, partition=5), decode.regardless_of_place)

    assert (item.reason, paths(item), item.stream_key) == (Reason.CONTRACT_VIOLATION, ["time"], STREAM_KEY)


# Headers in binary mode


@pytest.mark.parametrize(
    ("headers", "path", "message"),
    [
        ((("ce_time", b"2026-03-02T09:20:00Z"),), "time", "several"),
        ((("CE_TIME", b"\xff"),), "time", "several"),
        ((("content-type", b"application/json"),), "datacontenttype", "several"),
        ((("ce_sequence", b"1"), ("ce_sequence", b"1")), "sequence", "several"),
        ((("ce_sequence", b"1"), ("ce_sequence", b"1"), ("ce_sequence", b"1")), "sequence", "several"),
        ((("ce_sequence", b"\xff"),), "sequence", "UTF-8"),
        ((("ce_traceparent", None),), "traceparent", "must be"),
    ],
)
def test_a_header_that_cannot_be_told_breaks_the_contract(headers: Headers, path: str, message: str) -> None:
    item = quarantined(binary(issued(), headers=headers_of(issued()) + headers))

    assert item.reason is Reason.CONTRACT_VIOLATION
    assert paths(item) == [path]
    assert message in item.errors[0].message
    assert item.stream_key == STREAM_KEY


def test_a_broken_header_comes_before_an_unknown_type_and_beside_other_errors() -> None:
    twice: Headers = (("ce_sequence", b"1"), ("ce_sequence", b"1"))
    unknown = quarantined(binary(issued(), headers=headers_of(issued(type="com.example")) + twice))
    broken = quarantined(binary(issued(issue_number=0), headers=headers_of(issued(time="x")) + twice))

    assert (unknown.reason, paths(unknown)) == (Reason.CONTRACT_VIOLATION, ["sequence"])
    assert (broken.reason, paths(broken)) == (Reason.CONTRACT_VIOLATION, ["sequence", "time", "data.issueNumber"])


def test_a_content_type_without_attributes_leaves_all_required_ones_missing() -> None:
    item = quarantined(structured(issued(), headers=(("content-type", b"application/json"),)))

    assert item.reason is Reason.CONTRACT_VIOLATION
    assert paths(item) == ["specversion", "id", "source", "type", "subject", "time"]


def test_a_subject_given_twice_is_none() -> None:
    headers = (*headers_of(issued()), ("ce_subject", PRESCRIPTION_ID.encode()))
    item = quarantined(binary(issued(), headers=headers, key=None))

    assert (item.reason, item.stream_key) == (Reason.CONTRACT_VIOLATION, None)


# The order of the checks


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (binary(issued(time=None), value=b"[" * 300_000, key=None), Reason.TOO_LARGE),
        (binary(issued(time=None), value=b"[", key=None), Reason.UNREADABLE),
        (structured(issued(time=None, type="com.example", issue_number=0), partition=1), Reason.MISROUTED),
        (structured(issued(time=None, type="com.example", issue_number=0)), Reason.CONTRACT_VIOLATION),
        (structured(issued(data=[], type="com.example")), Reason.CONTRACT_VIOLATION),
        (structured(issued(type="com.example", issue_number=0)), Reason.UNKNOWN_TYPE),
        (structured(issued(subject=WRONG_CHECK), partition=1), Reason.CONTRACT_VIOLATION),
    ],
)
def test_size_comes_first_then_readable_place_envelope_type_and_data(record: Record, expected: Reason) -> None:
    assert quarantined(record).reason is expected


# Which stream


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (structured(issued(time=None)), STREAM_KEY),
        (structured(issued(subject=PRESCRIPTION_ID.lower(), time=None)), STREAM_KEY),
        (structured(issued(subject=DROPPED)), STREAM_KEY),
        (structured(issued(subject=WRONG_CHECK)), STREAM_KEY),
        (structured(issued(subject=DROPPED), key=OTHER_STREAM_KEY.encode(), partition=5), OTHER_STREAM_KEY),
        (structured(issued(subject=DROPPED), partition=5), None),
        (structured(issued(subject=DROPPED), key=None), None),
        (structured(issued(subject=DROPPED), key=b"\xff"), None),
        (structured(issued(subject=DROPPED), key=PRESCRIPTION_ID.encode(), partition=0), None),
        (structured(issued(subject=DROPPED), key=STREAM_KEY.lower().encode(), partition=0), None),
        (structured(issued(time=None), partition=5), STREAM_KEY),
        (structured(b"{"), STREAM_KEY),
        (structured(b"{", partition=5), None),
        (structured(None), STREAM_KEY),
        (binary(issued(), value=b"{"), STREAM_KEY),
        (binary(issued(), value=b"{", partition=5), None),
        (binary(issued(), value=b"{", key=OTHER_STREAM_KEY.encode(), partition=5), OTHER_STREAM_KEY),
        (binary(issued(subject=WRONG_CHECK), value=b"{"), STREAM_KEY),
    ],
)
def test_a_record_belongs_to_its_subject_in_its_place_else_to_its_key_in_its_place_else_to_nobody(
    record: Record, expected: str | None
) -> None:
    assert quarantined(record).stream_key == expected


# What can still be read


def test_a_refused_record_keeps_all_that_could_be_read() -> None:
    item = quarantined(structured(created(sequence="12", prescribed_at=None)))

    assert (item.event_source, item.event_id) == (SOURCE, "example-created-1")
    assert item.event_key == event_key(SOURCE, "example-created-1")
    assert item.event_type == "eps.prescription.created.v1"
    assert item.sequence == 12
    assert item.nhs_number == NHS_NUMBER


def test_a_misrouted_record_keeps_all_that_could_be_read_too() -> None:
    item = quarantined(structured(created(sequence=12), partition=5))

    assert (item.event_key, item.sequence) == (event_key(SOURCE, "example-created-1"), 12)
    assert (item.event_type, item.nhs_number) == ("eps.prescription.created.v1", NHS_NUMBER)


@pytest.mark.parametrize("value", [b"{", b"[" * 300_000, None])
def test_in_binary_mode_the_headers_can_be_read_when_the_value_cannot(value: bytes | None) -> None:
    item = quarantined(binary(created(sequence=12), value=value))

    assert item.stream_key == STREAM_KEY
    assert item.event_key == event_key(SOURCE, "example-created-1")
    assert (item.event_type, item.sequence) == ("eps.prescription.created.v1", 12)
    assert item.nhs_number is None


@pytest.mark.parametrize("broken", [{"id": ""}, {"id": DROPPED}, {"source": None}, {"source": "a b"}])
def test_source_and_id_identify_only_together(broken: Payload) -> None:
    item = quarantined(structured(issued(**broken)))
    assert (item.event_source, item.event_id, item.event_key) == (None, None, None)


@pytest.mark.parametrize("event_type", [None, 1, "", "x" * 201, "a\0b"])
def test_a_type_that_breaks_its_rule_is_not_kept(event_type: object) -> None:
    assert quarantined(structured(created(type=event_type))).event_type is None


@pytest.mark.parametrize("sequence", [None, 0, 1.0, "x", 2**63])
def test_a_sequence_that_breaks_its_rule_is_not_kept(sequence: object) -> None:
    assert quarantined(structured(issued(sequence=sequence))).sequence is None


@pytest.mark.parametrize(
    "payload",
    [
        created(nhs_number="9990000019"),
        created(nhs_number=9990000018),
        created(nhs_number=None),
        created(data=[NHS_NUMBER]),
        created(type="eps.prescription.created.v2"),
        cancelled(outcome="x"),
    ],
)
def test_the_patient_is_kept_only_of_a_created_whose_number_is_valid(payload: Payload) -> None:
    assert quarantined(structured(payload)).nhs_number is None


# No value in a message

MARKER = "zq7patient"
markers = st.sampled_from(
    [MARKER, f"{MARKER}\n", f"{MARKER}\0", MARKER * 300, [MARKER], {MARKER: MARKER}, [{MARKER: 1}]]
)


@st.composite
def marked(draw: st.DrawFn) -> Record:
    """A record with the marker as some value, header, key or member name."""
    payload = draw(st.sampled_from(ALL))()
    holder: Any = payload
    while True:
        name = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if not isinstance(holder[name], dict | list) or not holder[name] or draw(st.booleans()):
            break
        holder = holder[name]
    holder[name] = draw(markers)
    payload[MARKER] = MARKER
    key = draw(st.sampled_from([KEY, None, MARKER.encode()]))
    form = draw(st.sampled_from(["structured", "binary", "broken", "large"]))
    if form == "binary":
        return binary(payload, key=key)
    value = orjson.dumps(payload)
    value = {"broken": value[:-1], "large": value + b" " * 300_000}.get(form, value)
    return structured(value, key=key, partition=draw(st.sampled_from([3, 5])))


@settings(max_examples=400)
@given(marked())
def test_no_error_repeats_what_it_refuses(record: Record) -> None:
    decoded = decode(record)
    if isinstance(decoded, Quarantined):
        assert MARKER not in "".join(f"{error.path} {error.message}" for error in decoded.errors).lower()


@settings(max_examples=200)
@given(
    st.binary(max_size=60), st.none() | st.binary(max_size=20), st.lists(st.tuples(st.text(max_size=9), st.binary()))
)
def test_whatever_a_record_holds_it_is_quarantined_without_an_exception(
    value: bytes, key: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    assert isinstance(decode(structured(value, key=key, headers=tuple(headers))), Quarantined)
