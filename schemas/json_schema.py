"""JSON Schema (2020-12) of the event contract, derived from the marshmallow schemas by apispec."""

from __future__ import annotations

import inspect
from typing import Any

import jsonschema_rs
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema
from marshmallow.fields import Field

from schemas.contract import EVENT_TYPES, DataSchema, EnvelopeSchema

JsonSchema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DEFS = "#/$defs/"
_COMPONENTS = "#/components/schemas/"


def definition_name(schema: type[Schema]) -> str:
    """``Envelope``, ``Organisation`` ...; the data of an event is ``CreatedData``, since ``Created`` is the event."""
    name = schema.__name__.removesuffix("Schema")
    return f"{name}Data" if issubclass(schema, DataSchema) else name


def definitions(prefix: str = _DEFS) -> dict[str, JsonSchema]:
    """The envelope, the data of every event and what they are made of, by name; references begin with ``prefix``."""
    plugin = MarshmallowPlugin(schema_name_resolver=_definition_name_of)
    # The version makes apispec speak JSON Schema 2020-12; nothing else of OpenAPI is used.
    spec = APISpec(title="", version="", openapi_version="3.1.0", plugins=[plugin])
    converter = plugin.converter
    if converter is None:  # pragma: no cover - the plugin makes it when the spec is made
        raise AssertionError("apispec made no converter")
    converter.add_attribute_function(_keywords)  # type: ignore[no-untyped-call]  # apispec leaves it untyped
    schemas: list[type[Schema]] = [EnvelopeSchema, *(schema for _, schema in EVENT_TYPES.values())]
    for schema in schemas:
        spec.components.schema(definition_name(schema), schema=schema)
    derived = spec.to_dict()["components"]["schemas"]
    return {name: _with_prefix(definition, prefix) for name, definition in derived.items()}


def event_definitions(prefix: str = _DEFS) -> dict[str, JsonSchema]:
    """Every event as a structured CloudEvent, by name."""
    return {
        event.__name__: {
            "title": name,
            "description": inspect.getdoc(schema),
            "allOf": [{"$ref": f"{prefix}{definition_name(EnvelopeSchema)}"}],
            "type": "object",
            "properties": {"type": {"const": name}, "data": {"$ref": f"{prefix}{definition_name(schema)}"}},
            "required": ["type", "data"],
        }
        for name, (event, schema) in EVENT_TYPES.items()
    }


def event_schemas() -> JsonSchema:
    """The published document: a record in structured mode is one of these events.

    It cannot say that a check digit is right, that a date exists, that ``1.0`` is no integer, or what members must
    keep together; docs/events.md does.
    """
    events = event_definitions()
    return {
        "$schema": DIALECT,
        "$id": "urn:rxstore:events:1",
        "title": "Prescription events",
        "description": "The events of the EPS prescription topic as CloudEvents in structured mode.",
        "oneOf": [{"$ref": f"{_DEFS}{name}"} for name in events],
        "$defs": events | definitions(),
    }


def compiled(*schemas: type[Schema]) -> list[jsonschema_rs.Draft202012Validator]:
    """A validator for each of these schemas, with every pattern matched in linear time."""
    shared = definitions()
    return [
        jsonschema_rs.Draft202012Validator(
            {"$ref": f"{_DEFS}{definition_name(schema)}", "$defs": shared},
            pattern_options=jsonschema_rs.RegexOptions(),
        )
        for schema in schemas
    ]


def _definition_name_of(schema: Schema | type[Schema]) -> str:
    return definition_name(schema if isinstance(schema, type) else type(schema))


def _keywords(_converter: object, field: Field[Any], **_: object) -> JsonSchema:
    return dict(getattr(field, "keywords", {}))


def _with_prefix(node: object, prefix: str) -> Any:  # noqa: ANN401 - JSON
    """The same schema with its references pointing to where ``prefix`` says."""
    if isinstance(node, dict):
        return {
            key: value.replace(_COMPONENTS, prefix, 1) if key == "$ref" else _with_prefix(value, prefix)
            for key, value in node.items()
        }
    return [_with_prefix(value, prefix) for value in node] if isinstance(node, list) else node
