"""The home partition of a symbol: murmur2 of its UTF-8 bytes, as Kafka's Java client and aiokafka do it."""

from __future__ import annotations

from functools import lru_cache

from aiokafka.partitioner import murmur2


@lru_cache(maxsize=1 << 18)
def home_partition(symbol: str, partitions: int) -> int:
    """Partition number, 0 to `partitions` - 1."""
    return int((murmur2(symbol.encode()) & 0x7FFFFFFF) % partitions)
