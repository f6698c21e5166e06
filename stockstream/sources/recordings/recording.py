"""A file of trades or bars in any format, as ticks.

A bar becomes one tick, at its last millisecond: its close is the price and its volume the size, traded over `interval_s`. A row of trades without a price but
with a bid or an ask is a quote. Equal rows are separate ticks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stockstream.errors import SourceError
from stockstream.records import QUOTES, TEXTS
from stockstream.sources.recordings.chunks import BadRow, Chunk
from stockstream.sources.recordings.event_times import EventTimes
from stockstream.sources.recordings.files import CHUNK_ROWS, DataFile
from stockstream.sources.recordings.intervals import DAY_S, interval_of, midnights
from stockstream.sources.recordings.layout import Kind
from stockstream.sources.recordings.numerals import decimal_sign, numbers
from stockstream.sources.recordings.options import AS_FOUND, ReadOptions
from stockstream.sources.recordings.ordering import bounds_of, sorted_by_time
from stockstream.sources.recordings.recognise import layout_of
from stockstream.sources.recordings.survey import Survey, notes
from stockstream.sources.symbols import from_provider
from stockstream.transforms.cleaning.limits import RANGES, composed

LISTED_BAD_ROWS = 10
OUT_OF_ORDER_MS = 60_000
"""Trades that lie further behind than this are not in the order of a feed, and bars of any kind are not: they are read in the order of time."""
SAMPLED_TIMES = 50
"""Of each chunk: by them a recording is cut into pieces."""

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Span:
    """Event times (epoch ms) from `first` on and before `end`; None: no bound."""

    first: int | None = None
    end: int | None = None

    def has(self, times: NDArray[np.int64]) -> NDArray[np.bool_]:
        inside = np.ones(len(times), dtype=bool)
        if self.first is not None:
            inside &= times >= self.first
        if self.end is not None:
            inside &= times < self.end
        return inside


ALL_TIMES = Span()


class Recording:
    """A file of trades or bars, read in chunks. `symbols`, `span` and `limit` (the first ticks of the file, so many) restrict it.

    Raises `SourceError`, here and while reading, if the file is missing, unreadable or empty, or if it is not clear what its columns are.
    """

    def __init__(
        self, path: Path, options: ReadOptions = AS_FOUND, *, symbols: Collection[str] = (), limit: int | None = None, span: Span = ALL_TIMES
    ) -> None:
        self.path = path
        self.limit = limit
        self.span = span
        self._file = DataFile(path)
        self._options = options
        self.layout = layout_of(self._file, options)
        self.symbols = frozenset(_canonical(symbol, self.layout.provider) for symbol in symbols)
        self.interval_s = 1
        self._newest_first = False
        self._decimal = options.decimal or self._decimal_sign()
        self._survey: Survey | None = None
        self._bounds: list[int] = []
        self._left_out: dict[str, int] = {}
        self._check_types()
        self._look_ahead()

    @property
    def kind(self) -> Kind:
        return self.layout.kind

    @property
    def stem(self) -> str:
        """The file's name without its endings."""
        return self._file.stem

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    def survey(self, advance: Advance = lambda done: None) -> Survey:
        """Reads the whole file, the first time; `advance` gets how many of its `size` bytes were read since the last call.

        Raises `SourceError` if it has no valid tick.
        """
        if self._survey is not None:
            return self._survey
        found = Survey()
        self._left_out = {}
        newest: int | None = None
        good_time = good_values = False
        samples: list[NDArray[np.int64]] = []
        for chunk in self._in_file_order(advance):
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
            samples.append(chunk.times[:: max(1, len(chunk) // SAMPLED_TIMES)])
            good_time = good_time or bool(_between("event_time", chunk.times).any())
            good_values = good_values or bool((_between("size", chunk.size) & (np.isnan(chunk.price) | _between("price", chunk.price))).any())
            found.see(chunk)
        if not found.ticks:
            why = f": row {found.bad[0].row}: {found.bad[0].reason}" if found.bad else self._nothing_chosen()
            raise SourceError(f"{self.path}: no row is a valid tick{why}{self._mend(found)}")
        found.unit = self._times.unit
        apart = OUT_OF_ORDER_MS if self.kind == "trades" else 0
        found.sorted = found.unordered > 0 and (self._options.order == "time" or (not self._options.order and found.behind_ms > apart))
        found.bad_times = "" if good_time else f"no event_time is one of 1990 to 2109: as epoch milliseconds the first would be {found.first}"
        found.bad_values = "" if good_values else "no row has a price and a size within the limits of a tick"
        found.left_out = dict(self._left_out)
        found.notes = list(
            notes(
                self.layout, self._options, self._times, self._file.columns, symbol=_canonical(self.layout.symbol, self.layout.provider),
                interval_s=self.interval_s, decimal=self._decimal, is_sorted=found.sorted, newest_first=self._newest_first,
            )
        )  # fmt: skip
        self._bounds = bounds_of(np.concatenate(samples), found.ticks)
        self._survey = found
        return found

    def chunks(self) -> Iterator[Chunk]:
        """The ticks and bad rows, some thousands at a time: in the file's order, or in the order of time where that is far from it. Raises `SourceError`."""
        chunks = self._in_file_order()
        return self._sorted(chunks) if self.survey().sorted else chunks

    def _sorted(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        with self._file.guarded():
            yield from sorted_by_time(chunks, self._bounds, CHUNK_ROWS, newest_first=self._newest_first)

    def unsorted_chunks(self) -> Iterator[Chunk]:
        """All ticks and bad rows in the file's order, whatever that is, without a first reading. Raises `SourceError`."""
        return self._in_file_order()

    def _in_file_order(self, advance: Advance = lambda done: None) -> Iterator[Chunk]:
        self._times = self._event_times()
        torn: list[int] = []
        row = 1
        left = math.inf if self.limit is None else self.limit
        for batch in self._batches(torn, advance):
            if left <= 0:
                return
            chunk = self._validated(batch, np.arange(row, row + batch.num_rows))
            row += batch.num_rows
            chunk = chunk.take(np.arange(int(left))) if len(chunk) > left else chunk
            left -= len(chunk)
            yield replace(chunk, bad=[BadRow(_row_in_file(int(at.row), torn), at.reason) for at in chunk.bad])
        if torn and left > 0:
            nothing = pa.RecordBatch.from_pylist([], schema=pa.schema([(str(number), pa.string()) for number in self._read]))
            yield replace(self._validated(nothing, np.arange(0)), bad=[BadRow(at, "not as many columns as the header") for at in torn])

    def _batches(self, torn: list[int], advance: Advance) -> Iterator[pa.RecordBatch]:
        def skip(row: int, text: str) -> None:
            if not self.layout.end_mark or not text.startswith(self.layout.end_mark):
                torn.append(row)

        return self._file.batches(self._read, skip, advance)

    @property
    def _read(self) -> list[int]:
        """The columns that are read."""
        layout = self.layout
        places = [*layout.columns.values(), *(columns for of in layout.wide.values() for columns in of.values()), *((keep.column,) for keep in layout.keep)]
        return sorted({place for some in places for place in some})

    def _event_times(self) -> EventTimes:
        return EventTimes(self.path, unit=self.layout.unit, zone=self.layout.zone, day=self.layout.day, descending=self._newest_first)

    def _decimal_sign(self) -> str:
        if self._file.is_parquet:
            return "."
        of = self.layout
        places = [of.columns.get(name, ()) for name in ("price", "size", *QUOTES)] + [place for columns in of.wide.values() for place in columns.values()]
        return decimal_sign((text for some in places for place in some for text in self._file.head[place]), self._file.delimiter)

    def _check_types(self) -> None:
        for ours, places in self.layout.columns.items():
            of = self._file.types[places[0]]
            nothing = pa.nulls(0, of) if not pa.types.is_dictionary(of) else pa.nulls(0, of.value_type)
            is_text = ours == "symbol" or ours in TEXTS
            try:
                if ours == "event_time":
                    self._event_times().read(nothing)
                elif is_text:
                    _texts(nothing)
                else:
                    numbers(nothing)
            except (pa.ArrowException, ValueError):
                what = "a text" if is_text else "a number"
                raise SourceError(f"{self.path}: column {self._file.columns[places[0]]} is {of}: it must be {what} in each row") from None

    def _look_ahead(self) -> None:
        """Reads the first rows: whether the newest come first, and how long a bar is."""
        self._times = self._event_times()
        with contextlib.closing(self._file.batches(self._read, lambda row, text: None)) as batches:
            batch = next(batches, None)
        if batch is None:
            self._set_interval(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
            return
        with self._file.guarded():
            batch, _ = self._kept(batch, np.arange(batch.num_rows))
            of = self._symbols(batch)
            times, known = self._times.read(self._joined(batch, "event_time"), self._of_bars(of))
            symbols = of.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        known = known & (times > 0)
        times, symbols = times[known], symbols[known]
        by_symbol = np.argsort(symbols, kind="stable")
        steps = np.diff(times[by_symbol])[np.diff(symbols[by_symbol]) == 0]
        self._newest_first = bool((steps < 0).sum() > (steps > 0).sum())
        self._set_interval(times, symbols)

    def _set_interval(self, times: NDArray[np.int64], symbols: NDArray[np.int64]) -> None:
        if self.kind != "bars":
            return
        layout = self.layout
        found = layout.interval_s or interval_of(times, symbols)
        if layout.own and found % 60:                            # seconds without a trade have no row
            found = 1
        if not found and midnights(times):
            found = DAY_S
        if not found and (layout.own or not len(times)):         # without a time the survey has more to report
            found = 1
        if not found:
            raise SourceError(f"{self.path}: by its rows it is not clear how long its bars last: give it with --interval (60 for minutes, 86400 for days)")
        self.interval_s = found

    def _kept(self, batch: pa.RecordBatch, row_numbers: NDArray[np.int64]) -> tuple[pa.RecordBatch, NDArray[np.int64]]:
        """The rows that are meant to be ticks."""
        chosen = np.ones(batch.num_rows, dtype=bool)
        if self.layout.end_mark:
            mark = pc.equal(batch.column(str(self.layout.columns["event_time"][0])).cast(pa.string()), self.layout.end_mark)
            chosen &= ~mark.fill_null(False).to_numpy(zero_copy_only=False)
        for keep in self.layout.keep:
            values = _plain(batch.column(str(keep.column))).cast(pa.string()).fill_null("")
            stays = pc.is_in(values, pa.array(sorted(keep.values))).to_numpy(zero_copy_only=False)
            if (lost := int((chosen & ~stays).sum())) > 0:
                self._left_out[keep.others] = self._left_out.get(keep.others, 0) + lost
            chosen &= stays
        if chosen.all():
            return batch, row_numbers
        rows = np.flatnonzero(chosen)
        return batch.take(pa.array(rows)), row_numbers[rows]

    def _joined(self, batch: pa.RecordBatch, ours: str) -> pa.Array:
        places = self.layout.columns[ours]
        if len(places) == 1:
            return batch.column(str(places[0]))
        return pc.binary_join_element_wise(*(_plain(batch.column(str(place))).cast(pa.string()) for place in places), " ")

    def _symbols(self, batch: pa.RecordBatch) -> pa.DictionaryArray:
        if "symbol" in self.layout.columns:
            return self._named(_texts(self._joined(batch, "symbol")))
        one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(batch.num_rows, dtype=np.int32)), pa.array([self.layout.symbol], pa.string()))
        return self._named(one)

    def _of_bars(self, symbols: pa.DictionaryArray) -> pa.DictionaryArray | None:
        return symbols if self.kind == "bars" else None

    def _named(self, texts: pa.DictionaryArray) -> pa.DictionaryArray:
        """Symbols in the form of the log."""
        names = texts.dictionary.to_pylist()
        known = [_canonical(name, self.layout.provider) for name in names]
        return texts if known == names else pa.DictionaryArray.from_arrays(texts.indices, pa.array(known, pa.string()))

    def _validated(self, batch: pa.RecordBatch, row_numbers: NDArray[np.int64]) -> Chunk:
        with self._file.guarded():
            batch, row_numbers = self._kept(batch, row_numbers)
            symbols = self._symbols(batch)
            times, timed = self._times.read(self._joined(batch, "event_time"), self._of_bars(symbols))
            if self.layout.wide:
                return self._of_frame(batch, row_numbers, times, timed)
            present = self.layout.columns
            read = {name: self._number(self._joined(batch, name), name) for name in ("price", "size", *QUOTES) if name in present}
            texts = {name: _texts(self._joined(batch, name)) for name in TEXTS if name in present}
            size = read.pop("size", np.zeros(batch.num_rows))    # an index has no volume
            return self._checked(Chunk(symbols, times, read.pop("price"), size, read, texts, []), timed, row_numbers)

    def _of_frame(self, batch: pa.RecordBatch, row_numbers: NDArray[np.int64], times: NDArray[np.int64], timed: NDArray[np.bool_]) -> Chunk:
        """Each row of a frame has a bar of each of its symbols; one without a close is none."""
        symbols = list(self.layout.wide)
        price, size = (
            np.column_stack([self._number(batch.column(str(of[ours][0])), ours) for of in self.layout.wide.values()]).ravel() for ours in ("price", "size")
        )
        filled = np.flatnonzero(~np.isnan(price))
        at, codes = np.divmod(filled, len(symbols))
        names = self._named(pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(symbols, pa.string())))
        return self._checked(Chunk(names, times[at], price[filled], size[filled], {}, {}, []), timed[at], row_numbers[at])

    def _number(self, column: pa.Array, ours: str) -> NDArray[np.float64]:
        values = numbers(_plain(column), self._decimal)
        divisor = self.layout.divisors.get(ours)
        return values if divisor is None else values / divisor

    def _checked(self, chunk: Chunk, timed: NDArray[np.bool_], row_numbers: NDArray[np.int64]) -> Chunk:
        """Those rows of the chunk that are wanted and can be ticks; a bar's time is its start until then."""
        value, volume, rows = chunk.price, chunk.size, len(chunk)
        empty = np.isnan(value) & np.isnan(volume)
        if self.kind == "bars" and not self.layout.own:
            volume = np.where(np.isnan(volume) & ~empty, 0.0, volume)
        quoted = np.zeros(rows, dtype=bool)
        for name in ("bid", "ask"):
            quoted |= np.isfinite(chunk.quotes[name]) if name in chunk.quotes else False
        codes = chunk.symbols.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        names = chunk.symbols.dictionary.to_pylist()
        named = ~np.isin(codes, [-1, *(code for code, name in enumerate(names) if not name)])
        wanted = ~named | np.isin(codes, [code for code, name in enumerate(names) if name in self.symbols]) if self.symbols else np.full(rows, True)
        faults = [("symbol is missing", ~named), ("event_time is missing or not a time", ~timed)]
        times = chunk.times
        if self.kind == "bars":
            traded = ~np.isnan(volume)
            times = times + (self.interval_s * 1000 - 1)
            faults += [("without a volume it must have a bid or an ask", ~traded & ~quoted), ("close is missing or not a number", traded & ~np.isfinite(value))]
        else:
            traded = ~np.isnan(value)
            quote = ~traded & quoted & (np.isnan(volume) | (volume == 0))
            faults += [("price is missing or not a number", ~quote & ~np.isfinite(value)), ("size is missing or not a number", ~quote & ~np.isfinite(volume))]
        wanted &= ~timed | self.span.has(times)
        if self.kind == "bars" and not self.layout.own and (lost := int((empty & wanted).sum())):
            self._left_out["without a price"] = self._left_out.get("without a price", 0) + lost
            wanted &= ~empty
        bad: dict[int, str] = {}
        for reason, where in faults:
            for i in np.flatnonzero(where & wanted).tolist():
                bad.setdefault(i, reason)
        wanted[list(bad)] = False
        bad_rows = [BadRow(int(row_numbers[i]), bad[i]) for i in sorted(bad)]
        found = replace(chunk, times=times, price=np.where(traded, value, np.nan), size=np.where(traded, volume, 0.0), bad=bad_rows)
        return found if wanted.all() else found.take(np.flatnonzero(wanted))

    def _nothing_chosen(self) -> str:
        of = [" of these symbols"] if self.symbols else []
        of += [" of these times"] if self.span != ALL_TIMES else []
        return " or".join(of)

    def _mend(self, found: Survey) -> str:
        """Which option helps where no row can be read."""
        reason = found.bad[0].reason if found.bad else ""
        names = {ours: "+".join(self._file.columns[place] for place in places) for ours, places in self.layout.columns.items()}
        if reason.startswith("event_time"):
            if self._times.skipped_by_clock and self.layout.zone:
                return f"; the clocks of {self.layout.zone} never showed it: name another --zone"
            value = self._first_value("event_time")
            pattern = "--unit s, ms, us, ns, date or a pattern such as '%d/%m/%Y %H:%M:%S'"
            return f" (column {names.get('event_time')}, {value!r}); name its form with {pattern}, or another column with --columns event_time=NAME"
        if reason.startswith(("price", "close", "size")):
            ours = "size" if reason.startswith("size") else "price"
            word = reason.split()[0]
            return f" (column {names.get(ours)}, {self._first_value(ours)!r}); name another column with --columns {word}=NAME, or --decimal , or ."
        return ""

    def _first_value(self, ours: str) -> str:
        places = self.layout.columns.get(ours, ())
        return " ".join(next(iter(self._file.head[place]), "") for place in places)[:60]


def _canonical(name: str, provider: str) -> str:
    if not provider or not name:
        return composed(name)
    try:
        return from_provider(name, provider)
    except SourceError:
        return composed(name)                                    # of a kind that is not known: it stays, and `clean` judges it


def _between(name: str, values: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.bool_]:
    low, high = RANGES[name]
    found: NDArray[np.bool_] = (values >= low) & (values <= high)
    return found


def _row_in_file(row: int, torn: list[int]) -> int:
    """The number in the file of the row that is `row`-th of those that could be parsed."""
    for at in sorted(torn):
        row += at <= row
    return row


def _plain(column: pa.Array) -> pa.Array:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _texts(column: pa.Array) -> pa.DictionaryArray:
    return _plain(column).cast(pa.string()).dictionary_encode()
