"""What is made of topics that lack what results depend on, with an admin client that answers as Kafka does; tests/integration has the real one."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import IncompatibleBrokerVersion

from stockstream.kafka.admin import LEAST_MESSAGE_BYTES, MESSAGE_BYTES, topic_specs
from stockstream.kafka.client import MAX_BATCH_BYTES
from stockstream.kafka.topic_configs import append_time, ensure_configs, message_bytes
from stockstream.settings import Settings

NOT_AUTHORIZED, POLICY_VIOLATION, UNKNOWN_TOPIC = 29, 44, 3
DEFAULT, STATIC_BROKER, TOPIC = 5, 4, 1
SIZE = message_bytes(LEAST_MESSAGE_BYTES, MESSAGE_BYTES)


class Admin:
    """One topic's configuration: name -> (value, where from). Alterations are kept."""

    def __init__(self, entries: dict[str, tuple[str, int]], *, describe: int = 0, alter: int = 0, version: int = 2) -> None:
        self.entries, self.describe, self.alter, self.version = entries, describe, alter, version
        self.altered: list[tuple[str, dict[str, str]]] = []

    async def describe_configs(self, resources: list[Any]) -> list[Any]:
        if self.describe == -1:
            raise IncompatibleBrokerVersion("too old")
        reported: list[Any] = [(name, value, False, origin if self.version else origin == DEFAULT, False, []) for name, (value, origin) in self.entries.items()]
        rows = [(self.describe, "no" if self.describe else None, 2, of.name, [] if self.describe else reported) for of in resources]
        return [SimpleNamespace(resources=rows, API_VERSION=self.version)]

    async def alter_configs(self, resources: list[Any]) -> list[Any]:
        self.altered += [(of.name, of.configs) for of in resources]
        return [SimpleNamespace(resources=[(self.alter, None, 2, of.name) for of in resources])]


CREATE_TIME = {"message.timestamp.type": ("CreateTime", DEFAULT), "max.message.bytes": (str(MESSAGE_BYTES), DEFAULT)}
OWN = {"retention.ms": ("604800000", TOPIC), "min.insync.replicas": ("2", TOPIC), "segment.ms": ("1", STATIC_BROKER)}


async def logged(admin: Admin, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.INFO, "stockstream"):
        await ensure_configs(admin, {"p.ticks.raw": [SIZE, append_time()]}, "a:1,b:2")
    return caplog.messages


@pytest.mark.parametrize("version", [0, 2])
async def test_a_change_keeps_all_that_is_the_topics_own(version: int, caplog: pytest.LogCaptureFixture) -> None:
    """An alteration replaces all overrides: those that are not in it are reset."""
    own = {name: kept for name, kept in OWN.items() if version or name != "segment.ms"}
    admin = Admin(CREATE_TIME | own, version=version)
    lines = await logged(admin, caplog)
    assert lines == ["topic p.ticks.raw had message.timestamp.type=CreateTime: changed to LogAppendTime"]
    assert admin.altered == [("p.ticks.raw", {"retention.ms": "604800000", "min.insync.replicas": "2", "message.timestamp.type": "LogAppendTime"})]


async def test_what_is_well_is_left_alone_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    admin = Admin({"message.timestamp.type": ("LogAppendTime", TOPIC), "max.message.bytes": ("2000000", STATIC_BROKER)})
    assert await logged(admin, caplog) == [] and admin.altered == []


async def test_a_limit_that_our_messages_pass_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    admin = Admin({"message.timestamp.type": ("LogAppendTime", TOPIC), "max.message.bytes": ("65536", TOPIC)})
    assert await logged(admin, caplog) == ["topic p.ticks.raw had max.message.bytes=65536: changed to 1048588"]
    assert admin.altered == [("p.ticks.raw", {"message.timestamp.type": "LogAppendTime", "max.message.bytes": "1048588"})]


@pytest.mark.parametrize("code", [NOT_AUTHORIZED, POLICY_VIOLATION])
async def test_what_may_not_be_changed_is_one_line_with_the_command(code: int, caplog: pytest.LogCaptureFixture) -> None:
    [line] = await logged(Admin(CREATE_TIME, alter=code), caplog)
    assert line.startswith("topic p.ticks.raw has message.timestamp.type=CreateTime, and this worker may not change it (")
    assert line.endswith(
        "Run: kafka-configs.sh --bootstrap-server a:1,b:2 --alter --entity-type topics --entity-name p.ticks.raw "
        "--add-config message.timestamp.type=LogAppendTime"
    )
    assert "\n" not in line and "makes later ticks late" in line


async def test_what_may_not_be_read_is_one_line_with_the_command(caplog: pytest.LogCaptureFixture) -> None:
    [line] = await logged(Admin(CREATE_TIME, describe=NOT_AUTHORIZED), caplog)
    assert line.startswith("the configuration of topic p.ticks.raw cannot be read (TopicAuthorizationFailedError: no)")
    assert line.endswith("--entity-name p.ticks.raw --add-config max.message.bytes=1048588,message.timestamp.type=LogAppendTime")


async def test_a_topic_that_has_gone_is_nothing_to_say(caplog: pytest.LogCaptureFixture) -> None:
    assert await logged(Admin(CREATE_TIME, describe=UNKNOWN_TOPIC), caplog) == []


async def test_a_broker_that_cannot_be_asked_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    [line] = await logged(Admin(CREATE_TIME, describe=-1), caplog)
    assert line.startswith("the configuration of the topics cannot be read: ")


def test_what_we_create_has_what_we_want() -> None:
    specs = {spec.name.partition(".")[2]: spec.config for spec in topic_specs(Settings(topic_prefix="p."))}
    assert [name for name, config in specs.items() if config.get("message.timestamp.type") == "LogAppendTime"] == ["requests", "ticks.raw"]
    assert {config["max.message.bytes"] for config in specs.values()} == {str(MESSAGE_BYTES)}
    assert MAX_BATCH_BYTES < LEAST_MESSAGE_BYTES < MESSAGE_BYTES
