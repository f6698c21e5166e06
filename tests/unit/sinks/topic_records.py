"""Records of `windows`, `alerts`, `predictions` and `outcomes` for tests of the archive, a topic that holds them, and what an archive has of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from stockstream.errors import BrokerError
from stockstream.kafka.topic_reader import Looked
from stockstream.records import WINDOWS_SCHEMA, Alert, Horizon, Outcome, Prediction
from stockstream.settings import Settings
from stockstream.sinks.archive.compactions import compaction_of_data
from stockstream.sinks.archive.topics.writer import ArchivedTopic
from stockstream.sinks.stores import Store
from stockstream.transforms.frames import Frame, encode, encode_within
from tests.archives import Record

T0 = 1_760_000_400                                                       # 2025-10-09 09:00 UTC
KAFKA_MS = 1_760_100_000_000
LOG, NEXT_LOG = f"{KAFKA_MS - 90_000:011x}-0000000a", f"{KAFKA_MS:011x}-0000000b"
HORIZONS = (10, 60)
HOUR = 3_600


@dataclass
class Topic:
    """One partition of a topic, number 0. `begin`: what retention has left."""

    records: list[Record] = field(default_factory=list)
    begin: int = 0
    down: bool = False
    largest: int = 1_000

    async def poll(self, cursors: Mapping[int, int | None], wait_ms: int = 0) -> Mapping[int, Sequence[Record]]:
        await asyncio.sleep(0)
        if self.down:
            raise BrokerError("no broker answers")
        if 0 not in cursors:
            return {}
        end = self.records[-1].offset + 1 if self.records else 0
        cursor = cursors[0]
        cursor = self.begin if cursor is None or not self.begin <= cursor <= end else cursor
        found = [each for each in self.records if each.offset >= max(cursor, self.begin)][: self.largest]
        return {0: found} if found else {}

    async def look(self, offsets: Mapping[int, int]) -> Mapping[int, Looked]:
        if self.down:
            raise BrokerError("no broker answers")
        return {0: Looked(self.begin, next((each for each in self.records if each.offset == offsets[0] and each.offset >= self.begin), None))}

    async def stop(self) -> None:
        pass

    def add(self, *values: bytes | None, life: int = 0) -> None:
        for value in values:
            offset = self.records[-1].offset + 1 if self.records else 0
            self.records.append(Record(offset, KAFKA_MS + life * 1_000_000 + offset, value))


def writer(topic: Topic, store: Store, name: str, skipped: list[Any] | None = None, flush_s: float = 0.1, clock: Any = None, **settings: Any) -> ArchivedTopic:
    """An owner of partition 0. Its clock goes on by a second whenever it is read, unless one is given."""
    taken: list[Any] = [] if skipped is None else skipped
    made = ArchivedTopic(
        Settings(archive_flush_s=flush_s, **settings), store, name, topic, lambda *what: taken.append(what), clock or map(float, count()).__next__,
    )  # fmt: skip
    made.own([0])
    return made


def archive(topic: Topic, store: Store, name: str, skipped: list[Any] | None = None) -> None:
    """A worker that archives what the topic has, and stops."""
    asyncio.run(writer(topic, store, name, skipped).close())


def rows_of(offsets: Sequence[int], symbols: Sequence[str] = ("A", "B"), step: int = 1) -> pa.RecordBatch:
    """For each raw offset one second of each symbol, `step` seconds apart."""
    rows = [
        dict.fromkeys(WINDOWS_SCHEMA.names)
        | {
            "symbol": symbol, "source": "feed", "second": T0 + step * offset, "close": 10.0 + offset, "volume": 5.0, "ticks": 1, "quotes": 0, "volume_5m": 5.0,
            "ticks_5m": 1, "seconds_5m": 1, "quality": "", "revised": False, "partition": 0, "offset": offset, "volume_10s": 5.0, "volume_60s": 5.0,
            "ticks_10s": 1, "accrued_5m": 0.0,
        }
        for offset in offsets for symbol in symbols
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=WINDOWS_SCHEMA)


def frame(start: int, through: int, log: str = LOG, step: int = 1) -> bytes:
    return encode(Frame(log, start, through, (), rows_of(range(start, through + 1), step=step)))


def parts(start: int, offset: int, log: str = LOG) -> list[bytes]:
    """A frame whose rows are of one offset, in several messages."""
    messages = list(encode_within(Frame(log, start, offset, (), rows_of([offset], [f"S{number}" for number in range(8)])), 5_000))
    assert len(messages) > 2
    return messages


def window_keys(offsets: Sequence[int], symbols: Sequence[str] = ("A", "B"), step: int = 1) -> list[tuple[str, int, int]]:
    return [(symbol, T0 + step * offset, offset) for offset in offsets for symbol in symbols]


_json = msgspec.json.encode


def prediction(number: int, symbol: str = "A", step: int = 1, made_at: int = KAFKA_MS) -> bytes:
    """The prediction of second `number`."""
    as_of = 1_000 * (T0 + step * number)
    return _json(Prediction(
        id=f"{symbol}-{as_of}-m-1", symbol=symbol, as_of=as_of, price=10.0, model="m", version="1", feature_hash="f", partition=0, offset=number,
        made_at=made_at, latency_ms={"total": made_at % 1_000}, horizons=[Horizon(horizon_s=h, predicted_return=0.1, p_up=0.5) for h in HORIZONS],
    ))  # fmt: skip


def outcomes(number: int, symbols: Sequence[str] = ("A", "B"), horizon_s: int = 10, step: int = 1) -> bytes:
    as_of = 1_000 * (T0 + step * number)
    return _json([
        Outcome(
            id=f"{symbol}-{as_of}-m-1", symbol=symbol, as_of=as_of, horizon_s=horizon_s, predicted_return=0.1, p_up=0.5, model="m", version="1",
            role="champion", realised_return=0.2, price_then=11.0, judged_at=KAFKA_MS,
        )
        for symbol in symbols
    ])  # fmt: skip


def alert(number: int, state: Any = "opened", at: int | None = None, step: int = 1) -> bytes:
    second = T0 + step * number
    return _json(Alert(
        id=f"A-price_drop-{second}", symbol="A", rule="price_drop", state=state, severity="warning", opened_at=1_000 * second,
        as_of=1_000 * (second + (at or 0)), value=1.0, baseline=2.0, threshold=1.5, message="dropped", window={"close": 1.0, "symbol": "A"},
    ))  # fmt: skip


MESSAGES: dict[str, Callable[..., bytes]] = {"alerts": alert, "predictions": prediction, "outcomes": outcomes}


def stored(store: Store, area: str) -> list[dict[str, Any]]:
    """Every row of the small objects of an area, in the order of their places; each is in the folder of its time."""
    rows: list[dict[str, Any]] = []
    for name in store.list(f"processed/{area}/"):
        if compaction_of_data(name):
            continue
        found = pq.read_table(pa.BufferReader(store.read(name))).to_pylist()
        for row in found:
            time = row["time" if area == "windows" else "as_of"]
            assert name.split("/")[2] == f"date={time:%Y-%m-%d}" and (area == "alerts" or name.split("/")[3] == f"hour={time:%H}")
            assert name.split("/")[-1].startswith(f"{row['log']}-{row['partition']:05d}-")
        rows += found
    return sorted(rows, key=lambda row: (row["log"], row["record_offset"]))


def stored_windows(store: Store) -> list[tuple[str, int, int]]:
    return sorted(((row["symbol"], row["second"], row["offset"]) for row in stored(store, "windows")), key=lambda key: (key[2], key[0]))


def stored_ids(store: Store, area: str) -> list[Any]:
    columns = {"alerts": ("id", "state", "as_of"), "predictions": ("id", "horizon_s"), "outcomes": ("id", "horizon_s")}[area]
    return sorted(tuple(row[name] for name in columns) for row in stored(store, area))
