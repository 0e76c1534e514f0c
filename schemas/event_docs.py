"""The text of docs/events.md: prose from ``schemas/data/event_docs.md``, tables and examples from the contract."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from importlib.resources import files
from string import Template
from typing import Any, TypeAlias, cast

from marshmallow import Schema, missing

from schemas.contract import (
    EVENT_TYPES,
    CancellationReasonSchema,
    ContractSchema,
    CorrectedIssueSchema,
    CorrectedItemSchema,
    DispensedItemSchema,
    DispenseWindowSchema,
    EnvelopeSchema,
    OrganisationSchema,
    PrescribedItemSchema,
)
from schemas.event_examples import example
from schemas.fields import ContractField, Member, Members
from schemas.statuses import IssueStatus, LineItemStatus

Documented: TypeAlias = ContractField[Any] | Member | Members

OBJECTS: tuple[type[ContractSchema], ...] = (
    OrganisationSchema,
    PrescribedItemSchema,
    DispenseWindowSchema,
    DispensedItemSchema,
    CancellationReasonSchema,
    CorrectedIssueSchema,
    CorrectedItemSchema,
)


def events_markdown() -> str:
    """The page as it stands in the repository."""
    template = files("schemas").joinpath("data", "event_docs.md").read_text(encoding="utf-8")
    return Template(template).substitute(
        envelope="\n".join(
            [*_members(EnvelopeSchema), "| data | yes | an object | [The event itself](#event-types). |"]
        ),
        types="\n\n".join(_event(name) for name in EVENT_TYPES),
        objects="\n\n".join(_object(schema) for schema in OBJECTS),
        statuses="\n".join(_statuses()),
    )


def _event(name: str) -> str:
    _, schema = EVENT_TYPES[name]
    lines = [f"### `{name}`", "", f"{inspect.getdoc(schema)} Its effect: [{_fact(name)}](#{_fact(name)})."]
    if schema().fields:
        lines += ["", *_members(schema)]
    else:
        lines += ["", "`data` is an empty object."]
    if schema.rules is not ContractSchema.rules:
        lines += ["", f"Members together: {_lower_first(inspect.getdoc(schema.rules) or '')}"]
    return "\n".join([*lines, "", "```json", json.dumps(example(name), indent=2), "```"])


def _object(schema: type[Schema]) -> str:
    return "\n".join([f"### {_title(schema)}", "", inspect.getdoc(schema) or "", "", *_members(schema)])


def _members(schema: type[Schema]) -> list[str]:
    documented = cast(dict[str, Documented], schema().fields)
    rows = [_row(field.data_key or name, field) for name, field in documented.items()]
    return ["| Name | Required | Rule | Meaning |", "| --- | --- | --- | --- |", *rows]


def _row(name: str, field: Documented) -> str:
    cells = (name, _required(field), _rule(field), str(field.metadata.get("description", "")))
    return f"| {' | '.join(cells)} |"


def _required(field: Documented) -> str:
    if field.required:
        return "yes"
    return "no" if field.load_default is missing else f"no, default `{json.dumps(field.load_default)}`"


def _rule(field: Documented) -> str:
    or_null = " or null" if field.allow_none else ""
    match field:
        case Members():
            return f"an array of {field.fewest} to {field.most}: {_link(field.member_schema)}"
        case Member():
            return f"an object: {_link(type(field.schema))}{or_null}"
        case ContractField():
            return f"{field.expected}{or_null}"


def _link(schema: type[Schema]) -> str:
    title = _title(schema)
    return f"[{title.lower()}](#{title.lower().replace(' ', '-')})"


def _title(schema: type[Schema]) -> str:
    """``PrescribedItemSchema`` is headed "Prescribed item"."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", schema.__name__.removesuffix("Schema")).capitalize()


def _fact(name: str) -> str:
    return name.split(".")[2]


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _statuses() -> Iterator[str]:
    yield "| Code | Issue | Line item |"
    yield "| --- | --- | --- |"
    issues, items = dict(_names(vars(IssueStatus).items())), dict(_names(vars(LineItemStatus).items()))
    for code in sorted(issues | items):
        yield f"| {code} | {issues.get(code, '')} | {items.get(code, '')} |"


def _names(constants: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    return ((code, name.replace("_", " ").capitalize()) for name, code in constants if name.isupper())
