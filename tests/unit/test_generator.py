"""What ``rxstore generate`` makes up: always the same, plainly invented, and every event of it folds."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.decode import Decoder
from ingest.partitioning import partitioner
from projector.batch import Accepted, Position, Quarantined, Reason, Record
from projector.prescription import Prescription
from projector.projection import by_stream, project
from projector.stream import FoldedStream, SetAside, Stream
from rxstore.cli import generate
from rxstore.cli.main import rxstore
from rxstore.generator import GeneratedRecord, Tally, lifecycles, lines, records
from rxstore.generator.course import AtRest, Course, Impossible
from rxstore.generator.dice import Dice
from rxstore.generator.faults import FAULTS
from rxstore.generator.instants import DAY, HOUR, end_of_month, midnight_of, opening_hours, text
from rxstore.generator.prescribing import nhs_number, prescribe, world
from rxstore.generator.scenarios import SCENARIOS, USUAL, Scenario
from schemas.contract import EVENT_TYPES
from schemas.identifiers import is_nhs_number, parse_prescription_id
from schemas.vocabulary import ISSUE_STATUS_SEARCH, LINE_ITEM_STATUS

PARTITIONS = 4
SAMPLE = 2_000
STARTS = midnight_of(date(2026, 1, 5))

PATHS = {
    "amended",
    "cancellation of a line item applied",
    "cancellation of a line item pending",
    "cancellation of a line item unsuccessful",
    "cancellation of the prescription applied",
    "cancellation of the prescription pending",
    "cancellation of the prescription unsuccessful",
    "claim amended",
    "claimed after all",
    "corrected",
    "deleted",
    "dispensed by another than released it",
    "download date reached",
    "early cancellation",
    "early cancellation applied when created",
    "early cancellation unsuccessful when created",
    "expired from 0001",
    "expired from 0002",
    "expired from 0003",
    "expired from 9005",
    "future dated",
    "item with fewer issues than the prescription",
    "later issue opened",
    "nomination changed",
    "nomination removed",
    "not claimed",
    "not dispensed",
    "one item not dispensed",
    "pending cancellation of a line item applied",
    "pending cancellation of the prescription applied",
    "pending cancellation of the prescription unsuccessful",
    "placeholder deleted",
    "released before its download date",
    "returned",
    "returned, nomination kept",
    "two or more dispense notifications",
    "withdrawn",
    "withdrawn to with dispenser active (eRD)",
}


class Projection:
    """Records in a topic of four partitions, decoded and folded."""

    def __init__(self, published: Iterable[GeneratedRecord]) -> None:
        partition_of = partitioner("murmur2", PARTITIONS)
        decode = Decoder(partition_of)
        next_offsets: Counter[int] = Counter()
        items: list[Accepted | Quarantined] = []
        self.faults: dict[Position, str] = {}
        for record in published:
            partition = (partition_of(record.key) + record.partition_shift) % PARTITIONS
            position = Position("t", partition, next_offsets[partition])
            next_offsets[partition] += 1
            items.append(decode(Record(position, 0, record.key, record.value, record.headers)))
            if record.fault is not None:
                self.faults[position] = record.fault
        arrivals = by_stream(items)
        projected = project({key: Stream(key, partition_of(key.encode())) for key in arrivals.by_stream}, arrivals)
        self.streams: tuple[FoldedStream, ...] = projected.streams
        self.set_aside: dict[Position, SetAside] = {mark.position: mark for mark in projected.marks}
        for stream in projected.streams:
            self.set_aside.update(stream.set_aside)
        self.duplicates = projected.counts.duplicates

    @property
    def prescriptions(self) -> list[Prescription]:
        return [stream.prescription for stream in self.streams if stream.prescription is not None]


class Sample:
    """2,000 prescriptions and what becomes of them."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.lines = list(lines(SAMPLE, tally=self.tally))
        self.events: list[dict[str, Any]] = list(map(orjson.loads, self.lines))
        self.projection = Projection(records(self.events))
        self.by_prescription: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for event in self.events:
            self.by_prescription[event["subject"]].append(event)

    @property
    def created(self) -> list[dict[str, Any]]:
        return [event["data"] for event in self.events if event["type"] == "eps.prescription.created.v1"]


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample()


def digest(made: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\n".join(made)).hexdigest()


def course_of(scenario: Scenario, seed: int) -> Course:
    """One prescription to play with."""
    dice = Dice(seed)
    prescribed = prescribe(world("a test", prescriptions=1_000, days=28), seed, dice, scenario.wanted)
    return Course(dice, prescribed, STARTS + 10 * HOUR, STARTS + 42 * DAY)


# the same everywhere --------------------------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_bytes_on_every_machine():
    # A change of this digest is one that users see: their seeds give other events.
    assert digest(lines(300, 1)) == "91bbfc2356bf2ec56bb5139da1f68f0b20cfbbebbdb0fcb34cded7ba7e6770c3"


@pytest.mark.parametrize("other", [{"seed": 2}, {"prescriptions": 301}, {"start": date(2026, 1, 6)}, {"days": 29}])
def test_other_arguments_give_other_prescriptions(other):
    arguments = {"prescriptions": 300, "seed": 1, "start": date(2026, 1, 5), "days": 28}
    one, another = ({event["subject"] for event in lifecycles(**some)} for some in (arguments, arguments | other))
    assert one.isdisjoint(another)


def test_lifecycles_are_the_lines_read():
    assert list(lifecycles(20, 7)) == [orjson.loads(line) for line in lines(20, 7)]


@pytest.mark.parametrize(
    "wrong",
    [{"prescriptions": 0}, {"seed": -1}, {"days": 0}, {"days": 3661}, {"start": date(1969, 12, 31)}],
)
def test_impossible_arguments_are_refused_at_once(wrong):
    with pytest.raises(ValueError, match="wanted"):
        lines(**wrong)


# the order of the stream ----------------------------------------------------------------------------------------------


def test_events_come_in_the_order_of_their_times(sample):
    times = [event["time"] for event in sample.events]
    assert times == sorted(times)


def test_no_two_events_share_their_id(sample):
    assert len({(event["source"], event["id"]) for event in sample.events}) == len(sample.events)


def test_sequences_count_from_one_over_the_whole_stream(sample):
    for events in sample.by_prescription.values():
        if "sequence" in events[0]:
            assert [event["sequence"] for event in events] == [str(n) for n in range(1, len(events) + 1)]
        else:
            assert not any("sequence" in event for event in events)


def test_about_a_tenth_of_the_streams_have_no_sequences(sample):
    without = sum("sequence" not in events[0] for events in sample.by_prescription.values())
    assert without == sample.tally.without_sequences
    assert 0.07 < without / SAMPLE < 0.13


def test_sequences_can_be_left_out_everywhere_and_nothing_else_changes():
    with_some = [event | {"sequence": None} for event in lifecycles(50)]
    assert [event | {"sequence": None} for event in lifecycles(50, sequences=False)] == with_some
    assert not any("sequence" in event for event in lifecycles(50, sequences=False))


def test_prescriptions_begin_within_the_span_and_mostly_in_working_hours(sample):
    begins = [datetime.fromisoformat(events[0]["time"]) for events in sample.by_prescription.values()]
    assert {instant.date() for instant in begins} <= {date(2026, 1, 5 + n) for n in range(27)} | {date(2026, 2, 1)}
    assert sum(8 <= instant.hour < 19 and instant.weekday() < 5 for instant in begins) > 0.9 * SAMPLE


# every event folds ----------------------------------------------------------------------------------------------------


def test_every_event_of_the_sample_folds(sample):
    assert sample.projection.set_aside == {}
    assert sample.projection.duplicates == 0


@given(seed=st.integers(0, 2**40), days=st.integers(1, 400))
@settings(max_examples=12)
def test_every_event_folds_whatever_the_seed_and_span(seed, days):
    assert Projection(records(lifecycles(220, seed, days=days))).set_aside == {}


@pytest.mark.parametrize("scenario", [USUAL, *SCENARIOS], ids=lambda scenario: scenario.play.__name__)
def test_a_scenario_can_be_played_with_any_prescription_that_it_wants(scenario):
    for seed in range(60):
        course = course_of(scenario, seed)
        with suppress(AtRest):
            scenario.play(course)
        times = [step.time for step in course.steps]
        assert times == sorted(times)


def test_the_fold_comes_to_the_statuses_that_the_table_counts(sample):
    issues = [issue for prescription in sample.projection.prescriptions for issue in prescription.issues]
    assert Counter(issue.status for issue in issues) == sample.tally.final_issue_statuses
    assert Counter(item for issue in issues for item in issue.item_statuses) == sample.tally.final_item_statuses


# everything is met ----------------------------------------------------------------------------------------------------


def test_every_type_of_event_is_in_the_sample(sample):
    assert Counter(event["type"] for event in sample.events) == sample.tally.types
    assert sample.tally.types.keys() == EVENT_TYPES.keys()


@pytest.mark.parametrize("prescriptions", [200, SAMPLE])
def test_every_status_is_where_some_prescription_of_a_sample_ends(prescriptions):
    tally = Tally()
    for _ in lines(prescriptions, tally=tally):
        pass
    assert tally.final_issue_statuses.keys() == ISSUE_STATUS_SEARCH.keys()
    assert tally.final_item_statuses.keys() == LINE_ITEM_STATUS.keys()
    assert tally.met_issue_statuses.keys() == ISSUE_STATUS_SEARCH.keys()
    assert tally.met_item_statuses.keys() == LINE_ITEM_STATUS.keys()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_path_and_every_scenario_is_in_a_sample(seed):
    tally = Tally()
    for _ in lines(200, seed, tally=tally):
        pass
    assert tally.paths.keys() == PATHS
    assert tally.scenarios.keys() == {scenario.name for scenario in (USUAL, *SCENARIOS)}


def test_ids_of_both_releases_are_in_the_sample(sample):
    releases = Counter(parse_prescription_id(subject).release for subject in sample.by_prescription)
    assert releases["R2"] > 100 * releases["R1"] > 0


# the mix --------------------------------------------------------------------------------------------------------------


def test_the_treatment_types_are_as_common_as_in_practice(sample):
    shares = {code: count / SAMPLE for code, count in sample.tally.treatment_types.items()}
    assert shares["0001"] == pytest.approx(0.15, abs=0.03)
    assert shares["0002"] == pytest.approx(0.70, abs=0.03)
    assert shares["0003"] == pytest.approx(0.15, abs=0.03)


def test_prescriptions_have_as_many_items_as_in_practice(sample):
    items = Counter(len(data["lineItems"]) for data in sample.created)
    shares = {count: items[count] / len(sample.created) for count in (1, 2, 3, 4)}
    assert shares == pytest.approx({1: 0.40, 2: 0.21, 3: 0.15, 4: 0.24}, abs=0.04)


def test_nearly_all_prescriptions_of_one_issue_end_claimed(sample):
    of_one_issue = [p for p in sample.projection.prescriptions if p.prescribed.treatment_type in {"0001", "0002"}]
    claimed = sum(p.issues[0].status == "0008" for p in of_one_issue)
    assert 0.92 < claimed / len(of_one_issue) < 0.98


def test_a_prescription_has_between_four_and_five_events(sample):
    assert 4 < len(sample.events) / SAMPLE < 5


def test_repeat_dispensing_has_2_to_13_issues_and_some_items_have_fewer(sample):
    issues = {data["issuesAuthorised"] for data in sample.created if data["treatmentType"] == "0003"}
    assert issues <= set(range(2, 14))
    assert {2, 13} <= issues
    assert any(
        item.get("issuesAuthorised", data["issuesAuthorised"]) < data["issuesAuthorised"]
        for data in sample.created
        for item in data["lineItems"]
    )


def test_patients_have_a_few_prescriptions_and_some_have_many(sample):
    prescriptions = Counter(data["nhsNumber"] for data in sample.created)
    assert sum(count <= 4 for count in prescriptions.values()) > 0.9 * len(prescriptions)
    assert max(prescriptions.values()) >= 8


# plainly invented -----------------------------------------------------------------------------------------------------


def test_nhs_numbers_are_valid_and_of_the_999_range(sample):
    assert all(data["nhsNumber"].startswith("999") and is_nhs_number(data["nhsNumber"]) for data in sample.created)


@given(patient=st.integers(0, 1_000_000), seed=st.text(max_size=5))
def test_every_patient_has_a_valid_number(patient, seed):
    assert is_nhs_number(nhs_number(world(seed, prescriptions=1, days=1), patient))


def test_organisations_have_codes_and_names_that_do_not_exist(sample):
    prescribers = {data["prescribingOrganisation"]["ods"] for data in sample.created}
    assert all(ods.startswith(("Z8", "Z9")) for ods in prescribers)
    names = {data["prescribingOrganisation"].get("name", "EXAMPLE") for data in sample.created}
    assert all(name.startswith(("EXAMPLE", "MADE-UP")) for name in names)


def test_the_middle_of_an_id_is_the_prescribers_code(sample):
    for event in sample.events:
        if event["type"] == "eps.prescription.created.v1" and len(event["subject"]) == 20:
            assert event["subject"][7:13] == event["data"]["prescribingOrganisation"]["ods"].rjust(6, "0")


def test_the_items_of_a_prescription_are_different_medicines(sample):
    for data in sample.created:
        codes = [item["code"] for item in data["lineItems"]]
        assert len(set(codes)) == len(codes)


# the course -----------------------------------------------------------------------------------------------------------


def test_what_the_contract_refuses_cannot_happen():
    course = course_of(USUAL, 1)
    with pytest.raises(Impossible):
        course.released()
    course.created()
    for refused in (course.claimed, course.returned, course.not_claimed, course.withdrawn, course.created):
        with pytest.raises(Impossible):
            refused()
    assert len(course.steps) == 1


def test_a_course_rests_after_the_events_that_it_was_given():
    course = course_of(USUAL, 1)
    course.rests_after = 1
    course.created()
    with pytest.raises(AtRest):
        course.released()
    assert course.issues[0].status == "0001"


def test_nothing_happens_after_a_deletion():
    course = course_of(USUAL, 1)
    course.created()
    course.deleted()
    with pytest.raises(Impossible):
        course.released()


# time -----------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 8_000_000_000))
def test_an_instant_is_written_as_rfc_3339(instant):
    assert datetime.fromisoformat(text(instant)) == datetime.fromtimestamp(instant, UTC)


@given(st.integers(0, 8_000_000_000))
def test_opening_hours_are_never_earlier_and_never_on_a_sunday(instant):
    opened = datetime.fromtimestamp(opening_hours(instant), UTC)
    assert opened.timestamp() >= instant
    assert opened.weekday() != 6
    assert 9 <= opened.hour < 18


def test_the_end_of_a_month_is_its_last_day():
    assert end_of_month(midnight_of(date(2028, 2, 3)) + HOUR) == midnight_of(date(2028, 2, 29))


# faults ---------------------------------------------------------------------------------------------------------------

FATE = {
    "too_large": Reason.TOO_LARGE,
    "unreadable": Reason.UNREADABLE,
    "contract_violation": Reason.CONTRACT_VIOLATION,
    "repaired": Reason.CONTRACT_VIOLATION,
    "unknown_type": Reason.UNKNOWN_TYPE,
    "misrouted_key": Reason.MISROUTED,
    "misrouted_partition": Reason.MISROUTED,
    "duplicate": None,
    "not_created": Reason.NOT_CREATED,
    "late": None,
    "sequence_gap": Reason.SEQUENCE_GAP,
    "sequence_conflict": Reason.SEQUENCE_CONFLICT,
    "illegal_transition": Reason.ILLEGAL_TRANSITION,
    "duplicate_prescription": Reason.DUPLICATE_PRESCRIPTION,
    "deleted": Reason.DELETED,
}


@pytest.fixture(scope="module")
def dirty(sample) -> list[GeneratedRecord]:
    return list(records(sample.events, dirty_rate=0.02, seed=3))


def test_without_a_rate_every_record_is_as_it_should_be(sample):
    made = list(records(sample.events[:50]))
    assert [record.value for record in made] == sample.lines[:50]
    assert {record.headers for record in made} == {(("content-type", b"application/cloudevents+json"),)}
    assert not any(record.fault or record.partition_shift for record in made)


def test_every_fault_is_met(dirty):
    assert {record.fault for record in dirty} - {None} == {fault.name for fault in FAULTS} == FATE.keys()


def test_faults_are_as_common_as_asked_for(dirty, sample):
    assert sum(record.fault is not None for record in dirty) / len(sample.events) == pytest.approx(0.02, abs=0.005)


def test_the_same_seed_gives_the_same_faults(dirty, sample):
    assert list(records(sample.events, dirty_rate=0.02, seed=3)) == dirty
    assert list(records(sample.events, dirty_rate=0.02, seed=4)) != dirty


@pytest.mark.parametrize("fault", FATE)
def test_a_fault_has_the_fate_that_its_name_says(fault, sample, dirty):
    befallen = [record for record in dirty if record.fault == fault]
    faults = Counter(record.key for record in dirty if record.fault is not None)
    subjects_of_misrouted = {
        orjson.loads(r.value)["subject"][:-1].encode() for r in dirty if r.fault == "misrouted_key"
    }
    alone = {r.key for r in befallen if faults[r.key] == 1 and r.key not in subjects_of_misrouted}
    projection = Projection(r for r in dirty if r.key in alone)
    fates = {
        projection.set_aside[position].reason if position in projection.set_aside else None
        for position in projection.faults
    }
    assert alone
    assert fates == {FATE[fault]}


def test_a_late_event_leaves_nothing_behind(dirty):
    late = {record.key for record in dirty if record.fault == "late"}
    others = {record.key for record in dirty if record.fault not in {None, "late"}}
    assert Projection(r for r in dirty if r.key in late - others).set_aside == {}


def test_a_repaired_event_leaves_its_stream_whole(dirty):
    repaired = {record.key for record in dirty if record.fault == "repaired"}
    others = {record.key for record in dirty if record.fault not in {None, "repaired"}}
    projection = Projection(r for r in dirty if r.key in repaired - others)
    assert {record.state for record in projection.set_aside.values()} == {"repaired"}


def test_streams_without_a_fault_are_not_touched_by_those_of_others(dirty):
    projection = Projection(dirty)
    faulty = {record.key.decode() for record in dirty if record.fault is not None}
    marked = {record.stream_key for record in projection.set_aside.values()}
    assert not any(stream.set_aside for stream in projection.streams if stream.before.key not in faulty | marked)
    assert len(projection.streams) - len(faulty) > 0.85 * SAMPLE


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_a_rate_is_a_share(rate):
    with pytest.raises(ValueError, match="share"):
        next(records([], dirty_rate=rate))


# the command ----------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_events_and_ends_with_the_table():
    result = CliRunner().invoke(rxstore, ["generate", "--prescriptions", "200", "--seed", "5"])
    assert result.exit_code == 0
    assert result.stdout_bytes.splitlines() == list(lines(200, 5))
    assert "eps.prescription.dispense-withdrawn.v1" in result.stderr
    assert "9005 Cancelled future instance" in result.stderr
    assert "returned, nomination kept" in result.stderr


def test_the_command_writes_to_a_file_and_the_table_as_json(tmp_path):
    file = tmp_path / "events.ndjson"
    arguments = ["--prescriptions", "40", "--start", "2025-03-01", "--days", "3", "--no-sequences"]
    result = CliRunner().invoke(rxstore, ["generate", *arguments, "--output", str(file), "--json"])
    tally = Tally()
    assert file.read_bytes().splitlines() == list(lines(40, 1, date(2025, 3, 1), 3, sequences=False, tally=tally))
    assert json.loads(result.stdout) == tally.document()
    assert result.stderr == ""


def test_a_table_as_json_needs_the_events_to_go_elsewhere():
    result = CliRunner().invoke(rxstore, ["generate", "--json"])
    assert result.exit_code == 2
    assert "--output FILE" in result.stderr


@pytest.mark.parametrize(
    "wrong", [["--start", "2026-02-30"], ["--start", "1969-12-31"], ["--days", "0"], ["--prescriptions", "0"]]
)
def test_wrong_options_are_named(wrong):
    result = CliRunner().invoke(rxstore, ["generate", *wrong])
    assert result.exit_code == 2
    assert wrong[0] in result.stderr
    assert result.stdout == ""


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    file = tmp_path / "nowhere" / "events.ndjson"
    result = CliRunner().invoke(rxstore, ["generate", "--output", str(file)])
    assert result.exit_code == 2
    assert str(file) in result.stderr
    assert "Traceback" not in result.stderr


def test_an_interrupted_file_ends_with_a_whole_line(tmp_path):
    file = tmp_path / "events.ndjson"

    def interrupted() -> Iterator[list[bytes]]:
        yield [b"{}", b"{}"]
        opened.write(b"half a li")
        raise KeyboardInterrupt

    with file.open("wb") as opened, pytest.raises(KeyboardInterrupt):
        generate._write(opened, interrupted())
    assert file.read_bytes() == b"{}\n{}\n"
