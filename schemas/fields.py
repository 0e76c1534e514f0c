"""The kinds of value that an event can carry, each stricter than marshmallow's own and described once.

A field knows in words what it expects (for messages and docs/events.md), as JSON Schema keywords (for the compiled
validators) and as code (for explaining). What the keywords cannot say is a plain function here, such as ``instant``,
that raises ``ValueError``; the field and the hot path of ``schemas.incoming`` both call it. Patterns keep to what
Python's ``re``, Rust's ``regex`` and ECMA 262 read alike: no classes by letter, no look-around, ASCII, anchored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Set
from collections.abc import Sequence as SequenceOf
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NoReturn, TypedDict, TypeVar, Unpack

from marshmallow import Schema, fields

from schemas.identifiers import FULL_ID_PATTERN, UUID_PATTERN, is_nhs_number, parse_prescription_id

T = TypeVar("T")


class Options(TypedDict, total=False):
    """What every field can be told."""

    required: bool
    allow_none: bool
    load_default: object


HIGHEST_SEQUENCE = 2**63 - 1
SHORT_TEXT = 200
MEDIUM_TEXT = 500
LONG_TEXT = 2000

DATE_PATTERN = "^[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])$"
INSTANT_PATTERN = (
    "^[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    "[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?"
    "(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])$"
)
ODS_PATTERN = "^[A-Z0-9]{3,10}$"
NHS_NUMBER_PATTERN = "^[0-9]{10}$"
PRESCRIPTION_TYPE_PATTERN = "^[0-9]{4}$"
URI_REFERENCE_PATTERN = "^(?:[0-9A-Za-z._~:/?#\\[\\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+$"
TRACEPARENT_PATTERN = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?:-[!-~]*)?$"
SEQUENCE_PATTERN = "^0*[1-9][0-9]{0,18}$"
DECIMAL_PATTERN = "^[0-9]+(?:\\.[0-9]+)?$"
NO_NUL_PATTERN = "^[^\\u0000]*$"


# JSON can name halves of characters; the hot path's validator takes them for no text either.
_no_text = re.compile(r"[\x00\ud800-\udfff]").search


def _in_any_case(text: str) -> str:
    return "".join(f"[{c.upper()}{c.lower()}]" if c.isalpha() else c for c in text)


JSON_CONTENT_PATTERN = f"^{_in_any_case('application/json')}(?:[ \\t]*;[ \\t]*{_in_any_case('charset=utf-8')})?$"


def instant(text: str) -> datetime:
    """The moment in UTC; digits beyond the microsecond are cut off."""
    # Python knows no "z"; the rest of the form has no letter whose case matters.
    moment = datetime.fromisoformat(text.upper())
    if moment.tzinfo is UTC:
        return moment
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999 in UTC") from None


def calendar_date(text: str) -> date:
    """The date, which must exist in the calendar."""
    return date.fromisoformat(text)


def quantity_text(value: str | int | float) -> str:
    """A quantity as it is shown: text as sent, a number as a plain decimal without trailing zeros."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or value == 0:
        return str(int(value))
    plain = format(Decimal(repr(value)), "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def sequence_number(value: str | int) -> int:
    """The number of an event in its stream; ``1.0`` is none."""
    number = whole(int(value) if isinstance(value, str) else value)
    if number > HIGHEST_SEQUENCE:
        raise ValueError("is above 9223372036854775807")
    return number


def whole(value: int) -> int:
    """The same value when it was written as an integer; JSON Schema counts ``1.0`` among the integers."""
    if type(value) is not int:
        raise ValueError("is not written as an integer")
    return value


def nhs_number(text: str) -> str:
    """The same text when its check digit is right."""
    if not is_nhs_number(text):
        raise ValueError("has a wrong check digit")
    return text


def traceparent(text: str) -> str:
    """The same text when its version, trace id and parent id are possible and version 00 has nothing behind them."""
    version, trace_id, parent_id, _flags, *rest = text.split("-")
    if version == "ff" or trace_id == "0" * 32 or parent_id == "0" * 16 or (version == "00" and rest):
        raise ValueError("is no possible trace context")
    return text


class ContractField(fields.Field[T]):
    """A field that says in words what it expects and refuses everything else with that one sentence."""

    expected: str = ""
    keywords: Mapping[str, Any] = {}

    def __init__(self, description: str = "", **options: Unpack[Options]) -> None:
        super().__init__(metadata={"description": description} if description else {}, **options)
        refusal = f"must be {self.expected}" + (" or null" if self.allow_none else "")
        self.error_messages = {"required": f"is required: {self.expected}", "null": refusal, "form": refusal}

    def refuse(self) -> NoReturn:
        """Raise the one error of this field."""
        raise self.make_error("form")


class Text(ContractField[str]):
    """Text of a bounded number of code points."""

    def __init__(
        self, description: str = "", *, longest: int = SHORT_TEXT, shortest: int = 0, **options: Unpack[Options]
    ) -> None:
        self.longest = longest
        self.shortest = shortest
        bounds = f"{shortest} to {longest}" if shortest else f"at most {longest}"
        self.expected = f"text of {bounds} characters without U+0000"
        self.keywords = {"type": "string", "maxLength": longest, "pattern": NO_NUL_PATTERN}
        if shortest:
            self.keywords = {"minLength": shortest, **self.keywords}
        super().__init__(description, **options)

    def _deserialize(self, value: object, attr: str | None, data: Mapping[str, Any] | None, **kwargs: object) -> str:
        if not isinstance(value, str) or not self.shortest <= len(value) <= self.longest or _no_text(value):
            self.refuse()
        return value


class Form(ContractField[T]):
    """Text of a fixed form, and a function that turns it into a value or raises ``ValueError``."""

    def __init__(
        self,
        expected: str,
        pattern: str,
        value_of: Callable[[str], T],
        description: str = "",
        *,
        form: str | None = None,
        longest: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.expected = expected
        self.keywords = {"type": "string", "pattern": pattern}
        if longest is not None:
            self.keywords["maxLength"] = longest
        if form is not None:
            self.keywords["format"] = form
        self.has_form = re.compile(pattern).fullmatch
        self.longest = longest
        self.value_of = value_of
        super().__init__(description, **options)

    def _deserialize(self, value: object, attr: str | None, data: Mapping[str, Any] | None, **kwargs: object) -> T:
        if not isinstance(value, str) or not self.has_form(value):
            self.refuse()
        if self.longest is not None and len(value) > self.longest:
            self.refuse()
        try:
            return self.value_of(value)
        except ValueError:
            self.refuse()


class Code(ContractField[str]):
    """One of a few texts."""

    def __init__(self, *codes: str, description: str = "", **options: Unpack[Options]) -> None:
        self.codes = codes
        *most, last = codes
        self.expected = f"{', '.join(most)} or {last}" if most else last
        self.keywords = {"type": "string", "enum": list(codes)} if most else {"type": "string", "const": last}
        super().__init__(description, **options)

    def _deserialize(self, value: object, attr: str | None, data: Mapping[str, Any] | None, **kwargs: object) -> str:
        if not isinstance(value, str) or value not in self.codes:
            self.refuse()
        return value


class WholeNumber(ContractField[int]):
    """A JSON integer between two bounds."""

    def __init__(self, lowest: int, highest: int, description: str = "", **options: Unpack[Options]) -> None:
        self.lowest = lowest
        self.highest = highest
        self.expected = f"a whole number from {lowest} to {highest}"
        self.keywords = {"type": "integer", "minimum": lowest, "maximum": highest}
        super().__init__(description, **options)

    def _deserialize(self, value: object, attr: str | None, data: Mapping[str, Any] | None, **kwargs: object) -> int:
        if type(value) is not int or not self.lowest <= value <= self.highest:
            self.refuse()
        return value


class Flag(ContractField[bool]):
    """A JSON boolean."""

    expected = "true or false"
    keywords: Mapping[str, Any] = {"type": "boolean"}

    def _deserialize(self, value: object, attr: str | None, data: Mapping[str, Any] | None, **kwargs: object) -> bool:
        if not isinstance(value, bool):
            self.refuse()
        return value


class Quantity(ContractField[str]):
    """A JSON number that is not negative, or a decimal written as text."""

    expected = f"a number that is not negative, or a decimal as text of at most {SHORT_TEXT} characters"
    keywords: Mapping[str, Any] = {
        "type": ["number", "string"],
        "minimum": 0,
        "maxLength": SHORT_TEXT,
        "pattern": DECIMAL_PATTERN,
    }

    def _deserialize(self, value: object, attr: str | None, data: Mapping[str, Any] | None, **kwargs: object) -> str:
        if isinstance(value, str) and len(value) <= SHORT_TEXT and re.fullmatch(DECIMAL_PATTERN, value):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
            return quantity_text(value)
        self.refuse()


class Sequence(ContractField[int]):
    """CloudEvents' sequence: an integer, as text or as a number."""

    expected = f"an integer from 1 to {HIGHEST_SEQUENCE}, as text or as a number"
    keywords: Mapping[str, Any] = {
        "type": ["string", "integer"],
        "minimum": 1,
        "maximum": HIGHEST_SEQUENCE,
        "maxLength": SHORT_TEXT,
        "pattern": SEQUENCE_PATTERN,
    }

    def _deserialize(self, value: object, attr: str | None, data: Mapping[str, Any] | None, **kwargs: object) -> int:
        if isinstance(value, str):
            if len(value) > SHORT_TEXT or not re.fullmatch(SEQUENCE_PATTERN, value):
                self.refuse()
        elif type(value) is not int or value < 1:
            self.refuse()
        try:
            return sequence_number(value)
        except ValueError:
            self.refuse()


class Uuid(Form[str]):
    """A UUID, in upper case."""

    def __init__(self, description: str = "", **options: Unpack[Options]) -> None:
        super().__init__("a UUID written with dashes", UUID_PATTERN, str.upper, description, form="uuid", **options)


class Instant(Form[datetime]):
    """A moment, in UTC."""

    def __init__(self, description: str = "", **options: Unpack[Options]) -> None:
        expected = "an instant as in RFC 3339 with its offset, in the years 1 to 9999, without leap second"
        super().__init__(expected, INSTANT_PATTERN, instant, description, form="date-time", **options)


class CalendarDate(Form[date]):
    """A date without time."""

    def __init__(self, description: str = "", **options: Unpack[Options]) -> None:
        super().__init__("a real date as YYYY-MM-DD", DATE_PATTERN, calendar_date, description, form="date", **options)


class NhsNumber(Form[str]):
    """An NHS number."""

    def __init__(self, description: str = "", **options: Unpack[Options]) -> None:
        expected = "ten digits, the last one the modulus 11 check digit"
        super().__init__(expected, NHS_NUMBER_PATTERN, nhs_number, description, **options)


class FullPrescriptionId(Form[str]):
    """A prescription id with a check character, in upper case; whether it is the right one, the envelope's rule says.

    That one rule can be switched off, so it does not belong to the form.
    """

    def __init__(self, description: str = "", **options: Unpack[Options]) -> None:
        expected = "a full prescription id of 20 or 37 characters, with its check character"
        super().__init__(expected, FULL_ID_PATTERN, _full_id, description, **options)


def _full_id(text: str) -> str:
    return parse_prescription_id(text, strict=False).full


class Member(fields.Nested):
    """An object inside an object."""

    def __init__(self, schema: type[Schema], description: str = "", **options: Unpack[Options]) -> None:
        refusal = "must be an object" + (" or null" if options.get("allow_none") else "")
        super().__init__(
            schema,
            metadata={"description": description} if description else {},
            error_messages={"required": "is required: an object", "null": refusal, "type": refusal},
            **options,
        )

    def _deserialize(
        self,
        value: object,
        attr: str | None,
        data: Mapping[str, Any] | None,
        partial: bool | SequenceOf[str] | Set[str] | None = None,
        **kwargs: object,
    ) -> object:
        if not isinstance(value, dict):
            raise self.make_error("type")
        return super()._deserialize(value, attr, data, partial, **kwargs)


class Members(fields.List[Any]):
    """A bounded array of objects; an array of the wrong length is refused without a look at what is in it."""

    def __init__(
        self, schema: type[Schema], *, fewest: int, most: int, description: str = "", **options: Unpack[Options]
    ) -> None:
        self.fewest = fewest
        self.most = most
        self.member_schema = schema
        refusal = f"must be an array of {fewest} to {most} objects"
        super().__init__(
            Member(schema),
            metadata={"description": description} if description else {},
            error_messages={
                "required": f"is required: an array of {fewest} to {most} objects",
                "null": refusal,
                "invalid": refusal,
            },
            **options,
        )

    @property
    def keywords(self) -> Mapping[str, Any]:
        """The bounds of the array; apispec adds what is in it."""
        return {"minItems": self.fewest, "maxItems": self.most}

    def _deserialize(
        self, value: object, attr: str | None, data: Mapping[str, Any] | None, **kwargs: object
    ) -> list[Any]:
        if not isinstance(value, list) or not self.fewest <= len(value) <= self.most:
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **kwargs)
