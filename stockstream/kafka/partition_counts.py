"""Checks the partition counts of existing topics: one line that names the topic and a remedy after which the next start succeeds.

A symbol's partition follows from the count, and the state holds results by partition. So a pipeline keeps the count of its first start: a count of `ticks.raw`
that was raised since cannot be followed, and Kafka cannot lower it.
"""

from __future__ import annotations

from collections.abc import Mapping

from stockstream.settings import Settings
from stockstream.wording import counted

OUTPUT_ONLY = ("feeds", "sources", "gaps", "ticks.rejected", "market", "alerts", "predictions", "outcomes")
"""Topics that no agent reads: a worker may create them again."""


def partition_fault(settings: Settings, found: Mapping[str, int], wanted: Mapping[str, int], changelog: str) -> str:
    """What is wrong with the partition counts, and what to do; empty if nothing is.

    Args:
        found: partitions of the existing topics, by name, in pipeline order.
        wanted: what they must have by the settings.
        changelog: name of a changelog, which has had the pipeline's count since its first start.
    """
    wrong = {name: count for name, count in found.items() if count != wanted[name]}
    if not wrong:
        return ""
    raw, asked = settings.topic("ticks.raw"), settings.partitions
    begun = found.get(changelog, found.get(raw, asked))
    name = raw if raw in wrong or found.get(raw, begun) != begun else next(iter(wrong))
    has = f"topic {name} has {counted(found[name], 'partition')}"
    others = {count for topic, count in found.items() if wanted[topic] == asked}          # some have 1 whatever the setting
    new = "another STOCKSTREAM_TOPIC_PREFIX" + (" and STOCKSTREAM_APP_ID" if settings.app_id else "")
    if others == {begun} and begun != asked and set(wrong.values()) == {begun}:
        set_it = f"{has}, STOCKSTREAM_PARTITIONS is {asked}: set it to {begun}"
        return f"{set_it}; if the topics' partitions were raised after the first start, use {new}" if changelog in found else f"{set_it}, or use {new}"
    if begun == asked == found.get(raw, asked):
        if all(topic.removeprefix(settings.topic_prefix) in OUTPUT_ONLY for topic in wrong):
            return f"{has}, it must have {wanted[name]}: delete {', '.join(wrong)}, which the worker then creates again, or use {new}"
        if all(count < wanted[topic] for topic, count in wrong.items()):
            return f"{has}, it must have {wanted[name]}: raise it (kafka-topics.sh --alter --topic {name} --partitions {wanted[name]}), or use {new}"
    first = f"but the pipeline began with {begun}" if begun != found[name] else f"STOCKSTREAM_PARTITIONS is {asked}"
    most = max(asked, found.get(raw, asked))
    return f"{has}, {first}, and its count cannot change: use {new}, with STOCKSTREAM_PARTITIONS={most}, and publish to the new ticks.raw"
