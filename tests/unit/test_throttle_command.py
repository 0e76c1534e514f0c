"""What ``rebuild stage --throttle`` and ``rebuild throttle`` take, before anything is asked of a server."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from rxstore.cli.main import rxstore


def run(*arguments: str) -> Result:
    return CliRunner().invoke(rxstore, arguments, env={"RXSTORE_DATABASE_URL": "postgresql://127.0.0.1:1/none"})


@pytest.mark.parametrize("rate", ["0", "fast", "1.5", "1000000001", "٣", ""])
@pytest.mark.parametrize("command", [("stage", "--throttle"), ("throttle",), ("throttle", "g2")])
def test_a_rate_is_a_whole_number_or_a_word(command, rate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("rebuild", *command, rate)
    assert done.exit_code == 2
    assert "auto" in done.output
    assert "a number from 1 to 1000000000" in done.output


def test_a_build_is_not_staged_with_a_throttle_that_is_off():
    assert run("rebuild", "stage", "--throttle", "off").exit_code == 2


def test_one_generation_and_one_rate_at_a_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("rebuild", "throttle", "g2", "g3", "100")
    assert (done.exit_code, "one NAME" in done.output) == (2, True)


@pytest.mark.parametrize("words", [("100",), ("auto",), ("off",), ("g2", "007")])
def test_what_is_well_formed_goes_to_the_database(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("rebuild", "throttle", *words).exit_code == 3
