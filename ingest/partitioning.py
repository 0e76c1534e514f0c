"""Which partition a key belongs in: the place where all events of its prescription stand in order."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache

from kafka.partitioner.default import murmur2

# The events of one prescription come near each other; a key's partition is then worked out once.
REMEMBERED_KEYS = 65_536


def partitioner(name: str, partitions: int) -> Callable[[bytes], int]:
    """Return the function from a key to its partition.

    ``murmur2`` is Kafka's own default; ``crc32`` is the default of librdkafka (``consistent_random``).
    """
    if partitions < 1:
        raise ValueError("a topic has at least one partition")
    if name == "murmur2":

        def partition_of(key: bytes) -> int:
            return int(murmur2(key) & 0x7FFFFFFF) % partitions
    elif name == "crc32":

        def partition_of(key: bytes) -> int:
            return zlib.crc32(key) % partitions
    else:
        raise ValueError(f"no partitioner is called {name}: murmur2 or crc32")
    return lru_cache(maxsize=REMEMBERED_KEYS)(partition_of)
