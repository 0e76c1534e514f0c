"""Lifecycles of many prescriptions as one stream of events, in the order in which they would be published.

Prescriptions begin in the order of their index, so only those under way are held. Each is made once, as a whole; what
it still has to publish waits compressed, in some 400 bytes.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from heapq import heappop, heappush, heapreplace
from itertools import accumulate

import orjson
from zstandard import DICT_TYPE_RAWCONTENT, ZstdCompressionDict, ZstdCompressor, ZstdDecompressor

from rxstore.generator import scenarios
from rxstore.generator.course import AtRest, Course
from rxstore.generator.dice import Dice
from rxstore.generator.instants import DAY, HOUR, midnight_of
from rxstore.generator.lifecycle import Lifecycle
from rxstore.generator.prescribing import prescribe, world
from rxstore.generator.tally import Tally

DEFAULT_PRESCRIPTIONS = 1000
DEFAULT_SEED = 1
DEFAULT_START = date(2026, 1, 5)
DEFAULT_DAYS = 28
FIRST_START, LAST_START = date(1970, 1, 1), date(9900, 1, 1)
MOST_DAYS = 3660

Event = dict[str, object]

SHARE_WITHOUT_SEQUENCES = 0.1
DAYS_THAT_ERD_GOES_ON = 14

# How many prescriptions surgeries sign in each hour of a day, and on each day of the week (Monday first), as weights.
_HOURS = (0, 0, 0, 0, 0, 0, 1, 3, 10, 18, 20, 20, 14, 10, 14, 18, 18, 12, 6, 2, 1, 1, 0, 0)
_WEEKDAYS = (24, 20, 19, 18, 17, 2, 1)
_SLOTS = 1 << 16


def lifecycles(
    prescriptions: int = DEFAULT_PRESCRIPTIONS,
    seed: int = DEFAULT_SEED,
    start: date = DEFAULT_START,
    days: int = DEFAULT_DAYS,
    *,
    sequences: bool = True,
    tally: Tally | None = None,
) -> Iterator[Event]:
    """The events of ``lines``, as the objects that they are in JSON."""
    return map(orjson.loads, lines(prescriptions, seed, start, days, sequences=sequences, tally=tally))


def lines(
    prescriptions: int = DEFAULT_PRESCRIPTIONS,
    seed: int = DEFAULT_SEED,
    start: date = DEFAULT_START,
    days: int = DEFAULT_DAYS,
    *,
    sequences: bool = True,
    tally: Tally | None = None,
) -> Iterator[bytes]:
    """All events of ``prescriptions`` that begin within ``days`` from ``start``, ordered by time, as JSON.

    The events of one prescription always come in their own order. Everything depends on the arguments alone; other
    arguments give other prescriptions. ``sequences=False`` leaves the sequence out of all streams instead of some.
    ``tally`` counts what was made.
    """
    if prescriptions < 1 or seed < 0:
        raise ValueError("wanted: at least one prescription, and a seed from 0")
    if not 1 <= days <= MOST_DAYS or not FIRST_START <= start <= LAST_START:
        raise ValueError(f"wanted: 1 to {MOST_DAYS} days, and a start between {FIRST_START} and {LAST_START}")
    return _lines(_Maker(prescriptions, seed, start, days, sequences=sequences), tally)


def _lines(maker: _Maker, tally: Tally | None) -> Iterator[bytes]:
    packer = _Packer(maker)
    due: list[_Due] = []
    for index in range(maker.prescriptions):
        lifecycle = maker.lifecycle(index)
        if tally is not None:
            tally.add(lifecycle)
        (begins, first), *later = lifecycle.events()
        while due and due[0][0] <= begins:
            yield _next_line(due, packer)
        yield first
        if later:
            heappush(due, (later[0][0], index, 0, packer.pack(later)))
    while due:
        yield _next_line(due, packer)


# When a prescription's next event is due, the prescription's index, the event's place among the packed ones, and these.
_Due = tuple[int, int, int, bytes]


def _next_line(due: list[_Due], packer: _Packer) -> bytes:
    _, index, place, packed = due[0]
    later = packer.unpack(packed)
    if place + 1 < len(later):
        heapreplace(due, (packer.time(later[place + 1]), index, place + 1, packed))
    else:
        heappop(due)
    return packer.line(later[place])


class _Packer:
    """Makes little of events that wait. They repeat one another, so a few of them are the compressor's dictionary."""

    SAMPLES = 16

    def __init__(self, maker: _Maker) -> None:
        samples = (maker.lifecycle(index).events() for index in range(min(self.SAMPLES, maker.prescriptions)))
        text = b"\n".join(self._joined(list(events)) for events in samples)
        dictionary = ZstdCompressionDict(text, dict_type=DICT_TYPE_RAWCONTENT)
        dictionary.precompute_compress(level=1)
        self._compressor = ZstdCompressor(level=1, dict_data=dictionary)
        self._decompressor = ZstdDecompressor(dict_data=dictionary)

    def pack(self, events: Sequence[tuple[int, bytes]]) -> bytes:
        """Events with their times, small."""
        # A copy, because what the compressor returns keeps the memory of a result that could not be compressed.
        return bytes(memoryview(self._compressor.compress(self._joined(events))))

    def unpack(self, packed: bytes) -> list[bytes]:
        """One entry an event: ``time`` and ``line`` take it apart."""
        return self._decompressor.decompress(packed).split(b"\n")

    def _joined(self, events: Sequence[tuple[int, bytes]]) -> bytes:
        return b"\n".join([b"%d %b" % event for event in events])

    @staticmethod
    def time(entry: bytes) -> int:
        """When the event is due."""
        return int(entry[: entry.index(b" ")])

    @staticmethod
    def line(entry: bytes) -> bytes:
        """The event as it is published."""
        return entry[entry.index(b" ") + 1 :]


class _Maker:
    """Makes any prescription of a run from its index."""

    def __init__(self, prescriptions: int, seed: int, start: date, days: int, *, sequences: bool) -> None:
        arguments = f"{prescriptions} {seed} {start.isoformat()} {days}"
        self.prescriptions = prescriptions
        self._world = world(arguments, prescriptions=prescriptions, days=days)
        self._begins_from = midnight_of(start)
        self._horizon = self._begins_from + (days + DAYS_THAT_ERD_GOES_ON) * DAY
        self._weights = [hour * _WEEKDAYS[(start.weekday() + day) % 7] for day in range(days) for hour in _HOURS]
        self._weights_up_to = list(accumulate(self._weights))
        self._forced = scenarios.forced(prescriptions)
        self._sequences = sequences

    def lifecycle(self, index: int) -> Lifecycle:
        """The whole of a prescription."""
        dice = Dice(self._world.root << 40 | index)
        scenario = self._forced.get(index) or scenarios.draw(dice)
        without_sequences = dice.chance(SHARE_WITHOUT_SEQUENCES)
        an_id = dice.uuid()
        prescribed = prescribe(self._world, index, dice, scenario.wanted)
        course = Course(dice, prescribed, self._begins(index), self._horizon)
        with suppress(AtRest):
            scenario.play(course)
        return Lifecycle(course, scenario, self._sequences and not without_sequences, an_id)

    def _begins(self, index: int) -> int:
        """When the prescription's first event happens: later for a higher index, and mostly in working hours."""
        slots = self.prescriptions * _SLOTS
        slot = index * _SLOTS + (index * 0x9E3779B1 + self._world.root) % _SLOTS
        hour = bisect(self._weights_up_to, slot * self._weights_up_to[-1] // slots)
        weight = self._weights[hour]
        into_hour = slot * self._weights_up_to[-1] - (self._weights_up_to[hour] - weight) * slots
        return self._begins_from + hour * HOUR + HOUR * into_hour // (weight * slots)
