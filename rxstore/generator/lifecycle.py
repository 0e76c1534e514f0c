"""One prescription from its first event to its last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from rxstore.generator.course import Course
from rxstore.generator.instants import text
from rxstore.generator.scenarios import Scenario


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """A course that was played to its end. ``sequenced`` says whether its events carry their numbers.

    The ids of the events are UUIDs that have all but the last group of ``an_id``; there they count from 1.
    """

    course: Course
    scenario: Scenario
    sequenced: bool
    an_id: str

    def events(self) -> Iterator[tuple[int, bytes]]:
        """Each event as a structured CloudEvent on one line, with its time."""
        id_groups = self.an_id[:-12]
        for number, step in enumerate(self.course.steps, start=1):
            event: dict[str, object] = {
                "specversion": "1.0",
                "id": f"{id_groups}{number:012X}",
                "source": step.source,
                "type": step.type,
                "subject": self.course.prescribed.prescription_id,
                "time": text(step.time),
                "datacontenttype": "application/json",
            }
            if self.sequenced:
                event["sequence"] = str(number)
            event["data"] = step.data
            yield step.time, orjson.dumps(event)
