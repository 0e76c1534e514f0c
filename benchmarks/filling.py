"""Fills a read model with many prescriptions in little time, and says which event of each comes next.

A few thousand generated prescriptions are folded up to their last event but one; what comes out is saved again and
again under other ids, through ``ReadModel.save``, the same bulk writes that a worker uses. Nothing of that went
through a topic, so the positions in these rows mean nothing; all else is as if it had been projected.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from random import Random
from typing import Any

import orjson

from benchmarks.ground import SCHEMA, Store, say
from ingest.decode import Decoder
from ingest.partitioning import partitioner
from projector.batch import Accepted, Position, Record
from projector.read_model import ReadModel
from projector.runner import connect
from projector.stream import FoldedStream, Stream, fold
from rxstore.generator import lifecycles
from schemas.identifiers import with_check_character

TEMPLATES = 10_000
SAVED_AT_ONCE = 10_000
DAY = date(2026, 1, 5)
ALPHABET = "0123456789ABCDEF"

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Template:
    """A prescription before its last event."""

    folded: FoldedStream
    next_event: Event


@dataclass(slots=True)
class Filling:
    """``stored`` prescriptions in a store; which event comes next is told once for each."""

    store: Store
    stored: int
    seed: int = 1
    _templates: list[Template] = field(default_factory=list)
    _told: set[int] = field(default_factory=set)

    def fill(self) -> float:
        """Save all of them; return how many seconds that took."""
        self._templates = list(templates(min(TEMPLATES, self.stored), self.seed))
        began = time.monotonic()
        read_model = ReadModel(SCHEMA)
        with connect(self.store.database_url) as connection:
            for first in range(0, self.stored, SAVED_AT_ONCE):
                copies = [self._copy(number) for number in range(first, min(first + SAVED_AT_ONCE, self.stored))]
                copies.sort(key=lambda copy: copy.before.key)
                with connection.transaction():
                    read_model.save(connection, copies)
            connection.execute("RESET enable_seqscan")
            connection.execute("VACUUM ANALYZE")
        seconds = time.monotonic() - began
        say(f"filled with {self.stored:,} prescriptions in {seconds:.0f} s")
        return seconds

    def next_events(self, count: int, random: Random) -> Iterator[bytes]:
        """Yield the next event of ``count`` prescriptions drawn from all, none of them twice."""
        if count > self.stored - len(self._told):
            raise SystemExit(f"{self.stored:,} stored prescriptions are too few for {count:,} more events of theirs")
        for _ in range(count):
            number = random.randrange(self.stored)
            while number in self._told:
                number = random.randrange(self.stored)
            self._told.add(number)
            event = self._template(number).next_event
            key = self.key(number)
            yield orjson.dumps({**event, "subject": with_check_character(key), "id": f"{number:08X}-{event['id']}"})

    def key(self, number: int) -> str:
        """Return the stream key of a prescription: the template's with its first digits counted up."""
        original = self._template(number).folded.before.key
        copy = number // len(self._templates)
        shifted = "".join(
            ALPHABET[(ALPHABET.index(digit) + (copy >> 4 * place)) % 16] for place, digit in enumerate(original[:6])
        )
        return shifted + original[6:]

    def nhs_number(self, number: int) -> str:
        """Return the patient's number: the copies' patients are others, and their check digits are not right."""
        original: str = _prescribed(self._template(number)).nhs_number
        copy = number // len(self._templates)
        return original if copy == 0 else f"{(int(original) + copy * 7_919) % 10**10:010}"

    def _template(self, number: int) -> Template:
        return self._templates[number % len(self._templates)]

    def _copy(self, number: int) -> FoldedStream:
        template = self._template(number)
        prescription = template.folded.prescription
        if prescription is None:
            raise AssertionError("templates are prescriptions that exist")
        key = self.key(number)
        prescribed = prescription.prescribed._replace(
            prescription_id=with_check_character(key), nhs_number=self.nhs_number(number)
        )
        return replace(
            template.folded,
            before=replace(template.folded.before, key=key),
            prescription=prescription._replace(prescribed=prescribed),
        )


def _prescribed(template: Template) -> Any:  # noqa: ANN401 - a prescription that exists
    if template.folded.prescription is None:
        raise AssertionError("templates are prescriptions that exist")
    return template.folded.prescription.prescribed


def templates(count: int, seed: int) -> Iterator[Template]:
    """Yield ``count`` different prescriptions whose last event may follow all others of it."""
    decode = Decoder(partition_of=partitioner("murmur2", 1))
    streams: dict[str, list[Event]] = {}
    for event in lifecycles(count + count // 5 + 50, seed, DAY, 28):
        streams.setdefault(str(event["subject"])[:-1], []).append(event)
    made = 0
    for key, events in streams.items():
        *earlier, last = events
        if made == count or not earlier:
            continue
        folded = fold(Stream(key, 0), [_accepted(decode, key, event, at) for at, event in enumerate(earlier)])
        if folded.prescription is None or folded.set_aside or len(key) != len("000000-000000-00000"):
            continue
        # The patient stays the one that the event names, if it names one: then no copy of it could follow.
        if "nhsNumber" in last["data"]:
            continue
        made += 1
        yield Template(folded, last)
    if made < count:
        raise AssertionError(f"{made} of {count} templates")


def _accepted(decode: Decoder, key: str, event: Event, at: int) -> Accepted:
    record = Record(Position("filled", 0, at), 0, key.encode(), orjson.dumps(event))
    accepted = decode(record)
    if not isinstance(accepted, Accepted):
        raise AssertionError("the generator makes events that keep the contract")
    return accepted
