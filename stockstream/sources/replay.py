"""Recorded trades or one-second bars, from Parquet or CSV, as a source.

A trade file has the columns `symbol event_time price size` and may have `bid ask bid_size ask_size` and the optional texts of a tick; a bar file has
`symbol event_time close volume` and may have `bid ask bid_size ask_size`, its event time being the start of the second. Other columns are ignored. An
`event_time` is a timestamp (UTC if it has no time zone), a date, or a number whose magnitude shows its unit. A bar is a tick at the second's last
millisecond; without a volume it is a quote. Equal rows are separate ticks, because the ticks carry no `seq`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from stockstream.errors import SourceError
from stockstream.records import QUOTES, TEXTS
from stockstream.sources.base import Batch, Clock, Health, SymbolInfo, SystemClock
from stockstream.sources.event_times import EventTimes
from stockstream.transforms.cleaning.limits import MAX_SOURCE, RANGES, composed
from stockstream.transforms.partitioning import home_partition
from stockstream.transforms.timing import FUTURE_MS, WINDOW_S

CHUNK_ROWS = 16_384
CSV_BLOCK_BYTES = 4 * 1024 * 1024
SLICE_MS = 50
"""Paced ticks are sent in slices of this much wall time."""
LISTED_BAD_ROWS = 10

Kind = Literal["trades", "bars"]
_PARQUET = b"PAR1"
_NOT_CSV = {
    _PARQUET: "Parquet, not CSV: give it a name that ends in .parquet", b"\x1f\x8b": "compressed (gzip): decompress it first",
    b"\x28\xb5\x2f\xfd": "compressed (zstd): decompress it first", b"PK\x03\x04": "a zip or Excel file: decompress it, or save it as CSV",
}  # fmt: skip
"""What a file with the name of a CSV is, by its first bytes, and the remedy."""
_REQUIRED: dict[Kind, tuple[str, ...]] = {"trades": ("symbol", "event_time", "price", "size"), "bars": ("symbol", "event_time", "close", "volume")}


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be a tick; `row` counts from 1, a header aside."""

    row: int
    reason: str


@dataclass(slots=True)
class Survey:
    """What a file holds: times in epoch ms, `first_seen` each symbol's first tick, `behind_ms` how far the latest of the `unordered` rows lies behind."""

    ticks: int = 0
    first: int = 0
    last: int = 0
    first_seen: dict[str, int] = field(default_factory=dict)
    unordered: int = 0
    behind_ms: int = 0
    bad: list[BadRow] = field(default_factory=list)
    bad_count: int = 0
    unit: str = ""
    """Of `event_time` in the file, where it is a number: a name of UNITS, or empty where it is none of them."""
    bad_times: str = ""
    """Why `clean` would reject the time of every tick; empty where it would not."""
    bad_values: str = ""
    """Why `clean` would reject the price or size of every tick; empty where it would not."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows that can be ticks, in file order. Prices and quotes are NaN if there is none."""

    symbols: pa.DictionaryArray
    times: NDArray[np.int64]
    price: NDArray[np.float64]
    size: NDArray[np.float64]
    quotes: dict[str, NDArray[np.float64]]
    texts: dict[str, pa.DictionaryArray]
    bad: list[BadRow]

    def __len__(self) -> int:
        return len(self.times)


class Recording:
    """A file of trades or bars, read in chunks. `symbols` and `limit` (number of ticks) restrict it.

    Raises `SourceError`, here and while reading, if the file is missing, unreadable or empty, or lacks a column.
    """

    def __init__(self, path: Path, *, bars: bool = False, symbols: Collection[str] = (), limit: int | None = None) -> None:
        self.path = path
        self.times = EventTimes(path)
        self.symbols = frozenset(map(composed, symbols))
        self.limit = limit
        if not path.is_file():
            raise SourceError(f"{path}: no such file")
        self._is_csv = path.suffix.lower() in {".csv", ".tsv", ".txt"}
        schema = self._schema()
        columns = list(schema.names)
        self.kind: Kind = "bars" if bars or ("price" not in columns and "close" in columns) else "trades"
        known = {*_REQUIRED["trades"], *_REQUIRED["bars"], *QUOTES, *TEXTS}
        if blank := [name for name in columns if name != name.strip() and name.strip() in known]:
            raise SourceError(f"{path}: column names with blanks around them: {', '.join(map(repr, blank))}; remove the blanks from the header")
        if missing := [name for name in _REQUIRED[self.kind] if name not in columns]:
            what = f"as {self.kind} it needs {', '.join(_REQUIRED[self.kind])}"
            raise SourceError(f"{path}: column {', '.join(missing)} is missing ({what}; there are: {', '.join(columns) or 'none'})")
        optional = (*QUOTES, *TEXTS) if self.kind == "trades" else QUOTES
        self._read = [*_REQUIRED[self.kind], *(name for name in optional if name in columns)]
        if twice := [name for name in self._read if columns.count(name) > 1]:
            raise SourceError(f"{path}: more than one column is called {twice[0]}: rename or remove the others")
        for name in self._read:
            self._require_type(name, schema.field(name).type)

    def survey(self) -> Survey:
        """Reads the whole file once. Raises `SourceError` if no row is a valid tick."""
        found = Survey()
        newest: int | None = None
        good_time = good_values = False
        for chunk in self.chunks():
            found.bad_count += len(chunk.bad)
            found.bad += chunk.bad[: LISTED_BAD_ROWS - len(found.bad)]
            if not len(chunk):
                continue
            reached = np.maximum.accumulate(chunk.times if newest is None else np.r_[newest, chunk.times])
            behind = (reached - chunk.times) if newest is None else (reached[1:] - chunk.times)
            found.unordered += int((behind > 0).sum())
            found.behind_ms = max(found.behind_ms, int(behind.max()))
            first = int(chunk.times.min())
            found.first = first if newest is None else min(found.first, first)
            newest = found.last = int(reached[-1])
            found.ticks += len(chunk)
            good_time = good_time or bool(_between("event_time", chunk.times).any())
            good_values = good_values or bool((_between("size", chunk.size) & (np.isnan(chunk.price) | _between("price", chunk.price))).any())
            indices = chunk.symbols.indices.to_numpy()
            for code, symbol in enumerate(chunk.symbols.dictionary.to_pylist()):
                mine = chunk.times[indices == code]
                if len(mine):
                    found.first_seen[symbol] = min(int(mine.min()), found.first_seen.get(symbol, int(mine.min())))
        if not found.ticks:
            why = f": row {found.bad[0].row}: {found.bad[0].reason}" if found.bad else " of these symbols" if self.symbols else ""
            raise SourceError(f"{self.path}: no row is a valid tick{why}")
        found.unit = self.times.unit
        found.bad_times = "" if good_time else f"no event_time is one of 1990 to 2109: as epoch milliseconds the first would be {found.first}"
        found.bad_values = "" if good_values else "no row has a price and a size within the limits of a tick"
        return found

    def chunks(self) -> Iterator[_Chunk]:
        """The file's ticks and bad rows, some thousands at a time. Raises `SourceError`."""
        left = math.inf if self.limit is None else self.limit
        row = 1
        torn: list[int] = []
        for batch in self._batches(torn):
            if left <= 0:
                return
            numbers = np.arange(row, row + batch.num_rows)
            row += batch.num_rows
            try:
                chunk = self._validate(batch, numbers)
            except pa.ArrowException as error:
                raise self._unreadable(error) from error
            if len(chunk) > left:
                chunk = _take(chunk, np.arange(int(left)))
            left -= len(chunk)
            yield replace(chunk, bad=[BadRow(_row_in_file(at.row, torn), at.reason) for at in chunk.bad])
        if torn:
            nothing = pa.RecordBatch.from_pylist([], schema=pa.schema([(name, pa.string()) for name in self._read]))
            yield replace(self._validate(nothing, np.arange(0)), bad=[BadRow(at, "not as many columns as the header") for at in torn])

    def _schema(self) -> pa.Schema:
        try:
            with self.path.open("rb") as file:
                start = file.read(4)
            if self._is_csv:
                for magic, what in _NOT_CSV.items():
                    if start.startswith(magic):
                        raise SourceError(f"{self.path}: this is {what}")
                with pyarrow.csv.open_csv(self.path, parse_options=self._parse_options([])) as reader:
                    return pa.schema([(str(name), pa.string()) for name in reader.schema.names])
            if start and start != _PARQUET:
                raise SourceError(f"{self.path}: this is not Parquet: if it is CSV, give it a name that ends in .csv")
            return pyarrow.parquet.read_schema(self.path)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise self._unreadable(error) from error

    def _require_type(self, name: str, of: pa.DataType) -> None:
        convert, what = (_texts, "a text") if name == "symbol" or name in TEXTS else (_numbers, "a number")
        nothing = pa.nulls(0, of) if not pa.types.is_dictionary(of) else pa.nulls(0, of.value_type)
        try:
            if name == "event_time":
                self.times.read(nothing)
            else:
                convert(nothing)
        except (pa.ArrowException, ValueError):
            raise SourceError(f"{self.path}: column {name} is {of}: it must be {what} in each row") from None

    def _parse_options(self, torn: list[int]) -> pyarrow.csv.ParseOptions:
        def skip(row: Any) -> str:
            torn.append(int(row.number or 0) - 1)                # the header is row 1
            return "skip"

        return pyarrow.csv.ParseOptions(invalid_row_handler=skip, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",")

    def _batches(self, torn: list[int]) -> Iterator[pa.RecordBatch]:
        try:
            if not self._is_csv:
                yield from pyarrow.parquet.ParquetFile(self.path).iter_batches(batch_size=CHUNK_ROWS, columns=self._read)
                return
            types = {name: pa.string() for name in self._read}
            convert = pyarrow.csv.ConvertOptions(column_types=types, include_columns=self._read, null_values=[""], strings_can_be_null=True)
            read = pyarrow.csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK_BYTES)
            with pyarrow.csv.open_csv(self.path, read_options=read, parse_options=self._parse_options(torn), convert_options=convert) as reader:
                for batch in reader:
                    for start in range(0, batch.num_rows, CHUNK_ROWS):
                        yield batch.slice(start, CHUNK_ROWS)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> SourceError:
        if isinstance(error, pa.ArrowInvalid) and "Empty CSV" in str(error):
            return SourceError(f"{self.path}: the file is empty")
        what = "CSV" if self._is_csv else "Parquet"
        return SourceError(f"{self.path}: cannot be read as {what}: {' '.join(str(error).split())}")

    def _validate(self, batch: pa.RecordBatch, numbers: NDArray[np.int64]) -> _Chunk:
        symbols = _symbols(batch.column("symbol"))
        times, timed = self.times.read(batch.column("event_time"))
        value, volume = (_numbers(batch.column(name)) for name in (_REQUIRED[self.kind][2:]))
        quotes = {name: _numbers(batch.column(name)) for name in QUOTES if name in self._read}
        texts = {name: _texts(batch.column(name)) for name in TEXTS if name in self._read}
        quoted = np.zeros(len(numbers), dtype=bool)
        for name in ("bid", "ask"):
            quoted |= np.isfinite(quotes[name]) if name in quotes else False
        codes = symbols.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        names = symbols.dictionary.to_pylist()
        named = ~np.isin(codes, [-1, *(code for code, name in enumerate(names) if not name)])
        wanted = ~named | np.isin(codes, [code for code, name in enumerate(names) if name in self.symbols]) if self.symbols else np.full(len(codes), True)
        faults = [("symbol is missing", ~named), ("event_time is missing or not a time", ~timed)]
        if self.kind == "bars":
            traded = ~np.isnan(volume)
            times = times + 999
            faults += [("without a volume it must have a bid or an ask", ~traded & ~quoted), ("close is missing or not a number", traded & ~np.isfinite(value))]
        else:
            traded = ~np.isnan(value)
            quote = ~traded & quoted & (np.isnan(volume) | (volume == 0))
            faults += [("price is missing or not a number", ~quote & ~np.isfinite(value)), ("size is missing or not a number", ~quote & ~np.isfinite(volume))]
        bad: dict[int, str] = {}
        for reason, where in faults:
            for i in np.flatnonzero(where & wanted).tolist():
                bad.setdefault(i, reason)
        wanted[list(bad)] = False
        bad_rows = [BadRow(int(numbers[i]), bad[i]) for i in sorted(bad)]
        chunk = _Chunk(symbols, times, np.where(traded, value, np.nan), np.where(traded, volume, 0.0), quotes, texts, bad_rows)
        return chunk if wanted.all() else _take(chunk, np.flatnonzero(wanted))


class ReplaySource:
    """A recording as a source. `speed` is a multiple of real time, None for as fast as possible; `shift_ms` is added to every time.

    Until `subscribe` is called, it yields all symbols.
    """

    continuous = False

    def __init__(self, recording: Recording, name: str, *, speed: float | None = None, shift_ms: int = 0, clock: Clock | None = None) -> None:
        if not 1 <= len(name) <= MAX_SOURCE:
            raise SourceError(f"a source's name has 1 to {MAX_SOURCE} characters, {name[:20]!r}... has {len(name)}")
        self._recording = recording
        self._name = name
        self._speed = speed
        self._shift_ms = shift_ms
        self._clock = clock or SystemClock()
        self._wanted: frozenset[str] | None = None

    @property
    def name(self) -> str:
        return self._name

    def subscribe(self, symbols: Collection[str]) -> None:
        """Replaces the symbols, from the next batch on."""
        self._wanted = frozenset(symbols)

    async def start(self) -> None:
        """Opens nothing: the file is read by the stream."""

    async def stop(self) -> None:
        """Closes nothing."""

    def health(self) -> Health:
        return Health()

    async def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
        """Names only: a recording has no other metadata."""
        return [SymbolInfo(symbol=symbol, source=self.name) for symbol in sorted(symbols)]

    def batches(self) -> Iterator[Batch]:
        """The recording's ticks as `stream` brings them, without pauses. Raises `SourceError`."""
        for chunk in self._recording.chunks():
            if len(chunk):
                yield self._encode(chunk)

    async def stream(self) -> AsyncIterator[Batch]:
        """The recording's ticks in file order, once. Raises `SourceError`."""
        started, origin, reached = self._clock.now_ms(), None, 0
        for chunk in self._recording.chunks():
            if not len(chunk):
                continue
            batch = self._encode(chunk)
            if self._speed is None:
                yield self._only_wanted(batch)
                continue
            if origin is None:
                origin = reached = int(chunk.times[0])
            due = np.maximum(np.maximum.accumulate(chunk.times), reached) - origin
            reached = origin + int(due[-1])
            wall = np.ceil(due / self._speed / SLICE_MS).astype(np.int64) * SLICE_MS
            cuts = [0, *(np.flatnonzero(np.diff(wall)) + 1).tolist(), len(wall)]
            for start, stop in itertools.pairwise(cuts):
                while (early := started + int(wall[start]) - self._clock.now_ms()) > 0:
                    await self._clock.sleep(early / 1000)
                yield self._only_wanted(Batch(batch.symbols[start:stop], batch.event_times[start:stop], batch.values[start:stop]))

    def _only_wanted(self, batch: Batch) -> Batch:
        if self._wanted is None:
            return batch
        chosen = [tick for tick in batch if tick[0] in self._wanted]
        return Batch(*zip(*chosen, strict=True)) if chosen else Batch((), (), ())

    def _encode(self, chunk: _Chunk) -> Batch:
        names = chunk.symbols.dictionary.to_pylist()
        codes = chunk.symbols.indices.to_pylist()
        prefixes = [f'{{"symbol":{_json(name)},"source":{_json(self.name)},"event_time":' for name in names]
        times = (chunk.times + self._shift_ms).tolist()
        prices = ["null" if price != price else repr(price) for price in chunk.price.tolist()]
        sizes = [str(int(size)) if size.is_integer() else repr(size) for size in chunk.size.tolist()]
        optional_parts = [[f',"{name}":{value!r}' if math.isfinite(value) else "" for value in column.tolist()] for name, column in chunk.quotes.items()]
        for name, column in chunk.texts.items():
            written = [f',"{name}":{_json(value)}' for value in column.dictionary.to_pylist()]
            optional_parts.append(["" if code is None else written[code] for code in column.indices.to_pylist()])
        suffixes = ["".join(of_row) for of_row in zip(*optional_parts, strict=True)] if optional_parts else [""] * len(times)
        values = [
            f'{prefixes[code]}{time},"price":{price},"size":{size}{suffix}}}'.encode()
            for code, time, price, size, suffix in zip(codes, times, prices, sizes, suffixes, strict=True)
        ]
        return Batch([names[code] for code in codes], times, values)


def source_name(recording: Recording, *, rebased: bool = False) -> str:
    """`replay.<file stem>` and the options that change the feed: the same for the same file and options, so that a second replay is recognised."""
    parts = [re.sub(r"[^A-Za-z0-9_-]+", "-", recording.path.stem)]
    parts += ["bars"] if recording.kind == "bars" else []
    parts += ["+".join(sorted(recording.symbols))] if recording.symbols else []
    parts += [f"first{recording.limit}"] if recording.limit is not None else []
    parts += ["rebased"] if rebased else []
    name = ".".join(["replay", *parts])
    return name if len(name) <= MAX_SOURCE else name[: MAX_SOURCE - 17] + "-" + hashlib.sha256(name.encode()).hexdigest()[:16]


def obstacle(survey: Survey, source: str, latest: Mapping[str, Mapping[str, Any]], partitions: int, *, shift_ms: int = 0) -> str | None:
    """Why a log would reject ticks of this source, given the last row of each symbol (`latest`); None if it would not.

    If the source's watermark has passed a tick's second, the tick would be rejected as `late`; within the last seconds it would count twice.
    """
    held: dict[int, int] = {}
    for symbol, row in latest.items():
        if row["source"] == source:
            partition = home_partition(symbol, partitions)
            held[partition] = max(held.get(partition, 0), int(row["second"]))
    firsts = {symbol: (first + shift_ms) // 1000 for symbol, first in survey.first_seen.items()}
    late = [symbol for symbol, first in firsts.items() if first <= held.get(home_partition(symbol, partitions), -1)]
    if late:
        reached = _utc(max(held.values()))
        return f"{source} has been replayed into this log before, up to {reached}: ticks of {_some(late)} would be rejected as late or count twice"
    other = [
        symbol for symbol, first in firsts.items()
        if symbol in latest and latest[symbol]["source"] != source and first <= int(latest[symbol]["second"]) + WINDOW_S
    ]  # fmt: skip
    if other:
        row = latest[min(other)]
        belongs = f"{min(other)} belongs to {row['source']}, whose last row is of {_utc(int(row['second']))}"
        return f"{belongs}: ticks of {_some(other)} would be rejected as other_source"
    return None


def refusal(survey: Survey, now_ms: int, *, rebased: bool = False) -> str | None:
    """Why `clean` would accept none of the ticks, published now (epoch ms) with their own times or `rebased` ones; None where it may accept some."""
    if survey.bad_values:
        return survey.bad_values
    if rebased:
        return None
    if survey.bad_times:
        return survey.bad_times
    if survey.first > now_ms + FUTURE_MS:
        return f"every event_time is in the future, the first is {_utc(survey.first // 1000)}: all ticks would be rejected as future"
    return None


def _between(name: str, values: NDArray[Any]) -> NDArray[np.bool_]:
    low, high = RANGES[name]
    found: NDArray[np.bool_] = (values >= low) & (values <= high)
    return found


def _some(symbols: Collection[str]) -> str:
    first = sorted(symbols)[:3]
    return ", ".join(first) + (f" and {len(symbols) - 3} more" if len(symbols) > 3 else "")


def _utc(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _json(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _row_in_file(row: int, torn: list[int]) -> int:
    """The number in the file of the row that is `row`-th of those that could be parsed."""
    for at in sorted(torn):
        row += at <= row
    return row


def _take(chunk: _Chunk, chosen: NDArray[np.int64]) -> _Chunk:
    rows = pa.array(chosen)
    quotes = {name: column[chosen] for name, column in chunk.quotes.items()}
    texts = {name: column.take(rows) for name, column in chunk.texts.items()}
    return _Chunk(chunk.symbols.take(rows), chunk.times[chosen], chunk.price[chosen], chunk.size[chosen], quotes, texts, chunk.bad)


def _texts(column: pa.Array) -> pa.DictionaryArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()).dictionary_encode()


def _symbols(column: pa.Array) -> pa.DictionaryArray:
    texts = _texts(column)
    names = texts.dictionary.to_pylist()
    if (known := list(map(composed, names))) == names:
        return texts
    return pa.DictionaryArray.from_arrays(texts.indices, pa.array(known, pa.string()))


def _numbers(column: pa.Array) -> NDArray[np.float64]:
    """Floats, NaN for a text that is not a number."""
    try:
        column = column.cast(pa.float64())
    except pa.ArrowInvalid:
        column = pa.array([_number(text) for text in column.to_pylist()], pa.float64())
    return np.array(column.fill_null(math.nan).to_numpy(zero_copy_only=False))


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
