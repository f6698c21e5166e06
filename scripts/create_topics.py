"""Creates the topics that are missing, for those whose workers may not: `python scripts/create_topics.py`, with STOCKSTREAM_* set as for the worker."""

from __future__ import annotations

import asyncio
import sys

from stockstream.errors import StockstreamError
from stockstream.kafka.admin import ensure_topics, topic_specs
from stockstream.settings import load_settings


def main() -> int:
    """0 once all topics are there with the right partitions; 1 after an error, told in one line."""
    try:
        settings = load_settings()
        asyncio.run(ensure_topics(settings))
    except StockstreamError as error:
        print(f"create_topics: {error}", file=sys.stderr)
        return 1
    for spec in topic_specs(settings):
        print(f"{spec.name} {spec.partitions} partitions, {spec.replication} replicas")
    return 0


if __name__ == "__main__":
    sys.exit(main())
