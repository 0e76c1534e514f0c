"""What the golden log folds to, in digests: one part for events that fold, one for those that are refused."""

from __future__ import annotations

from base64 import b64decode, b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from projector.batch import Position, Record
from projector.projection import by_stream
from projector.stream import Stream, fold
from tests.integration.projecting import DECODE

LOG = Path(__file__).with_name("log.ndjson")
ROWS = Path(__file__).with_name("rows.json")


def read_log() -> list[Record]:
    """Return the golden log."""
    return [_record(orjson.loads(line)) for line in LOG.read_bytes().splitlines()]


def digests(records: list[Record]) -> dict[str, dict[str, str]]:
    """Return, by stream, digests of the prescription and of what was set aside."""
    arrivals = by_stream(DECODE(record) for record in records)
    folded, refused = {}, {}
    for key, items in sorted(arrivals.by_stream.items()):
        after = fold(Stream(key, items[0].record.position.partition), items)
        folded[key] = _digest((after.prescription, after.history))
        if after.set_aside:
            refused[key] = _digest(
                [
                    (str(r.position), r.stands_at, r.state, r.reason, [error.path for error in r.errors])
                    for r in sorted(after.set_aside.values(), key=lambda record: record.position)
                ]
            )
    for record in arrivals.marks:
        refused[str(record.position)] = _digest((record.stream_key, record.state, record.reason))
    return {"folded": folded, "refused": refused}


def line(record: Record) -> bytes:
    """Return a record as a line of the log."""
    position = record.position
    return orjson.dumps(
        {
            "position": [position.topic, position.partition, position.offset],
            "timestamp_ms": record.timestamp_ms,
            "key": _encoded(record.key),
            "value": _encoded(record.value),
            "headers": [[name, _encoded(value)] for name, value in record.headers],
        }
    )


def _record(stored: dict[str, Any]) -> Record:
    return Record(
        Position(*stored["position"]),
        stored["timestamp_ms"],
        _decoded(stored["key"]),
        _decoded(stored["value"]),
        tuple((name, _decoded(value)) for name, value in stored["headers"]),
    )


def _encoded(raw: bytes | None) -> str | None:
    return None if raw is None else b64encode(raw).decode()


def _decoded(text: str | None) -> bytes | None:
    return None if text is None else b64decode(text)


def _digest(value: object) -> str:
    return sha256(orjson.dumps(_plain(value), option=orjson.OPT_SORT_KEYS)).hexdigest()[:20]


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return [_plain(member) for member in value]
    return value
