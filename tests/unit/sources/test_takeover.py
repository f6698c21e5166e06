from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

import pytest

from stockstream.sources import takeover
from stockstream.sources.takeover import VALID_MS, Newest, Takeovers
from tests.contracts.source import FakeClock

A = Newest("feed", 5_999, 1_000.0)


class Reader:
    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.error: Exception | None = None

    async def read(self, partitions: Collection[int]) -> Mapping[int, Mapping[str, Newest]]:
        self.asked.append(list(partitions))
        if self.error is not None:
            raise self.error
        return {partition: {"A": A} for partition in partitions}


async def test_only_new_partitions_are_looked_up_and_wait_until_then() -> None:
    reader, clock = Reader(), FakeClock()
    takeovers = Takeovers(reader.read, clock.now_ms)
    takeovers.assign([1, 2])
    assert takeovers.waiting == {1, 2} and takeovers.newest(1, "A") is None
    assert await takeovers.look_up() and not await takeovers.look_up()
    assert not takeovers.waiting and takeovers.newest(1, "A") == A and takeovers.newest(1, "B") is None
    takeovers.assign([2, 3])
    assert takeovers.waiting == {3} and takeovers.newest(1, "A") is None and takeovers.newest(2, "A") == A
    await takeovers.look_up()
    assert reader.asked == [[1, 2], [3]]
    clock.ms += VALID_MS
    assert takeovers.newest(2, "A") is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("x"), None])
async def test_rows_that_cannot_be_read_keep_no_symbol_waiting(
    error: Exception | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    reader, clock = Reader(), FakeClock()
    reader.error = error
    takeovers = Takeovers(reader.read if error is not None else hang, clock.now_ms)
    monkeypatch.setattr(takeover, "TAKEOVER_S", 0.01)
    takeovers.assign([1])
    with caplog.at_level(logging.WARNING):
        assert await takeovers.look_up()
    assert not takeovers.waiting and "the gap before this takeover is not on record" in caplog.text


async def hang(partitions: Collection[int]) -> Mapping[int, Mapping[str, Newest]]:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return {}


async def test_without_a_reader_nothing_waits() -> None:
    takeovers = Takeovers(None, FakeClock().now_ms)
    takeovers.assign([1])
    assert not takeovers.waiting and not await takeovers.look_up() and takeovers.newest(1, "A") is None
