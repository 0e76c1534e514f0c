"""A publisher deletes a prescription: what operators and callers find of it afterwards, and where."""

from __future__ import annotations

import json

import pytest

from tests import examples
from tests.acceptance.conftest import System

KEY = examples.PRESCRIPTION_ID[:-1]


@pytest.fixture
def looked_back(system: System) -> System:
    """An installation with a prescription, a generation as of that time, and the deletion after it."""
    system.publish([examples.created()])
    system.project()
    ((now,),) = system.query("SELECT clock_timestamp()")
    system.do("rebuild", "stage", "--until", now.isoformat(), "--workers", "1")
    assert asked(system, "g2") == "0"
    system.publish([examples.deleted()])
    system.project()
    return system


def asked(system: System, generation: str) -> str:
    """What the API would answer from a generation."""
    done = system.run("query", "--generation", generation, examples.PRESCRIPTION_ID)
    code: str = json.loads(done.stdout)["statusCode"]
    return code


def test_a_deleted_prescription_is_in_no_generation_and_the_archive_says_what_it_holds(looked_back):
    assert (asked(looked_back, "g1"), asked(looked_back, "g2")) == ("1", "1")
    for schema, left in (("rx_g1", [("deleted", None)]), ("rx_g2", [])):
        assert looked_back.query(f"SELECT kind, nhs_number FROM {schema}.prescription") == left
    looked_back.do("archive", "export", "archive")
    held = [json.loads(line) for line in looked_back.do("archive", "deleted", "archive", "--json").splitlines()]
    assert [one["stream_key"] for one in held] == [KEY, KEY]
    assert looked_back.run("archive", "verify", "archive").returncode == 0
