"""Whether anybody who asks notices a switch: ``python -m benchmarks.switching``.

Two generations of the same log stand side by side, marked so that each answer shows which of them its rows come from.
Clients ask over HTTP at a steady rate while the views are switched there and back; a request that fails, an answer
that is an error and an answer of which one half comes from each generation are counted, and the slowest are told.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

import click
import psycopg

from benchmarks import ground, report
from benchmarks.asking import ASID, serving
from benchmarks.ground import SCHEMA, Store
from rxstore import rebuilding, store

BEFORE = "g1"
AFTER = "g2"


@dataclass(slots=True)
class Load:
    """Questions at a steady rate over kept connections, and what came back.

    With ``is_marked`` every answer must show one generation throughout.
    """

    address: str
    paths: list[str]
    clients: int
    per_second: float
    is_marked: bool = False
    stopping: threading.Event = field(default_factory=threading.Event)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    shown: dict[str, int] = field(default_factory=dict)

    def ask(self, number: int) -> None:
        """Be one client."""
        connection = http.client.HTTPConnection(self.address, timeout=30)
        due = time.monotonic() + number / self.per_second
        place = number
        while not self.stopping.is_set():
            time.sleep(max(0.0, due - time.monotonic()))
            due += self.clients / self.per_second
            place += self.clients
            began = time.monotonic()
            try:
                connection.request(
                    "GET",
                    self.paths[place % len(self.paths)],
                    headers={"Spine-From-Asid": ASID, "Accept": "application/json"},
                )
                answer = connection.getresponse()
                body = json.loads(answer.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.wrong.append(type(error).__name__)
                connection.close()
                continue
            self.seconds.append(time.monotonic() - began)
            self._judge(answer.status, answer.headers.get("Rxstore-Generation", ""), body)

    def _judge(self, status: int, generation: str, body: dict[str, object]) -> None:
        if status != 200 or body.get("statusCode") != "0":
            self.wrong.append(f"HTTP {status}, code {body.get('statusCode')}")
            return
        found = body["prescription"]
        assert isinstance(found, dict)
        names = {generation, found["prescribingOrganisationName"], found["issue"]["dispensingOrganisationName"]}
        if self.is_marked and len(names) > 1:
            self.wrong.append(f"mixed from {sorted(map(str, names))}")
        self.shown[generation] = self.shown.get(generation, 0) + 1


@click.command()
@click.option("--prescriptions", default=2_000, show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="How long is asked.")
@click.option("--per-second", default=50.0, show_default=True, help="Requests a second, over all clients.")
@click.option("--clients", default=8, show_default=True)
@click.option("--switches", default=10, show_default=True, help="How often in each direction.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(prescriptions: int, seconds: float, per_second: float, clients: int, switches: int, as_json: bool) -> None:
    """Switch between two generations under load, and count what anybody who asks would notice."""
    with ground.ground() as on:
        surroundings = report.surroundings(on.database_url)
        with ground.store(on) as made:
            paths = two_generations(made, prescriptions)
            with (
                serving(made, 2) as address,
                store.engine(made.settings) as engine,
                ThreadPoolExecutor(clients) as pool,
            ):
                load = Load(address, paths, clients, per_second, is_marked=True)
                began = time.monotonic()
                asking = [pool.submit(load.ask, number) for number in range(clients)]
                taken: list[float] = []
                for number in range(2 * switches):
                    time.sleep(max(0.0, began + (number + 0.5) * seconds / (2 * switches) - time.monotonic()))
                    at = time.monotonic()
                    if number % 2 == 0:
                        rebuilding.promote(made.settings, engine, AFTER, max_lag=0)
                    else:
                        rebuilding.roll_back(made.settings, engine, max_lag=0)
                    taken.append(time.monotonic() - at)
                time.sleep(max(0.0, began + seconds - time.monotonic()))
                load.stopping.set()
                whole = time.monotonic() - began
                for one in asking:
                    one.result()
    points = quantiles(load.seconds, n=100)
    row = {
        "requests": len(load.seconds),
        "per second": round(len(load.seconds) / whole, 1),
        "wrong": len(load.wrong),
        **{f"of {name}": load.shown.get(name, 0) for name in (BEFORE, AFTER)},
        "p50 ms": round(points[49] * 1000, 1),
        "p99 ms": round(points[98] * 1000, 1),
        "slowest ms": round(max(load.seconds) * 1000, 1),
        "switches": len(taken),
        "slowest switch ms": round(max(taken) * 1000),
    }
    document = {"surroundings": surroundings, "row": row, "wrong": load.wrong}
    report.tell(document, report.table(f"{whole:.0f} s of questions", [row]), as_json=as_json)
    if load.wrong:
        raise SystemExit("\n".join(sorted(set(load.wrong))))


def two_generations(made: Store, prescriptions: int) -> list[str]:
    """Project a log twice, verify, mark each generation; return the paths of questions that both answer with 0."""
    events = int(prescriptions * ground.EVENTS_PER_PRESCRIPTION)
    made.publish(ground.events(events))
    made.run("project", "--until-caught-up")
    made.run("rebuild", "stage", "--workers", "2")
    made.run("rebuild", "verify")
    with made.connect() as connection:
        for name in (BEFORE, AFTER):
            connection.execute(f"UPDATE rx_{name}.prescription SET prescriber_name = %s", (name,))
            connection.execute(f"UPDATE rx_{name}.issue SET dispenser_ods = 'A1234', dispenser_name = %s", (name,))
        return paths_of(connection, SCHEMA)


def paths_of(connection: psycopg.Connection[Any], schema: str) -> list[str]:
    """Return the path of a retrieve for every prescription of a generation."""
    rows = connection.execute(
        f"SELECT prescription_id FROM {schema}.prescription WHERE kind = 'created' ORDER BY stream_key"
    ).fetchall()
    return [f"/mm/prescriptions/{urllib.parse.quote(row[0])}?format=trace" for row in rows]


if __name__ == "__main__":
    main()
