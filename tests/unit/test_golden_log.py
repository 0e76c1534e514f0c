"""The fold means today what its definition says: a golden log folds to the rows that were written down for it."""

from __future__ import annotations

import orjson

from projector.batch import Reason
from projector.definition import DEFINITION
from projector.projection import by_stream
from tests.golden.folding import ROWS, digests, read_log
from tests.integration.projecting import DECODE

RAISE_MAJOR = (
    "rows of events that folded before come out differently: raise the major part of DEFINITION in "
    "projector/definition.py, then run 'python -m tests.golden.write' and look at the difference"
)
RAISE_MINOR = (
    "events are refused otherwise than before: raise the minor part of DEFINITION in projector/definition.py (the "
    "major part if one that folded no longer does), then run 'python -m tests.golden.write'"
)


def written() -> dict:
    return orjson.loads(ROWS.read_bytes())


def test_what_folded_before_folds_to_the_same_rows():
    assert digests(read_log())["folded"] == written()["folded"], RAISE_MAJOR


def test_what_was_refused_before_is_refused_for_the_same_reason():
    assert digests(read_log())["refused"] == written()["refused"], RAISE_MINOR


def test_the_rows_are_those_of_this_definition():
    assert written()["definition"] == DEFINITION


def test_the_golden_log_holds_every_type_and_most_reasons():
    items = [DECODE(record) for record in read_log()]
    kinds = {type(item.event).__name__ for item in items if hasattr(item, "event")}
    assert len(kinds) == 13
    assert {item.reason for item in items if hasattr(item, "reason")} >= {
        Reason.UNREADABLE,
        Reason.CONTRACT_VIOLATION,
        Reason.UNKNOWN_TYPE,
        Reason.MISROUTED,
    }
    assert len(by_stream(items).by_stream) > 200
