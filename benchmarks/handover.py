"""How long partitions stand still when a machine dies or is stopped: ``python -m benchmarks.handover``.

Two projectors of one worker each share the partitions, by default settings, while events come in steadily. One is
killed with all its processes (SIGKILL), or told to stop (SIGTERM). "claimed": until the other has claimed every
partition, and goes on. "at ends": until it has also noted that it was at the end of each, which a worker notes once a
second.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import click
import psutil

from benchmarks import ground, report
from benchmarks.ground import SCHEMA, Store

PARTITIONS = 8
LOOK_EVERY_SECONDS = 0.02
PATIENCE_SECONDS = 90.0
EVENTS_A_SECOND = 50

Row = dict[str, Any]


@click.command()
@click.option("--repeat", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(repeat: int, as_json: bool) -> None:
    """Measure how long it takes the other projector to go on, after a kill and after a clean stop."""
    with ground.ground() as on:
        surroundings = report.surroundings(on.database_url)
        rows = []
        for run in range(repeat):
            for what in (signal.SIGKILL, signal.SIGTERM):
                with ground.store(on, partitions=PARTITIONS) as store:
                    claimed, at_ends = _handover(store, what)
                    rows.append(
                        {
                            "run": run + 1,
                            "signal": what.name,
                            "claimed s": round(claimed, 2),
                            "at ends s": round(at_ends, 2),
                        }
                    )
    document = {"surroundings": surroundings, "runs": rows}
    report.tell(document, report.table("until the other projector has every partition", rows), as_json=as_json)


def _handover(store: Store, what: signal.Signals) -> tuple[float, float]:
    with _projecting(store) as first, _trickle(store):
        _until(lambda: len(_owners(store)) == 1 and _parts(store) == PARTITIONS)
        with _projecting(store):
            _until(lambda: len(_owners(store)) == 2)
            mine = {f":{process.pid}" for process in _tree(first)}
            gone = {owner for owner in _owners(store) if any(owner.endswith(pid) for pid in mine)}
            began = time.monotonic()
            at = _clock(store)
            for process in _tree(first) if what is signal.SIGKILL else [psutil.Process(first.pid)]:
                process.send_signal(what)
            _until(lambda: _owned_by_others(store, gone) == PARTITIONS)
            claimed = time.monotonic() - began
            _until(lambda: _at_ends_since(store, at) == PARTITIONS)
            return claimed, time.monotonic() - began


@contextmanager
def _projecting(store: Store) -> Iterator[subprocess.Popen[bytes]]:
    process = store.start("project", "--workers", "1")
    try:
        yield process
    finally:
        for one in _tree(process):
            one.kill()
        process.wait()


@contextmanager
def _trickle(store: Store) -> Iterator[None]:
    """Publish some events every half second."""
    ended = threading.Event()
    events = ground.events(EVENTS_A_SECOND * 600)

    def publish() -> None:
        while not ended.wait(0.5):
            store.publish(islice(events, EVENTS_A_SECOND // 2))

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _ask(store: Store, question: str, *parameters: object) -> list[tuple[Any, ...]]:
    with store.connect() as connection:
        return connection.execute(question, parameters).fetchall()


def _owners(store: Store) -> set[str]:
    return {row[0] for row in _ask(store, f"SELECT owner FROM {SCHEMA}.checkpoint WHERE owner IS NOT NULL")}


def _owned_by_others(store: Store, gone: set[str]) -> int:
    question = f"SELECT count(*) FROM {SCHEMA}.checkpoint WHERE owner <> ALL(%s)"
    return int(_ask(store, question, list(gone))[0][0])


def _parts(store: Store) -> int:
    return int(_ask(store, f"SELECT count(caught_up_at) FROM {SCHEMA}.checkpoint")[0][0])


def _clock(store: Store) -> Any:  # noqa: ANN401 - the database's moment
    return _ask(store, "SELECT clock_timestamp()")[0][0]


def _at_ends_since(store: Store, at: Any) -> int:  # noqa: ANN401 - as above
    return int(_ask(store, f"SELECT count(*) FROM {SCHEMA}.checkpoint WHERE caught_up_at > %s", at)[0][0])


def _until(question: Any) -> None:  # noqa: ANN401 - a question without arguments
    until = time.monotonic() + PATIENCE_SECONDS
    while not question():
        if time.monotonic() > until:
            raise SystemExit(f"not within {PATIENCE_SECONDS:.0f} s")
        time.sleep(LOOK_EVERY_SECONDS)


if __name__ == "__main__":
    main()
