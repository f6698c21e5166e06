"""One partition of an agent that reads frames, without Kafka: real records in, what it submits kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from stockstream.instance import app
from stockstream.state.frame_stage import FrameStage
from stockstream.transforms.frames import Frame, encode
from stockstream.transport.hops import hops_header
from stockstream.transport.messages import Chunk, Message, Outgoing

PARTITION = 3
LOG = "018bcfe5687-0123abcd"
"""A log's id, as `clean` makes them."""


class Bench:
    """The stage of an agent with one partition. Of what it submits, `sends` are the messages and `stored` is the changelog's content."""

    def __init__(self, stage: FrameStage[Any], core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stage, self.sends, self.stored = stage, list[Outgoing](), dict[bytes, bytes]()
        self.submissions = 0
        self.offset = 0
        self.assignment_number = 7
        reader = SimpleNamespace(assignment_number=self.assignment_number, guard=SimpleNamespace(holes=[]))
        monkeypatch.setattr(type(app), "chunk_consumer", reader)
        monkeypatch.setattr(type(app), "term", 1)
        self.place(core)

    def place(self, core: Any) -> None:
        """Gives the partition this core."""
        self.stage.cores[PARTITION] = core
        self.stage.pipes[PARTITION] = self  # type: ignore[assignment]

    async def submit(
        self, sends: Sequence[Outgoing], state: Outgoing | None, confirmed: Callable[[Any], None] | None = None, delivered: Any = None,
    ) -> None:  # fmt: skip
        """In place of `Pipe.submit`: everything is delivered at once."""
        self.submissions += 1
        self.sends += sends
        if state is not None:
            assert state.topic == self.stage.table.changelog_topic.get_topic_name() and state.partition == PARTITION
            self.stored |= {message.key: message.value for message in state.messages if message.key}
        if delivered is not None:
            delivered()

    async def close(self, timeout_s: float = 0.0) -> None:
        """In place of `Pipe.close`."""

    def chunk(self, *frames: Frame, assignment_number: int | None = None, hops: Sequence[int] = ()) -> Chunk:
        """The frames as records that follow each other in the agent's topic."""
        headers = hops_header(*hops) if hops else ()
        records = [SimpleNamespace(offset=self.offset + at, timestamp=0, value=encode(frame), headers=headers) for at, frame in enumerate(frames)]
        self.offset += len(records)
        return Chunk(self.stage.topic, PARTITION, records, self.assignment_number if assignment_number is None else assignment_number)

    def messages(self, topic: str) -> list[Message]:
        """What was sent to a topic, in order."""
        return [message for out in self.sends if out.topic == topic for message in out.messages]

    def partitions(self, topic: str) -> set[int]:
        """Where it was sent."""
        return {out.partition for out in self.sends if out.topic == topic}
