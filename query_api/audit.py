"""What an audit record says, and how records hang together: pure functions. The page is docs/operators/audit.md.

Each server process writes a chain of its own: a record's hash is made of its content and of the hash before it. Heads
of chains are written down outside the database too, so that a table that lost its end shows.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import UUID

import orjson
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

KEY_BYTES = 32
KeyKind = Literal["public", "private", "hash"]
MARK = "rxstore-audit-{kind}-1"
# How an anchor came to be: while the chain goes on, at its orderly end, or when its records up to there were let go.
AnchorKind = Literal["begin", "head", "end", "retired"]
ANCHOR_KINDS = frozenset({"begin", "head", "end", "retired"})


class NoKey(ValueError):
    """A file does not hold the key that is wanted; the message says what is wrong with it, and not what it holds."""


class NoAnchor(ValueError):
    """A line of an anchor file is none."""


class Head(NamedTuple):
    """The last record of a chain, by its place and hash."""

    sequence: int
    hash: bytes


BEGIN = Head(0, bytes(32))


class Entry(NamedTuple):
    """What is written down of one request."""

    duration_us: int
    asid: str | None
    certificate: str | None
    user_id: str | None
    role_profile_id: str | None
    trace_id: str | None
    interaction: str | None
    patient: bytes | None
    prescription: str | None
    question: bytes
    http_status: int
    tracker_code: str | None
    shown: list[str]
    refused_by: str | None


class Record(NamedTuple):
    """A row of rxstore.audit: an entry, its members in the same order, in its place in a chain.

    ``tables.audit`` has the same columns in this order.
    """

    chain: UUID
    sequence: int
    at: datetime
    duration_us: int
    asid: str | None
    certificate: str | None
    user_id: str | None
    role_profile_id: str | None
    trace_id: str | None
    interaction: str | None
    patient: bytes | None
    prescription: str | None
    question: bytes
    http_status: int
    tracker_code: str | None
    shown: list[str]
    refused_by: str | None
    previous_hash: bytes
    hash: bytes


HASHED = Record._fields[:-2]


def chained(chain: UUID, head: Head, at: datetime, entry: Entry) -> Record:
    """Put an entry behind the last record of a chain."""
    record = Record(chain, head.sequence + 1, at, *entry, head.hash, b"")
    return record._replace(hash=hash_of(record))


def hash_of(record: Record) -> bytes:
    """Return the hash that a record must have: over the hash before it and its own canonical bytes."""
    return hashlib.sha256(record.previous_hash + canonical(record)).digest()


def canonical(record: Record) -> bytes:
    """Return a record's content in the one form that it has: JSON with its members sorted, without those that are NULL.

    A column that is added later is NULL in older records, and so changes nothing of them.
    """
    said = {name: _plain(getattr(record, name)) for name in HASHED}
    return orjson.dumps({name: value for name, value in said.items() if value is not None}, option=orjson.OPT_SORT_KEYS)


def _plain(value: Any) -> Any:  # noqa: ANN401 - what a column can hold
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return _rfc3339(value)
    return str(value) if isinstance(value, UUID) else value


def _rfc3339(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# anchors --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Anchor:
    """A head of a chain as it was written down outside the database."""

    chain: UUID
    head: Head
    kind: AnchorKind
    at: datetime

    def line(self) -> bytes:
        """Return it as a line of an anchor file."""
        return orjson.dumps(
            {
                "chain": str(self.chain),
                "sequence": self.head.sequence,
                "hash": self.head.hash.hex(),
                "kind": self.kind,
                "at": _rfc3339(self.at),
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )


def read_anchor(line: bytes) -> Anchor:
    """Read a line of an anchor file; NoAnchor when it is none."""
    try:
        said = orjson.loads(line)
        head = Head(int(said["sequence"]), bytes.fromhex(said["hash"]))
        anchor = Anchor(UUID(said["chain"]), head, said["kind"], datetime.fromisoformat(said["at"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise NoAnchor from None
    if anchor.kind not in ANCHOR_KINDS or anchor.head.sequence < 0:
        raise NoAnchor
    return anchor


@dataclass(slots=True)
class Anchored:
    """What anchor files say, by chain."""

    hashes: dict[UUID, dict[int, bytes]] = field(default_factory=dict)
    ends: dict[UUID, int] = field(default_factory=dict)
    retired: set[tuple[UUID, Head]] = field(default_factory=set)
    contradictions: list[Fault] = field(default_factory=list)

    def add(self, anchor: Anchor) -> None:
        """Take one more anchor into account."""
        hashes = self.hashes.setdefault(anchor.chain, {})
        known = hashes.setdefault(anchor.head.sequence, anchor.head.hash)
        if known != anchor.head.hash:
            self.contradictions.append(Fault(anchor.chain, anchor.head.sequence, "is anchored with two hashes"))
        if anchor.kind == "end":
            self.ends[anchor.chain] = anchor.head.sequence
        if anchor.kind == "retired":
            self.retired.add((anchor.chain, anchor.head))


# verifying ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a chain, and at which record of it."""

    chain: UUID
    sequence: int
    what: str

    def __str__(self) -> str:
        return f"chain {self.chain}, record {self.sequence}: {self.what}"


def faults(
    records: Iterable[Record], starts: Mapping[UUID, Head] | None = None, anchored: Anchored | None = None
) -> Iterator[Fault]:
    """Go through records by chain, sequence and instant, and say what was changed, removed or inserted.

    ``starts`` has the last record that was retired of each chain. ``anchored`` shows too what a chain alone cannot:
    that its end is missing, that it was made anew from somewhere on, or that no server ever wrote it.
    """
    heads = dict(starts or {})
    for record in records:
        head = heads.get(record.chain, BEGIN)
        fault = _fault(record, head)
        if fault is not None:
            yield Fault(record.chain, fault[0], fault[1])
        if anchored is not None:
            known = anchored.hashes.get(record.chain, {}).get(record.sequence, record.hash)
            if known != record.hash:
                yield Fault(record.chain, record.sequence, "is not the one that is anchored: it was changed")
        if record.sequence > head.sequence:
            heads[record.chain] = Head(record.sequence, record.hash)
    if anchored is not None:
        yield from _faults_of_ends(heads, starts or {}, anchored)


def _fault(record: Record, head: Head) -> tuple[int, str] | None:
    if record.sequence <= head.sequence:
        return record.sequence, "is there twice, or again after it was retired: one was inserted"
    if hash_of(record) != record.hash:
        return record.sequence, "was changed: its content does not have its hash"
    if record.sequence > head.sequence + 1:
        last = record.sequence - 1
        which = "is missing" if last == head.sequence + 1 else f"and all to {last} are missing"
        return head.sequence + 1, f"{which}: removed"
    if record.previous_hash != head.hash:
        return record.sequence, f"does not follow on record {head.sequence}: one of them was changed or inserted"
    return None


def _faults_of_ends(heads: Mapping[UUID, Head], starts: Mapping[UUID, Head], anchored: Anchored) -> Iterator[Fault]:
    yield from anchored.contradictions
    for chain, hashes in anchored.hashes.items():
        head, last = heads.get(chain, BEGIN), max(hashes)
        if last > head.sequence:
            which = "is missing" if last == head.sequence + 1 else f"and all to {last} are missing"
            yield Fault(chain, head.sequence + 1, f"{which} at the end, of which an anchor tells: removed")
        end = anchored.ends.get(chain)
        if end is not None and head.sequence > end:
            yield Fault(chain, end + 1, f"was inserted: the chain ended with record {end}")
    for chain, head in heads.items():
        if chain not in anchored.hashes:
            yield Fault(chain, head.sequence, "is of a chain without an anchor: inserted, or an anchor file is missing")
    for chain, head in starts.items():
        if chain in anchored.hashes and (chain, head) not in anchored.retired:
            yield Fault(chain, head.sequence, "was not retired by 'rxstore audit retire': it was removed")


# covering -------------------------------------------------------------------------------------------------------------


class Cover:
    """Covers what names a patient: NHS numbers by a keyed hash, questions by a public key."""

    def __init__(self, *, hash_key: bytes, public_key: bytes) -> None:
        self._hash_key = hash_key
        self._box = SealedBox(PublicKey(public_key))

    def patient(self, nhs_number: str) -> bytes:
        """Hash an NHS number: the same one gives the same hash, which nobody without the key can try out."""
        return patient_hash(self._hash_key, nhs_number)

    def question(self, question: str) -> bytes:
        """Seal a question: only who has the private key can read it."""
        return self._box.encrypt(question.encode("utf-8", "replace"))


def patient_hash(hash_key: bytes, nhs_number: str) -> bytes:
    """Return the HMAC-SHA-256 of an NHS number."""
    return hmac.digest(hash_key, nhs_number.encode("utf-8", "replace"), "sha256")


def unsealed(question: bytes, private_keys: Iterable[bytes]) -> str | None:
    """Return a question that was sealed for one of these keys, None when it was sealed for another."""
    for key in private_keys:
        try:
            return SealedBox(PrivateKey(key)).decrypt(question).decode()
        except CryptoError:
            continue
    return None


def new_keys(hash_key: bytes) -> dict[KeyKind, bytes]:
    """Make a key pair, to go with a random hash key."""
    private = PrivateKey.generate()
    return {"public": bytes(private.public_key), "private": bytes(private), "hash": hash_key}


def key_text(kind: KeyKind, key: bytes) -> str:
    """Return the content of a key file."""
    return f"{MARK.format(kind=kind)} {base64.b64encode(key).decode()}\n"


def read_key(path: Path, kind: KeyKind) -> bytes:
    """Read a key file; NoKey says what is wrong with it."""
    try:
        words = path.read_text(encoding="ascii").split()
        key = base64.b64decode(words[1], validate=True) if len(words) == 2 else b""
    except OSError as error:
        raise NoKey(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, binascii.Error):
        words, key = [], b""
    if not words or words[0] != MARK.format(kind=kind) or len(key) != KEY_BYTES:
        raise NoKey(f"{path} is not a {kind} key that 'rxstore audit keys' made")
    return key
