"""The table of what was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from rxstore.generator.instants import text
from rxstore.generator.lifecycle import Lifecycle
from schemas.contract import EVENT_TYPES
from schemas.vocabulary import ISSUE_STATUS_SEARCH, LINE_ITEM_STATUS, TREATMENT_TYPE

PLACEHOLDER = "placeholder"


@dataclass(slots=True)
class Tally:
    """Counts over the prescriptions that were begun, kept while they are made: its size does not grow with theirs.

    Prescriptions that were never created have the treatment type ``placeholder``; deleted ones have no final status.
    """

    prescriptions: int = 0
    events: int = 0
    deleted: int = 0
    without_sequences: int = 0
    first_event: int | None = None
    last_event: int = 0
    types: Counter[str] = field(default_factory=Counter)
    treatment_types: Counter[str] = field(default_factory=Counter)
    scenarios: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    final_issue_statuses: Counter[str] = field(default_factory=Counter)
    final_item_statuses: Counter[str] = field(default_factory=Counter)
    met_issue_statuses: Counter[str] = field(default_factory=Counter)
    met_item_statuses: Counter[str] = field(default_factory=Counter)

    def add(self, lifecycle: Lifecycle) -> None:
        """One more prescription; they come in the order in which they begin."""
        course = lifecycle.course
        self.prescriptions += 1
        self.events += len(course.steps)
        self.without_sequences += not lifecycle.sequenced
        if self.first_event is None:
            self.first_event = course.steps[0].time
        self.last_event = max(self.last_event, course.steps[-1].time)
        self.types.update([step.type for step in course.steps])
        self.treatment_types[course.prescribed.treatment_type if course.is_created else PLACEHOLDER] += 1
        self.scenarios[lifecycle.scenario.name] += 1
        self.paths.update(course.paths)
        self.met_issue_statuses.update(course.issue_statuses)
        self.met_item_statuses.update(course.item_statuses)
        if course.is_deleted:
            self.deleted += 1
            return
        for issue in course.issues:
            self.final_issue_statuses[issue.status] += 1
            self.final_item_statuses.update(issue.items)

    def document(self) -> dict[str, object]:
        """All of it for a script to read, a zero where something that can be is not."""
        return {
            "prescriptions": self.prescriptions,
            "events": self.events,
            "first_event_at": None if self.first_event is None else text(self.first_event),
            "last_event_at": None if self.first_event is None else text(self.last_event),
            "prescriptions_without_sequences": self.without_sequences,
            "prescriptions_deleted": self.deleted,
            **self.counts(),
        }

    def counts(self) -> dict[str, dict[str, int]]:
        """The columns of the table."""
        return {
            "events_by_type": _with_zeros(self.types, EVENT_TYPES),
            "prescriptions_by_treatment_type": _with_zeros(self.treatment_types, (*TREATMENT_TYPE, PLACEHOLDER)),
            "issues_by_final_status": _with_zeros(self.final_issue_statuses, ISSUE_STATUS_SEARCH),
            "prescriptions_by_issue_status_met": _with_zeros(self.met_issue_statuses, ISSUE_STATUS_SEARCH),
            "line_items_by_final_status": _with_zeros(self.final_item_statuses, LINE_ITEM_STATUS),
            "prescriptions_by_line_item_status_met": _with_zeros(self.met_item_statuses, LINE_ITEM_STATUS),
            "prescriptions_by_path": _sorted(self.paths),
            "prescriptions_by_scenario": _sorted(self.scenarios),
        }


def _with_zeros(counts: Counter[str], names: Iterable[str]) -> dict[str, int]:
    return {name: counts[name] for name in names}


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in sorted(counts)}
