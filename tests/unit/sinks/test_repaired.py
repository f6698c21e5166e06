"""Repaired bars in the archive: written exactly once, whoever writes them and whenever; shown only where there are no ticks."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stockstream.errors import StockstreamError
from stockstream.records import TICKS_SCHEMA
from stockstream.settings import Settings
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.compacting import compact
from stockstream.sinks.archive.current import current
from stockstream.sinks.archive.layout import REPAIRS
from stockstream.sinks.archive.repaired import Bar, bar_of, next_object, write, written_through
from stockstream.sinks.archive.repaired_writer import RepairedBars
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.memory import MemoryStore
from stockstream.sinks.stores import FileStore, Store
from stockstream.sql.duckdb_engine import connect
from tests.archives import Record, append
from tests.seeds import some_quick
from tests.unit.sinks.topic_records import KAFKA_MS, Topic

MINUTE, DAY = 60_000, 86_400_000
T0 = 1_760_054_400_000                                                   # 2025-10-10 00:00 UTC


def record(offset: int, minute: int, symbol: str = "A", life: int = 0, **change: Any) -> Record:
    bar = {"symbol": symbol, "source": "yahoo", "minute": minute, "open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0, "volume": 100 + offset} | change
    return Record(offset, KAFKA_MS + life * DAY + offset, json.dumps(bar).encode())


def days(count: int, each: int, life: int = 0) -> list[Record]:
    """`each` bars of each of `count` dates, one after the other."""
    return [record(day * each + number, T0 + day * DAY + number * MINUTE, life=life) for day in range(count) for number in range(each)]


def bars_of(records: Sequence[Record]) -> list[Bar]:
    return [bar for each in records if isinstance(bar := bar_of(each), Bar)]


def writer(topic: Topic, store: Store, skipped: list[Any] | None = None, flush_s: float = 1.0, clock: Any = None) -> RepairedBars:
    settings = Settings(archive_flush_s=flush_s)
    taken: list[Any] = [] if skipped is None else skipped
    made = RepairedBars(settings, store, topic, lambda *what: taken.append(what), *([clock] if clock else []))
    made.own([0])
    return made


def archive(repaired: RepairedBars) -> None:
    """A worker that reads its topic once, writes what it has read, and stops."""

    async def read_and_close() -> None:
        await repaired.step()
        await repaired.close()

    asyncio.run(read_and_close())


def bars_in(store: Store) -> list[tuple[str, int, int]]:
    """Symbol, minute and offset of every stored bar."""
    found: list[tuple[str, int, int]] = []
    for name, *_ in current(store, "bars_1m"):
        rows = pq.read_table(pa.BufferReader(store.read(name))).to_pylist()
        assert all(row["repaired"] and row["ticks"] == 0 and row["notional"] is None for row in rows)
        assert {f"date={row['minute']:%Y-%m-%d}" for row in rows} == {name.split("/")[2]}
        found += [(row["symbol"], round(row["minute"].timestamp()), row["first_offset"]) for row in rows]
    return sorted(found, key=lambda item: item[2])


def test_bars_are_written_by_date_after_the_flush_time() -> None:
    now = [0.0]
    store, topic = MemoryStore(), Topic(days(2, 3))
    repaired = writer(topic, store, flush_s=30, clock=lambda: now[0])
    asyncio.run(repaired.step())
    assert store.objects == {}
    now[0] = 30.0
    asyncio.run(repaired.step())
    first = KAFKA_MS
    assert sorted(store.objects) == [
        f"processed/bars_1m/date=2025-10-10/{REPAIRS}{first:x}-00000-{0:020d}.parquet",
        f"processed/bars_1m/date=2025-10-11/{REPAIRS}{first + 3:x}-00000-{3:020d}.parquet",
    ]
    assert [offset for _, _, offset in bars_in(store)] == list(range(6))
    report = check(store)
    assert report.faults == [] and report.repaired == 6 and report.chains == []


def test_a_restart_continues_after_what_is_written() -> None:
    store, topic = MemoryStore(), Topic(days(1, 4))
    asyncio.run(writer(topic, store, flush_s=0.01).close())
    assert store.objects == {}
    for count in (4, 7, 9):
        topic.records = days(1, count)
        archive(writer(topic, store))
    assert [offset for _, _, offset in bars_in(store)] == list(range(9)) and len(store.objects) == 3


def test_what_retention_deleted_of_an_object_is_not_written_again() -> None:
    store = MemoryStore()
    bars = bars_of(days(1, 6))
    assert write(store, 0, bars) == 5
    assert written_through(store, 0, bars[3]) == 5 and written_through(store, 1, bars[3]) is None
    topic = Topic(days(1, 8), begin=3)
    archive(writer(topic, store))
    assert [offset for _, _, offset in bars_in(store)] == list(range(8))


def test_a_topic_that_is_created_again_begins_other_objects() -> None:
    store = MemoryStore()
    for life in range(2):
        archive(writer(Topic(days(1, 5, life)), store))
    assert len(store.objects) == 2 and sorted(offset for _, _, offset in bars_in(store)) == sorted([*range(5), *range(5)])
    assert check(store).faults == []


@pytest.mark.parametrize("seed", some_quick(range(30), 8))
def test_writers_without_knowledge_of_each_other_write_every_bar_once(seed: int) -> None:
    """Three workers own the partition at the same time; they crash, the store fails and loses answers, and Kafka is away at times. Days are compacted."""
    chance = random.Random(seed)
    store = MemoryStore(seed)
    everything = [record(offset, T0 + chance.randrange(2) * DAY + offset * MINUTE) for offset in range(60)]
    topics = [Topic(largest=chance.choice((3, 10, 100))) for _ in range(3)]

    async def main() -> None:
        writers = [writer(topic, store, flush_s=0.01) for topic in topics]
        for end in range(5, 61, 5):
            for topic in topics:
                topic.records, topic.down = everything[:end], chance.random() < 0.2
            store.failing = chance.choice((0.0, 0.3))
            for _ in range(6):
                number = chance.randrange(3)
                with suppress(StockstreamError):
                    await writers[number].step(final=chance.random() < 0.5)
                if chance.random() < 0.2:
                    writers[number] = writer(topics[number], store, flush_s=0.01)
                with suppress(StockstreamError):
                    if chance.random() < 0.1:
                        list(compact(store, None))
        store.failing = 0.0
        for number, topic in enumerate(topics):
            topic.records, topic.down = everything, False
            for _ in range(80):
                await writers[number].step()
            await writers[number].close()

    asyncio.run(main())
    assert [offset for _, _, offset in bars_in(store)] == list(range(60))
    assert check(store).faults == []
    list(compact(store, None))
    assert [offset for _, _, offset in bars_in(store)] == list(range(60))
    report = check(store)
    assert report.faults == [] and report.repaired == 60


def test_a_restart_after_a_compaction_writes_nothing_again() -> None:
    store, topic = MemoryStore(), Topic(days(1, 4))
    bars = bars_of(topic.records)
    for some in (bars[:2], bars[2:]):
        write(store, 0, some)
    list(compact(store, None))
    before = dict(store.objects)
    assert [write(store, 0, bars), write(store, 0, bars[2:]), written_through(store, 0, bars[1])] == [1, 3, 1]
    assert store.objects == before


def test_records_that_are_no_bars_are_counted_and_passed() -> None:
    bad = [
        Record(0, KAFKA_MS, b"{"), Record(1, KAFKA_MS, None), record(2, T0 + 1), record(3, T0, high=8.0), record(4, T0, volume=-1), record(5, T0, symbol=""),
        record(6, T0, open=0), record(7, T0, source=""), record(8, 60_000), record(9, T0, low=10.5),
    ]  # fmt: skip
    skipped: list[Any] = []
    store = MemoryStore()
    archive(writer(Topic([*bad, record(10, T0)]), store, skipped))
    assert [offset for _, offset, _ in skipped] == list(range(10)) and [offset for _, _, offset in bars_in(store)] == [10]


def test_an_outage_is_logged_once_and_retried(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.sinks.archive.repaired_writer.FIRST_RETRY_S", 0.01)
    store, topic = MemoryStore(), Topic(days(1, 3))
    store.down = True

    async def main() -> None:
        repaired = writer(topic, store, flush_s=0.01)
        task = asyncio.create_task(repaired.run())
        await asyncio.sleep(0.2)
        store.down = False
        while not store.objects:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert len([1 for each in caplog.records if "repaired bars wait" in each.message]) == 1
    assert [offset for _, _, offset in bars_in(store)] == [0, 1, 2]


def test_an_object_ends_where_the_date_changes() -> None:
    bars = bars_of(days(3, 2))
    assert [bar.offset for bar in next_object(bars)] == [0, 1] and [bar.offset for bar in next_object(bars[5:])] == [5]


def test_verify_finds_bars_that_are_there_twice() -> None:
    store = MemoryStore()
    bars = bars_of(days(1, 6))
    write(store, 0, bars)
    write(store, 0, bars[2:4])
    assert check(store).faults == [f"processed/bars_1m/date=2025-10-10/{REPAIRS}{KAFKA_MS + 2:x}-00000-{2:020d}.parquet: "
                                   "repairs 2 to 3 are in the archive twice"]  # fmt: skip
    name = next(iter(store.objects))
    store.objects[name] = store.objects[name][:-10]
    assert any(f"{name} does not match its checksum" in fault for fault in check(store).faults)


def test_the_view_shows_a_repaired_bar_only_for_a_minute_without_ticks(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    chain = Chain(store, "log1", 2)
    ticks = pa.Table.from_pylist([
        {"symbol": "A", "source": "yahoo", "event_time": T0 + 5_000, "price": 20.0, "size": 5, "offset": 0, "index": 0},
        {"symbol": "B", "source": "other", "event_time": T0 + MINUTE, "price": 30.0, "size": 5, "offset": 0, "index": 1},
    ], schema=TICKS_SCHEMA)  # fmt: skip
    append(chain, [Record(0, KAFKA_MS, b"{}")], ticks)
    repairs = [
        record(0, T0), record(1, T0 + MINUTE), record(2, T0 + MINUTE, symbol="B"), record(3, T0 + 2 * MINUTE, symbol="B"),
        record(4, T0 + MINUTE, close=11.5, source="yahoo.LSE"), record(5, T0 + DAY),
    ]  # fmt: skip
    bars = bars_of(repairs)
    while bars:
        last = write(store, 2, bars)
        bars = [bar for bar in bars if bar.offset > last]
    with connect(tmp_path) as engine:
        sql = "SELECT symbol, source, strftime(minute, '%d %H:%M') AS at, close, volume, vwap, ticks, repaired FROM bars_1m ORDER BY symbol, minute"
        assert list(engine.run(sql).rows()) == [
            ("A", "yahoo", "10 00:00", 20.0, 5.0, 20.0, 1, False),
            ("A", "yahoo.LSE", "10 00:01", 11.5, 104.0, None, 0, True),  # the newest of two repairs
            ("A", "yahoo", "11 00:00", 11.0, 105.0, None, 0, True),
            ("B", "other", "10 00:01", 30.0, 5.0, 30.0, 1, False),       # another source has ticks in that minute
            ("B", "yahoo", "10 00:02", 11.0, 103.0, None, 0, True),
        ]
        assert list(engine.run("SELECT count(*) FROM bars_1m WHERE date = DATE '2025-10-11'").rows()) == [(1,)]
    report = check(store)
    assert report.faults == [] and report.repaired == 6 and len(report.chains) == 1
