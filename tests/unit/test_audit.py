"""Audit records: what they say of a request, and that nobody can change what hangs in a chain without it showing."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from falcon import testing
from hypothesis import given
from hypothesis import strategies as st

from projector import tables
from query_api import audit
from query_api.app import routes
from query_api.audit import BEGIN, Anchor, Anchored, Cover, Entry, Head, NoAnchor, Record
from query_api.clients import FINGERPRINT, Client
from query_api.queries import Block, Retrieved, Searched
from query_api.settings import ApiSettings
from query_api.trail import Audit, NotWritten
from rxstore import auditing
from rxstore.errors import Refused, WrongUse
from schemas.identifiers import parse_prescription_id
from tests.unit.test_outgoing import FOUND, PRESCRIPTION
from tests.unit.test_query_api_answers import AS_OF, AWAY, ID, NHS, RETRIEVE, SEARCH, ReadModel
from tests.unit.test_query_api_clients import NOW, Register

KEYS = audit.new_keys(bytes(range(32)))
COVER = Cover(hash_key=KEYS["hash"], public_key=KEYS["public"])
CHAIN = UUID(int=7)
AT = datetime(2026, 3, 1, 9, 30, 0, 123456, tzinfo=UTC)
ENTRY = Entry(
    duration_us=1_234,
    asid="200000000946",
    certificate="ab" * 32,
    user_id=None,
    role_profile_id=None,
    trace_id=None,
    interaction="ExternalPrescriptionQuery_1_0",
    patient=bytes(32),
    prescription="3AF2CB-C86002-0000B",
    question=b"sealed",
    http_status=200,
    tracker_code="0",
    shown=["3AF2CB-C86002-0000B"],
    refused_by=None,
)

texts = st.none() | st.text(max_size=5)
entries = st.builds(
    Entry,
    duration_us=st.integers(0, 10**9),
    asid=texts,
    certificate=texts,
    user_id=texts,
    role_profile_id=texts,
    trace_id=texts,
    interaction=texts,
    patient=st.none() | st.binary(max_size=4),
    prescription=texts,
    question=st.binary(max_size=4),
    http_status=st.integers(100, 599),
    tracker_code=texts,
    shown=st.lists(st.text(max_size=3), max_size=3),
    refused_by=texts,
)


def chain_of(those: list[Entry], chain: UUID = CHAIN, start: Head = BEGIN) -> list[Record]:
    head, made = start, []
    for number, entry in enumerate(those):
        record = audit.chained(chain, head, AT + timedelta(seconds=number), entry)
        head = Head(record.sequence, record.hash)
        made.append(record)
    return made


def in_order(records):
    """As the database returns them."""
    return sorted(records, key=lambda one: (one.chain, one.sequence, one.at))


def anchored(*anchors: Anchor) -> Anchored:
    known = Anchored()
    for one in anchors:
        known.add(one)
    return known


def anchor(record: Record, kind="head") -> Anchor:
    return Anchor(record.chain, Head(record.sequence, record.hash), kind, record.at)


def faults_of(records, starts=None, known=None):
    return list(audit.faults(in_order(records), starts, known))


# chains ---------------------------------------------------------------------------------------------------------------

chains = st.lists(entries, min_size=1, max_size=6).map(chain_of)


@given(chains)
def test_a_chain_as_it_was_written_has_no_fault(records):
    assert faults_of(records) == []


@given(chains, entries, st.data())
def test_a_changed_record_is_found_and_named(records, other, data):
    at = data.draw(st.integers(0, len(records) - 1))
    column = data.draw(st.sampled_from([name for name in Record._fields if hasattr(other, name)]))
    changed = records[at]._replace(**{column: getattr(other, column)})
    faults = faults_of([*records[:at], changed, *records[at + 1 :]])
    if changed == records[at]:
        assert faults == []
    else:
        assert [(fault.chain, fault.sequence) for fault in faults] == [(CHAIN, at + 1)]


@given(chains, entries, st.data())
def test_a_changed_record_with_a_new_hash_does_not_fit_the_next_one(records, other, data):
    at = data.draw(st.integers(0, len(records) - 1))
    head = Head(at, records[at].previous_hash)
    changed = audit.chained(CHAIN, head, records[at].at, other)
    known = anchored(anchor(records[-1]))
    faults = faults_of([*records[:at], changed, *records[at + 1 :]], None, known)
    if changed == records[at]:
        assert faults == []
    else:
        assert faults[0].sequence in {at + 1, at + 2}


@given(chains, st.data())
def test_a_record_that_was_removed_before_the_last_is_found_and_named(records, data):
    at = data.draw(st.integers(0, len(records) - 1))
    faults = faults_of([*records[:at], *records[at + 1 :]])
    if at == len(records) - 1:
        assert faults == []  # only an anchor can tell
    else:
        assert [(fault.chain, fault.sequence) for fault in faults] == [(CHAIN, at + 1)]
        assert "removed" in faults[0].what


@given(chains, entries, st.data())
def test_a_record_that_was_inserted_is_found(records, other, data):
    at = data.draw(st.integers(0, len(records) - 1))
    inserted = audit.chained(CHAIN, Head(at, records[at].previous_hash), records[at].at + timedelta(seconds=0.5), other)
    faults = faults_of([*records, inserted])
    assert (CHAIN, at + 1) in [(fault.chain, fault.sequence) for fault in faults]


@given(st.lists(entries, min_size=2, max_size=6).map(chain_of), st.data())
def test_records_that_change_places_are_found(records, data):
    one = data.draw(st.integers(0, len(records) - 2))
    other = data.draw(st.integers(one + 1, len(records) - 1))
    swapped = list(records)
    swapped[one] = records[other]._replace(sequence=one + 1)
    swapped[other] = records[one]._replace(sequence=other + 1)
    assert faults_of(swapped)


@given(chains, st.data())
def test_an_anchor_tells_of_a_lost_end(records, data):
    kept = data.draw(st.integers(0, len(records) - 1))
    faults = faults_of(records[:kept], None, anchored(anchor(records[-1])))
    assert [(fault.chain, fault.sequence) for fault in faults] == [(CHAIN, kept + 1)]


def test_chains_are_told_apart():
    one, other = chain_of([ENTRY] * 3), chain_of([ENTRY] * 3, uuid4())
    assert faults_of([*one, *other]) == []
    assert [(fault.chain, fault.sequence) for fault in faults_of([*one, other[0], other[2]])] == [(other[0].chain, 2)]


def test_a_chain_that_grew_after_its_anchor_is_whole():
    records = chain_of([ENTRY] * 4)
    assert faults_of(records, None, anchored(anchor(records[1]))) == []


def test_a_chain_that_nobody_anchored_is_found():
    records = chain_of([ENTRY] * 2)
    (fault,) = faults_of([*records, *chain_of([ENTRY], uuid4())], None, anchored(anchor(records[-1])))
    assert fault.chain != CHAIN
    assert "without an anchor" in fault.what


def test_a_record_behind_the_end_of_a_chain_is_found():
    records = chain_of([ENTRY] * 3)
    (fault,) = faults_of(records, None, anchored(anchor(records[1], "end")))
    assert fault.sequence == 3


def test_a_chain_goes_on_from_where_it_was_retired():
    records = chain_of([ENTRY] * 4)
    starts = {CHAIN: Head(2, records[1].hash)}
    assert faults_of(records[2:], starts) == []
    assert faults_of(records[2:], starts, anchored(anchor(records[1], "retired"), anchor(records[3]))) == []
    assert faults_of(records[2:])[0].sequence == 1
    assert faults_of(records, starts)[0].sequence == 1


def test_what_was_removed_and_only_said_to_be_retired_is_found():
    records = chain_of([ENTRY] * 4)
    starts = {CHAIN: Head(2, records[1].hash)}
    (fault,) = faults_of(records[2:], starts, anchored(anchor(records[1]), anchor(records[3])))
    assert (fault.sequence, "retire" in fault.what) == (2, True)


def test_two_anchors_that_contradict_each_other_are_found():
    records = chain_of([ENTRY])
    other = Anchor(CHAIN, Head(1, bytes(32)), "head", AT)
    assert any("two hashes" in fault.what for fault in faults_of(records, None, anchored(anchor(records[0]), other)))


@given(entries, entries)
def test_entries_that_differ_have_different_canonical_bytes(one, other):
    first, second = chain_of([one])[0], chain_of([other])[0]
    assert (audit.canonical(first) == audit.canonical(second)) == (first == second)


def test_the_canonical_bytes_are_those_of_the_documentation():
    record = audit.chained(CHAIN, BEGIN, AT, ENTRY._replace(patient=None))
    assert audit.canonical(record) == (
        b'{"asid":"200000000946","at":"2026-03-01T09:30:00.123456Z","certificate":"' + b"ab" * 32 + b'",'
        b'"chain":"00000000-0000-0000-0000-000000000007","duration_us":1234,"http_status":200,'
        b'"interaction":"ExternalPrescriptionQuery_1_0","prescription":"3AF2CB-C86002-0000B",'
        b'"question":"7365616c6564","sequence":1,"shown":["3AF2CB-C86002-0000B"],"tracker_code":"0"}'
    )


def test_a_record_has_the_members_of_its_entry_in_their_order():
    assert Record._fields[3:-2] == Entry._fields


def test_an_instant_is_the_same_in_every_zone():
    record = chain_of([ENTRY])[0]
    assert audit.hash_of(record._replace(at=record.at.astimezone(ZoneInfo("Europe/London")))) == record.hash


def test_a_record_is_a_row_of_the_table():
    assert list(Record._fields) == tables.audit.columns.keys()


# anchors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(audit.ANCHOR_KINDS))
def test_an_anchor_can_be_read_again(kind):
    written = Anchor(CHAIN, Head(3, bytes(range(32))), kind, AT)
    assert audit.read_anchor(written.line()) == written


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"null", b'{"chain": 1}', Anchor(CHAIN, BEGIN, "head", AT).line().replace(b"head", b"tail")],
)
def test_any_other_line_is_no_anchor(line):
    with pytest.raises(NoAnchor):
        audit.read_anchor(line)


def test_a_damaged_anchor_file_is_wrong_use_and_names_the_line(tmp_path):
    file = tmp_path / "anchors"
    file.write_bytes(Anchor(CHAIN, BEGIN, "begin", AT).line() + b"{\n")
    with pytest.raises(WrongUse, match="line 2"):
        auditing.read_anchors([file])


# keys -----------------------------------------------------------------------------------------------------------------


def test_the_keys_are_made_and_read_again(tmp_path):
    public, private, hash_ = auditing.make_keys(tmp_path)
    cover = Cover(hash_key=audit.read_key(hash_, "hash"), public_key=audit.read_key(public, "public"))
    question = cover.question("GET /mm/prescriptions?nhsNumber=9912003489")
    assert b"9912003489" not in question
    other = KEYS["private"]
    key = auditing.key(private, "private")
    assert audit.unsealed(question, [other, key]) == "GET /mm/prescriptions?nhsNumber=9912003489"
    assert audit.unsealed(question, [other]) is None
    assert cover.patient("9912003489") == audit.patient_hash(auditing.key(hash_, "hash"), "9912003489")
    assert {stat.S_IMODE(path.stat().st_mode) for path in (private, hash_)} == {0o600}


def test_keys_that_are_there_are_not_overwritten(tmp_path):
    auditing.make_keys(tmp_path)
    with pytest.raises(Refused, match="is there already"):
        auditing.make_keys(tmp_path)


def test_a_key_of_another_kind_is_refused_and_not_quoted(tmp_path):
    public, _, hash_ = auditing.make_keys(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "other").write_bytes(b"\xff\xfe")
    for path in (public, hash_, tmp_path / "empty", tmp_path / "other", tmp_path / "absent"):
        with pytest.raises(WrongUse) as refused:
            auditing.key(path, "private")
        words = path.read_bytes().split() if path.exists() else []
        assert not any(word.decode("latin-1") in str(refused.value) for word in words)


# what a record says of a request --------------------------------------------------------------------------------------


class Kept:
    """A trail that keeps entries, or cannot."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.is_broken = False

    def write(self, entry: Entry) -> None:
        if self.is_broken:
            raise NotWritten
        self.entries.append(entry)


class Api:
    """The API over a read model, with its trail."""

    def __init__(self, read_model: ReadModel | None = None, **arguments) -> None:
        self.trail = Kept()
        self.client = testing.TestClient(
            routes(read_model or ReadModel(), ApiSettings(), audit=Audit(self.trail, COVER), **arguments),
            headers={"Spine-From-Asid": "200000000946"},
        )

    def ask(self, path, method="GET", **headers):
        extras = {FINGERPRINT: "cd" * 32}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.simulate_request(method, path, headers=named, extras=extras)

    def entry(self, path, method="GET", **headers) -> Entry:
        """The one entry that a request leaves."""
        self.ask(path, method, **headers)
        (entry,) = self.trail.entries
        return entry


SEARCHED = f"{SEARCH}?nhsNumber={NHS}"


def question_of(entry):
    return audit.unsealed(entry.question, [KEYS["private"]])


def test_a_search_leaves_a_record_of_who_asked_what_and_was_shown_what():
    entry = Api().entry(
        f"{SEARCHED}&format=trace-summary",
        Spine_UserId="123456789012",
        Spine_RoleProfileId="210987654321",
        Eps_TraceId="trace-1",
    )
    assert (entry.asid, entry.certificate) == ("200000000946", "cd" * 32)
    assert (entry.user_id, entry.role_profile_id, entry.trace_id) == ("123456789012", "210987654321", "trace-1")
    assert (entry.interaction, entry.http_status, entry.tracker_code) == ("ExternalPrescriptionSearch_1_0", 200, "0")
    assert entry.patient == audit.patient_hash(KEYS["hash"], NHS)
    assert (entry.prescription, entry.refused_by) == (None, None)
    assert entry.shown == [stream_key_of(FOUND.prescription_id)]
    assert question_of(entry) == f"GET {SEARCHED}&format=trace-summary"
    assert entry.duration_us > 0


def stream_key_of(prescription_id: str) -> str:
    return parse_prescription_id(prescription_id, strict=False).stream_key


def test_a_retrieve_leaves_a_record_of_the_prescription_and_whose_it_was():
    entry = Api().entry(RETRIEVE)
    assert entry.interaction == "ExternalPrescriptionQuery_1_0"
    assert (entry.prescription, entry.shown) == (stream_key_of(ID), [stream_key_of(ID)])
    assert entry.patient == audit.patient_hash(KEYS["hash"], PRESCRIPTION.nhs_number)


def test_what_is_not_shown_is_not_said_to_be():
    blocked = Retrieved(None, None, Block(ID, "misrouted"), AS_OF)
    for read_model in (ReadModel(retrieved=blocked), ReadModel(retrieved=AWAY)):
        entry = Api(read_model).entry(RETRIEVE)
        assert (entry.shown, entry.patient, entry.prescription) == ([], None, stream_key_of(ID))


def test_a_search_shows_the_healthy_matches_only():
    found = Searched((FOUND,), ("3AF2CB-C86002-0000BX",), AS_OF)
    assert Api(ReadModel(searched=found)).entry(SEARCHED).shown == [stream_key_of(FOUND.prescription_id)]


def test_a_retrieve_that_is_not_modified_is_recorded_as_such():
    api = Api()
    etag = api.ask(RETRIEVE).headers["ETag"]
    api.ask(RETRIEVE, If_None_Match=etag)
    assert [entry.http_status for entry in api.trail.entries] == [200, 304]


def test_the_rule_that_refused_a_client_is_recorded_and_not_told():
    client = Client(frozenset(), NOW - timedelta(hours=1), None, is_revoked=True)
    api = Api(admission=Register(asid200000000946=client).admission())
    answer = api.ask(SEARCHED)
    (entry,) = api.trail.entries
    assert (entry.tracker_code, entry.refused_by) == ("52", "it is revoked")
    assert "revoked" not in answer.text


def test_who_sends_no_asid_is_recorded():
    entry = Api().entry(SEARCHED, Spine_From_Asid="nobody")
    assert (entry.asid, entry.tracker_code, entry.refused_by) == ("nobody", "52", "it did not send an ASID")


@pytest.mark.parametrize(
    ("path", "status", "interaction"),
    [
        ("/rxstore/status", 500, "rxstore_status"),
        ("/rxstore/events", 400, "rxstore_events"),
        (f"/rxstore/prescriptions/{ID}/history", 501, "rxstore_history"),
        ("/mm/nhs111itemsummary", 404, None),
        ("/rxstore/nothing", 404, None),
        (f"//mm/prescriptions/{ID}", 404, None),
    ],
)
def test_every_path_of_the_tracker_or_ours_leaves_a_record_whatever_is_answered(path, status, interaction):
    entry = Api().entry(path)
    assert (entry.http_status, entry.interaction) == (status, interaction)
    assert question_of(entry) == f"GET {path}"


def test_other_methods_leave_a_record():
    entry = Api().entry(SEARCHED, "POST")
    assert (entry.http_status, question_of(entry)) == (405, f"POST {SEARCHED}")


@pytest.mark.parametrize("path", ["/health/live", "/metrics", "/openapi.json", "/nothing", "/mmm/prescriptions"])
def test_other_paths_leave_none(path):
    api = Api()
    api.ask(path)
    assert api.trail.entries == []


def test_what_is_no_prescription_id_is_in_the_sealed_question_alone():
    entry = Api().entry(f"/mm/prescriptions/{NHS}")
    assert entry.prescription is None
    assert NHS not in repr(entry._replace(question=b""))
    assert question_of(entry) == f"GET /mm/prescriptions/{NHS}"


def test_a_prescription_is_the_same_however_its_id_is_written():
    for written in (ID, ID.lower(), stream_key_of(ID)):
        assert Api().entry(f"/mm/prescriptions/{written}").prescription == stream_key_of(ID)
        assert Api().entry(f"/rxstore/events?source=x&id=y&subject={written}").prescription == stream_key_of(ID)


@given(st.text(max_size=20))
def test_whatever_is_asked_can_be_kept(anything):
    api = Api()
    api.client.simulate_get(SEARCH, params={"nhsNumber": anything, "x": [anything, anything]})
    (entry,) = api.trail.entries
    assert audit.canonical(chain_of([entry])[0])


def test_headers_are_kept_as_far_as_they_can_be_printed_and_not_without_end():
    entry = Api().entry(SEARCHED, Eps_TraceId="a\tb" + "c" * 1000)
    assert entry.trace_id == "a\ufffdb" + "c" * 97


# without a record, no answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [SEARCHED, RETRIEVE])
def test_the_tracker_answers_code_5_and_tells_nothing_where_the_record_cannot_be_written(path):
    api = Api(ReadModel(searched=Searched((FOUND,), ("3AF2CB-C86002-0000BX",), AS_OF, "g1")))
    api.trail.is_broken = True
    answer = api.ask(path)
    assert (answer.status_code, answer.json["statusCode"]) == (200, "5")
    assert NHS not in answer.text
    assert FOUND.prescription_id not in answer.text
    told = {name.lower() for name in answer.headers}
    assert told == {"content-type", "content-length", "cache-control"}
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_client_that_has_the_answer_already_is_not_told_so_without_a_record():
    api = Api()
    etag = api.ask(RETRIEVE).headers["ETag"]
    api.trail.is_broken = True
    assert api.ask(RETRIEVE, If_None_Match=etag).json["statusCode"] == "5"


@pytest.mark.parametrize(
    "path", ["/rxstore/status", "/rxstore/events", f"/rxstore/prescriptions/{ID}/history", "/mm/x"]
)
def test_other_paths_answer_503_where_the_record_cannot_be_written(path):
    api = Api()
    api.trail.is_broken = True
    assert api.ask(path).status_code == 503


def test_records_are_counted_by_outcome():
    api = Api()
    api.ask(SEARCHED)
    api.trail.is_broken = True
    api.ask(SEARCHED)
    metrics = api.ask("/metrics").text
    assert 'rxstore_api_audit_records_total{outcome="written"} 1.0' in metrics
    assert 'rxstore_api_audit_records_total{outcome="failed"} 1.0' in metrics
    assert 'tracker_code="5"' in metrics
