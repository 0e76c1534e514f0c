"""All seeds of a run, several at a time, each job a process with a scratch database of its own."""

from __future__ import annotations

import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from projector.stream import Counts
from rxstore.errors import RxstoreError, ServerUnavailable, explained
from rxstore.selftest import scratch, trial, workers
from rxstore.selftest.schedule import STATEMENTS, schedule_of
from rxstore.selftest.scratch import Ground
from rxstore.selftest.trial import Bench, Outcome
from rxstore.settings import Settings

JOB_ENDS_SECONDS = 40.0
ATTEMPTS = 5
WAIT_SECONDS = 5.0
DELIVERED = (
    "kills",
    "lost acknowledgements",
    "pauses",
    "database cuts",
    "broker cuts",
    "workers joined",
    "workers left",
    "takeovers",
    "decisions",
    "decisions undone",
)


@dataclass(slots=True)
class Summary:
    """What a run came to. Only what really happened is counted."""

    at: str
    versions: dict[str, str]
    session_timeout_ms: int
    jobs: int
    left_out: tuple[str, ...]
    seconds: float = 0.0
    seeds: int = 0
    failed: list[int] = field(default_factory=list)
    records: int = 0
    rows: int = 0
    set_aside: int = 0
    answers: int = 0
    lost: int = 0
    doubled: int = 0
    again: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    delivered: Counter[str] = field(default_factory=Counter)
    counts: Counts = field(default_factory=Counts)

    def add(self, outcome: Outcome) -> None:
        """Count one seed."""
        found = outcome.found
        self.seeds += 1
        self.failed += [outcome.seed] if outcome.differences else []
        self.records += outcome.records
        self.rows += found.rows
        self.set_aside += found.set_aside
        self.answers += found.answers
        self.lost += found.lost
        self.doubled += found.doubled
        self.again += outcome.again
        self.kills += outcome.kills
        self.delivered += outcome.delivered
        self.delivered["kills"] += sum(outcome.kills.values())
        self.counts.add(outcome.counts)

    @property
    def statements_hit(self) -> int:
        """How many of the statements were met by a kill, from one side at least."""
        return len({point.partition(" ")[2] for point in self.kills})

    def as_json(self) -> dict[str, Any]:
        """Return one document for a script."""
        return {
            **{name: getattr(self, name) for name in self.__slots__ if name not in {"kills", "delivered", "counts"}},
            "delivered": {name: self.delivered[name] for name in DELIVERED},
            "kill_points": dict(sorted(self.kills.items())),
            "counts": asdict(self.counts),
        }

    def lines(self) -> Iterator[str]:
        """Tell a person."""
        yield f"rxstore selftest, {self.at}: " + ", ".join(f"{name} {v}" for name, v in self.versions.items())
        yield (
            f"  seeds          {self.seeds:,}, {len(self.failed):,} with differences, in {self.seconds:,.0f} s "
            f"({self.jobs} at a time, session time-out {self.session_timeout_ms / 1000:g} s)"
        )
        yield (
            f"  kill points    {self.delivered['kills']:,} kills at {len(self.kills):,} points, at "
            f"{self.statements_hit} of {len(STATEMENTS)} statements"
        )
        yield (
            "                 by transaction: "
            + ", ".join(f"{name} {count:,}" for name, count in sorted(self._by_transaction().items()))
        )
        for name in DELIVERED[1:]:
            yield f"  {name:<22} {self.delivered[name]:,}"
        yield (
            f"  events         {self.records:,} records; {self.rows:,} rows, {self.set_aside:,} set-aside records and "
            f"{self.answers:,} answers compared"
        )
        yield f"  lost {self.lost:,}, doubled {self.doubled:,}"
        if self.again:
            yield f"  run again      {self.again:,} times a server did not answer the self-test itself"
        yield from (f"  left out: {reason}" for reason in self.left_out)
        if self.failed:
            yield "  differences under seeds " + ", ".join(map(str, sorted(self.failed)))
        else:
            yield "  every row, every set-aside record and every answer is that of the pure fold"

    def _by_transaction(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for point, count in self.kills.items():
            statement = point.partition(" ")[2]
            kind = statement.partition(": ")[0] if ": " in statement else statement
            found[kind if ": " in statement else ("begin" if kind == "BEGIN" else "other")] += count
        return found


def run(
    settings: Settings,
    seeds: Sequence[int],
    *,
    jobs: int,
    database_url: str | None,
    heard: Callable[[Outcome], None],
) -> Summary:
    """Run seeds on scratch ground, and tell of each as it ends."""
    began = time.monotonic()
    jobs = 1 if database_url is not None else min(jobs, len(seeds))
    with scratch.ground(settings, jobs, database_url) as ground:
        summary = Summary(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={
                "rxstore": version("rxstore"),
                "Kafka": ground.brokers,
                "PostgreSQL": ground.postgresql,
                "Python": platform.python_version(),
            },
            session_timeout_ms=ground.least_session_timeout_ms,
            jobs=jobs,
            left_out=tuple(ground.left_out),
        )
        with (
            tempfile.TemporaryDirectory(prefix="rxstore-selftest-") as directory,
            _started(settings, ground, Path(directory)) as pipes,
        ):
            for outcome in _outcomes(pipes, seeds):
                summary.add(outcome)
                heard(outcome)
    summary.seconds = time.monotonic() - began
    return summary


def _outcomes(pipes: Sequence[Pipe], seeds: Sequence[int]) -> Iterator[Outcome]:
    """Hand out seeds, one to each job that is idle, and yield what comes back."""
    waiting = list(reversed(seeds))
    busy: set[Pipe] = set()
    for pipe in pipes:
        if waiting:
            pipe.send(waiting.pop())
            busy.add(pipe)
    while busy:
        for ready in wait(busy):
            if not isinstance(ready, Pipe):
                continue
            try:
                answer = ready.recv()
            except EOFError as error:
                raise RxstoreError("a job of the self-test ended by itself: its message stands above") from error
            if isinstance(answer, RxstoreError):
                raise answer
            if waiting:
                ready.send(waiting.pop())
            else:
                busy.discard(ready)
            yield answer


@contextmanager
def _started(settings: Settings, ground: Ground, directory: Path) -> Iterator[list[Pipe]]:
    forks = workers.context(__name__)
    jobs: list[tuple[BaseProcess, Pipe]] = []
    try:
        for number, url in enumerate(ground.database_urls):
            mine, its = forks.Pipe()
            told = replace(settings, database_url=url, session_timeout_ms=ground.least_session_timeout_ms)
            job: BaseProcess = forks.Process(
                target=_job, args=(told, ground.run, directory, its), name=f"rxstore-selftest-job-{number}"
            )
            job.start()
            its.close()
            jobs.append((job, mine))
        yield [pipe for _, pipe in jobs]
        for _, pipe in jobs:
            pipe.send(None)
    except BaseException:
        for job, _ in jobs:
            job.terminate()
        raise
    finally:
        until = time.monotonic() + JOB_ENDS_SECONDS
        for job, pipe in jobs:
            job.join(max(0.0, until - time.monotonic()))
            if job.is_alive():
                job.kill()
                job.join()
            pipe.close()


class Runs:
    """Runs seeds on a bench that is made anew when a server did not answer the self-test itself.

    A trial whose own questions fail says nothing about the code under test: it is run again, and the summary counts it.
    Workers have faults of their own, from which they must recover by themselves; this is only about the bench.

    :raises ServerUnavailable: a seed could not be run ``ATTEMPTS`` times, one after the other.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Bench]], wait_seconds: float = WAIT_SECONDS) -> None:
        self._make = make
        self._wait_seconds = wait_seconds
        self._made = ExitStack()
        self._bench: Bench | None = None

    def outcome(self, seed: int) -> Outcome:
        """Run one seed."""
        again = 0
        while True:
            try:
                if self._bench is None:
                    self._bench = self._made.enter_context(self._make())
                return replace(self._bench.trial(schedule_of(seed)), again=again)
            except Exception as error:
                said = explained(error)
                again += 1
                if not isinstance(said, ServerUnavailable) or again == ATTEMPTS:
                    raise
                self._bench = None
                with suppress(Exception):  # what cannot be reached cannot be tidied: the run's end does it
                    self._made.close()
                time.sleep(self._wait_seconds)

    def close(self) -> None:
        """Close what is open."""
        self._made.close()


def _job(settings: Settings, run: str, directory: Path, pipe: Pipe) -> None:
    """Be one job: run the seeds that come, one after the other."""
    trial.be_told_to_end()
    workers.forget_main()
    try:
        with closing(Runs(lambda: trial.bench(settings, run, directory))) as runs:
            while (seed := pipe.recv()) is not None:
                pipe.send(runs.outcome(seed))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        pass  # the run was interrupted, or its process is gone
    except Exception as error:
        said = explained(error)
        if said is None:
            raise
        pipe.send(said)
