"""Every kind of finding, in one list. Each has a section in docs/operators/runbook/, and a test compares them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

RUNBOOK = "docs/operators/runbook"


class Severity(StrEnum):
    """Whether answers are missing, old or at risk now, or something only asks to be looked at."""

    CRITICAL = "critical"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding: its code is a promise, its ``page`` the runbook's file that has its section."""

    code: str
    severity: Severity
    page: str
    meaning: str


def _kinds(page: str, *kinds: tuple[str, Severity, str]) -> tuple[Kind, ...]:
    return tuple(Kind(code, severity, page, meaning) for code, severity, meaning in kinds)


# In the order in which they are told: what causes others comes first.
KINDS = {
    kind.code: kind
    for kind in (
        *_kinds(
            "database",
            ("database_unreachable", Severity.CRITICAL, "The database does not let us in"),
            ("database_read_only", Severity.CRITICAL, "The database takes no writes: a standby, or set so"),
            ("not_migrated", Severity.CRITICAL, "The database has no rxstore schema, or an older one"),
            ("migrated_by_later_version", Severity.CRITICAL, "The database belongs to a later version of rxstore"),
            ("idle_in_transaction", Severity.WARNING, "A session holds locks on our tables and does nothing"),
            ("clock_differs", Severity.WARNING, "This machine's present is not the database's"),
        ),
        *_kinds(
            "topic",
            ("brokers_unreachable", Severity.CRITICAL, "No broker answers"),
            ("topic_missing", Severity.CRITICAL, "The topic does not exist"),
            ("topic_recreated", Severity.CRITICAL, "The topic was deleted and made again"),
            ("topic_lost_events", Severity.CRITICAL, "Events were deleted from the topic before they were folded"),
            ("log_truncated", Severity.CRITICAL, "The topic lost events that were folded"),
            ("partitions_added", Severity.CRITICAL, "The topic has another number of partitions"),
            ("topic_settings_differ", Severity.WARNING, "The topic may drop events, or refuse large ones"),
        ),
        *_kinds(
            "projector",
            ("settings_differ", Severity.CRITICAL, "A setting that changes meaning is not the live generation's"),
            ("definition_differs", Severity.CRITICAL, "This version folds by another definition than the live one"),
            ("mostly_unreadable", Severity.CRITICAL, "Most of what comes next cannot be read"),
            ("no_projector", Severity.CRITICAL, "No projector runs"),
            ("partition_unclaimed", Severity.CRITICAL, "Nobody projects a partition"),
            ("projector_stalled", Severity.CRITICAL, "Events wait, and no checkpoint moves"),
            ("lagging", Severity.WARNING, "Events wait longer than usual"),
            ("checkpoint_behind_group", Severity.WARNING, "The database went back in time"),
        ),
        *_kinds(
            "records",
            ("prescriptions_blocked", Severity.CRITICAL, "Prescriptions are not shown"),
            ("events_without_prescription", Severity.WARNING, "Events came of which nobody can say whose they are"),
            ("parked_too_long", Severity.WARNING, "Events wait for a prescription that nobody has created"),
            ("decision_waiting", Severity.WARNING, "An operator's decision has not been applied"),
            ("decision_void", Severity.WARNING, "A decision is about another topic, and no fold applies it"),
        ),
        *_kinds("unknown", ("could_not_check", Severity.WARNING, "Something could not be looked at")),
    )
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: a sentence for whoever is on call, and the next command to run.

    ``reason`` leads to the section of that reason instead of the finding's own.
    """

    code: str
    message: str
    command: str
    reason: str | None = None

    @property
    def severity(self) -> Severity:
        """Return how much it matters."""
        return KINDS[self.code].severity

    @property
    def page(self) -> str:
        """Return where the runbook explains it."""
        page = KINDS[self.code].page if self.reason is None else "reasons"
        return f"{RUNBOOK}/{page}.md#{self.reason or self.code}"

    def as_json(self) -> dict[str, Any]:
        """Return one object for a script."""
        return {
            "code": self.code,
            "severity": str(self.severity),
            "message": self.message,
            "command": self.command,
            "page": self.page,
        }


def in_order(findings: list[Finding]) -> list[Finding]:
    """Critical ones first, and causes before what they cause."""
    order = list(KINDS)
    return sorted(findings, key=lambda found: (found.severity is not Severity.CRITICAL, order.index(found.code)))
