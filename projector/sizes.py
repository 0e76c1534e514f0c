"""How much memory streams and records take, in bytes, estimated: what a worker holds is bounded by it."""

from __future__ import annotations

from projector.batch import Record
from projector.prescription import Prescription

# What the parts of a stream take in CPython on a 64-bit machine, rounded up: a test holds them against what the
# interpreter takes for generated ones.
STREAM_BYTES = 2_500
PART_BYTES = 700
EVENT_BYTES = 30
ITEM_BYTES = 2_500


def size_of_record(record: Record | None) -> int:
    """Return the size of a record and the event that it decodes to."""
    return ITEM_BYTES + (0 if record is None else len(record.value or b""))


def size_of_stream(prescription: Prescription | None) -> int:
    """Return the size of a stream in which all is well."""
    if prescription is None:
        return 0
    parts = (
        len(prescription.issues)
        + len(prescription.notifications)
        + len(prescription.cancellations)
        + len(prescription.prescribed.line_items)
    )
    return STREAM_BYTES + PART_BYTES * parts + EVENT_BYTES * prescription.version
