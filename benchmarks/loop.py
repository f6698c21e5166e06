"""The practical limit: one process with a confluent-kafka consumer and producer and nothing in between; no framework, no topics on the way, no state.

`full` does the line's work with the line's own pure state machines: clean, window, detect, score, archive, and the same outputs; without a model it stops at
the windows. `windows` does the peers' job and no more: one-second bars and rolling figures, in numpy, a frame of rows out. Both end once the log's end is
read and all that was produced is confirmed.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.load import PARTITIONS
from stockstream import GC_THRESHOLDS, versions
from stockstream.transforms.timing import LATENESS_MS, REVISE_S, WINDOW_S

BATCH = 20_000
HEADERS = [(versions.NAME, versions.VALUE)]


class Kafka:
    """Reads a topic from its beginning to the end that it has now, and produces."""

    def __init__(self, servers: str, topic: str, compression: str, *, embedded: bool) -> None:
        library: Any = importlib.import_module("confluent_kafka")       # not among our own dependencies
        self.consumer = library.Consumer({
            "bootstrap.servers": servers, "group.id": "loop", "enable.auto.commit": False, "auto.offset.reset": "earliest",
            "isolation.level": "read_committed", "fetch.max.bytes": 20_000_000, "queued.max.messages.kbytes": 65_536,
        })  # fmt: skip
        options: dict[str, Any] = {
            "bootstrap.servers": servers, "compression.type": compression, "linger.ms": 5, "acks": "all", "batch.size": 1_000_000,
            "queue.buffering.max.messages": 500_000, "delivery.report.only.error": True,
        }  # fmt: skip
        options |= {"max.in.flight.requests.per.connection": 1} if embedded else {"enable.idempotence": True}
        self.producer = library.Producer(options)
        self.faults: list[str] = []
        self.places = {p: library.TopicPartition(topic, p, 0) for p in range(PARTITIONS)}
        self.ends = {p: self.consumer.get_watermark_offsets(place, timeout=10)[1] for p, place in self.places.items()}
        self.next = dict.fromkeys(self.ends, 0)
        self.consumer.assign([*self.places.values()])

    @property
    def done(self) -> bool:
        """The embedded broker reports the position of its last batch as the end, but that batch may hold more records, so fetches count too."""
        return all(self.next[p] >= max(end, self.consumer.get_watermark_offsets(self.places[p], cached=True)[1]) for p, end in self.ends.items())

    def poll(self) -> dict[int, list[Any]]:
        """What came, by partition."""
        found: dict[int, list[Any]] = {}
        for message in self.consumer.consume(BATCH, 0.2):
            if message.error():
                raise SystemExit(f"loop: {message.error()}")
            found.setdefault(message.partition(), []).append(message)
        for partition, messages in found.items():
            self.next[partition] = messages[-1].offset() + 1
        return found

    def _told(self, error: Any, _: Any) -> None:
        if error is not None:
            self.faults.append(str(error))

    def send(self, topic: str, partition: int, value: bytes, key: bytes | None = None) -> None:
        while True:
            try:
                self.producer.produce(topic, value, key, partition, self._told, headers=HEADERS)
                return
            except BufferError:
                self.producer.poll(0.05)

    def finish(self) -> None:
        """Waits until all is confirmed."""
        if self.producer.flush(120) or self.faults:
            raise SystemExit(f"loop: not confirmed: {self.faults[:1]}")


# -- the line's work --------------------------------------------------------


class Record(NamedTuple):
    """What the state machines and the archive read of a record."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class Archive:
    """Raw objects and processed objects of one partition, as large as the line's, without its chain."""

    def __init__(self, folder: Path, log: str, partition: int, max_bytes: int) -> None:
        self.folder, self.log, self.partition, self.max_bytes = folder, log, partition, max_bytes
        self.pieces: list[Any] = []
        self.rows: list[pa.RecordBatch] = []
        self.size = 0

    def add(self, records: Sequence[Record], rows: pa.RecordBatch) -> None:
        from stockstream.sinks.archive.raw_objects import encode

        self.rows.append(rows)
        for piece in encode(self.partition, records, records[0].offset):
            if self.pieces and piece.hour != self.pieces[0].hour:
                self.write()
            self.pieces.append(piece)
            self.size += piece.nbytes
            if self.size >= self.max_bytes:
                self.write()

    def write(self) -> None:
        from stockstream.records import TICKS_SCHEMA
        from stockstream.sinks.archive.layout import folder_of_hour, raw_name
        from stockstream.sinks.archive.processed import processed_objects
        from stockstream.sinks.archive.raw_objects import raw_object

        if not self.pieces:
            return
        extent, data = raw_object(self.log, self.partition, "", self.pieces)
        name = raw_name(folder_of_hour(self.pieces[0].hour), self.log, self.partition, extent.first)
        table = pa.Table.from_batches(self.rows, schema=TICKS_SCHEMA)
        cut = int(table.column("offset").to_numpy().searchsorted(extent.last, "right"))
        for path, content in [(name, data), *processed_objects(extent, name, table.slice(0, cut))]:
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        rest = table.slice(cut)
        self.rows = rest.to_batches() if rest.num_rows else []
        self.pieces, self.size = [], 0


def full(kafka: Kafka, prefix: str, models: str, archive: Path | None, max_bytes: int) -> None:
    """The whole line's work in one loop; without `models`, of clean and aggregate only."""
    from models.registry import Registry
    from stockstream.transforms.cleaning.cleaner import Cleaner
    from stockstream.transforms.frames import Frame, encode_within
    from stockstream.transforms.rules.detector import Detector
    from stockstream.transforms.scoring.scorer import Scorer, encode_outcomes, encode_predictions
    from stockstream.transforms.windows.windows import Windows

    encode = msgspec.json.Encoder().encode
    log = "loop"
    cleaners = {p: Cleaner(p, PARTITIONS, lateness_ms=LATENESS_MS, revise_s=REVISE_S, log=log) for p in kafka.ends}
    windows = {p: Windows(p, revise_s=REVISE_S) for p in kafka.ends}
    detectors, scorers = {p: Detector(p) for p in kafka.ends}, {p: Scorer(p) for p in kafka.ends}
    model = Registry(models).load("xgboost") if models else None
    archives = {p: Archive(archive, log, p, max_bytes) for p in kafka.ends} if archive else {}
    if model is not None:
        for scorer in scorers.values():
            scorer.set_champion(model, 0)
    while not kafka.done:
        for p, messages in kafka.poll().items():
            records = [Record(m.offset(), m.timestamp()[1], m.key(), m.value()) for m in messages]
            for rejection in cleaners[p].chunk(records):
                kafka.send(prefix + "ticks.rejected", p, encode(rejection))
            frame = cleaners[p].make_frame()
            if frame is None:
                continue
            if archives:
                archives[p].add(records, frame.rows)
            rows = windows[p].take_frame(frame)
            windows[p].records(0)
            if rows is None or not rows.closings:
                continue
            closed = Frame(log, rows.start, rows.through, tuple(rows.closings), rows.batch(p))
            for data in encode_within(closed):
                kafka.send(prefix + "windows", p, data)
            if model is None:
                continue
            found = detectors[p].take_frame(closed)
            if found is not None:
                for alert in found.alerts:
                    kafka.send(prefix + "alerts", p, encode(alert), alert.symbol.encode())
                for summary in found.markets:
                    kafka.send(prefix + "market", 0, encode(summary))
            scored = scorers[p].take_frame(closed)
            if scored is not None:
                for symbol, value in zip(scored.symbols, encode_predictions(scored, 0, {}), strict=True):
                    kafka.send(prefix + "predictions", p, value, symbol.encode())
                for value in encode_outcomes(scored, 0):
                    kafka.send(prefix + "outcomes", p, value)
            kafka.producer.poll(0)
    for last in archives.values():
        last.write()
    kafka.finish()


# -- the peers' job ---------------------------------------------------------


class Tick(msgspec.Struct, gc=False):
    """What the job reads of a tick; a punctuation has no symbol."""

    symbol: str = ""
    event_time: int = 0
    price: float = 0.0
    size: int = 0
    punctuate: int = 0


ROWS_SCHEMA = pa.schema([
    ("symbol", pa.string()), ("second", pa.int64()), ("open", pa.float64()), ("high", pa.float64()), ("low", pa.float64()), ("close", pa.float64()),
    ("volume", pa.int64()), ("mean_5m", pa.float64()), ("vwap_5m", pa.float64()), ("volume_5m", pa.int64()), ("return_std_5m", pa.float64()),
])  # fmt: skip

Floats = NDArray[np.float64]
Matrix = NDArray[Any]


class Bars:
    """The symbols of one partition: ticks of open seconds, and the last 300 closed seconds with their sums."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}
        self.names = pa.array([], pa.string())
        self.open: list[Matrix] = [np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0)]
        self.closed = -1
        self.last = np.empty(0)                                         # price carried, NaN before the series begins
        self.begun = np.empty(0, np.int64)
        self.history = np.zeros((4, WINDOW_S, 0))                       # price, volume, notional, return; 0 where nothing is
        self.sums = np.zeros((5, 0))                                    # of those, and of squared returns

    def take(self, ticks: list[Tick]) -> pa.RecordBatch | None:
        """Adds ticks in the order of the log; rows of the seconds that have closed."""
        number = self.number
        known = len(number)
        clock = max(tick.event_time or (tick.punctuate + 1) * 1000 + LATENESS_MS for tick in ticks)
        real = [tick for tick in ticks if tick.symbol]
        index = np.array([number.setdefault(tick.symbol, len(number)) for tick in real], np.int64)
        if len(number) > known:
            self._grow(len(number))
        second = np.array([tick.event_time for tick in real], np.int64) // 1000
        price, size = np.array([tick.price for tick in real], np.float64), np.array([tick.size for tick in real], np.float64)
        self.open = [np.concatenate(pair) for pair in zip(self.open, (index, second, price, size), strict=True)]
        upto = (clock - LATENESS_MS) // 1000 - 1
        if self.closed < 0 and len(self.open[1]):
            self.closed = int(self.open[1].min()) - 1
        return self._close(upto) if upto > self.closed >= 0 else None

    def _grow(self, count: int) -> None:
        more = count - len(self.last)
        self.names = pa.array(list(self.number), pa.string())
        self.last = np.concatenate([self.last, np.full(more, np.nan)])
        self.begun = np.concatenate([self.begun, np.zeros(more, np.int64)])
        self.history = np.concatenate([self.history, np.zeros((4, WINDOW_S, more))], axis=2)
        self.sums = np.concatenate([self.sums, np.zeros((5, more))], axis=1)

    def _close(self, upto: int) -> pa.RecordBatch:
        due = self.open[1] <= upto
        index, second, price, size = (column[due] for column in self.open)
        self.open = [column[~due] for column in self.open]
        count, symbols, first = upto - self.closed, len(self.last), self.closed + 1
        cell = (second - first) * symbols + index
        order = np.argsort(cell, kind="stable")
        cell, price, size = cell[order], price[order], size[order]
        starts = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])
        cells = cell[starts]
        ends = np.r_[starts[1:], len(cell)] - 1
        opened, close = price[starts], price[ends]
        high, low = np.maximum.reduceat(price, starts), np.minimum.reduceat(price, starts)
        volume, notional = np.add.reduceat(size, starts), np.add.reduceat(price * size, starts)

        new = np.zeros((5, count, symbols))
        flat = new.reshape(5, -1)
        prices = np.full((count + 1, symbols), np.nan)
        prices[0] = self.last
        prices[1:].reshape(-1)[cells] = close
        if len(cells) < count * symbols:
            for row in range(1, count + 1):
                prices[row] = np.where(np.isnan(prices[row]), prices[row - 1], prices[row])
        fresh = np.isnan(self.last) & ~np.isnan(prices[-1])
        if fresh.any():
            self.begun[fresh] = first + np.argmax(~np.isnan(prices[1:, fresh]), axis=0)
        new[0] = np.nan_to_num(prices[1:])
        flat[1, cells], flat[2, cells] = volume, notional
        new[3] = np.nan_to_num(np.log(prices[1:] / prices[:-1]))
        new[4] = new[3] ** 2
        before = np.concatenate([self.history, new[:4]], axis=1)
        old = before[:, :count]
        change = new.copy()
        change[:4] -= old
        change[4] -= old[3] ** 2
        sums = self.sums[:, None, :] + np.cumsum(change, axis=1)
        self.history, self.sums, self.last = before[:, count:], sums[:, -1], prices[-1]
        self.closed = upto

        at, who = np.divmod(cells, symbols)
        total = sums.reshape(5, -1)[:, cells]
        age = at + first - self.begun[who] + 1
        seconds = np.minimum(age, WINDOW_S)
        returns = np.minimum(age - 1, WINDOW_S)
        with np.errstate(invalid="ignore", divide="ignore"):
            deviation = np.sqrt(np.maximum(0, (total[4] - total[3] ** 2 / returns) / (returns - 1)))
            vwap = total[2] / total[1]
        shares = np.rint(total[1]).astype(np.int64)
        return pa.RecordBatch.from_arrays([
            self.names.take(pa.array(who)), pa.array(at + first), pa.array(opened), pa.array(high), pa.array(low), pa.array(close),
            pa.array(volume.astype(np.int64)), pa.array(total[0] / seconds), pa.array(vwap, mask=shares == 0), pa.array(shares),
            pa.array(deviation, mask=returns < 2),
        ], schema=ROWS_SCHEMA)  # fmt: skip


def windows(kafka: Kafka, prefix: str) -> None:
    """One-second bars and rolling figures only."""
    decode = msgspec.json.Decoder(list[Tick | list[Tick]]).decode
    bars = {p: Bars() for p in kafka.ends}
    while not kafka.done:
        for p, messages in kafka.poll().items():
            items = decode(b"[" + b",".join([m.value() for m in messages]) + b"]")
            ticks = [tick for item in items for tick in (item if type(item) is list else (item,))]
            rows = bars[p].take(ticks)  # type: ignore[arg-type]
            if rows is None or not rows.num_rows:
                continue
            for start in range(0, rows.num_rows, 8_000):
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, ROWS_SCHEMA) as writer:
                    writer.write_batch(rows.slice(start, 8_000))
                kafka.send(prefix + "windows", p, sink.getvalue().to_pybytes())
        kafka.producer.poll(0)
    kafka.finish()


class _NoPandas(MetaPathFinder):
    """Says that there is no pandas."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def spare_pandas() -> None:
    """As the worker does: pyarrow would import pandas at its first array, a second of start-up for nothing."""
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    pa.array(np.zeros(1), from_pandas=True).to_numpy()
    sys.meta_path.remove(finder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=("full", "windows"))
    parser.add_argument("servers")
    parser.add_argument("prefix", help="of the topics; ticks.raw must be there and complete")
    parser.add_argument("--models", default="")
    parser.add_argument("--archive", type=Path, default=None, help="folder; without it nothing is archived")
    parser.add_argument("--archive-max-bytes", type=int, default=8_000_000)
    parser.add_argument("--compression", default="zstd")
    parser.add_argument("--site", default="", help="where confluent-kafka is")
    parser.add_argument("--embedded", action="store_true")
    chosen = parser.parse_args()
    if chosen.site:
        sys.path.append(chosen.site)
    spare_pandas()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)                                     # as the worker does
    kafka = Kafka(chosen.servers, chosen.prefix + "ticks.raw", chosen.compression, embedded=chosen.embedded)
    if chosen.job == "full":
        full(kafka, chosen.prefix, chosen.models, chosen.archive, chosen.archive_max_bytes)
    else:
        windows(kafka, chosen.prefix)


if __name__ == "__main__":
    main()
