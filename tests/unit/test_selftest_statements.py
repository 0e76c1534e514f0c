"""What a worker says to PostgreSQL, as the self-test's proxy hears it, however the bytes are cut."""

from __future__ import annotations

import pytest

from rxstore.selftest.statements import Conversation, named

STARTUP = (8).to_bytes(4, "big") + b"\0\3\0\0"


def message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def query(text: str) -> bytes:
    return message(b"Q", text.encode() + b"\0")


def heard(*messages: bytes, cut: int = 0) -> list[str]:
    conversation = Conversation()
    data = b"".join((STARTUP, *messages))
    pieces = [data] if not cut else [data[at : at + cut] for at in range(0, len(data), cut)]
    return [said.statement for piece in pieces for said in conversation.feed(piece) if said.statement]


BATCH = (
    query("BEGIN ISOLATION LEVEL REPEATABLE READ"),
    query("UPDATE rx_g1.checkpoint SET next_offset = 5 WHERE true"),
    query("SELECT 1 FROM rxstore.decision d"),
    query("COPY rx_g1.issue (stream_key) FROM STDIN"),
    message(b"d", b"a\n"),
    message(b"c", b""),
    query("COMMIT"),
)


@pytest.mark.parametrize("cut", [0, 1, 3, 50])
def test_a_batch_is_heard_statement_by_statement_however_its_bytes_are_cut(cut):
    assert heard(*BATCH, cut=cut) == [
        "BEGIN",
        "UPDATE checkpoint.next_offset",
        "batch: SELECT decision",
        "batch: COPY issue",
        "batch: COPY issue done",
        "batch: COMMIT",
    ]


def test_a_prepared_statement_is_heard_when_it_is_run():
    parse = message(b"P", b"s1\0SELECT 1 FROM rx_g1.issue\0\0\0")
    bind = message(b"B", b"\0s1\0\0\0\0\0\0\0")
    execute = message(b"E", b"\0\0\0\0\0")
    assert heard(parse, bind, execute, bind, execute) == ["SELECT issue", "SELECT issue"]


def test_giving_decisions_their_place_is_a_transaction_of_its_own_name():
    said = heard(query("BEGIN"), query("LOCK TABLE rxstore.generation IN ROW SHARE MODE"), query("COMMIT"))
    assert said == ["BEGIN", "place: LOCK generation", "place: COMMIT"]


def test_applying_a_decision_is_a_transaction_of_its_own_name():
    said = heard(
        query("BEGIN"),
        query("UPDATE rx_g1.checkpoint SET next_offset = 5"),
        query("SELECT topic FROM rx_g1.set_aside"),
        query("ROLLBACK"),
        query("SELECT 1 FROM rx_g1.checkpoint"),
    )
    assert said == [
        "BEGIN",
        "UPDATE checkpoint.next_offset",
        "decision: SELECT set_aside",
        "decision: ROLLBACK",
        "SELECT checkpoint",
    ]


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("", None),
        ("begin", "BEGIN"),
        ('ROLLBACK TO "x"', "ROLLBACK TO"),
        ("SAVEPOINT s", "SAVEPOINT"),
        ("COPY pg_temp.changed_issue_rx_g1 (a) FROM STDIN", "COPY changed_issue"),
        ("UPDATE rx_g1.checkpoint SET caught_up_at = now()", "UPDATE checkpoint.caught_up_at"),
        ("SELECT clock_timestamp()", "SELECT"),
    ],
)
def test_a_statement_is_named_by_its_verb_and_first_table(statement, name):
    assert named(statement) == name
