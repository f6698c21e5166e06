"""The topic configuration that results depend on: which clock stamps raw records, and how large a message may be.

Topics that stockstream creates have it. The worker alters existing topics if it is authorised; otherwise it logs a warning with
the command to run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import IncompatibleBrokerVersion, UnknownTopicOrPartitionError, for_code

logger = logging.getLogger(__name__)

DYNAMIC_TOPIC_CONFIG = 1
"""Kafka's code for the origin of a value: an override of the topic."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A value that a topic must have, or another that `enough` accepts."""

    name: str
    value: str
    enough: Callable[[str], bool]
    otherwise: str
    """The consequence if the topic has an unacceptable value, as text for the log."""


def append_time() -> Wanted:
    """Records get the broker's time of arrival."""
    return Wanted(
        "message.timestamp.type", "LogAppendTime", lambda value: value == "LogAppendTime",
        "Kafka's time is what producers set, so a record with a future time makes later ticks late, and records with old times may be deleted unread "
        "(docs/topics.md, Which clock)",
    )  # fmt: skip


def message_bytes(least: int, value: int) -> Wanted:
    """Messages of `least` bytes are accepted; `value` bytes is the limit to set if they are not."""
    return Wanted(
        "max.message.bytes", str(value), lambda found: not found.isdigit() or int(found) >= least,
        f"messages of up to {least} bytes are refused, and the worker that sends one ends",
    )  # fmt: skip


def command(bootstrap: str, topic: str, wanted: Sequence[Wanted]) -> str:
    """The command that an administrator can run."""
    values = ",".join(f"{one.name}={one.value}" for one in wanted)
    return f"kafka-configs.sh --bootstrap-server {bootstrap} --alter --entity-type topics --entity-name {topic} --add-config {values}"


async def ensure_configs(admin: AIOKafkaAdminClient, topics: Mapping[str, Sequence[Wanted]], bootstrap: str) -> None:
    """Alters topics to the values that they must have, and logs it; logs the command to run if it may not. Raises `KafkaError` for transient errors."""
    if not topics:
        return
    try:
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics])
    except IncompatibleBrokerVersion as error:
        logger.warning("the configuration of the topics cannot be read: %s", error)
        return
    for answer in answers:
        for code, message, _, topic, entries in answer.resources:
            if code:
                _warn_unreadable(topic, topics[topic], bootstrap, code, message)
                continue
            found = {entry[0]: entry[1] for entry in entries}
            lacking = [one for one in topics[topic] if found.get(one.name) is not None and not one.enough(found[one.name])]
            if lacking:
                await _alter(admin, topic, lacking, found, overridden(answer.API_VERSION, entries), bootstrap)


def overridden(version: int, entries: Sequence[Sequence[Any]]) -> dict[str, str]:
    """The topic's overrides, which an alteration must repeat because it replaces all of them."""
    overrides = [entry for entry in entries if entry[1] is not None and not entry[2] and not entry[4]]
    return {entry[0]: entry[1] for entry in overrides if (entry[3] == DYNAMIC_TOPIC_CONFIG if version else not entry[3])}


async def _alter(
    admin: AIOKafkaAdminClient, topic: str, lacking: Sequence[Wanted], found: Mapping[str, str], overrides: Mapping[str, str], bootstrap: str
) -> None:
    changed = dict(overrides) | {one.name: one.value for one in lacking}
    [answer] = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, changed)])
    code, message = answer.resources[0][:2]
    for one in lacking:
        if code:
            logger.warning(
                "topic %s has %s=%s, and this worker may not change it (%s%s). Until it is %s, %s. Run: %s", topic, one.name, found[one.name],
                for_code(code).__name__, f": {message}" if message else "", one.value, one.otherwise, command(bootstrap, topic, lacking),
            )  # fmt: skip
        else:
            logger.warning("topic %s had %s=%s: changed to %s", topic, one.name, found[one.name], one.value)


def _warn_unreadable(topic: str, wanted: Sequence[Wanted], bootstrap: str, code: int, message: str | None) -> None:
    error = for_code(code)
    if error is UnknownTopicOrPartitionError:
        return                                                           # deleted meanwhile; a worker that creates it again configures it
    logger.warning(
        "the configuration of topic %s cannot be read (%s%s). If it has other values, run: %s", topic, error.__name__,
        f": {message}" if message else "", command(bootstrap, topic, wanted),
    )  # fmt: skip
