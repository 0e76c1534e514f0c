"""The identifiers of the service: their forms, check characters and check digits.

Pure functions over text. All of them are strict where Python is lenient: ASCII only, whole text, no trailing newline.
No message ever repeats the value it refuses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from operator import mul

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ+"
_MODULUS = 37

_BODY_LENGTHS = {"R1": 36, "R2": 19}
_RELEASES = {length: release for release, length in _BODY_LENGTHS.items()}
_RELEASES_WITH_CHECK = {length + 1: release for release, length in _BODY_LENGTHS.items()}

_R1 = r"[0-9A-Za-z]{8}-[0-9A-Za-z]{4}-[0-9A-Za-z]{4}-[0-9A-Za-z]{4}-[0-9A-Za-z]{12}"
_R2 = r"[0-9A-Za-z]{6}-[0-9A-Za-z]{6}-[0-9A-Za-z]{5}"
FULL_ID_PATTERN = f"^(?:{_R2}|{_R1})[0-9A-Za-z+]$"
STREAM_KEY_PATTERN = f"^(?:{_R2}|{_R1})$".replace("A-Za-z", "A-Z")
UUID_PATTERN = "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$"

_is_prescription_id = re.compile(rf"(?:{_R2}|{_R1})[0-9A-Za-z+]?").fullmatch
_is_stream_key = re.compile(STREAM_KEY_PATTERN).fullmatch
_is_ten_digits = re.compile(r"[0-9]{10}").fullmatch
_is_twelve_digits = re.compile(r"[0-9]{12}").fullmatch
_is_trace_id = re.compile(r"[0-9A-Za-z-]{1,30}").fullmatch
_is_uuid = re.compile(UUID_PATTERN).fullmatch

_VALUES = bytearray(256)
for _value, _symbol in enumerate(_ALPHABET):
    _VALUES[ord(_symbol)] = _VALUES[ord(_symbol.lower())] = _value
_VALUE_OF = bytes(_VALUES)
# The weight of a character depends on how many follow it, so one table per number of characters (R2: 17, R1: 32).
_BODY_WEIGHTS = {n: tuple(pow(2, n - k, _MODULUS) for k in range(n)) for n in (17, 32)}
# With its check character (weight 1) the sum of a valid id leaves 1.
_FULL_WEIGHTS = {n + 1: (*weights, 1) for n, weights in _BODY_WEIGHTS.items()}

_NHS_WEIGHTS = tuple(range(10, 0, -1))


class InvalidPrescriptionId(ValueError):
    """The text is no prescription id; the message says which rule it breaks and never repeats the text."""


@dataclass(frozen=True, slots=True)
class PrescriptionId:
    """A prescription id in upper case; ``stream_key``, the id without its check character, is its identity."""

    full: str
    stream_key: str
    release: str
    has_check_character: bool


def check_character(body: str) -> str:
    """The check character that belongs behind ``body``, an id without one (dashes and letter case do not matter).

    ISO 7064 MOD 37-2 with ``+`` in the place of ``*``.
    """
    if not body.isascii() or not _is_stream_key(body.upper()):
        raise InvalidPrescriptionId("must be a prescription id without its check character")
    values = body.encode().translate(_VALUE_OF, b"-")
    total = sum(map(mul, _BODY_WEIGHTS[len(values)], values))
    return _ALPHABET[(38 - total % _MODULUS) % _MODULUS]


def parse_prescription_id(text: str, *, strict: bool = True) -> PrescriptionId:
    """The id folded to upper case and taken apart; ``strict=False`` accepts a wrong check character.

    The rules are those of the tracker: 19 or 36 characters, or 20 or 37 with the check character; letters, digits,
    dash and plus; dashes where the release has them; plus only as check character; and the check character itself.
    The hexadecimal groups that the service demands when a prescription is created are not demanded here, so that
    every id that can be asked for can also be stored: ``E7ZG38-ZBACYU-V38SR+`` passes. Since the id is folded before
    it is checked, a check letter in lower case passes too.
    """
    if not _is_prescription_id(text):
        raise InvalidPrescriptionId(_what_is_wrong_with(text))
    full = text.upper()
    length = len(full)
    release = _RELEASES_WITH_CHECK.get(length)
    if release is None:
        return PrescriptionId(full, full, _RELEASES[length], False)
    if strict:
        values = full.encode().translate(_VALUE_OF, b"-")
        if sum(map(mul, _FULL_WEIGHTS[len(values)], values)) % _MODULUS != 1:
            raise InvalidPrescriptionId("has a wrong check character")
    return PrescriptionId(full, full[:-1], release, True)


def _what_is_wrong_with(text: str) -> str:
    if len(text) not in _RELEASES and len(text) not in _RELEASES_WITH_CHECK:
        return "must have 19, 20, 36 or 37 characters"
    if not re.fullmatch(r"[0-9A-Za-z+-]+", text):
        return "must have only letters, digits, dashes and a plus"
    return "must have its dashes after 6 and 12, or after 8, 12, 16 and 20 other characters, and a plus only at its end"


def is_stream_key(text: str) -> bool:
    """Whether the text has the form of a prescription id in upper case without its check character."""
    return _is_stream_key(text) is not None


def release_of(stream_key: str) -> str:
    """``R1`` or ``R2``: the release that gives ids of this length."""
    try:
        return _RELEASES[len(stream_key)]
    except KeyError:
        raise InvalidPrescriptionId("must have 19 or 36 characters") from None


def with_check_character(stream_key: str) -> str:
    """The full id of a stream."""
    return stream_key + check_character(stream_key)


def is_nhs_number(text: str) -> bool:
    """Whether the text is ten digits whose last one is the modulus 11 check digit of the others."""
    # The code of a digit is its value plus 48, and 48 times the sum of the weights is a multiple of 11.
    return _is_ten_digits(text) is not None and sum(map(mul, _NHS_WEIGHTS, text.encode())) % 11 == 0


def nhs_number_with_check_digit(first_nine: str) -> str | None:
    """The NHS number that begins with these nine digits; ``None`` for the one in eleven that can never be valid."""
    if not re.fullmatch(r"[0-9]{9}", first_nine):
        raise ValueError("must be nine digits")
    check = -sum(map(mul, _NHS_WEIGHTS, map(int, first_nine))) % 11
    return None if check == 10 else f"{first_nine}{check}"


def is_asid(text: str) -> bool:
    """Whether the text is an accredited system id: twelve digits."""
    return _is_twelve_digits(text) is not None


def is_user_id(text: str) -> bool:
    """Whether the text is a Spine user id: twelve digits."""
    return _is_twelve_digits(text) is not None


def is_role_profile_id(text: str) -> bool:
    """Whether the text is a role profile id as the tracker takes it: twelve digits."""
    return _is_twelve_digits(text) is not None


def is_trace_id(text: str) -> bool:
    """Whether the text can be an ``Eps-TraceId``: 1 to 30 letters, digits and dashes (a UUID is too long)."""
    return _is_trace_id(text) is not None


def is_uuid(text: str) -> bool:
    """Whether the text is a UUID written with dashes, in either case."""
    return _is_uuid(text) is not None
