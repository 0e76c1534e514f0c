"""The Prometheus endpoint of a projector: its worker processes write their numbers to files, this process sums them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from rxstore.errors import WrongUse
from rxstore.settings import Bind

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@contextmanager
def serving(bind: Bind) -> Iterator[None]:
    """Serve the metrics of all worker processes that are started inside the block."""
    with tempfile.TemporaryDirectory(prefix="rxstore-metrics-") as directory:
        os.environ[DIRECTORY_VARIABLE] = directory
        registry = CollectorRegistry()
        MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call] # the library does not type it
        try:
            server, thread = start_http_server(bind.port, bind.host, registry)
        except OSError as error:
            raise WrongUse(f"RXSTORE_METRICS_BIND: cannot listen on {bind}: {error.strerror}") from error
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
            os.environ.pop(DIRECTORY_VARIABLE, None)
