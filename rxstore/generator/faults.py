"""Events as records for a topic, on request with something wrong about some of them.

A fault names what was done to a record, not what becomes of it: that may depend on faults that came before in the
same stream, and a stream that is blocked takes the events behind along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import orjson

from rxstore.generator.dice import Dice
from rxstore.generator.stream import Event
from schemas.identifiers import with_check_character

Headers = tuple[tuple[str, bytes | None], ...]

STRUCTURED: Headers = (("content-type", b"application/cloudevents+json"),)
OVER_ANY_LIMIT = 300_000
FAR_AHEAD = 1000
NO_SUCH_ISSUE = 99


@dataclass(frozen=True, slots=True)
class GeneratedRecord:
    """A record to produce. It belongs ``partition_shift`` partitions behind that of its key: 0 but for one fault."""

    key: bytes
    value: bytes
    headers: Headers = STRUCTURED
    fault: str | None = None
    partition_shift: int = 0


def records(events: Iterable[Event], *, dirty_rate: float = 0.0, seed: int = 1) -> Iterator[GeneratedRecord]:
    """Each event as a record, in order; about ``dirty_rate`` of them meet a fault of ``FAULTS``.

    Faults take turns, each at the next event that it can befall. What is published after a deletion is so rare that
    every deletion gets it. Without a rate all records are as they should be.
    """
    if not 0 <= dirty_rate <= 1:
        raise ValueError("the dirty rate is a share, from 0 to 1")
    dice = Dice(seed)
    met: Counter[str] = Counter()
    held_back: dict[bytes, GeneratedRecord] = {}
    for event in events:
        fault = _fault(event, dirty_rate, dice, met)
        published = [_record(event)] if fault is None else fault.befall(event, dice)
        key = _stream_key(event)
        late = held_back.pop(key, None)
        if fault is LATE and late is None:
            held_back[key] = published[0]
            continue
        yield from published
        if late is not None:
            yield late
    yield from held_back.values()


def _fault(event: Event, dirty_rate: float, dice: Dice, met: Counter[str]) -> Fault | None:
    if not dirty_rate or not (_kind(event) == "deleted" or dice.chance(dirty_rate)):
        return None
    possible = [fault for fault in FAULTS if fault.can_befall(event)]
    fault = min(possible, key=lambda fault: met[fault.name])
    met[fault.name] += 1
    return fault


# what can be wrong ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """``befall`` gives what is published instead of an event.

    ``kinds`` are the types of event that it can befall, all of them if empty; a fault ``about_sequences`` can only
    befall an event that has one.
    """

    name: str
    befall: Callable[[Event, Dice], list[GeneratedRecord]]
    kinds: frozenset[str] = frozenset()
    about_sequences: bool = False

    def can_befall(self, event: Event) -> bool:
        """Whether the fault makes sense for the event."""
        return (not self.kinds or _kind(event) in self.kinds) and ("sequence" in event or not self.about_sequences)


def _too_large(event: Event, _dice: Dice) -> list[GeneratedRecord]:
    return [_record(event | {"filler": "." * OVER_ANY_LIMIT}, "too_large")]


def _unreadable(event: Event, dice: Dice) -> list[GeneratedRecord]:
    clean = _record(event, "unreadable")
    value = dice.pick((clean.value[:-9], b"\xff\xfe" + clean.value, b"[" + clean.value + b"]", b""))
    return [replace(clean, value=value)]


def _contract_violation(event: Event, dice: Dice) -> list[GeneratedRecord]:
    broken = dice.pick(
        (
            {name: value for name, value in event.items() if name != "data"},
            {name: value for name, value in event.items() if name != "time"},
            event | {"specversion": "0.3"},
            event | {"id": ""},
            event | {"time": "yesterday"},
            event | {"subject": _with_wrong_check_character(event)},
            event | {"data": None},
        )
    )
    return [_record(event, "contract_violation", value=broken)]


def _repaired(event: Event, _dice: Dice) -> list[GeneratedRecord]:
    return [_record(event, "repaired", value=event | {"data": None}), _record(event)]


def _unknown_type(event: Event, dice: Dice) -> list[GeneratedRecord]:
    unknown = dice.pick(("eps.prescription.teleported.v1", "eps.prescription.created.v99"))
    return [_record(event | {"type": unknown}, "unknown_type")]


def _misrouted_key(event: Event, dice: Dice) -> list[GeneratedRecord]:
    return [replace(_record(event, "misrouted_key"), key=_stream_key({"subject": _another_subject(dice)}))]


def _misrouted_partition(event: Event, _dice: Dice) -> list[GeneratedRecord]:
    return [replace(_record(event, "misrouted_partition"), partition_shift=1)]


def _duplicate(event: Event, _dice: Dice) -> list[GeneratedRecord]:
    return [_record(event), _record(event, "duplicate")]


def _not_created(event: Event, dice: Dice) -> list[GeneratedRecord]:
    orphan = _made_up(event, dice, "claimed", {"issueNumber": 1, "claimId": dice.uuid()})
    return [_record(event), _record(orphan | {"subject": _another_subject(dice)}, "not_created")]


def _sequence_gap(event: Event, dice: Dice) -> list[GeneratedRecord]:
    ahead = _made_up(event, dice, "nominated", {"nominatedDispenser": None}, sequence=_sequence(event) + FAR_AHEAD)
    return [_record(event), _record(ahead, "sequence_gap")]


def _sequence_conflict(event: Event, dice: Dice) -> list[GeneratedRecord]:
    again = _made_up(event, dice, "nominated", {"nominatedDispenser": None}, sequence=_sequence(event))
    if dice.chance(0.5):
        del again["sequence"]
    return [_record(event), _record(again, "sequence_conflict")]


def _illegal_transition(event: Event, dice: Dice) -> list[GeneratedRecord]:
    illegal = _made_up(event, dice, "not-claimed", {"issueNumber": NO_SUCH_ISSUE}, sequence=_sequence(event) + 1)
    return [_record(event), _record(illegal, "illegal_transition")]


def _duplicate_prescription(event: Event, dice: Dice) -> list[GeneratedRecord]:
    return [_record(event), _record(event | {"id": dice.uuid()}, "duplicate_prescription")]


def _after_deletion(event: Event, dice: Dice) -> list[GeneratedRecord]:
    after = _made_up(event, dice, "nominated", {"nominatedDispenser": None}, sequence=_sequence(event) + 1)
    return [_record(event), _record(after, "deleted")]


def _late(event: Event, _dice: Dice) -> list[GeneratedRecord]:
    return [_record(event, "late")]


CREATED_FOR_SURE = frozenset({"created", "released", "dispensed", "claimed"})
LATE = Fault("late", _late, about_sequences=True)
FAULTS: Sequence[Fault] = (
    Fault("too_large", _too_large),
    Fault("unreadable", _unreadable),
    Fault("contract_violation", _contract_violation),
    Fault("repaired", _repaired),
    Fault("unknown_type", _unknown_type),
    Fault("misrouted_key", _misrouted_key),
    Fault("misrouted_partition", _misrouted_partition),
    Fault("duplicate", _duplicate),
    Fault("not_created", _not_created),
    LATE,
    Fault("sequence_gap", _sequence_gap, CREATED_FOR_SURE, about_sequences=True),
    Fault("sequence_conflict", _sequence_conflict, CREATED_FOR_SURE, about_sequences=True),
    Fault("illegal_transition", _illegal_transition, CREATED_FOR_SURE),
    Fault("duplicate_prescription", _duplicate_prescription, frozenset({"created"})),
    Fault("deleted", _after_deletion, frozenset({"deleted"})),
)


# what they share ------------------------------------------------------------------------------------------------------


def _record(event: Event, fault: str | None = None, *, value: Event | None = None) -> GeneratedRecord:
    return GeneratedRecord(_stream_key(event), orjson.dumps(value or event), fault=fault)


def _made_up(event: Event, dice: Dice, kind: str, data: dict[str, object], sequence: int | None = None) -> Event:
    """Another event of the event's stream, which has a sequence when the stream has them."""
    made_up = event | {"id": dice.uuid(), "type": f"eps.prescription.{kind}.v1", "data": data}
    if "sequence" in event and sequence is not None:
        made_up["sequence"] = str(sequence)
    return made_up


def _kind(event: Event) -> str:
    return str(event["type"]).split(".")[2]


def _sequence(event: Event) -> int:
    return int(str(event.get("sequence", 0)))


def _stream_key(event: Event) -> bytes:
    return str(event["subject"])[:-1].encode()


def _another_subject(dice: Dice) -> str:
    return with_check_character(f"{dice.getrandbits(24):06X}-Z99999-{dice.getrandbits(20):05X}")


def _with_wrong_check_character(event: Event) -> str:
    subject = str(event["subject"])
    return subject[:-1] + ("A" if subject[-1] != "A" else "B")
