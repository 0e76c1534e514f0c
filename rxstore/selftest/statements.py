"""What a worker says to PostgreSQL, message by message, each with a name for the statement that it runs. No I/O.

Just enough of the frontend protocol: a message is a type, a length and a body. The names are those of verbs and
tables ("batch: UPDATE issue"), with the transaction in front: ``batch`` projects events, ``place`` gives decisions
their effect offsets, ``decision`` applies one, and what stands alone is outside of every transaction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

LENGTH_BYTES = 4
FLUSH = b"H\x00\x00\x00\x04"

_table = re.compile(r"\b(?:rx_[a-z0-9_]+|rxstore|pg_temp)\.([a-z_]+)")
_first_column = re.compile(r"\bSET ([a-z_]+) =")
_of_schema = re.compile(r"_rx_.*")
# These checkpoints' and decisions' columns tell statements apart that are one by verb and table.
_TOLD_BY_COLUMN = frozenset({"checkpoint", "decision"})


@dataclass(frozen=True, slots=True)
class Said:
    """One message. ``statement`` is set on the one message of several that makes the server run a statement."""

    data: bytes
    statement: str | None = None


@dataclass(slots=True)
class Conversation:
    """One session as its client speaks it."""

    _rest: bytes = b""
    _started: bool = False
    _prepared: dict[bytes, str] = field(default_factory=dict)
    _portals: dict[bytes, str] = field(default_factory=dict)
    _copying: str = ""
    _transaction: list[str] | None = None

    def feed(self, data: bytes) -> Iterator[Said]:
        """Take what arrived and yield every message that is whole."""
        self._rest += data
        while (size := self._size()) is not None and len(self._rest) >= size:
            message, self._rest = self._rest[:size], self._rest[size:]
            if self._started:
                yield Said(message, self._statement(message))
            else:
                self._started = True
                yield Said(message)

    def _size(self) -> int | None:
        """Return the size of the next message with its type; the very first one has none."""
        head = 1 if self._started else 0
        if len(self._rest) < head + LENGTH_BYTES:
            return None
        return head + int.from_bytes(self._rest[head : head + LENGTH_BYTES], "big")

    def _statement(self, message: bytes) -> str | None:
        kind, body = message[:1], message[1 + LENGTH_BYTES :]
        match kind:
            case b"Q":
                return self._ran(body.rstrip(b"\0").decode())
            case b"P":
                name, query, _ = body.split(b"\0", 2)
                self._prepared[name] = query.decode()
            case b"B":
                portal, name, _ = body.split(b"\0", 2)
                self._portals[portal] = self._prepared.get(name, "")
            case b"E":
                return self._ran(self._portals.get(body.split(b"\0", 1)[0], ""))
            case b"c":
                return self._named(f"{self._copying} done")
        return None

    def _ran(self, query: str) -> str | None:
        what = named(query)
        if what is None:
            return None
        if what.startswith("COPY"):
            self._copying = what
        if what == "BEGIN":
            self._transaction = []
            return what
        return self._named(what)

    def _named(self, what: str) -> str:
        if self._transaction is None:
            return what
        self._transaction.append(what)
        kind = _kind(self._transaction)
        if what in {"COMMIT", "ROLLBACK"}:
            self._transaction = None
        return what if kind is None else f"{kind}: {what}"


def named(query: str) -> str | None:
    """Return the verb of a statement and the first table that it names."""
    words = query.split(None, 1)
    if not words:
        return None
    verb = words[0].upper().rstrip(";")
    if verb == "ROLLBACK" and len(words) > 1:
        return "ROLLBACK TO"
    table = _table.search(query)
    if verb in {"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"} or table is None:
        return verb
    name = _of_schema.sub("", table[1])
    column = _first_column.search(query) if verb == "UPDATE" and name in _TOLD_BY_COLUMN else None
    return f"{verb} {name}" + (f".{column[1]}" if column else "")


def _kind(statements: list[str]) -> str | None:
    """Return which transaction it is; moving the checkpoint, its first step, is the same in two of them."""
    if statements[0].startswith("LOCK generation"):
        return "place"
    if len(statements) == 1:
        return None
    return "decision" if statements[1].startswith("SELECT set_aside") else "batch"
