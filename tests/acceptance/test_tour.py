"""docs/tour-of-a-bad-day.md, step by step; and what an API says that nobody feeds any more."""

from __future__ import annotations

import json
import re
import subprocess
import time
from urllib.parse import quote, urlencode

import psutil
import pytest

from tests.acceptance.conftest import eventually
from tests.acceptance.tour import AFTERNOON, FIRST, MENDED, MORNING, RIGHT, SECOND, SOURCE

WHY = "claimed before it was dispensed; the pharmacy claims again"


def publish(system, events, *options: str) -> tuple[int, list[dict]]:
    lines = b"\n".join(json.dumps(event).encode() for event in events)
    done = system.run("publish", "-", "--json", "--wait", "60", *options, stdin=lines)
    assert done.returncode in {0, 1}, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def retrieve(ask, subject: str, **parameters: str):
    return ask(f"/mm/prescriptions/{quote(subject)}?{urlencode(parameters)}")


@pytest.mark.timeout(600)  # fifteen commands, one after the other
def test_a_bad_day_ends_well(system):
    def events(**parameters: str) -> dict:
        return ask("/rxstore/events?" + urlencode({"source": SOURCE, **parameters})).body

    with system.running("project", "--workers", "1"), system.serving() as ask:
        code, told = publish(system, MORNING)
        assert (code, [one["state"] for one in told]) == (0, ["folded"] * 4)

        # The publisher sends broken events, and is told at once.
        code, told = publish(system, AFTERNOON, "--no-validate")
        assert code == 1
        assert [(one["state"], one["reason"]) for one in told] == [
            ("open", "illegal_transition"),
            ("parked", "behind_block"),
            ("open", "contract_violation"),
            ("parked", "behind_block"),
        ]
        claim, dispensing, notification, _ = told
        assert dispensing["waiting_for"] == claim["position"]

        # The API shows neither prescription as if it were whole.
        answer = retrieve(ask, FIRST)
        assert (answer.body["statusCode"], answer.headers["rxstore-blocked"]) == ("4", FIRST)

        # The publisher asks what became of its events.
        mine = events(state="open")["events"]
        assert {one["position"] for one in mine} == {claim["position"], notification["position"]}
        fate = events(id=dispensing["id"], subject=FIRST)
        assert (fate["state"], fate["sightings"][0]["waiting_for"]) == ("parked", claim["position"])
        assert events(id="never-sent", subject=FIRST)["state"] == "not_seen"

        # It repairs one without anybody's help.
        code, (mended,) = publish(system, MENDED)
        assert (code, mended["state"], mended["version"]) == (0, "folded", 3)
        assert retrieve(ask, SECOND).body["prescription"]["issue"]["prescriptionStatus"]["statusCode"] == "0008"
        assert events(id=mended["id"], subject=SECOND, position=notification["position"])["state"] == "repaired"
        assert events(id=mended["id"], subject=SECOND)["state"] == "folded"

        # The operator looks at the other one.
        assert system.status()["verdict"] == "attention"
        assert system.do("quarantine", "show", claim["position"]).count("illegal_transition") == 1
        assert "blocked: illegal_transition" in system.do("explain", FIRST)
        assert ask(f"/rxstore/prescriptions/{FIRST}/history").body["state"]["blocked"] == "illegal_transition"

        # Sees what a decision would change, and decides.
        skip = ("quarantine", "skip", claim["position"], "--why", WHY)
        assert "0002 (items 0008 0008) -> 0006 (items 0001 0001)" in system.do(*skip, "--dry-run")
        assert "skipped (decision 1)" in system.do(*skip, "--by", "j.bloggs", "--yes", "--wait", "30")

        # The pharmacy claims again; the prescription is whole.
        code, (right,) = publish(system, RIGHT)
        assert (code, right["state"]) == (0, "folded")
        assert retrieve(ask, FIRST).body["prescription"]["issue"]["prescriptionStatus"]["statusCode"] == "0008"
        assert publish(system, RIGHT)[1][0]["state"] == "duplicate"

        # What is left is a record of it all, the same for people, scripts and clients.
        told_here = json.loads(system.do("explain", FIRST, "--json"))
        told_there = ask(f"/rxstore/prescriptions/{FIRST}/history").body
        assert told_here["steps"] == told_there["steps"]
        assert told_here["state"] == told_there["state"]
        assert [step["decision"]["by"] for step in told_here["steps"] if step["decision"]] == ["j.bloggs"]
        assert system.quarantine() == []
        status = ask("/rxstore/status").body
        assert (status["generation"], status["blocked"], status["quarantined"]) == ("g1", 0, 0)


def test_a_client_reads_its_own_write_and_sees_when_nobody_feeds_the_views_any_more(system):
    with (
        system.running("project", "--workers", "1") as fleet,
        system.serving(RXSTORE_READY_MAX_AGE_SECONDS="3") as ask,
    ):
        position = publish(system, MORNING[:1])[1][0]["position"]
        answer = retrieve(ask, FIRST, waitFor=position)
        assert (answer.body["statusCode"], answer.headers["rxstore-waited"]) == ("0", "reached")
        eventually(lambda: ask("/health/ready").status == 200)

        kill(fleet)
        died = time.monotonic()
        eventually(lambda: time.monotonic() > died + 2, seconds=5)
        last = retrieve(ask, FIRST).headers["rxstore-as-of"]
        readiness = []
        eventually(lambda: readiness.append(ask("/health/ready")) or readiness[-1].status == 503, seconds=10)
        assert re.fullmatch(
            r"the read model may be [3-5] s old: is the projector running\?", readiness[-1].body["reason"]
        )
        assert retrieve(ask, FIRST).headers["rxstore-as-of"] == last

        topic, partition, offset = position.split(":")
        beyond = retrieve(ask, FIRST, waitFor=f"{topic}:{partition}:{int(offset) + 1}", waitSeconds="0.2")
        assert (beyond.body["statusCode"], beyond.headers["rxstore-waited"]) == ("5", "not-reached")
        late = system.run("publish", "-", "--wait", "0", stdin=json.dumps(MORNING[2]).encode())
        assert late.returncode == 1
        assert "the projector has not come to it" in late.stdout


def kill(fleet: subprocess.Popen) -> None:
    """Kill a projector and its workers at once, as a machine that loses its power would."""
    parent = psutil.Process(fleet.pid)
    family = [parent, *parent.children(recursive=True)]
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=10)
