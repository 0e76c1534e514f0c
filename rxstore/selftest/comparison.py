"""Compares what the workers left behind with what must be there: rows, states, set-aside records, answers.

A difference names streams, tables and columns, never what stands in them: that may be a patient's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

from falcon.testing import TestClient
from psycopg import Connection

from ingest.decode import Decoder
from projector import decisions, set_aside, tables
from projector.batch import Record
from projector.decisions import Decision
from projector.read_model import COLUMNS, TABLES, ReadModel
from projector.stream import FoldedStream
from rxstore.selftest.schedule import Schedule
from rxstore.selftest.truth import Expected, Truth, as_meant, nhs_numbers, retrieved, searched, truth_of

LIVE = "rx_g1"
TRUTH = "rx_truth"
ASID = "200000000946"
SHOWN = 12
NO_SUCH_ISSUE = 99


class Place(NamedTuple):
    """What the operator saw when deciding: the decision's effect cannot lie before it."""

    decision: int
    next_offset: int


@dataclass(slots=True)
class Found:
    """What a comparison found. ``lost`` and ``doubled`` count events by the versions of their prescriptions."""

    differences: list[str] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    rows: int = 0
    answers: int = 0
    set_aside: int = 0
    decisions: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The end of one trial. ``ends`` is where each partition of the log ends."""

    connection: Connection[Any]
    api: TestClient
    decode: Decoder
    topic: str
    schedule: Schedule

    def found(self, log: Sequence[Record], ends: dict[int, int], places: Sequence[Place]) -> Found:
        """Compare everything."""
        found = Found()
        made = self._decisions()
        found.decisions = len(made)
        truth = truth_of(log, [d for d, _ in made], self.decode, self.decode.partition_of)
        found.set_aside = len(truth.set_aside)
        found.differences += self._checkpoints(ends)
        found.differences += self._places(made, places, ends)
        self._write(truth)
        found.differences += self._rows(found)
        found.differences += self._states(truth)
        found.differences += self._meant(truth, {d.stream_key for d, _ in made if d.action == "skip"})
        found.differences += self._answers(truth, found)
        self._count_versions(truth, found)
        return found

    # where it stands --------------------------------------------------------------------------------------------------

    def _checkpoints(self, ends: dict[int, int]) -> Iterator[str]:
        stored = dict(
            self.connection.execute(f"SELECT partition_number, next_offset FROM {LIVE}.checkpoint").fetchall()
        )
        for partition, end in sorted(ends.items()):
            if stored.get(partition, 0) != end:
                yield f"partition {partition}: the checkpoint stands at {stored.get(partition)}, the log ends at {end}"

    def _decisions(self) -> list[tuple[Decision, bool]]:
        """Return the decisions that stand, in their order, each with whether it was applied."""
        rows = self.connection.execute(
            f"SELECT d.id, d.number <= c.decisions_applied FROM rxstore.decision d LEFT JOIN {LIVE}.checkpoint c "
            "ON c.topic = d.topic AND c.partition_number = d.stream_partition"
        ).fetchall()
        applied = dict(rows)
        standing = self.connection.execute(
            f"{decisions.SELECT} WHERE d.revoked_at IS NULL ORDER BY d.number NULLS LAST, d.id"
        ).fetchall()
        return [(decisions._loaded(row), bool(applied[row[0]])) for row in standing]

    def _places(
        self, made: Sequence[tuple[Decision, bool]], places: Sequence[Place], ends: dict[int, int]
    ) -> Iterator[str]:
        """A decision is applied, and its effect lies neither before what the operator saw nor beyond the log."""
        seen = dict(places)
        for decision, is_applied in made:
            what = f"decision {decision.id} about {decision.position}"
            if not is_applied or decision.effect_offset is None:
                yield f"{what} was not applied"
            elif not seen.get(decision.id, 0) <= decision.effect_offset <= ends.get(decision.stream_partition, 0):
                yield (
                    f"{what} takes effect at {decision.effect_offset}: partition {decision.stream_partition} stood at "
                    f"{seen.get(decision.id)} when it was made"
                )

    # rows -------------------------------------------------------------------------------------------------------------

    def _write(self, truth: Truth) -> None:
        """Write the pure fold as rows of its own, in one go, beside those of the workers."""
        with self.connection.transaction(), self.connection.cursor() as cursor:
            names = ", ".join(f"{TRUTH}.{name}" for name in tables.READ_MODEL.tables)
            cursor.execute(f"TRUNCATE {names}")
            streams = [_without_set_aside(stream) for stream in truth.streams.values()]
            ReadModel(TRUTH).save(self.connection, streams)
            set_aside.save(cursor, TRUTH, truth.set_aside.values())

    def _rows(self, found: Found) -> Iterator[str]:
        for table in (*TABLES, "set_aside"):
            columns = COLUMNS.get(table, set_aside.COLUMNS)
            key = _key_of(table)
            mine, others = self._text(LIVE, table, columns, key), self._text(TRUTH, table, columns, key)
            found.rows += len(others)
            for place in sorted(mine.keys() | others.keys()):
                if mine.get(place) != others.get(place):
                    yield f"{table} {':'.join(place)}: {_difference(columns, mine.get(place), others.get(place))}"

    def _text(
        self, schema: str, table: str, columns: Sequence[str], key: Sequence[str]
    ) -> dict[tuple[str, ...], tuple[str | None, ...]]:
        names = ", ".join(f"{column}::text" for column in columns)
        places = [columns.index(column) for column in key]
        rows = self.connection.execute(f"SELECT {names} FROM {schema}.{table}").fetchall()
        return {tuple(str(row[at]) for at in places): tuple(row) for row in rows}

    def _states(self, truth: Truth) -> Iterator[str]:
        """Loading what the workers wrote must give back the states that the fold came to."""
        keys = {key: stream.before.partition for key, stream in truth.streams.items()}
        loaded = ReadModel(LIVE).load(self.connection, keys, self.decode, lambda _: True)
        for key, stream in sorted(truth.streams.items()):
            if loaded[key].prescription != stream.prescription:
                yield f"{key}: the state that is loaded is not the state of the fold"
            if loaded[key].history != stream.history:
                yield f"{key}: the history that is loaded is not the history of the fold"

    def _meant(self, truth: Truth, skipped: set[str]) -> Iterator[str]:
        """A stream that the log itself made whole is as if nothing had been wrong with it."""
        keys = {key: truth.streams[key].before.partition for key in self.schedule.healed if key in truth.streams}
        loaded = ReadModel(LIVE).load(self.connection, keys, self.decode, lambda _: True)
        for key in sorted(keys.keys() - skipped):
            if loaded[key].prescription != as_meant(self.schedule.healed[key]):
                yield f"{key}: it was repaired or shuffled, and is not as if nothing had been wrong"

    def _count_versions(self, truth: Truth, found: Found) -> None:
        stored = dict(self.connection.execute(f"SELECT stream_key, version FROM {LIVE}.prescription").fetchall())
        for key, stream in truth.streams.items():
            difference = stored.get(key, 0) - stream.history.version
            found.lost += max(0, -difference)
            found.doubled += max(0, difference)

    # answers ----------------------------------------------------------------------------------------------------------

    def _answers(self, truth: Truth, found: Found) -> Iterator[str]:
        ids = _ids(truth)
        for key, prescription_id in sorted(ids.items()):
            stream = truth.streams.get(key)
            prescription = stream.prescription if stream else None
            last = len(prescription.issues) if prescription else 0
            for issue in (None, *range(1, last + 1), NO_SUCH_ISSUE):
                asked = f"/mm/prescriptions/{quote(prescription_id)}?format=trace" + (
                    "" if issue is None else f"&issueNumber={issue}"
                )
                found.answers += 1
                yield from self._answer(asked, retrieved(truth, key, issue), f"retrieve {key} issue {issue}")
        for number, nhs_number in enumerate(sorted(nhs_numbers(truth))):
            asked = (
                f"/mm/prescriptions?format=trace-summary&nhsNumber={nhs_number}"
                "&earliestDate=19700101&latestDate=99991231"
            )
            found.answers += 1
            yield from self._answer(asked, searched(truth, nhs_number), f"search of patient no. {number}")

    def _answer(self, asked: str, expected: Expected, what: str) -> Iterator[str]:
        answer = self.api.simulate_get(asked, headers={"Spine-From-Asid": ASID})
        blocked = frozenset(filter(None, answer.headers.get("Rxstore-Blocked", "").split(",")))
        if answer.json != expected.body or list(_listed(answer.json)) != list(_listed(expected.body)):
            code, right = answer.json.get("statusCode"), expected.body["statusCode"]
            yield f"{what}: the answer differs (code {code}, expected {right})"
        if blocked != expected.blocked:
            yield f"{what}: Rxstore-Blocked names {sorted(blocked)}, expected {sorted(expected.blocked)}"


def _without_set_aside(stream: FoldedStream) -> FoldedStream:
    """Leave the set-aside records out: marks and deletions are theirs to tell, and ``Truth`` has told them."""
    return FoldedStream(
        before=stream.before,
        prescription=stream.prescription,
        history=stream.history,
        set_aside={},
        removed=frozenset(),
        deleted=False,
        counts=stream.counts,
    )


def _key_of(table: str) -> list[str]:
    return [column.name for column in tables.READ_MODEL.tables[table].primary_key.columns]


def _difference(columns: Iterable[str], mine: Sequence[Any] | None, right: Sequence[Any] | None) -> str:
    if mine is None:
        return "the row is missing"
    if right is None:
        return "the row should not be there"
    return "differs in " + ", ".join(c for c, one, other in zip(columns, mine, right, strict=True) if one != other)


def _ids(truth: Truth) -> dict[str, str]:
    """Return the full id of every stream that somebody could ask for."""
    from schemas.identifiers import with_check_character

    keys = set(truth.streams) | {r.stream_key for r in truth.set_aside.values() if r.stream_key is not None}
    return {key: with_check_character(key) for key in keys}


def _listed(body: dict[str, Any]) -> Iterable[str]:
    """Return the prescriptions of a search in their order."""
    listed = body.get("prescriptionList")
    return listed if isinstance(listed, dict) else ()
