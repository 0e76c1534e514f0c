"""Nobody who asks notices a switch: no error, and no answer that is half of one read model and half of another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date

from rxstore import rebuilding, store
from rxstore.generator import lifecycles
from rxstore.settings import load
from tests.acceptance.conftest import Answer, System

REQUESTS_PER_SECOND = 50
ASKERS = 4
SWITCHES = 10


@dataclass(slots=True)
class Load:
    """Questions asked at a steady rate until it is stopped, and what came back."""

    ask: Callable[..., Answer]
    paths: list[str]
    answers: list[tuple[str, Answer]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, number: int) -> None:
        due = time.monotonic()
        while not self.stopping.is_set():
            path = self.paths[(number + len(self.answers)) % len(self.paths)]
            try:
                self.answers.append((path, self.ask(path)))
            except Exception as error:
                self.errors.append(error)
            due += ASKERS / REQUESTS_PER_SECOND
            time.sleep(max(0.0, due - time.monotonic()))


def marked(system: System, generation: str) -> None:
    """Put the name of a generation where both rows that make up an answer show it."""
    system.execute(f"UPDATE rx_{generation}.prescription SET prescriber_name = '{generation}'")
    system.execute(f"UPDATE rx_{generation}.issue SET dispenser_ods = 'A1234', dispenser_name = '{generation}'")


def generations_in(answer: Answer) -> set[str]:
    """Every generation that an answer shows signs of."""
    found = answer.body["prescription"]
    issue = found["issue"]
    return {
        answer.headers["rxstore-generation"],
        found["prescribingOrganisationName"],
        issue["dispensingOrganisationName"],
    }


def test_promoting_and_rolling_back_under_load_shows_no_error_and_no_mixed_answer(system):
    events = list(lifecycles(30, 1, date(2026, 1, 5), 28))
    system.publish(events)
    system.do("rebuild", "stage")
    system.project()
    settings = load(system.environment, env_file=system.directory / "none")
    with store.engine(settings) as engine:
        rebuilding.verify(settings, engine, None)
        marked(system, "g1")
        marked(system, "g2")
        created = [event["subject"] for event in events if event["type"] == "eps.prescription.created.v1"]
        paths = [f"/mm/prescriptions/{subject.replace('+', '%2B')}?format=trace" for subject in created]
        with system.serving() as ask, ThreadPoolExecutor(ASKERS) as pool:
            load_ = Load(ask, [path for path in paths if ask(path).body["statusCode"] == "0"])
            asking = [pool.submit(load_.run, number) for number in range(ASKERS)]
            for _ in range(SWITCHES):
                rebuilding.promote(settings, engine, "g2", max_lag=0)
                rebuilding.roll_back(settings, engine, max_lag=0)
            load_.stopping.set()
            for one in asking:
                one.result()
    assert load_.errors == []
    assert {(answer.status, answer.body["statusCode"]) for _, answer in load_.answers} == {(200, "0")}
    shown = [generations_in(answer) for _, answer in load_.answers]
    assert [mixed for mixed in shown if len(mixed) > 1] == []
    assert {name for (name,) in map(tuple, shown)} == {"g1", "g2"}
