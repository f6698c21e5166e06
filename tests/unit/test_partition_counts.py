"""Each wrong partition count is one line, and a start that follows it succeeds."""

from __future__ import annotations

import re

import pytest

from stockstream.kafka.admin import changelog, topic_specs
from stockstream.kafka.partition_counts import partition_fault
from stockstream.settings import Settings


def counts(settings: Settings) -> dict[str, int]:
    return {spec.name: spec.partitions for spec in topic_specs(settings)}


def fault(settings: Settings, found: dict[str, int]) -> str:
    return partition_fault(settings, found, counts(settings), changelog(settings, "clean"))


def existing(partitions: int, *, only: tuple[str, ...] = (), **changed: int) -> dict[str, int]:
    """The topics of a pipeline with so many partitions."""
    settings = Settings(partitions=partitions)
    found = counts(settings) | {settings.topic(name.replace("_", ".")): count for name, count in changed.items()}
    return {name: count for name, count in found.items() if not only or name.removeprefix(settings.topic_prefix) in only}


NEW = r"its count cannot change: use another STOCKSTREAM_TOPIC_PREFIX, with STOCKSTREAM_PARTITIONS=16, and publish to the new ticks\.raw$"


@pytest.mark.parametrize(
    ("asked", "found", "line"),
    [
        (8, existing(8), "^$"),
        (8, {}, "^$"),
        (8, existing(16), r"ticks\.raw has 16 partitions, STOCKSTREAM_PARTITIONS is 8: set it to 16; if .* raised .*, use another STOCKSTREAM_TOPIC_PREFIX$"),
        (8, existing(1, only=("ticks.raw",)), r"ticks\.raw has 1 partition, STOCKSTREAM_PARTITIONS is 8: set it to 1, or use another \w+_PREFIX$"),
        (8, existing(8, ticks_raw=16), r"ticks\.raw has 16 partitions, but the pipeline began with 8, and " + NEW),
        (16, existing(8, ticks_raw=16), r"ticks\.raw has 16 partitions, but the pipeline began with 8, and " + NEW),
        (12, existing(8, ticks_raw=16), r"ticks\.raw has 16 partitions, but the pipeline began with 8, and " + NEW),
        (8, existing(8, predictions=1), r"predictions has 1 partition, it must have 8: delete stockstream\.predictions, which the worker then creates again"),
        (8, existing(8, market=3), r"market has 3 partitions, it must have 1: delete stockstream\.market"),
        (8, existing(8, windows=1), r"windows has 1 partition, .*: raise it \(kafka-topics.sh --alter --topic stockstream\.windows --partitions 8\)"),
        (8, existing(8, windows=9), r"windows has 9 partitions, but the pipeline began with 8, .*_PREFIX, with STOCKSTREAM_PARTITIONS=8"),
    ],
)
def test_the_line_names_topic_and_remedy(asked: int, found: dict[str, int], line: str) -> None:
    text = fault(Settings(partitions=asked), found)
    assert re.search(line, text) and "\n" not in text and len(text) < 250, text


def test_a_group_of_its_own_is_named_too() -> None:
    text = fault(Settings(partitions=8, app_id="mine"), existing(8, ticks_raw=16, only=("ticks.raw", "watchlist")))
    assert "use another STOCKSTREAM_TOPIC_PREFIX and STOCKSTREAM_APP_ID" in text
