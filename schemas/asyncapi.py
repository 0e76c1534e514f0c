"""AsyncAPI 3.0 description of the topic: one channel, a message for each type of event."""

from __future__ import annotations

from typing import Any

from schemas.contract import EVENT_TYPES
from schemas.event_examples import example
from schemas.identifiers import STREAM_KEY_PATTERN
from schemas.json_schema import definitions, event_definitions

_SCHEMAS = "#/components/schemas/"
_MESSAGES = "#/components/messages/"
_CHANNEL = "prescriptionEvents"


def asyncapi_document(topic: str, partitions: int) -> dict[str, Any]:
    """The document for this topic; the store is the application that it describes, so it receives."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Prescription events",
            "version": "1.0.0",
            "description": "What upstream systems publish about prescriptions: CloudEvents 1.0 in a log kept for good.",
        },
        "defaultContentType": "application/cloudevents+json",
        "channels": {_CHANNEL: _channel(topic, partitions)},
        "operations": {
            "foldPrescriptionEvents": {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{_CHANNEL}"},
                "summary": "Every event is folded into the read models, or set aside with a reason.",
            }
        },
        "components": {
            "messages": {event.__name__: _message(name) for name, (event, _) in EVENT_TYPES.items()},
            "schemas": event_definitions(_SCHEMAS) | definitions(_SCHEMAS),
        },
    }


def _channel(topic: str, partitions: int) -> dict[str, Any]:
    return {
        "address": topic,
        "title": "The event log",
        "description": "All events of one prescription share a key, so a partition, so their order. The number of "
        "partitions never changes.",
        "messages": {
            event.__name__: {"$ref": f"{_MESSAGES}{event.__name__}"} for event, _schema in EVENT_TYPES.values()
        },
        "bindings": {
            "kafka": {
                "topic": topic,
                "partitions": partitions,
                "topicConfiguration": {"cleanup.policy": ["delete"], "retention.ms": -1, "retention.bytes": -1},
                "bindingVersion": "0.5.0",
            }
        },
    }


def _message(name: str) -> dict[str, Any]:
    event, schema = EVENT_TYPES[name]
    return {
        "name": name,
        "title": event.__name__,
        "summary": (schema.__doc__ or "").strip(),
        "contentType": "application/cloudevents+json",
        "payload": {"$ref": f"{_SCHEMAS}{event.__name__}"},
        "bindings": {"kafka": {"key": _KEY, "bindingVersion": "0.5.0"}},
        "examples": [{"name": event.__name__, "payload": example(name)}],
    }


_KEY = {
    "type": "string",
    "description": "The stream key: the prescription id of the subject in upper case without its check character.",
    "pattern": STREAM_KEY_PATTERN,
}
