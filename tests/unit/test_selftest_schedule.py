"""What a seed of the self-test means: always the same, and over the seeds everything that can happen does."""

from __future__ import annotations

from collections import Counter

import pytest

from rxstore.selftest.schedule import (
    STATEMENTS,
    Action,
    CutBroker,
    CutDatabase,
    Decide,
    Freeze,
    Join,
    Leave,
    Undo,
    schedule_of,
)
from rxstore.selftest.trial import not_folded_again
from rxstore.selftest.truth import as_meant

SEEDS = range(2 * len(STATEMENTS))


@pytest.fixture(scope="module")
def schedules():
    return [schedule_of(seed) for seed in SEEDS]


def test_the_same_seed_means_the_same(schedules):
    assert schedule_of(7) == schedules[7]
    assert list(schedule_of(7).lines()) == list(schedules[7].lines())


def test_seeds_that_follow_each_other_kill_at_every_statement_from_both_sides(schedules):
    killed = Counter((schedule.strikes[0].statement, schedule.strikes[0].before) for schedule in schedules)
    assert all(schedule.strikes[0].action is Action.KILL for schedule in schedules)
    assert killed == Counter({(statement, before): 1 for statement in STATEMENTS for before in (True, False)})


def test_over_the_seeds_everything_happens_that_can(schedules):
    acts = {type(act) for schedule in schedules for stage in schedule.stages for act in stage.acts}
    assert acts == {Join, Leave, CutBroker, CutDatabase, Freeze, Decide, Undo}
    assert {strike.action for schedule in schedules for strike in schedule.strikes} == set(Action)
    assert {schedule.workers for schedule in schedules} == {1, 2, 3}


def test_the_log_of_some_seed_holds_every_fault(schedules):
    faults = {record.fault for schedule in schedules for stage in schedule.stages for record in stage.records}
    assert {
        "too_large",
        "unreadable",
        "contract_violation",
        "unknown_type",
        "misrouted_key",
        "misrouted_partition",
    } <= (faults)
    assert {"duplicate", "not_created", "late", "sequence_gap", "sequence_conflict", "illegal_transition"} <= faults
    assert {"duplicate_prescription", "deleted", "repaired", "repaired late"} <= faults


def test_every_log_has_streams_that_it_heals_itself(schedules):
    for schedule in schedules[:20]:
        assert schedule.healed
        assert all(as_meant(events) is not None for events in schedule.healed.values())


def test_a_misrouted_deletion_keeps_its_prescription_from_being_folded_again():
    schedule = schedule_of(299)
    deletion = next(
        record
        for stage in schedule.stages
        for record in stage.records
        if b"eps.prescription.deleted.v1" in record.value and record.key == b"9292D3-Z99999-EBE53"
    )
    assert b"D6F845-Z90001-7582A" in deletion.value
    assert {"9292D3-Z99999-EBE53", "D6F845-Z90001-7582A"} <= not_folded_again(schedule)
