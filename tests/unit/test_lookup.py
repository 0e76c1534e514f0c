"""A record as Kafka's client hands it to us, whatever its publisher wrote into it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from ingest.lookup import record_of


@pytest.mark.parametrize(
    ("timestamp", "kept"),
    [
        (0, 0),
        (-1, -1),
        (2**63 - 1, datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)),
        (-(2**63), datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_timestamp_that_no_calendar_has_becomes_the_nearest_that_can_be_stored(timestamp, kept):
    polled = SimpleNamespace(topic="events", partition=0, offset=7, timestamp=timestamp, key=b"", value=b"", headers=[])
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    expected = kept if isinstance(kept, int) else (kept - epoch) // timedelta(milliseconds=1)
    assert record_of(polled).timestamp_ms == expected
