"""The audit trail, for who reads it: looked through, verified, and let go month by month."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Engine, Select, func, or_, select, text
from sqlalchemy.dialects.postgresql import insert

from projector import audit_months
from projector.generations import MIGRATION_LOCK
from projector.tables import audit as table
from projector.tables import audit_retired
from query_api import audit
from query_api.audit import Anchor, Anchored, Fault, Head, NoAnchor, NoKey, Record
from query_api.trail import append_anchors
from rxstore.errors import Refused, WrongUse

AT_A_TIME = 2_000
LOCK_TIMEOUT_SECONDS = 10
KEY_FILES: Mapping[audit.KeyKind, tuple[str, int]] = {
    "public": ("audit-public.key", 0o644),
    "private": ("audit-private.key", 0o600),
    "hash": ("audit-hash.key", 0o600),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """Which records are looked for; None where anything will do."""

    asid: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    patient: bytes | None = None
    prescription: str | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """How much was gone through, and what was found wrong."""

    records: int
    chains: int
    faults: list[Fault]


def search(engine: Engine, sought: Sought) -> Iterator[Record]:
    """Return the records that match, in the order in which they were written down."""
    wanted: list[ColumnElement[bool]] = []
    if sought.asid is not None:
        wanted.append(table.c.asid == sought.asid)
    if sought.since is not None:
        wanted.append(table.c.at >= sought.since)
    if sought.until is not None:
        wanted.append(table.c.at < sought.until)
    if sought.patient is not None:
        wanted.append(table.c.patient == sought.patient)
    if sought.prescription is not None:
        key = sought.prescription
        wanted.append(or_(table.c.prescription == key, table.c.shown.contains([key])))
    question = select(table).where(*wanted).order_by(table.c.at, table.c.chain, table.c.sequence).limit(sought.limit)
    with engine.connect() as connection:
        yield from _records(connection, question)


def as_json(record: Record, private_keys: Sequence[bytes]) -> dict[str, Any]:
    """Return a record's members for JSON; the question only with keys, and null when it was sealed for others."""
    said = {name: value.hex() if isinstance(value, bytes) else value for name, value in record._asdict().items()}
    del said["question"]
    if private_keys:
        said["question"] = audit.unsealed(record.question, private_keys)
    return said


def verify(engine: Engine, anchor_files: Sequence[Path]) -> Verified:
    """Go through all chains, and say what is wrong; with anchor files also at their ends."""
    with engine.connect() as connection:
        starts = _starts(connection)
    # Before the records are looked at: an anchor is of what had been committed.
    anchored = read_anchors(anchor_files, starts) if anchor_files else None
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        if _starts(connection) != starts:
            raise Refused("months were retired at this moment: verify once more")
        counted = _Counted(_records(connection, _in_order(select(table))))
        found = list(audit.faults(counted, starts, anchored))
    return Verified(counted.records, len(counted.chains | starts.keys()), found)


def read_anchors(files: Iterable[Path], starts: Mapping[UUID, Head] | None = None) -> Anchored:
    """Read anchor files, without what tells of retired records only; WrongUse names the line that is no anchor."""
    anchored = Anchored()
    for path in files:
        try:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    try:
                        anchor = audit.read_anchor(line)
                    except NoAnchor:
                        raise WrongUse(
                            f"{path}, line {number} is no anchor: the file was damaged or changed; compare it with a "
                            "copy of it, or take the line out and verify with what is left"
                        ) from None
                    start = (starts or {}).get(anchor.chain)
                    if anchor.kind == "retired" or start is None or anchor.head.sequence >= start.sequence:
                        anchored.add(anchor)
        except OSError as error:
            raise WrongUse(f"{path} cannot be read: {error.strerror}") from error
    return anchored


def retire(engine: Engine, before: date, anchor_file: Path, *, unverified: bool = False) -> list[date]:
    """Let the months go that ended before a day, and keep where each chain stood; return them.

    Refused when a record that would go was changed, removed or inserted: nobody could tell afterwards.
    """
    now = datetime.now(UTC)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
        audit_months.make_ahead(connection, now)
        months = audit_months.ended_before(connection, before)
        if not months:
            return []
        going = table.c.at < audit_months.end_of(months[-1])
        if not unverified:
            _refuse_what_is_wrong(connection, going)
        heads = _heads(connection, going)
        # Before the records go: an anchor too many does no harm, a missing one would look like a removal.
        append_anchors(anchor_file, [Anchor(chain, head, "retired", now) for chain, head in heads.items()])
        for chain, head in heads.items():
            kept = {"sequence": head.sequence, "hash": head.hash, "retired_at": now}
            connection.execute(
                insert(audit_retired)
                .values(chain=chain, **kept)
                .on_conflict_do_update(index_elements=["chain"], set_=kept)
            )
        for month in months:
            audit_months.drop(connection, month)
    return months


def make_keys(directory: Path) -> list[Path]:
    """Make a key pair and a hash key, in files of their own; Refused when one of them is there."""
    paths = [directory / name for name, _ in KEY_FILES.values()]
    there = [str(path) for path in paths if path.exists()]
    if there:
        raise Refused(f"{', '.join(there)} is there already: name another directory, or move it away")
    if not directory.is_dir():
        raise WrongUse(f"{directory} is no directory: make it first, readable by nobody else")
    for kind, key in audit.new_keys(secrets.token_bytes(audit.KEY_BYTES)).items():
        name, mode = KEY_FILES[kind]
        descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(audit.key_text(kind, key))
    return paths


def key(path: Path, kind: Literal["private", "hash"]) -> bytes:
    """Read a key; WrongUse says what is wrong with the file."""
    try:
        return audit.read_key(path, kind)
    except NoKey as error:
        raise WrongUse(str(error)) from error


class _Counted:
    """Records on their way, counted."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._of = records
        self.records = 0
        self.chains: set[UUID] = set()

    def __iter__(self) -> Iterator[Record]:
        for record in self._of:
            self.records += 1
            self.chains.add(record.chain)
            yield record


def _refuse_what_is_wrong(connection: Connection, going: ColumnElement[bool]) -> None:
    with closing(_records(connection, _in_order(select(table).where(going)))) as records:
        wrong = next(audit.faults(records, _starts(connection)), None)
    if wrong is not None:
        raise Refused(
            f"{wrong}; nothing was retired, since nobody could see that afterwards: look at 'rxstore audit verify', "
            "keep a copy of these months, and say --unverified"
        )


def _heads(connection: Connection, going: ColumnElement[bool]) -> dict[UUID, Head]:
    last = (
        select(
            table.c.chain,
            table.c.sequence,
            table.c.hash,
            func.row_number().over(partition_by=table.c.chain, order_by=table.c.sequence.desc()).label("place"),
        )
        .where(going)
        .subquery()
    )
    rows = connection.execute(select(last.c.chain, last.c.sequence, last.c.hash).where(last.c.place == 1))
    return {row.chain: Head(row.sequence, row.hash) for row in rows}


def _starts(connection: Connection) -> dict[UUID, Head]:
    rows = connection.execute(select(audit_retired))
    return {row.chain: Head(row.sequence, row.hash) for row in rows}


def _in_order(question: Select[Any]) -> Select[Any]:
    return question.order_by(table.c.chain, table.c.sequence, table.c.at)


def _records(connection: Connection, question: Select[Any]) -> Generator[Record, None, None]:
    with connection.execute(question.execution_options(yield_per=AT_A_TIME)) as rows:
        for row in rows:
            yield Record(*row)
