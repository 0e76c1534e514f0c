"""Events in a file, one CloudEvent in structured mode a line, checked as the projector will check them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from ingest.decode import Decoder
from projector.batch import Accepted, FieldError, Position, Record
from rxstore.errors import WrongUse
from rxstore.progress import Progress

STANDARD_INPUT = "-"
NOWHERE = Position("", 0, 0)

Line = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Checked:
    """A line and what the contract says of it.

    ``key`` is its stream key, when its subject could be read, ``event_key`` its idempotency key, when source and id
    could.
    """

    number: int
    value: bytes
    key: str | None
    id: str | None
    errors: tuple[FieldError, ...] = ()
    event_key: bytes | None = None

    @property
    def complaint(self) -> str:
        """Each path with what was expected there, and never with what stood there."""
        return "; ".join(f"{error.path}: {error.message}" if error.path else error.message for error in self.errors)


def checker(*, max_value_bytes: int, strict_check_character: bool) -> Decoder:
    """The projector's own decoder; a line of a file stands in no partition yet."""
    return Decoder(lambda key: 0, max_value_bytes=max_value_bytes, strict_check_character=strict_check_character)


def check(decoder: Decoder, line: Line) -> Checked:
    number, value = line
    decoded = decoder.regardless_of_place(Record(NOWHERE, 0, None, value))
    if isinstance(decoded, Accepted):
        envelope = decoded.event.envelope
        return Checked(number, value, envelope.stream_key, envelope.id, (), envelope.key)
    return Checked(number, value, decoded.stream_key, decoded.event_id, decoded.errors, decoded.event_key)


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """The file, or standard input for ``-``; WrongUse when it cannot be read."""
    if name == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    try:
        file = open(name, "rb")  # noqa: SIM115 - only opening may fail here, and the block below is our caller's
    except OSError as error:
        raise WrongUse(f"{name} cannot be read: {error.strerror}") from error
    with file:
        yield file


def lines(file: BinaryIO, progress: Progress) -> Iterator[Line]:
    """Each line that is not blank, with its number from 1; how far the file is read goes to ``progress``."""
    size = _size(file)
    read = 0
    for number, line in enumerate(file, start=1):
        value = line.strip()
        if not value:
            continue
        yield number, value
        read += len(line)
        if size is not None:
            # A guess at how many lines there are, better with every line.
            progress.total = (progress.done + 1) * size / read
        progress.advance()


def _size(file: BinaryIO) -> int | None:
    try:
        return os.fstat(file.fileno()).st_size or None
    except OSError:
        return None
