"""An operator looks at what was set aside, sees what a decision would change, decides: the prescription is whole."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from tests import examples
from tests.acceptance.test_faults import Publisher, publisher  # noqa: F401 - a fixture

WHY = "the publisher sent it by mistake"


@pytest.fixture
def blocked(system, publisher: Publisher) -> str:  # noqa: F811 - the fixture
    """A prescription that was released and dispensed, with a claim in between that could not be."""
    subject = publisher.stream()
    publisher.create(subject)
    publisher.send(publisher.event(examples.released, subject, 2, "2"), subject)
    publisher.send(publisher.event(examples.claimed, subject, 3, "3"), subject)
    publisher.send(publisher.event(examples.dispensed, subject, 4, "4"), subject)
    system.project()
    return subject


def status_code(ask, subject: str) -> str:
    return ask(f"/mm/prescriptions/{quote(subject)}").body["statusCode"]


def test_a_dry_run_shows_what_would_change_and_changes_nothing(system, blocked):
    (record,) = [r for r in system.quarantine() if r["blocks"]]
    (outlook,) = map(
        json.loads, system.do("quarantine", "skip", record["id"], "--why", WHY, "--dry-run", "--json").splitlines()
    )
    assert outlook["record_state"] == "skipped"
    assert outlook["folds"] == 1
    assert outlook["before"]["issues"]["1"]["status"] == "0002"
    assert outlook["after"]["issues"]["1"]["status"] == "0006"
    assert outlook["still_open"] == []
    assert [r for r in system.quarantine() if r["blocks"]] == [record]
    assert system.do("quarantine", "decisions") == ""


def test_skipping_makes_the_prescription_whole_and_is_recorded(system, blocked):
    (record,) = [r for r in system.quarantine() if r["blocks"]]
    with system.serving() as ask, system.running("project", "--workers", "1"):
        assert status_code(ask, blocked) == "4"
        said = system.do("quarantine", "skip", record["id"], "--why", WHY, "--by", "a.n.other", "--yes", "--wait", "30")
        answer = ask(f"/mm/prescriptions/{quote(blocked)}").body
    assert "skipped" in said
    assert answer["statusCode"] == "0"
    assert answer["prescription"]["issue"]["prescriptionStatus"]["statusCode"] == "0006"
    assert system.quarantine() == []
    (decision,) = map(json.loads, system.do("quarantine", "decisions", "--json").splitlines())
    assert (decision["action"], decision["id"], decision["why"], decision["by"]) == (
        "skip",
        record["id"],
        WHY,
        "a.n.other",
    )
    assert decision["effect_offset"] is not None


def test_a_retry_that_is_refused_again_says_so(system, blocked):
    (record,) = [r for r in system.quarantine() if r["blocks"]]
    with system.running("project", "--workers", "1"):
        done = system.run("quarantine", "retry", record["id"], "--yes", "--wait", "30")
    assert done.returncode == 1
    assert "refused again" in done.stdout
    assert [r for r in system.quarantine() if r["blocks"]] == [record]


def test_without_a_projector_a_decision_waits(system, blocked):
    (record,) = [r for r in system.quarantine() if r["blocks"]]
    done = system.run("quarantine", "skip", record["id"], "--why", WHY, "--yes", "--wait", "0")
    assert done.returncode == 1
    assert "not applied yet" in done.stdout
    system.project()
    assert system.quarantine() == []


def test_filters_choose_records_and_the_count_confirms(system, blocked):
    done = system.run("quarantine", "skip", "--reason", "illegal_transition", "--why", WHY, "--wait", "0", stdin=b"2\n")
    assert done.returncode == 2
    assert "count was not typed" in done.stderr
    assert system.do("quarantine", "decisions") == ""


def test_a_parked_record_is_not_decided_about(system, blocked):
    (parked,) = [r for r in system.quarantine() if r["state"] == "parked"]
    done = system.run("quarantine", "skip", parked["id"], "--why", WHY, "--yes")
    assert done.returncode == 2
    assert "folds by itself" in done.stderr


def test_ids_and_filters_are_not_mixed(system, blocked):
    assert system.run("quarantine", "retry", "--yes").returncode == 2
    assert system.run("quarantine", "retry", "events:0:1", "--reason", "unreadable", "--yes").returncode == 2


def test_an_undone_decision_blocks_the_prescription_again(system, blocked):
    (record,) = [r for r in system.quarantine() if r["blocks"]]
    with system.running("project", "--workers", "1"):
        system.do("quarantine", "skip", record["id"], "--why", WHY, "--yes", "--wait", "30")
        (decision,) = map(json.loads, system.do("quarantine", "decisions", "--json").splitlines())
        said = system.do("quarantine", "undo", str(decision["decision"]))
    assert "folded again" in said
    assert [r for r in system.quarantine() if r["blocks"]] == [record]
    assert system.query("SELECT version FROM rxstore.prescription") == [(2,)]
    assert system.run("quarantine", "undo", str(decision["decision"])).returncode == 2


def test_exported_decisions_are_imported_where_there_are_none(system, blocked, tmp_path):
    (record,) = [r for r in system.quarantine() if r["blocks"]]
    system.run("quarantine", "skip", record["id"], "--why", WHY, "--yes", "--wait", "0")
    system.project()
    exported = tmp_path / "decisions.ndjson"
    system.do("quarantine", "decisions", "--export", str(exported))
    assert system.run("quarantine", "decisions", "--import", str(exported)).returncode == 4
    whole = system.query("SELECT p, i FROM rxstore.prescription p JOIN rxstore.issue i USING (stream_key)")
    system.execute("DELETE FROM rxstore.decision")
    assert system.run("rebuild", "prescription", blocked).returncode == 1
    assert [r["id"] for r in system.quarantine() if r["blocks"]] == [record["id"]]
    system.do("quarantine", "decisions", "--import", str(exported))
    assert system.query("SELECT p, i FROM rxstore.prescription p JOIN rxstore.issue i USING (stream_key)") == whole
