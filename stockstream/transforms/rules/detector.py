"""The anomaly rules: rows of closed seconds in, alerts and market summaries out, for one partition.

| rule | condition, on a row that is not `revised` | value | baseline | threshold |
| --- | --- | --- | --- | --- |
| `volume_spike` | volume > 0, seconds_5m >= 120, volume >= 8 x volume_5m / seconds_5m | volume | volume_5m / seconds_5m | 8 x baseline |
| `price_drop` | close <= 0.99 x price_60s | close | price_60s | 0.99 x baseline |

One alert of a rule is open at a time for a symbol. It is `opened` by the first row with the condition, `updated` by a later one whose value is strictly
more extreme than every value told so far, and `closed` once the condition has been gone for 60 s of the log's clock: by the first closing of its source
that reaches `last second with the condition + 60`, with `as_of` (that second + 1) x 1000, whether the symbol had rows there or not. Where another source
takes the symbol over, the takeover's first closing with a row of it closes it first of all, with the same `as_of`.
So alerts are a pure function of the raw log.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stockstream.records import Alert, Closing
from stockstream.transforms.changelog_index import ChangelogIndex, Range
from stockstream.transforms.frames import Frame, bounds_of_runs, numbers
from stockstream.transforms.rules import state as alert_state
from stockstream.transforms.rules.state import FORMAT, MAX_LASTS, WINDOW_COLUMNS, Head, Kept, OpenAlert, Severity, bucket_of, source_id
from stockstream.transforms.timing import FORGET_MS
from stockstream.transforms.versioned import TERMS, pack

VOLUME_SPIKE: Final = "volume_spike"
PRICE_DROP: Final = "price_drop"
VOLUME_MULTIPLE = 8.0
VOLUME_CRITICAL_MULTIPLE = 16.0
VOLUME_MIN_SECONDS = 120
PRICE_FACTOR = 0.99
PRICE_CRITICAL_FACTOR = 0.97
QUIET_S = 60

LONG_ALERTS = 1_000
"""That a frame may open, or that are open and may close with it: it takes some 30 us each."""
RULES = (PRICE_DROP, VOLUME_SPIKE)
"""Every rule by its name, in the order of their alerts in the topic."""
_SECOND, _CLOSE, _VOLUME, _PRICE_60S, _VOLUME_5M, _SECONDS_5M = map(
    WINDOW_COLUMNS.index, ("second", "close", "volume", "price_60s", "volume_5m", "seconds_5m")
)


@dataclass(slots=True)
class _Source:
    """What is kept of a source while it has open alerts."""

    alerts: dict[tuple[str, str], OpenAlert] = field(default_factory=dict)
    due: float = math.inf
    """No alert is due before this second."""
    closed: int = -1
    """Its last closed second; -1 where that is not known."""
    touched: int = 0
    """The log's time (epoch ms) when it was last in a frame; 0: the next that is known."""


@dataclass(slots=True)
class _Bucket:
    """The open alerts of some symbols, and what is stored of them."""

    alerts: dict[tuple[str, str], OpenAlert] = field(default_factory=dict)
    stored: int = -1
    """What its record counts through."""
    slot: int = 1
    """Of its record."""
    order: list[OpenAlert] = field(default_factory=list)
    """The alerts of its record."""


@dataclass(frozen=True, slots=True)
class Detected:
    """What a frame brought: alerts by (closing offset, source, second, symbol, rule), summaries by (closing offset, source, second).

    A summary counts the rows that are not `revised`; `advancers`, `decliners`, `unchanged` and the sums are over `returns_60s` symbols with a `return_60s`.
    """

    alerts: list[Alert] = field(default_factory=list)
    markets: list[dict[str, Any]] = field(default_factory=list)


class Detector:
    """The rules' state for one partition.

    `log` is the raw log's id, `expect` the next raw offset (-1 before the first frame).
    """

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.log = ""
        self.expect = -1
        self.resume_input = 0
        """Offset in `windows` to go on from."""
        self._sources: dict[str, _Source] = {}
        self._owner: dict[str, str] = {}
        self._buckets: dict[int, _Bucket] = {}
        self._dirty: set[int] = set()
        """Buckets whose record is not what they are."""
        self._touched: set[int] = set()
        """Buckets of whose alerts nothing but `last` may differ from the record."""
        self._ahead: dict[int, Kept] = {}
        """After a restart: buckets that count further than the log is taken, put in place when it gets there."""
        self._moved = False
        self.index = ChangelogIndex()

    @property
    def open_alerts(self) -> list[OpenAlert]:
        """The alerts that are open, by symbol and rule."""
        ahead = [alert for kept in self._ahead.values() for alert in kept.alerts]
        return sorted(ahead + [alert for source in self._sources.values() for alert in source.alerts.values()], key=_order)

    def feed(self, frame: Frame, input_offset: int = 0) -> Detected | None:
        """Apply a whole frame of `windows`, in log order.

        None where the shell must drop the frame: it starts beyond `expect`, or belongs to an older log. What was applied before changes nothing.
        """
        if frame.log < self.log:
            return None
        if frame.log > self.log:
            self._reset(frame.log)
        if self.expect >= 0:
            if frame.start > self.expect:
                return None
            if frame.through < self.expect:
                return Detected()
        found = Detected()
        closings = sorted((c for c in frame.closings if c.offset >= self.expect), key=lambda c: (c.offset, c.source))
        columns = _Columns(frame.rows)
        summaries = columns.summaries(self.partition)
        for closing in closings:
            place = (closing.offset, closing.source)
            if self._ahead:
                self._reach(closing.offset)
            self._close_seconds(columns, columns.spans.get(place, slice(0, 0)), closing, found.alerts)
            found.markets.extend(summaries.get(place, ()))
        if self._ahead:
            self._reach(frame.through + 1)
        self._end_silent(frame.clock, {closing.source for closing in closings}, found.alerts)
        self.expect = frame.through + 1
        self.resume_input = input_offset + 1
        self._moved = True
        return found

    def skip_to(self, start: int) -> None:
        """The input has lost what was before: goes on from a frame that starts there."""
        self.expect = max(self.expect, start)

    def takes_long(self, rows: pa.RecordBatch) -> bool:
        """Whether these rows may open, update or close a thousand alerts."""
        if sum(len(source.alerts) for source in self._sources.values()) >= LONG_ALERTS or self._ahead:
            return True
        return rows.num_rows >= LONG_ALERTS and int(np.count_nonzero(np.logical_or(*_conditions(rows)))) >= LONG_ALERTS // len(RULES)

    # -- state --------------------------------------------------------------

    def records(self, term: int = 0) -> list[tuple[bytes, bytes]]:
        """Keys and values of what changed since the last call, in the order of writing: buckets of open alerts, then the head (`alert_state`).

        Keys carry the log's id, so that a record of an older log can never win over one of a newer, and the writer's term
        (modulo 8), so that a woken worker can only replace what it wrote itself. Where they have come to lie is told to `index.confirmed`.
        """
        if self.expect < 0 or not self._moved:
            return []
        place, through = f"{self.partition}/{self.log}/{term % TERMS}", self.expect - 1
        lasts = self._lasts()
        out: list[tuple[bytes, bytes]] = []
        for number in sorted(self._dirty):
            bucket = self._buckets[number]
            bucket.order = sorted(bucket.alerts.values(), key=_order)
            bucket.stored, bucket.slot = through, 1 - bucket.slot
            out += alert_state.bucket_records(place, alert_state.bucket(through, self.log, number, bucket.slot, bucket.order))
            if not bucket.alerts:
                del self._buckets[number]
        buckets = {number: bucket.stored for number, bucket in self._buckets.items()}
        buckets |= {number: kept.stored for number, kept in self._ahead.items() if kept.alerts}
        self.index.keep({str(number) for number in buckets})
        head = Head(
            v=FORMAT, through=through, log=self.log, resume=self.resume_input, ranges=self.index.needed({}), buckets=buckets, lasts=lasts,
            sources={source_id(name): (source.touched, source.closed) for name, source in self._sources.items()},
        )  # fmt: skip
        out.append((f"{place}/head".encode(), pack(head)))
        self.index.written({}, [str(number) for number in self._dirty])
        self._dirty.clear()
        self._moved = False
        return out

    def _lasts(self) -> dict[int, list[int]]:
        """The `last` of alerts that the head is to carry; buckets whose would be too many are written again."""
        self._touched -= self._dirty
        out: dict[int, list[int]] = {}
        count = 0
        for number in sorted(self._touched):
            order = self._buckets[number].order
            count += len(order)
            if count > MAX_LASTS:
                self._dirty.add(number)
            else:
                out[number] = [alert.last - alert.opened for alert in order]
        self._touched -= self._dirty
        return out

    @staticmethod
    def readable(key: bytes, value: bytes) -> str:
        """Why a record is none of `detect`; empty where it can be read. Raises `StateError` where a newer stockstream wrote it."""
        return alert_state.readable(key, value)

    @staticmethod
    def needs(records: Mapping[bytes, bytes]) -> list[Range] | None:
        """The ranges of the changelog that the best head among these records names; None where there is no head."""
        heads = [alert_state.head_of(value) for key, value in records.items() if alert_state.is_head(key)]
        return max(heads, key=lambda head: (head.log, head.through, head.resume)).ranges if heads else None

    @classmethod
    def restore(cls, partition: int, records: Mapping[bytes, bytes], offsets: Mapping[bytes, int] | None = None) -> Detector:
        """The detector as its records describe it; those of other partitions and of older logs are ignored. `offsets` in the changelog, by key.

        Raises `StateError`.
        """
        detector = cls(partition)
        detector.log, found, buckets = alert_state.restored(partition, records)
        if found is not None:
            head, key = found
            detector.expect, detector.resume_input = head.through + 1, head.resume
            if offsets:
                detector.index.restored(offsets[key], {})                # what is needed of before has a name
        for number, kept in buckets.items():
            if offsets and kept.alerts and not kept.outdated:
                places = [offsets[key] for key in kept.keys]
                detector.index.restored(max(places), {}, [str(number)], first=min(places))
            detector._ahead[number] = kept
            for alert in kept.alerts:
                detector._sources.setdefault(alert.source, _Source())
        known = found[0].sources if found is not None else {}
        for name, source in detector._sources.items():
            source.touched, source.closed = known.get(source_id(name), (0, -1))
        detector._reach(detector.expect)
        return detector

    def _reset(self, log: str) -> None:
        self.log = log
        self.index.clear()
        self.expect = -1
        self._sources, self._owner, self._buckets, self._ahead = {}, {}, {}, {}
        self._dirty, self._touched = set(), set()

    def _reach(self, offset: int) -> None:
        """The log goes on with this raw offset: buckets that count all before it are put in place."""
        due = [number for number, kept in self._ahead.items() if kept.through < offset]
        for number in due:
            kept = self._ahead.pop(number)
            for alert in kept.alerts:
                self._keep(alert, number)
            if kept.alerts:
                bucket = self._buckets[number]
                bucket.stored, bucket.slot, bucket.order = kept.stored, kept.slot, kept.alerts
            self._dirty.discard(number)
            if kept.outdated and kept.alerts:
                self._dirty.add(number)
            elif kept.touched:
                self._touched.add(number)
        if due and not self._ahead:
            self._sources = {name: source for name, source in self._sources.items() if source.alerts}

    def _keep(self, alert: OpenAlert, number: int) -> None:
        source = self._sources.get(alert.source)
        if source is None:
            source = self._sources[alert.source] = _Source()
        source.alerts[alert.symbol, alert.rule] = alert
        source.due = min(source.due, alert.last + QUIET_S)
        self._owner[alert.symbol] = alert.source
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = _Bucket()
        bucket.alerts[alert.symbol, alert.rule] = alert
        self._dirty.add(number)

    def _drop(self, alert: OpenAlert) -> None:
        source, number = self._sources[alert.source], bucket_of(alert.symbol)
        del source.alerts[alert.symbol, alert.rule], self._buckets[number].alerts[alert.symbol, alert.rule]
        self._dirty.add(number)
        if self._owner.get(alert.symbol) == alert.source and not any((alert.symbol, rule) in source.alerts for rule in RULES):
            del self._owner[alert.symbol]
        if not source.alerts and not self._ahead:
            del self._sources[alert.source]

    # -- the life of alerts -------------------------------------------------

    def _close_seconds(self, columns: _Columns, rows: slice, closing: Closing, out: list[Alert]) -> None:
        name, second = closing.source, closing.second
        self._end_taken_over(columns, rows, name, out)
        source = self._sources.get(name)
        if source is not None and source.closed not in (-1, closing.after):
            self._end_all(source, out)                                   # `clean` has forgotten the source since: this is another series
        hits = columns.hits(rows)
        if self._ahead:
            hits = [hit for hit in hits if bucket_of(hit.symbol) not in self._ahead]
        position = 0
        while True:
            source = self._sources.get(name)
            due = source.due if source is not None else math.inf
            now = min(hits[position].second if position < len(hits) else math.inf, due)
            if now > second and position == len(hits):
                break
            told: list[Alert] = []
            touched: set[tuple[str, str]] = set()
            while position < len(hits) and hits[position].second == now:
                hit = hits[position]
                position += 1
                touched.add((hit.symbol, hit.rule))
                told += self._hit(hit, name)
            if source is not None and due <= now:
                told += [self._end(alert) for key, alert in list(source.alerts.items()) if alert.last + QUIET_S <= now and key not in touched]
                source.due = min((alert.last + QUIET_S for alert in source.alerts.values()), default=math.inf)
            told.sort(key=_order)
            out += told
        source = self._sources.get(name)
        if source is not None:
            source.closed = second

    def _end_taken_over(self, columns: _Columns, rows: slice, source: str, out: list[Alert]) -> None:
        """Close what another source left open in symbols that this one now speaks of."""
        if self._sources.keys() <= {source}:
            return
        for symbol in sorted(symbol for symbol in columns.symbols(rows) if self._owner.get(symbol, source) != source):
            left = self._sources[self._owner[symbol]].alerts
            out += [self._end(left[symbol, rule]) for rule in RULES if (symbol, rule) in left]

    def _end_silent(self, clock: int, heard: set[str], out: list[Alert]) -> None:
        """Close what sources left open that were in no frame for FORGET_MS of the log's time."""
        for name in sorted(self._sources):
            source = self._sources[name]
            if name in heard or not source.touched:
                source.touched = clock
            elif clock - source.touched > FORGET_MS:
                self._end_all(source, out)

    def _end_all(self, source: _Source, out: list[Alert]) -> None:
        out += [self._end(alert) for alert in sorted(source.alerts.values(), key=_order)]

    def _hit(self, hit: _Hit, source: str) -> list[Alert]:
        symbol, rule, window = hit.symbol, hit.rule, hit.window
        second = hit.second
        value, baseline, threshold, severity = _judge(rule, window)
        own = self._sources.get(source)
        alert = own.alerts.get((symbol, rule)) if own is not None else None
        if alert is None:
            alert = OpenAlert(symbol, rule, source, second, second, severity, value, baseline, threshold, window)
            self._keep(alert, bucket_of(symbol))
            return [_tell(alert, "opened", second, _sentence(alert))]
        alert.last = second
        if not (value > alert.value if rule == VOLUME_SPIKE else value < alert.value):
            self._touched.add(bucket_of(symbol))
            return []
        alert.value, alert.baseline, alert.threshold, alert.window = value, baseline, threshold, window
        if severity == "critical":
            alert.severity = severity
        self._dirty.add(bucket_of(symbol))
        return [_tell(alert, "updated", second, _sentence(alert))]

    def _end(self, alert: OpenAlert) -> Alert:
        self._drop(alert)
        since = datetime.fromtimestamp(alert.last, UTC).strftime("%H:%M:%S")
        what = "volume back to normal" if alert.rule == VOLUME_SPIKE else "no longer 1 % below the price a minute before"
        return _tell(alert, "closed", alert.last + QUIET_S, f"{alert.symbol}: {what} for {QUIET_S} s, since {since} UTC.")


class _Hit(NamedTuple):
    """A row that has a rule's condition, with its values of WINDOW_COLUMNS."""

    second: int
    symbol: str
    rule: str
    window: tuple[Any, ...]


def _order(alert: OpenAlert | Alert) -> tuple[str, str]:
    return alert.symbol, alert.rule


def _values(rows: pa.RecordBatch, found: NDArray[np.int64]) -> list[tuple[Any, ...]]:
    """WINDOW_COLUMNS of these rows, null as None."""
    out: list[list[Any]] = []
    indices = pa.array(found)
    for name in WINDOW_COLUMNS:
        column = rows.column(name)
        if pa.types.is_string(column.type):
            texts = column.take(indices).dictionary_encode()
            known = texts.dictionary.to_pylist()
            out.append([known[number] for number in texts.indices.to_numpy().tolist()])
        else:
            numbers_of = numbers(rows, name)[found]
            values = numbers_of.tolist()
            if numbers_of.dtype.kind == "f":
                for place in np.flatnonzero(np.isnan(numbers_of)).tolist():
                    values[place] = None
            out.append(values)
    return list(zip(*out, strict=True))


def _conditions(rows: pa.RecordBatch) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """By row, whether the condition of each of RULES holds; also for rows that are `revised`."""
    volume, volume_5m, seconds_5m = numbers(rows, "volume"), numbers(rows, "volume_5m"), numbers(rows, "seconds_5m")
    usual = volume_5m / np.maximum(seconds_5m, 1)
    drop = numbers(rows, "close") <= PRICE_FACTOR * numbers(rows, "price_60s")
    return drop, (volume > 0) & (seconds_5m >= VOLUME_MIN_SECONDS) & (volume >= VOLUME_MULTIPLE * usual)


class _Columns:
    """A frame's rows as numpy columns; rows of one closing are neighbours, and `spans` says where."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self._symbol = rows.column("symbol")
        self._offset, self._second = numbers(rows, "offset"), numbers(rows, "second")
        self._volume, self._ticks = numbers(rows, "volume"), numbers(rows, "ticks")
        self._return_60s = numbers(rows, "return_60s")
        self._fresh = ~np.asarray(rows.column("revised").to_numpy(zero_copy_only=False), dtype=bool)
        sources = rows.column("source").dictionary_encode()
        self._sources, self._source = sources.dictionary.to_pylist(), sources.indices.to_numpy()
        bounds = bounds_of_runs(self._offset, self._source)
        self.spans = {self._place(low): slice(low, high) for low, high in pairwise(bounds)}
        drop, spike = _conditions(rows)
        self._hit_rows, self._hits = self._find(rows, spike & self._fresh, drop & self._fresh)

    def _find(self, rows: pa.RecordBatch, spike: NDArray[np.bool_], drop: NDArray[np.bool_]) -> tuple[list[int], list[_Hit]]:
        """The rows with a condition and what hits them, a row with both conditions twice."""
        found = np.flatnonzero(spike | drop)
        if not len(found):
            return [], []
        windows, symbols = _values(rows, found), self._symbol.take(pa.array(found)).to_pylist()
        hits = [
            (index, _Hit(window[_SECOND], symbol, rule, window))
            for index, symbol, window, masks in zip(
                found.tolist(), symbols, windows, zip(drop[found].tolist(), spike[found].tolist(), strict=True), strict=True
            )
            for rule, hit in zip(RULES, masks, strict=True)
            if hit
        ]
        return [index for index, _ in hits], [hit for _, hit in hits]

    def hits(self, rows: slice) -> list[_Hit]:
        """What hits these rows, by second, symbol, rule."""
        found = self._hits[bisect_left(self._hit_rows, rows.start) : bisect_left(self._hit_rows, rows.stop)]
        return sorted(found, key=lambda hit: hit.second)

    def symbols(self, rows: slice) -> set[str]:
        """Symbols of the rows that are not revised."""
        return set(self._symbol.slice(rows.start, rows.stop - rows.start).filter(pa.array(self._fresh[rows])).to_pylist())

    def summaries(self, partition: int) -> dict[tuple[int, str], list[dict[str, Any]]]:
        """By closing, a summary of each second with rows that are not revised."""
        fresh = np.flatnonzero(self._fresh)
        bounds = bounds_of_runs(self._offset[fresh], self._source[fresh], self._second[fresh])
        starts, sizes = bounds[:-1], np.diff(bounds).tolist()
        returns = self._return_60s[fresh]
        known = ~np.isnan(returns)
        up, down, with_return, volume, ticks = (
            np.add.reduceat(values, starts, dtype=np.int64).tolist() if starts else []
            for values in (returns > 0, returns < 0, known, self._volume[fresh], self._ticks[fresh])
        )
        values, squares = returns[known].tolist(), (returns * returns)[known].tolist()
        out: dict[tuple[int, str], list[dict[str, Any]]] = {}
        after = 0
        for number, first in enumerate(fresh[starts].tolist()):
            before, after = after, after + with_return[number]
            offset, source = place = self._place(first)
            out.setdefault(place, []).append({
                "partition": partition, "source": source, "second": int(self._second[first]), "offset": offset, "symbols": sizes[number],
                "advancers": up[number], "decliners": down[number], "unchanged": with_return[number] - up[number] - down[number],
                "volume": volume[number], "ticks": ticks[number], "returns_60s": with_return[number],
                "sum_return_60s": math.fsum(values[before:after]), "sum_square_return_60s": math.fsum(squares[before:after]),
            })  # fmt: skip
        return out

    def _place(self, row: int) -> tuple[int, str]:
        """Offset and source of the row's closing."""
        return int(self._offset[row]), self._sources[self._source[row]]


def _judge(rule: str, window: tuple[Any, ...]) -> tuple[float, float, float, Severity]:
    if rule == VOLUME_SPIKE:
        value, baseline = float(window[_VOLUME]), window[_VOLUME_5M] / window[_SECONDS_5M]
        return value, baseline, VOLUME_MULTIPLE * baseline, "critical" if value >= VOLUME_CRITICAL_MULTIPLE * baseline else "warning"
    value, baseline = window[_CLOSE], window[_PRICE_60S]
    return value, baseline, PRICE_FACTOR * baseline, "critical" if value <= PRICE_CRITICAL_FACTOR * baseline else "warning"


def _sentence(alert: OpenAlert) -> str:
    if alert.rule == VOLUME_SPIKE:
        times = f"{alert.value / alert.baseline:.1f} times"
        return f"{alert.symbol}: {alert.value:,.0f} shares in one second, {times} the 5-minute average of {alert.baseline:,.1f}."
    return f"{alert.symbol}: {alert.value:,.2f} is {100 * (1 - alert.value / alert.baseline):.2f} % below {alert.baseline:,.2f}, the price 60 s before."


def _tell(alert: OpenAlert, state: Literal["opened", "updated", "closed"], second: int, message: str) -> Alert:
    return Alert(
        id=f"{alert.symbol}-{alert.rule}-{alert.opened}", symbol=alert.symbol, rule=alert.rule, state=state, severity=alert.severity,
        opened_at=(alert.opened + 1) * 1000, as_of=(second + 1) * 1000, value=alert.value, baseline=alert.baseline, threshold=alert.threshold,
        message=message, window=dict(zip(WINDOW_COLUMNS, alert.window, strict=True)),
    )  # fmt: skip
