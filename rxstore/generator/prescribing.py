"""What prescribers write: plainly invented patients, organisations and ids, all of the right form."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache

from rxstore.generator import medicines
from rxstore.generator.dice import Dice
from rxstore.generator.medicines import Medicine
from schemas.identifiers import nhs_number_with_check_digit, with_check_character

ACUTE, REPEAT_PRESCRIBING, REPEAT_DISPENSING = "0001", "0002", "0003"

SURGERIES = 240
PHARMACIES = 320
CLINICS = 12

PATIENTS_OF_THE_999_RANGE = 1_000_000
PRESCRIPTIONS_PER_PATIENT_AND_DAY = 1.6 / 28
HEAVY_USERS = 0.01
SHARE_OF_HEAVY_USERS = 0.08

SHARE_OF_RELEASE_1 = 0.005
SHARE_NOMINATED = 0.85
SHARE_OF_SHORTER_ITEMS = 0.15

SHARE_REPEAT_DISPENSING = 0.15
SHARE_ACUTE_OF_THE_OTHERS = 0.15 / 0.85
ITEMS = ((0.40, 1), (0.21, 2), (0.15, 3), (0.24, 4))
DAYS_SUPPLY = ((0.80, 28), (0.20, 56))
ISSUES_AUTHORISED = (2, 3, 4, 6, 6, 6, 6, 7, 9, 12, 12, 13, 13)
PRESCRIPTION_TYPES = (
    (0.86, "0101"),
    (0.06, "0104"),
    (0.05, "0108"),
    (0.02, "0105"),
    (0.007, "0125"),
    (0.003, "0110"),
)

_ID_BITS = 44
_ID_MASK = (1 << _ID_BITS) - 1


@dataclass(frozen=True, slots=True)
class Publisher:
    """An organisation and the ``source`` of the system that publishes for it."""

    source: str
    organisation: dict[str, str] = field(default_factory=dict)


SPINE = Publisher("urn:nhs:asid:990000000001")


def _publisher(asid: str, ods: str, name: str, number: int, street: str) -> Publisher:
    organisation = {"ods": ods}
    # Everything but the code is optional in the contract, and real publishers leave it out now and then.
    if number % 40 != 7:
        organisation["name"] = name
    if number % 15 != 4:
        organisation["telecom"] = f"01632960{number % 1000:03d}"
    if number % 11 != 2:
        organisation["address"] = f"{number + 1} {street}, EXAMPLETON, SPECIMENSHIRE, ZZ99 9ZZ"
    return Publisher(f"urn:nhs:asid:{asid}", organisation)


@cache
def surgery(number: int) -> Publisher:
    """A general practice that does not exist."""
    return _publisher(
        f"99010000{number:04d}", f"Z9{number:04d}", f"EXAMPLE SURGERY {number:03d}", number, "SAMPLE STREET"
    )


@cache
def clinic(number: int) -> Publisher:
    """Another prescriber that does not exist; its short code shows how ids pad it."""
    return _publisher(
        f"99020000{number:04d}", f"Z8{number:02d}", f"MADE-UP CLINIC {number:02d}", number, "PRETEND PLACE"
    )


@cache
def pharmacy(number: int) -> Publisher:
    """A dispenser that does not exist."""
    return _publisher(f"99030000{number:04d}", f"ZX{number:03d}", f"SPECIMEN PHARMACY {number:03d}", number, "FAKE ROW")


@dataclass(frozen=True, slots=True)
class World:
    """What all prescriptions of one run share. Other arguments make another world, with other ids."""

    root: int
    patients: int
    first_patient: int
    first_id: int


def world(arguments: str, *, prescriptions: int, days: int) -> World:
    """The world that ``arguments``, the run's own in some fixed form, always give."""
    digest = hashlib.sha256(arguments.encode()).digest()
    patients = round(prescriptions / (PRESCRIPTIONS_PER_PATIENT_AND_DAY * days))
    return World(
        root=int.from_bytes(digest[:8], "big"),
        patients=min(max(patients, 1), PATIENTS_OF_THE_999_RANGE),
        first_patient=int.from_bytes(digest[8:12], "big"),
        first_id=int.from_bytes(digest[12:18], "big"),
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a scenario needs of the prescription it plays with; None leaves it to chance."""

    repeat_dispensing: bool | None = None
    items: int | None = None
    issues_authorised: int | None = None
    shorter_item: bool | None = None
    nominated: bool | None = None


@dataclass(frozen=True, slots=True)
class Prescribed:
    """One prescription as its prescriber wrote it; lists are in item order."""

    prescription_id: str
    nhs_number: str
    prescriber: Publisher
    nominated: Publisher | None
    local_pharmacy: Publisher
    treatment_type: str
    prescription_type: str
    days_supply: int
    issues_authorised: int
    item_ids: tuple[str, ...]
    item_issues: tuple[int, ...]
    line_items: tuple[dict[str, object], ...]

    @property
    def is_repeat_dispensing(self) -> bool:
        """Whether it can have more than one issue (eRD)."""
        return self.treatment_type == REPEAT_DISPENSING


def prescribe(world: World, index: int, dice: Dice, wanted: Wanted) -> Prescribed:
    """Prescription number ``index`` of the world."""
    treatment_type = _treatment_type(dice, wanted)
    repeat_dispensing = treatment_type == REPEAT_DISPENSING
    patient = _patient(world, dice)
    local_pharmacy = pharmacy(patient * 11 % PHARMACIES)
    from_clinic = not repeat_dispensing and dice.chance(0.03)
    prescriber = clinic(patient % CLINICS) if from_clinic else surgery(patient * 7 % SURGERIES)
    nominated = dice.chance(SHARE_NOMINATED) if wanted.nominated is None else wanted.nominated
    issues = (wanted.issues_authorised or dice.pick(ISSUES_AUTHORISED)) if repeat_dispensing else 1
    days_supply = 7 if treatment_type == ACUTE else dice.pick_by_share(DAYS_SUPPLY)
    items = wanted.items or dice.pick_by_share(ITEMS)
    item_ids = tuple(dice.uuid() for _ in range(items))
    item_issues = _item_issues(dice, wanted, items, issues)
    return Prescribed(
        prescription_id=_prescription_id(world, index, dice, prescriber, repeat_dispensing=repeat_dispensing),
        nhs_number=nhs_number(world, patient),
        prescriber=prescriber,
        nominated=local_pharmacy if nominated else None,
        local_pharmacy=local_pharmacy,
        treatment_type=treatment_type,
        prescription_type=dice.pick_by_share(PRESCRIPTION_TYPES),
        days_supply=days_supply,
        issues_authorised=issues,
        item_ids=item_ids,
        item_issues=item_issues,
        line_items=tuple(
            _line_item(dice, item_id, medicine, days_supply // 28 or 1, own, issues)
            for item_id, medicine, own in zip(
                item_ids, _medicines(dice, treatment_type, items), item_issues, strict=True
            )
        ),
    )


def nhs_number(world: World, patient: int) -> str:
    """The NHS number of a patient, in the 999 range, which no person has."""
    first_nine = 999_000_000 + (patient * 370_261 + world.first_patient) % PATIENTS_OF_THE_999_RANGE
    while (number := nhs_number_with_check_digit(str(first_nine))) is None:
        first_nine = 999_000_000 + (first_nine + 1) % PATIENTS_OF_THE_999_RANGE
    return number


def _treatment_type(dice: Dice, wanted: Wanted) -> str:
    repeat_dispensing = wanted.repeat_dispensing
    if repeat_dispensing is None:
        repeat_dispensing = dice.chance(SHARE_REPEAT_DISPENSING)
    if repeat_dispensing:
        return REPEAT_DISPENSING
    return ACUTE if dice.chance(SHARE_ACUTE_OF_THE_OTHERS) else REPEAT_PRESCRIBING


def _patient(world: World, dice: Dice) -> int:
    among = world.patients
    if dice.chance(SHARE_OF_HEAVY_USERS):
        among = max(int(among * HEAVY_USERS), 1)
    return int(dice.random() * among)


def _prescription_id(world: World, index: int, dice: Dice, prescriber: Publisher, *, repeat_dispensing: bool) -> str:
    # Both steps are reversible, so no two prescriptions of a world share their number.
    number = (index + world.first_id) * 0x9E3779B97F5 & _ID_MASK
    number ^= number >> 22
    if not repeat_dispensing and dice.chance(SHARE_OF_RELEASE_1):
        digits = f"{number:011X}{dice.getrandbits(84):021X}"
        body = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
    else:
        body = f"{number >> 20:06X}-{prescriber.organisation['ods']:0>6}-{number & 0xFFFFF:05X}"
    return with_check_character(body)


def _item_issues(dice: Dice, wanted: Wanted, items: int, issues: int) -> tuple[int, ...]:
    """Every item has all issues, but now and then the last one has fewer."""
    if items == 1 or issues == 1:
        return (issues,) * items
    shorter = dice.chance(SHARE_OF_SHORTER_ITEMS) if wanted.shorter_item is None else wanted.shorter_item
    return (issues,) * (items - 1) + (dice.between(1, issues - 1) if shorter else issues,)


def _medicines(dice: Dice, treatment_type: str, items: int) -> tuple[Medicine, ...]:
    table = medicines.ACUTE if treatment_type == ACUTE else medicines.REPEAT
    # Both tables have a length that 5 does not divide: steps of 5 meet each medicine once before any comes again.
    first = int(dice.random() * len(table))
    return tuple(table[(first + 5 * number) % len(table)] for number in range(items))


def _line_item(
    dice: Dice, item_id: str, medicine: Medicine, supplies: int, own_issues: int, issues: int
) -> dict[str, object]:
    quantity = medicine.quantity * supplies
    item: dict[str, object] = {
        "id": item_id,
        "description": medicine.description,
        "code": medicine.code,
        "quantity": quantity if dice.chance(0.2) else f"{quantity:g}",
        "unit": medicine.unit,
        "dosage": medicine.dosage,
    }
    if own_issues != issues or (issues > 1 and dice.chance(0.5)):
        item["issuesAuthorised"] = own_issues
    return item
