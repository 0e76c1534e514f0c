"""The two ways in agree: what the compiled JSON Schema and plain code accept, marshmallow accepts, to the same values.

Valid events of every type are drawn, then damaged a few times in the ways in which validators like to differ.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projector.batch import Reason
from schemas.asyncapi import asyncapi_document
from schemas.contract import EVENT_TYPES, ISSUE_STATUSES, LINE_ITEM_STATUSES, EnvelopeSchema
from schemas.event_docs import events_markdown
from schemas.event_examples import example
from schemas.events import Cancelled, Created, Event
from schemas.explanation import data_errors, envelope_errors
from schemas.identifiers import nhs_number_with_check_digit, with_check_character
from schemas.incoming import ContractViolation, UnknownType, load
from schemas.json_schema import event_schemas
from tests.examples import Payload

# Valid events

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
required_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
uuids = st.uuids().map(str).flatmap(lambda text: st.sampled_from([text, text.upper()]))
nhs_numbers = (
    st.integers(999_000_000, 999_999_999)
    .map(lambda n: nhs_number_with_check_digit(str(n)))
    .filter(lambda n: n is not None)
)
stream_keys = st.from_regex(r"[0-9A-F]{6}-[0-9A-Z]{6}-[0-9A-F]{5}", fullmatch=True)
prescription_ids = stream_keys.map(with_check_character).flatmap(lambda full: st.sampled_from([full, full.lower()]))
days = st.dates().map(lambda day: day.isoformat())
issue_numbers = st.integers(1, 99)
organisations = st.fixed_dictionaries(
    {"ods": st.from_regex(r"[A-Z0-9]{3,10}", fullmatch=True)},
    optional={"name": texts, "telecom": texts, "address": texts},
)


@st.composite
def instants(draw: st.DrawFn) -> str:
    moment = draw(st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)))
    fraction = draw(st.sampled_from(["", ".5", ".123456", ".123456789"]))
    offset = draw(st.sampled_from(["Z", "z", "+00:00", "-00:00", "+01:00", "-23:59"]))
    between = draw(st.sampled_from("Tt"))
    return f"{moment.replace(microsecond=0):%Y-%m-%d}".rjust(10, "0") + between + f"{moment:%H:%M:%S}{fraction}{offset}"


@st.composite
def item_statuses(draw: st.DrawFn, statuses: tuple[str, ...], fewest: int) -> list[Payload]:
    ids = draw(st.lists(uuids, min_size=fewest, max_size=4, unique_by=str.upper))
    return [{"id": item_id, "status": draw(st.sampled_from(statuses))} for item_id in ids]


@st.composite
def created_data(draw: st.DrawFn) -> Payload:
    treatment_type = draw(st.sampled_from(["0001", "0002", "0003"]))
    issues_authorised = draw(issue_numbers) if treatment_type == "0003" else 1
    item = st.fixed_dictionaries(
        {
            "id": uuids,
            "description": required_texts,
            "code": required_texts,
            "quantity": st.one_of(
                st.from_regex(r"[0-9]{1,5}(\.[0-9]{1,3})?", fullmatch=True),
                st.integers(0, 2**64 - 1),
                st.floats(0, allow_infinity=False),
            ),
            "unit": texts,
            "dosage": texts,
        },
        optional={"issuesAuthorised": st.integers(1, issues_authorised)},
    )
    window = (
        st.lists(days, min_size=2, max_size=2)
        .map(sorted)
        .map(lambda ends: dict(zip(("low", "high"), ends, strict=True)))
    )
    data = draw(
        st.fixed_dictionaries(
            {
                "nhsNumber": nhs_numbers,
                "prescriptionType": st.from_regex(r"[0-9]{4}", fullmatch=True),
                "prescribedAt": instants(),
                "signedAt": instants(),
                "prescribingOrganisation": organisations,
                "nominatedDispenser": st.none() | organisations,
                "lineItems": st.lists(item, min_size=1, max_size=4, unique_by=lambda item: item["id"].upper()),
            },
            optional={"daysSupply": st.integers(1, 999), "dispenseWindow": window},
        )
    )
    data["treatmentType"] = treatment_type
    if issues_authorised > 1 or draw(st.booleans()):
        data["issuesAuthorised"] = issues_authorised
    return data


@st.composite
def cancelled_data(draw: st.DrawFn) -> Payload:
    data = draw(
        st.fixed_dictionaries(
            {
                "cancellationId": uuids,
                "nhsNumber": nhs_numbers,
                "target": st.sampled_from(["prescription", "lineItem"]),
                "outcome": st.sampled_from(["applied", "pending", "unsuccessful"]),
                "reason": st.fixed_dictionaries({"code": required_texts, "text": texts}),
            },
            optional={"issueNumber": issue_numbers, "cancellingOrganisation": organisations},
        )
    )
    if data["target"] == "lineItem" or draw(st.booleans()):
        data["lineItemId"] = draw(uuids)
    return data


corrected_issues = st.fixed_dictionaries(
    {"issueNumber": issue_numbers},
    optional={
        "status": st.sampled_from(ISSUE_STATUSES),
        "lineItems": item_statuses(LINE_ITEM_STATUSES, 0),
        "dispensingOrganisation": st.none() | organisations,
        "releaseDate": days,
        "lastDispenseDate": days,
    },
)
issue_number_only = st.fixed_dictionaries({"issueNumber": issue_numbers})

DATA: dict[str, st.SearchStrategy[Payload]] = {
    "created": created_data(),
    "issued": st.fixed_dictionaries(
        {"issueNumber": issue_numbers},
        optional={"status": st.sampled_from(["0000", "0001"]), "nominatedDownloadDate": days},
    ),
    "released": st.fixed_dictionaries({"issueNumber": issue_numbers, "dispensingOrganisation": organisations}),
    "dispensed": st.fixed_dictionaries(
        {
            "issueNumber": issue_numbers,
            "notificationId": uuids,
            "dispensingOrganisation": organisations,
            "dispensedAt": instants(),
            "lineItems": item_statuses(("0001", "0002", "0003", "0004", "0005", "0006", "0008"), 1),
        },
        optional={"prescriptionStatus": st.sampled_from(["0003", "0006", "0007"]), "amends": uuids},
    ),
    "dispense-withdrawn": st.fixed_dictionaries({"issueNumber": issue_numbers, "notificationId": uuids}),
    "returned": st.fixed_dictionaries({"issueNumber": issue_numbers}, optional={"keepNomination": st.booleans()}),
    "cancelled": cancelled_data(),
    "claimed": st.fixed_dictionaries({"issueNumber": issue_numbers, "claimId": uuids}, optional={"amends": uuids}),
    "not-claimed": issue_number_only,
    "expired": issue_number_only,
    "nominated": st.fixed_dictionaries({"nominatedDispenser": st.none() | organisations}),
    "corrected": st.fixed_dictionaries(
        {
            "reason": required_texts,
            "issues": st.lists(corrected_issues, max_size=5, unique_by=lambda issue: issue["issueNumber"]),
        },
        optional={"currentIssueNumber": issue_numbers},
    ),
    "deleted": st.just({}),
}


@st.composite
def payloads(draw: st.DrawFn) -> Payload:
    fact = draw(st.sampled_from(sorted(DATA)))
    payload = draw(
        st.fixed_dictionaries(
            {
                "specversion": st.just("1.0"),
                "id": required_texts,
                "source": st.sampled_from(["urn:nhs:asid:999000000001", "/relative?a=b%20c#d"]),
                "subject": prescription_ids,
                "time": instants(),
            },
            optional={
                "datacontenttype": st.sampled_from(["application/json", "Application/JSON; charset=UTF-8"]),
                "sequence": st.integers(1, 2**63 - 1).flatmap(lambda n: st.sampled_from([n, str(n), f"00{n}"])),
                "traceparent": st.just("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
                "extension": st.integers(),
            },
        )
    )
    return payload | {"type": f"eps.prescription.{fact}.v1", "data": draw(DATA[fact])}


# Damage

JUNK: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        1.0,
        0.5,
        -0.0,
        1e22,
        1e300,
        2**63,
        2**64,
        10**30,
        "",
        "x",
        "yes",
        "1",
        "0001",
        "0009",
    ),
    *("1.0", "\N{ARABIC-INDIC DIGIT ONE}", "a\0b", "x" * 201, "x" * 501, "x" * 2001, "\N{PILL}" * 200, "\n"),
    *(
        "2026-03-02",
        "20260302",
        "2026-02-30",
        "2026-W10-1",
        "2026-03-02T09:15:00Z",
        "2026-03-02T09:15:00",
        "0000-01-01",
    ),
    *(
        "2026-03-02T09:15:60Z",
        "9999-12-31T23:59:59-01:00",
        "0001-01-01T00:00:00+01:00",
        "2026-03-02T09:15:00.1234567891Z",
    ),
    *("9990000018", "9990000019", "1F3A9C-Z99901-4B7D2P", "1F3A9C-Z99901-4B7D2", "1F3A9C-Z99901-4B7D2Q"),
    *("6e1b2c30-9a54-4d07-8f21-0b7c5d3e9a11", "6e1b2c309a544d078f210b7c5d3e9a11", "prescription", "lineItem"),
    *([], [[]], [{}], [{}] * 5, [{}] * 100, {}, {"ods": "A1B"}, {"ods": "a1b"}, {"low": "2026-03-02"}, {"": {}}),
]

TEXT_CHANGES: list[Callable[[str], str]] = [
    lambda text: text + "\n",
    lambda text: text + "\0",
    lambda text: text + " ",
    lambda text: "\ufeff" + text,
    lambda text: text + "é",
    lambda text: text[:-1],
    lambda text: text.replace("-", ""),
    lambda text: text.replace("T", " "),
    lambda text: text.replace("Z", ""),
    lambda text: text.replace("1", "\N{FULLWIDTH DIGIT ONE}"),
    str.lower,
    str.upper,
    lambda text: text * 12,
]


def _end_of_february(value: Any) -> Any:
    return f"{value[:4]}-02-30{value[10:]}" if isinstance(value, str) else value


def _with_first_again(entries: Any) -> Any:
    again = copy.deepcopy(entries[:1])
    for entry in again:
        entry.update({"id": entry["id"].swapcase()} if "id" in entry else {})
    return entries + again


# Nothing that a form can see: only a check digit, the calendar or another member says that it is wrong.
SUBTLE: dict[str, Callable[[Any], Any]] = {
    "nhsNumber": lambda number: number[:-1] + str((int(number[-1]) + 1) % 10),
    "subject": lambda subject: subject[:-1] + ("A" if subject[-1] != "A" else "B"),
    "time": _end_of_february,
    "signedAt": _end_of_february,
    "dispensedAt": _end_of_february,
    "releaseDate": _end_of_february,
    "nominatedDownloadDate": _end_of_february,
    "sequence": lambda sequence: sequence.__class__(2**63),
    "traceparent": lambda context: context.replace("00f067aa0ba902b7", "0" * 16),
    "issueNumber": float,
    "daysSupply": float,
    "treatmentType": lambda _: "0001",
    "issuesAuthorised": lambda issues: min(99, issues + 1),
    "dispenseWindow": lambda window: {"low": window["high"], "high": window["low"]},
    "lineItems": _with_first_again,
    "issues": _with_first_again,
    "target": lambda _: "lineItem",
}


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a payload."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


# A copy each time: what is put into a payload may be damaged in turn, and must not end up inside itself.
junk = st.sampled_from(JUNK).map(copy.deepcopy)


@st.composite
def damaged(draw: st.DrawFn) -> Payload:
    payload = copy.deepcopy(draw(payloads()))
    subtle = [path for path in places(payload) if path[-1] in SUBTLE]
    for *above, last in draw(st.lists(st.sampled_from(subtle), max_size=1)):
        holder: Any = payload
        for step in above:
            holder = holder[step]
        holder[last] = SUBTLE[last](holder[last])
    for _ in range(draw(st.integers(0, 2))):
        *above, last = draw(st.sampled_from([*places(payload)]))
        holder = payload
        for step in above:
            holder = holder[step]
        value = holder[last]
        match draw(
            st.sampled_from(["replace", "replace", "drop", "as number", "as text", "change", "repeat", "extend"])
        ):
            case "replace":
                holder[last] = draw(junk)
            case "drop":
                del holder[last]
            case "as number" if type(value) is int and abs(value) < 2**53:
                holder[last] = float(value)
            case "as text" if type(value) is int:
                holder[last] = str(value)
            case "change" if isinstance(value, str):
                holder[last] = draw(st.sampled_from(TEXT_CHANGES))(value)
            case "repeat" if isinstance(value, list):
                holder[last] = value + value
            case "extend" if isinstance(value, dict):
                holder[last] = value | {"unknown": draw(junk)}
    return as_read(payload)


def as_read(payload: Payload) -> Payload:
    """What orjson makes of it: integers beyond 64 bits become floats."""
    read: Payload = orjson.loads(json.dumps(payload))
    return read


def both_ways(payload: Payload) -> tuple[Event | None, dict[str, Any] | None]:
    """The event by the hot path and the members by marshmallow; ``None`` where it is refused."""
    attributes = {name: value for name, value in payload.items() if name != "data"}
    data = payload.get("data")
    try:
        event = load(attributes, data)
    except (ContractViolation, UnknownType):
        event = None
    known = EVENT_TYPES.get(attributes["type"]) if isinstance(attributes.get("type"), str) else None
    if known is None or envelope_errors(attributes, data, strict_check_character=True):
        return event, None
    assert isinstance(data, dict)
    return event, None if data_errors(attributes["type"], data) else known[1]().load(data)


@settings(max_examples=150)
@given(payloads())
def test_both_accept_what_keeps_the_contract_and_read_the_same(payload: Payload) -> None:
    payload = as_read(payload)
    event, members = both_ways(payload)

    assert event is not None
    assert members is not None
    assert_same(event, members)


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(damaged())
def test_both_accept_and_refuse_the_same(payload: Payload) -> None:
    event, members = both_ways(payload)

    assert (event is None) == (members is None)
    if event is not None and members is not None:
        assert_same(event, members)


def assert_same(event: Event, members: dict[str, Any]) -> None:
    """Every member that marshmallow loaded is in the event, by the same name but for those that the event flattens."""
    for name, expected in members.items():
        match name:
            case "reason" if isinstance(expected, dict):
                assert isinstance(event, Cancelled)
                assert (event.reason_code, event.reason_text) == (expected["code"], expected["text"])
            case "dispense_window":
                assert isinstance(event, Created)
                assert (event.dispense_window_low, event.dispense_window_high) == (expected["low"], expected["high"])
            case "line_item_id" if members["target"] == "prescription":
                assert isinstance(event, Cancelled)
                assert event.line_item_id is None
            case _:
                assert_contains(getattr(event, name), expected)


def assert_contains(actual: Any, expected: Any) -> None:
    if isinstance(expected, dict) and is_dataclass(actual) and not isinstance(actual, type):
        for name, value in expected.items():
            assert_contains(getattr(actual, name), value)
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_contains(one, other)
    else:
        assert actual == expected
        assert type(actual) is type(expected)
        assert not isinstance(actual, datetime) or actual.tzinfo is UTC


# The published documents


def published() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(event_schemas(), validate_formats=True)


def test_the_published_document_is_json_schema() -> None:
    assert jsonschema_rs.meta.is_valid(event_schemas())


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_every_example_keeps_the_published_schema_formats_included(event_type: str) -> None:
    published().validate(example(event_type))


@settings(max_examples=150)
@given(damaged())
def test_the_published_schema_accepts_whatever_the_store_accepts(payload: Payload) -> None:
    event, _ = both_ways(payload)
    if event is not None:
        assert PUBLISHED.is_valid(payload)


PUBLISHED = jsonschema_rs.Draft202012Validator(event_schemas())


def test_every_member_is_described() -> None:
    for name, definition in event_schemas()["$defs"].items():
        if name not in {event.__name__ for event, _ in EVENT_TYPES.values()}:
            assert all(member.get("description") for member in definition["properties"].values()), name


def test_asyncapi_has_a_message_with_a_key_for_every_type() -> None:
    document = asyncapi_document("prescription-events", 12)
    messages = document["components"]["messages"]
    channel = document["channels"]["prescriptionEvents"]

    assert document["asyncapi"] == "3.0.0"
    assert [message["name"] for message in messages.values()] == list(EVENT_TYPES)
    assert set(channel["messages"]) == set(messages)
    assert channel["address"] == "prescription-events"
    assert channel["bindings"]["kafka"]["partitions"] == 12
    assert all(message["bindings"]["kafka"]["key"]["pattern"] for message in messages.values())


@pytest.mark.parametrize("document", [asyncapi_document("prescription-events", 12), event_schemas()])
def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for *path, last in places(document):
        if last == "$ref":
            target: Any = document
            node: Any = document
            for step in path:
                node = node[step]
            for step in node["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            assert isinstance(target, dict)


WRITE_PAGE = "python -c 'import schemas.event_docs as d; print(d.events_markdown(), end=str())' > docs/events.md"


def test_the_page_about_events_is_the_generated_one() -> None:
    page = Path(__file__).parents[2] / "docs" / "events.md"
    assert page.read_text(encoding="utf-8") == events_markdown(), f"out of date; write it again with: {WRITE_PAGE}"


def test_every_link_on_the_page_about_events_leads_to_a_heading() -> None:
    page = events_markdown()
    headings = re.findall(r"^#+ (.*)$", page, flags=re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len(anchors) == len(headings)
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= anchors


def test_the_page_about_events_explains_every_reason_and_every_type() -> None:
    page = events_markdown()
    assert all(f"`{reason}`" in page for reason in Reason)
    assert all(f"`{event_type}`" in page for event_type in EVENT_TYPES)


def test_the_envelope_lists_the_attributes_in_the_order_of_the_contract() -> None:
    assert list(EnvelopeSchema().fields)[:6] == ["specversion", "id", "source", "type", "subject", "time"]


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_an_event_has_the_members_of_its_contract(event_type: str) -> None:
    event, schema = EVENT_TYPES[event_type]
    flattened = {"reason": ["reason_code", "reason_text"]} if event_type == "eps.prescription.cancelled.v1" else {}
    flattened["dispense_window"] = ["dispense_window_low", "dispense_window_high"]
    expected = [name for member in schema().fields for name in flattened.get(member, [member])]
    assert sorted(["envelope", *expected]) == sorted(event.__dataclass_fields__)
