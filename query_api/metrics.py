"""What Prometheus can ask: the metrics in one list, how requests move them, and the page that shows them."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass

import falcon
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

logger = logging.getLogger("query_api.access")

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
UNKNOWN_PATH = "unknown"
LATENCY_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's name, what it tells, and its labels."""

    name: str
    explanation: str
    labels: tuple[str, ...]


REQUESTS = Metric(
    "rxstore_api_requests_total",
    "Requests answered, by path template, HTTP status and tracker status code (empty outside the tracker).",
    ("path", "http_status", "tracker_code"),
)
REQUEST_SECONDS = Metric(
    "rxstore_api_request_seconds",
    "Time from the first look at a request to its whole answer, in seconds, by path template.",
    ("path",),
)
BLOCKED_ANSWERS = Metric(
    "rxstore_api_blocked_answers_total",
    "Answers that had to leave out a blocked prescription, by path template.",
    ("path",),
)
CONNECTIONS_REFUSED = Metric(
    "rxstore_api_connections_refused_total",
    "Connections that were not served: no certificate that counts (tls), not from a proxy (untrusted), or slow.",
    ("reason",),
)
REQUESTS_REFUSED = Metric(
    "rxstore_api_requests_refused_total",
    "Requests that no thread was free for in time: too many in all (full), or of one caller (caller).",
    ("reason",),
)
AUDIT_RECORDS = Metric(
    "rxstore_api_audit_records_total",
    "Audit records by outcome: written, or failed, for which the answer was held back.",
    ("outcome",),
)
METRICS = (REQUESTS, REQUEST_SECONDS, BLOCKED_ANSWERS, AUDIT_RECORDS, CONNECTIONS_REFUSED, REQUESTS_REFUSED)


class Metrics:
    """The metrics of one application.

    With PROMETHEUS_MULTIPROC_DIR set (``query_api.server`` does that) every process writes into that directory and
    any of them can show the sum.
    """

    def __init__(self) -> None:
        if is_multiprocess():
            # The library looks at the variable once, when it is imported; that may have been before it was set.
            values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self.requests = Counter(REQUESTS.name, REQUESTS.explanation, REQUESTS.labels, registry=self._registry)
        self.request_seconds = Histogram(
            REQUEST_SECONDS.name,
            REQUEST_SECONDS.explanation,
            REQUEST_SECONDS.labels,
            registry=self._registry,
            buckets=LATENCY_BUCKETS_SECONDS,
        )
        self.blocked_answers = Counter(
            BLOCKED_ANSWERS.name, BLOCKED_ANSWERS.explanation, BLOCKED_ANSWERS.labels, registry=self._registry
        )
        self.audit_records = Counter(
            AUDIT_RECORDS.name, AUDIT_RECORDS.explanation, AUDIT_RECORDS.labels, registry=self._registry
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text form."""
        if not is_multiprocess():
            return generate_latest(self._registry)
        everybody = CollectorRegistry()
        MultiProcessCollector(everybody)  # type: ignore[no-untyped-call]
        return generate_latest(everybody)


def is_multiprocess() -> bool:
    """Whether several processes share their metrics."""
    return DIRECTORY_VARIABLE in os.environ


class Observed:
    """Counts, times and logs every request: by path template, since paths and query strings name patients."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Start the clock."""
        req.context.started = time.perf_counter()

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: object, succeeded: bool) -> None:
        """Count what was answered."""
        seconds = time.perf_counter() - req.context.started
        path = req.uri_template or UNKNOWN_PATH
        code = resp.context.get("tracker_code", "")
        self._metrics.requests.labels(path, str(resp.status_code), code).inc()
        self._metrics.request_seconds.labels(path).observe(seconds)
        if resp.get_header("Rxstore-Blocked") is not None:
            self._metrics.blocked_answers.labels(path).inc()
        logger.info(
            "%s %s %s in %.1f ms",
            path,
            resp.status_code,
            code or "-",
            seconds * 1_000,
            extra={
                "action": "request_answered",
                "path": path,
                "http_status": resp.status_code,
                "tracker_code": code,
                "format": resp.context.get("format", ""),
                "milliseconds": round(seconds * 1_000, 3),
            },
        )


class MetricsPage:
    """/metrics"""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Show the metrics of all processes of this server."""
        resp.content_type = CONTENT_TYPE_LATEST
        resp.data = self._metrics.exposition()
