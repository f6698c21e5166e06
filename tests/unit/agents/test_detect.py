"""The agent that raises alerts, without Kafka: frames of `windows` in, messages and state out."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pyarrow as pa
import pytest

import agents.detect
from agents.detect import AT_ONCE, Detection
from stockstream import topics
from stockstream.instance import app
from stockstream.records import SHARES, WINDOWS_SCHEMA, Alert
from stockstream.schema import MarketSummary
from stockstream.status import metrics
from stockstream.transforms.frames import Frame
from stockstream.transforms.rules.detector import Detector
from tests.unit.agents.bench import LOG, PARTITION, Bench
from tests.unit.transforms.test_rules import START, Row, frame, quiet, row

COUNTS = {field.name: 0 for field in WINDOWS_SCHEMA if (pa.types.is_integer(field.type) and field.name != "gap_s") or field.name in SHARES}
"""A frame must have them all."""


def second(number: int, *rows: Row, log: str = LOG) -> Frame:
    """The frame that closes the second START + `number`, at raw offset `number`."""
    closed = quiet([START + number], first_offset=number)
    closed[0][1].extend(COUNTS | {name: value for name, value in of.items() if value is not None} for of in rows)
    return frame(closed, number, number, log)


def spike(symbol: str, number: int, volume: int = 1_000) -> Row:
    """A row with ten times its usual volume, or as given."""
    return row(symbol, START + number, volume=volume)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    stage: Detection = agents.detect.stage
    await stage.release(0)
    yield Bench(stage, Detector(PARTITION), monkeypatch)
    await stage.release(0)


def alerts(bench: Bench) -> list[Alert]:
    return [msgspec.json.decode(message.value, type=Alert) for message in bench.messages(topics.alerts)]


def counted(state: str) -> float:
    return metrics.registry.get_sample_value("stockstream_alerts_total", {"rule": "volume_spike", "state": state}) or 0.0


async def test_an_alert_goes_to_its_partition_under_its_symbol_and_is_counted(bench: Bench) -> None:
    before = counted("opened")
    await bench.stage.process(bench.chunk(second(0, spike("A", 0))))
    (alert,) = alerts(bench)
    assert (alert.symbol, alert.rule, alert.state) == ("A", "volume_spike", "opened")
    assert [message.key for message in bench.messages(topics.alerts)] == [b"A"] and bench.partitions(topics.alerts) == {PARTITION}
    assert counted("opened") == before + 1


async def test_the_summary_of_the_market_goes_to_the_one_partition_that_all_share(bench: Bench) -> None:
    await bench.stage.process(bench.chunk(second(0, row("A", START)), second(1, row("A", START + 1))))
    summaries = [msgspec.json.decode(message.value, type=MarketSummary) for message in bench.messages(topics.market)]
    assert summaries and bench.partitions(topics.market) == {0}


async def test_a_chunk_of_several_frames_is_sent_and_stored_at_once(bench: Bench) -> None:
    await bench.stage.process(bench.chunk(second(0, spike("A", 0)), second(1), second(2, spike("B", 2), spike("A", 2, 2_000))))
    assert bench.submissions == 1
    assert [(alert.symbol, alert.state) for alert in alerts(bench)] == [("A", "opened"), ("A", "updated"), ("B", "opened")]


async def test_an_alert_that_is_open_stays_open_across_a_restart(bench: Bench) -> None:
    await bench.stage.process(bench.chunk(second(0, spike("A", 0))))
    bench.place(Detector.restore(PARTITION, bench.stored))
    bench.sends.clear()
    await bench.stage.process(bench.chunk(second(1, spike("A", 1, 900)), second(2, spike("A", 2, 2_000))))
    assert [(alert.id, alert.state) for alert in alerts(bench)] == [(f"A-volume_spike-{START}", "updated")]


async def test_frames_that_come_again_raise_no_alert_twice(bench: Bench) -> None:
    frames = [second(0, spike("A", 0)), second(1)]
    await bench.stage.process(bench.chunk(*frames))
    await bench.stage.process(bench.chunk(*frames))
    assert [alert.state for alert in alerts(bench)] == ["opened"]


async def test_a_chunk_that_was_read_for_an_earlier_assignment_changes_nothing(bench: Bench) -> None:
    await bench.stage.process(bench.chunk(second(0, spike("A", 0)), assignment_number=bench.assignment_number - 1))
    assert (bench.submissions, bench.sends, bench.stored) == (0, [], {})


async def test_a_record_that_is_no_frame_holds_up_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    aside: list[int] = []
    monkeypatch.setattr(app.set_aside, "add", lambda topic, partition, offset, *why: aside.append(offset))
    chunk = bench.chunk(second(0, spike("A", 0)), second(0), second(1, spike("B", 1)))
    chunk.records[1].value = b"no frame"
    await bench.stage.process(chunk)
    assert [alert.symbol for alert in alerts(bench)] == ["A", "B"] and aside == [1]


async def test_a_crash_of_many_symbols_is_sent_whole_and_in_order(bench: Bench) -> None:
    symbols = [f"S{number:04d}" for number in range(2 * AT_ONCE + 10)]
    await bench.stage.process(bench.chunk(second(0, *(spike(symbol, 0) for symbol in symbols))))
    assert [alert.symbol for alert in alerts(bench)] == symbols and bench.submissions == 1
