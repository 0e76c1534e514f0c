"""Sends events to the topic, each under its stream key, and tells where each one stands."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import KafkaProducer
from kafka.errors import AuthorizationError, KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from ingest.partitioning import partitioner
from projector.batch import Position
from rxstore.broker import BOOTSTRAP_TIMEOUT_MS, existing_partition_count
from rxstore.errors import RxstoreError, ServerUnavailable
from rxstore.event_file import Checked
from rxstore.settings import Settings

CONTENT_TYPE = ("content-type", b"application/cloudevents+json")

# So many events may be on their way at a time: enough for full batches, and few enough to fit in memory.
MOST_UNACKNOWLEDGED = 20_000
BATCH_BYTES = 262_144
LINGER_MS = 100
LARGEST_REQUEST_BYTES = 32 * 1024 * 1024


class BadLine(RxstoreError):
    """A line that cannot be published; nothing after it was sent, so that the order of events stays whole."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Published:
    """An event that the brokers have acknowledged, and its place; with its keys, as in ``Checked``."""

    line: int
    id: str | None
    position: Position
    key: str | None = None
    event_key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Publisher:
    """Sends to one topic."""

    producer: KafkaProducer
    topic: str
    partition_of: Callable[[bytes], int]

    def publish(self, lines: Iterable[Checked], *, even_bad: bool = False) -> Iterator[Published]:
        """Each event once it is acknowledged, in the order of ``lines``; BadLine at the first that breaks the contract.

        All that stand before a bad line are acknowledged before it is complained about. With ``even_bad`` they are
        sent too, under no key when their subject cannot be read.
        """
        waiting: deque[tuple[Checked, Any]] = deque()
        bad: BadLine | None = None
        for line in lines:
            if line.errors and not even_bad:
                bad = _bad_line(line.number, line.complaint)
                break
            try:
                waiting.append((line, self._send(line)))
            except MessageSizeTooLargeError:
                bad = _bad_line(line.number, f"has {len(line.value)} bytes, more than can be sent")
                break
            while waiting and (len(waiting) >= MOST_UNACKNOWLEDGED or waiting[0][1].is_done):
                yield self._acknowledged(*waiting.popleft())
        self.producer.flush()
        while waiting:
            yield self._acknowledged(*waiting.popleft())
        if bad is not None:
            raise bad

    def _send(self, line: Checked) -> Any:  # noqa: ANN401 - the client has no types
        key = None if line.key is None else line.key.encode()
        partition = None if key is None else self.partition_of(key)
        return self.producer.send(self.topic, line.value, key=key, partition=partition, headers=[CONTENT_TYPE])

    def _acknowledged(self, line: Checked, future: Any) -> Published:  # noqa: ANN401 - the client has no types
        try:
            metadata = future.get()
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            raise _bad_line(line.number, "is larger than the topic's max.message.bytes allows") from error
        except AuthorizationError:
            raise
        except KafkaError as error:
            raise ServerUnavailable(
                f"line {line.number} was not acknowledged: {error}; publish the file again when the brokers are back, "
                "what is already in the topic counts as duplicate"
            ) from error
        position = Position(metadata.topic, metadata.partition, metadata.offset)
        return Published(line.number, line.id, position, line.key, line.event_key)


def _bad_line(number: int, complaint: str) -> BadLine:
    return BadLine(
        f"line {number}: {complaint}. Nothing from there on was published; mend it and publish the file again, what is "
        "already in the topic counts as duplicate"
    )


@contextmanager
def publisher(settings: Settings) -> Iterator[Publisher]:
    """A publisher for the configured topic; ServerUnavailable when the brokers or the topic are not there."""
    partitions = existing_partition_count(settings)
    producer = KafkaProducer(
        **settings.kafka(),
        client_id="rxstore-publish",
        acks="all",
        enable_idempotence=True,
        allow_auto_create_topics=False,
        bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS,
        batch_size=BATCH_BYTES,
        linger_ms=LINGER_MS,
        compression_type="lz4",
        max_request_size=LARGEST_REQUEST_BYTES,
        metrics_enabled=False,
    )
    try:
        yield Publisher(producer, settings.topic, partitioner(settings.partitioner, partitions))
    finally:
        producer.close()
