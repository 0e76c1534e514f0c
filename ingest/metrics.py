"""What a projector counts, in one list. Labels never carry more than an outcome, a reason or a partition number."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

EVENTS = Counter(
    "rxstore_projector_events_total",
    "Events by what became of them: folded, duplicate, parked, quarantined, repaired",
    ["generation", "outcome"],
)
BATCH_SECONDS = Histogram(
    "rxstore_projector_batch_seconds",
    "Time of one batch's transaction, from the first statement to its commit",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
RETRIES = Counter(
    "rxstore_projector_retries_total",
    "Batches that came again because the database was away, busy or refused, by the kind of error",
    ["error"],
)
REJOINS = Counter("rxstore_projector_rejoins_total", "Times that a worker was overtaken and joined the group again")
LAG = Gauge(
    "rxstore_projector_lag_events",
    "Events between a partition's checkpoint and its end, as last seen",
    ["generation", "partition"],
    multiprocess_mode="mostrecent",
)
