"""The published ids, valid and invalid, and the traps around them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.identifiers import (
    InvalidPrescriptionId,
    check_character,
    is_asid,
    is_nhs_number,
    is_role_profile_id,
    is_stream_key,
    is_trace_id,
    is_user_id,
    is_uuid,
    nhs_number_with_check_digit,
    parse_prescription_id,
    release_of,
    with_check_character,
)

VALID = [
    ("A3B4D9-Z42475-11E6B+", "R2"),
    ("D29E5B-Z5C475-11E6AR", "R2"),
    ("D2A238-Z9E475-11E6AE", "R2"),
    ("3AF2CB-C86002-0000BX", "R2"),
    ("48A894-C86002-00009E", "R2"),
    ("0DF0C0-N82668-000039", "R2"),
    ("74A4DF-N82668-00005V", "R2"),
    ("2D35F7-ZA0448-11E88Z", "R2"),
    ("5B507C-Y90206-061F9E", "R2"),
    ("7D9625-Z72BF2-11E3AC", "R2"),
    ("23C1BC-Z75FB1-11EE84", "R2"),
    ("C0C3E6-A83008-93D8FL", "R2"),
    ("D2A080EE-475C-11E6-A68F-08002732570CN", "R1"),
    ("D2A22C50-475C-11E6-A68F-08002732570CN", "R1"),
    ("9BA2F6BD-14FD-6F8B-E050-D20AE3A254FDA", "R1"),
    ("9BA2F6BD-14FE-6F8B-E050-D20AE3A254FDI", "R1"),
    ("9C18AE6F-510D-F7A3-E050-D20AE3A231C8K", "R1"),
    ("72EA1D3F-6E35-6CDD-E050-D20AE3A24638K", "R1"),
]

WRONG_CHECK_CHARACTER = [
    ("000136-ZC2D5C-11E38K", "N"),
    ("ABC5F7-ZA0448-77E88X", "6"),
    ("82D996-C81010-11DB12", "5"),
    ("7D9625-Z72BF2-11E3AX", "C"),
    ("3AF2CB-C68002-0000BX", "L"),
    ("3AF2BC-C86002-0000BX", "M"),
    ("3AF2CB-C86003-0000BX", "6"),
    ("3AF2CB-C86002-0000B0", "X"),
    ("9BA2F6BD-14FD-6F8B-E050-D20AE3A254FDB", "A"),
    ("9C18AE6F-510D-F7A3-E050-D20AE3A231C8C", "K"),
]

NO_ID = [
    ("", "19, 20, 36 or 37"),
    ("83C40E-A2383C40E-A23856-00123W866-00123W", "19, 20, 36 or 37"),
    ("3AF2CBC860020000BX", "19, 20, 36 or 37"),
    ("3AF2CB-C86002-0000BX\n", "19, 20, 36 or 37"),
    ("3AF2CB-C86002-0000B\n", "only letters"),
    ("3AF2CB-C86002-0000B ", "only letters"),
    ("3AF2CB_C86002-0000BX", "only letters"),
    ("3AF2CB-C86002-0000B\N{FULLWIDTH LATIN CAPITAL LETTER X}", "only letters"),
    ("3AF2CB-C86002-0000\N{LATIN SMALL LETTER LONG S}X", "only letters"),
    ("3AF2CB-C86002-000\N{LATIN SMALL LETTER SHARP S}X", "only letters"),
    ("3AF2C-BC86002-0000BX", "dashes"),
    ("3AF2CB-C86002-0000-X", "dashes"),
    ("3AF2CB-C86002-0000+X", "plus"),
    ("3AF2CB-C86002-0000+", "plus"),
    ("9BA2F6BD14-FD-6F8B-E050-D20AE3A254FDA", "dashes"),
    ("+BA2F6BD-14FD-6F8B-E050-D20AE3A254FDA", "plus"),
]


@pytest.mark.parametrize(("text", "release"), VALID)
def test_a_published_id_is_valid(text: str, release: str) -> None:
    parsed = parse_prescription_id(text)

    assert (parsed.full, parsed.stream_key, parsed.release) == (text, text[:-1], release)
    assert parsed.has_check_character


@pytest.mark.parametrize(("text", "release"), VALID)
def test_a_published_id_has_the_check_character_that_is_computed_for_it(text: str, release: str) -> None:
    assert check_character(text[:-1]) == text[-1]
    assert with_check_character(text[:-1]) == text
    assert release_of(text[:-1]) == release


@pytest.mark.parametrize(("text", "release"), VALID)
def test_an_id_without_its_check_character_is_its_own_stream_key(text: str, release: str) -> None:
    parsed = parse_prescription_id(text[:-1])

    assert (parsed.full, parsed.stream_key, parsed.release) == (text[:-1], text[:-1], release)
    assert not parsed.has_check_character


@pytest.mark.parametrize(("text", "right"), WRONG_CHECK_CHARACTER)
def test_a_wrong_check_character_is_refused(text: str, right: str) -> None:
    with pytest.raises(InvalidPrescriptionId, match="wrong check character"):
        parse_prescription_id(text)
    assert check_character(text[:-1]) == right


@pytest.mark.parametrize(("text", "right"), WRONG_CHECK_CHARACTER)
def test_a_wrong_check_character_passes_when_asked_to(text: str, right: str) -> None:
    assert parse_prescription_id(text, strict=False).stream_key == text[:-1]


@pytest.mark.parametrize(("text", "message"), NO_ID)
@pytest.mark.parametrize("strict", [True, False])
def test_what_has_not_the_form_of_an_id_is_refused(text: str, message: str, strict: bool) -> None:
    with pytest.raises(InvalidPrescriptionId, match=message) as refused:
        parse_prescription_id(text, strict=strict)
    assert not text or text not in str(refused.value)


@pytest.mark.parametrize("text", ["E7ZG38-ZBACYU-V38SR+", "6FOCBU-E776BJ-CMPMT3"])
def test_the_outer_groups_need_not_be_hexadecimal(text: str) -> None:
    assert parse_prescription_id(text).full == text


@pytest.mark.parametrize("text", ["3AF2CB-C86002-0000Bx", "3af2cb-c86002-0000bx"])
def test_an_id_is_folded_to_upper_case_before_it_is_checked(text: str) -> None:
    assert parse_prescription_id(text).full == "3AF2CB-C86002-0000BX"


@given(st.from_regex(r"[0-9A-Z]{6}-[0-9A-Z]{6}-[0-9A-Z]{5}", fullmatch=True), st.integers(0, 18))
def test_no_change_of_one_character_goes_unseen(body: str, place: int) -> None:
    full = with_check_character(body)
    if full[place] == "-":
        return
    changed = full[:place] + ("0" if full[place] != "0" else "1") + full[place + 1 :]
    with pytest.raises(InvalidPrescriptionId):
        parse_prescription_id(changed)


@pytest.mark.parametrize("body", ["", "3AF2CB-C86002-0000BX", "3AF2CB-C86002-0000\N{LATIN SMALL LETTER LONG S}"])
def test_only_an_id_without_check_character_has_one(body: str) -> None:
    with pytest.raises(InvalidPrescriptionId):
        check_character(body)


def test_only_the_two_lengths_have_a_release() -> None:
    with pytest.raises(InvalidPrescriptionId):
        release_of("3AF2CB-C86002-0000BX")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3AF2CB-C86002-0000B", True),
        ("9BA2F6BD-14FD-6F8B-E050-D20AE3A254FD", True),
        ("3af2cb-C86002-0000B", False),
        ("3AF2CB-C86002-0000BX", False),
        ("3AF2CB-C86002-0000B\n", False),
        ("3AF2CB-C86002-0000+", False),
    ],
)
def test_a_stream_key_is_an_id_in_upper_case_without_check_character(text: str, expected: bool) -> None:
    assert is_stream_key(text) is expected


@pytest.mark.parametrize(
    "number",
    [
        "9912003489",
        "9912003446",
        "9990406480",
        "9990406707",
        "9691003120",
        "9691003147",
        "9691003139",
        "9467157349",
        "9467157969",
        "9467157977",
        "9651614498",
        "9446363160",
        "9449304106",
        "9449305552",
        "5839945242",
        "9732730684",
        "9434765919",
    ],
)
def test_a_published_nhs_number_is_valid(number: str) -> None:
    assert is_nhs_number(number)
    assert nhs_number_with_check_digit(number[:9]) == number


@pytest.mark.parametrize(
    "number",
    [
        "9232524433",
        "9434765918",
        "1234567890",
        "991200348",
        "99120034890",
        "9912003489\n",
        " 9912003489",
        "991 200 3489",
        "\N{ARABIC-INDIC DIGIT NINE}912003489",
        "",
    ],
)
def test_what_is_no_nhs_number_is_refused(number: str) -> None:
    assert not is_nhs_number(number)


def test_one_in_eleven_beginnings_has_no_check_digit() -> None:
    assert nhs_number_with_check_digit("123456789") is None


@pytest.mark.parametrize("first_nine", ["", "99120034", "9912003489", "99120034x"])
def test_an_nhs_number_begins_with_nine_digits(first_nine: str) -> None:
    with pytest.raises(ValueError, match="nine digits"):
        nhs_number_with_check_digit(first_nine)


@pytest.mark.parametrize("rule", [is_asid, is_user_id, is_role_profile_id])
def test_asid_user_and_role_are_twelve_digits(rule) -> None:
    assert rule("200000000946")
    assert not any(map(rule, ["20000000094", "2000000009461", "200000000946\n", "20000000094X", ""]))


@pytest.mark.parametrize(("text", "expected"), [("a-Z9", True), ("x" * 30, True), ("x" * 31, False), ("", False)])
def test_a_trace_id_has_up_to_thirty_characters(text: str, expected: bool) -> None:
    assert is_trace_id(text) is expected
    assert not is_trace_id(text + "_")
    assert not is_trace_id(text + "\n")


def test_a_uuid_is_written_with_dashes_in_either_case() -> None:
    assert is_uuid("0f8fad5b-d9cb-469f-a165-70867728950e")
    assert is_uuid("0F8FAD5B-D9CB-469F-A165-70867728950E")
    assert not is_uuid("0F8FAD5BD9CB469FA16570867728950E")
    assert not is_uuid("0F8FAD5B-D9CB-469F-A165-70867728950E\n")
    assert not is_uuid("{0F8FAD5B-D9CB-469F-A165-70867728950E}")
