"""The topic `ticks.raw` while it is restored: its records keep their own times, and none is deleted for its age."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from stockstream.errors import BrokerError, TopicError
from stockstream.kafka.admin import DAY_MS, connect, create_topic, is_embedded, topic_specs
from stockstream.kafka.topic_configs import Wanted, append_time, command, overridden
from stockstream.settings import Settings

FOR_EVER = str(2**63 - 1)
TIME_TYPE = append_time().name
EFFECT_S = 2.0
"""A broker takes a change over a moment after it has confirmed it."""


def _at_least(name: str, value: str, least: int) -> Wanted:
    return Wanted(name, value, lambda found: found == "-1" or (found.isdigit() and int(found) >= least), "")


class RestoredTopic:
    """`ticks.raw` of the settings. Raises `TopicError` if it cannot be made fit, `BrokerError` if no broker answers within `timeout_s`."""

    def __init__(self, settings: Settings, *, timeout_s: float) -> None:
        self._settings, self._timeout_s = settings, timeout_s
        self.name = settings.topic("ticks.raw")
        self.embedded = False
        self._kept_ms = settings.retention_raw_days * DAY_MS
        self._old = False

    async def prepare(self, oldest_ms: int, now_ms: int) -> None:
        """Creates the topic if it is missing. Records of `oldest_ms` (epoch ms) can then be written with their times, and stay until they are read."""
        self.embedded = await is_embedded(self._settings, timeout_s=self._timeout_s)
        self._old = 2 * (now_ms - oldest_ms) > self._kept_ms             # some would soon be, if nobody reads them at once
        spec = next(spec for spec in topic_specs(self._settings) if spec.name == self.name)
        wanted = [
            Wanted(TIME_TYPE, "CreateTime", lambda value: value == "CreateTime", ""),
            _at_least("message.timestamp.before.max.ms", FOR_EVER, now_ms - oldest_ms + DAY_MS), _at_least("message.timestamp.after.max.ms", FOR_EVER, DAY_MS),
            _at_least("message.timestamp.difference.max.ms", FOR_EVER, now_ms - oldest_ms + DAY_MS),
            _at_least("retention.bytes", "-1", 2**63), _at_least("retention.ms", "-1", 2 * (now_ms - oldest_ms)),
        ]  # fmt: skip
        await create_topic(self._settings, replace(spec, config=spec.config | {TIME_TYPE: "CreateTime"}), timeout_s=self._timeout_s)
        admin = await connect(self._settings, timeout_s=self._timeout_s)
        try:
            (found,) = await admin.describe_topics([self.name])
            number = len(found["partitions"])
            if number != self._settings.partitions:
                raise TopicError(f"{self.name} has {number} partitions, and the settings {self._settings.partitions}: delete the topic, or use --prefix")
            if not self.embedded:                                        # it stores configurations without an effect
                await self._configure(admin, wanted)
        except KafkaError as error:
            raise BrokerError(f"{self.name} cannot be configured: {type(error).__name__}: {error}") from error
        finally:
            await admin.close()

    async def finish(self) -> list[str]:
        """Sets the topic to the broker's time again. Returns what remains to be done, one line each."""
        if self.embedded:
            return []
        notes = []
        admin = await connect(self._settings, timeout_s=self._timeout_s)
        try:
            await self._configure(admin, [append_time()])
            found, _ = await self._found(admin)
            if self._old and found.get("retention.ms") == "-1":
                kept = command(",".join(self._settings.bootstrap_servers), self.name, [Wanted("retention.ms", str(self._kept_ms), bool, "")])
                notes.append(f"{self.name} has no retention, because its records are old: set one when a worker has processed them: {kept}")
        except KafkaError as error:
            raise BrokerError(f"{self.name} cannot be configured: {type(error).__name__}: {error}") from error
        finally:
            await admin.close()
        return notes

    async def _configure(self, admin: AIOKafkaAdminClient, wanted: list[Wanted]) -> None:
        found, overrides = await self._found(admin)
        if "compact" in found.get("cleanup.policy", ""):
            raise TopicError(f"{self.name} has cleanup.policy={found['cleanup.policy']}, which deletes records: set it to delete")
        lacking = [one for one in wanted if found.get(one.name) is not None and not one.enough(found[one.name])]
        if not lacking:
            return
        changed = overrides | {one.name: one.value for one in lacking}
        [answer] = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, self.name, changed)])
        if code := answer.resources[0][0]:
            run = command(",".join(self._settings.bootstrap_servers), self.name, lacking)
            raise TopicError(f"{self.name} needs another configuration, and this user may not change it ({for_code(code).__name__}). Run: {run}")
        if any(one.name == TIME_TYPE for one in lacking):
            await asyncio.sleep(EFFECT_S)

    async def _found(self, admin: AIOKafkaAdminClient) -> tuple[dict[str, str], dict[str, str]]:
        """All values of the topic's configuration, and those that are set for it alone."""
        [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, self.name)])
        code, message, _, _, entries = answer.resources[0]
        if code:
            raise TopicError(f"the configuration of {self.name} cannot be read ({for_code(code).__name__}{f': {message}' if message else ''})")
        values: dict[str, Any] = {entry[0]: entry[1] for entry in entries}
        return values, overridden(answer.API_VERSION, entries)
