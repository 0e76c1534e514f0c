"""The events of docs/tour-of-a-bad-day.md: two prescriptions, a publisher in a hurry, and what sets it right."""

from __future__ import annotations

from typing import Any

from tests import examples

SOURCE = "urn:nhs:asid:999000000002"
FIRST = "0C11E7-Z99901-00A01Z"
SECOND = "0C11E7-Z99901-00A02X"


def event(example: Any, subject: str, name: str, sequence: int, **overrides: Any) -> dict[str, Any]:
    return example(subject=subject, source=SOURCE, id=f"{subject[-6:-1]}-{name}", sequence=str(sequence), **overrides)


MORNING = [
    event(examples.created, FIRST, "created", 1),
    event(examples.created, SECOND, "created", 1, nhs_number=examples.OTHER_NHS_NUMBER),
    event(examples.released, FIRST, "released", 2),
    event(examples.released, SECOND, "released", 2),
]
# The claim comes before the dispensing that it is for; and a notification has an id that is none.
AFTERNOON = [
    event(examples.claimed, FIRST, "claimed", 3),
    event(examples.dispensed, FIRST, "dispensed", 4),
    event(examples.dispensed, SECOND, "dispensed", 3, notification_id="ZX901/77"),
    event(examples.claimed, SECOND, "claimed", 4),
]
MENDED = [event(examples.dispensed, SECOND, "dispensed", 3)]
RIGHT = [event(examples.claimed, FIRST, "claimed-again", 5)]
