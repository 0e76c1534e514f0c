"""What no output of a command may hold: an NHS number, a name or an address that a test published.

Every command that an acceptance test starts through ``System`` is overheard: what it says on standard error, its log at
whatever level among it, and on standard output where it was not asked for patients' data.
"""

from __future__ import annotations

import re

from schemas.identifiers import is_nhs_number

# The range that nobody has, from which the generator and the examples take all of theirs.
NHS_NUMBERS = re.compile(r"(?<![0-9])999[0-9]{7}(?![0-9])")
# Names and addresses of the generator (rxstore/generator/prescribing.py) and the examples (tests/examples.py).
NAMES = re.compile(
    r"INVENTED (?:SURGERY|PHARMACY)|EXAMPLE (?:SURGERY|STREET)|SPECIMEN PHARMACY|SPECIMENSHIRE|EXAMPLETON|SAMPLETON|"
    r"SAMPLE STREET|FAKE ROW|Invented [0-9.]+(?:mg|%)"
)
# Who asks for events, answers or the contract's examples gets them.
ASKED_FOR = {"generate", "query", "contract", "demo"}


def named_in(said: str) -> set[str]:
    """Return who is named in what was said."""
    numbers = {number for number in NHS_NUMBERS.findall(said) if is_nhs_number(number)}
    return numbers | set(NAMES.findall(said))


def check(arguments: tuple[str, ...], stdout: str, stderr: str) -> None:
    """Fail when a command names somebody where that does not belong."""
    assert named_in(stderr) == set(), f"rxstore {arguments[0]} names patients on standard error"
    if arguments[0] not in ASKED_FOR and "--payload" not in arguments:
        assert named_in(stdout) == set(), f"rxstore {arguments[0]} names patients on standard output"
