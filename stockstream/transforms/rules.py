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
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final, Literal

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stockstream.errors import StateError
from stockstream.records import Alert
from stockstream.transforms.changelog import ChangelogIndex, Range, named
from stockstream.transforms.frames import Frame, bounds_of_runs, numbers

VOLUME_SPIKE: Final = "volume_spike"
PRICE_DROP: Final = "price_drop"
RULES = (VOLUME_SPIKE, PRICE_DROP)
"""Every rule by its name."""
VOLUME_MULTIPLE = 8.0
VOLUME_CRITICAL_MULTIPLE = 16.0
VOLUME_MIN_SECONDS = 120
PRICE_FACTOR = 0.99
PRICE_CRITICAL_FACTOR = 0.97
QUIET_S = 60

WINDOW_COLUMNS = (
    "source", "second", "close", "volume", "ticks", "mid", "price_60s", "mean_5m", "vwap_5m", "volume_5m", "high_5m", "low_5m",
    "return_std_5m", "ticks_5m", "seconds_5m", "quality", "partition", "offset",
)  # fmt: skip
"""What of the row an alert carries as its `window`."""

Severity = Literal["warning", "critical"]


@dataclass(slots=True)
class OpenAlert:
    """An alert not closed yet: what was told last, and the last second (epoch s) with the condition."""

    symbol: str
    rule: str
    source: str
    opened: int
    last: int
    severity: Severity
    value: float
    baseline: float
    threshold: float
    window: dict[str, Any]

    @property
    def due(self) -> int:
        """The second (epoch s) whose closing closes the alert."""
        return self.last + QUIET_S


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
        self._open: dict[str, dict[tuple[str, str], OpenAlert]] = {}
        self._owner: dict[str, str] = {}
        self._changed = False
        self._moved = False
        self.index = ChangelogIndex()

    @property
    def open_alerts(self) -> list[OpenAlert]:
        """The alerts that are open, by symbol and rule."""
        return sorted((alert for by in self._open.values() for alert in by.values()), key=lambda alert: (alert.symbol, alert.rule))

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
            self._close_seconds(columns, columns.spans.get(place, slice(0, 0)), closing.source, closing.second, found.alerts)
            found.markets.extend(summaries.get(place, ()))
        self.expect = frame.through + 1
        self.resume_input = input_offset + 1
        self._moved = True
        return found

    def skip_to(self, start: int) -> None:
        """The input has lost what was before: goes on from a frame that starts there."""
        self.expect = start

    def records(self, term: int = 0, everything: bool = False) -> list[tuple[bytes, bytes]]:
        """Keys and msgpack values of what changed since the last call, in the order of writing; all of the state with `everything`.

        A value begins with `through`. Keys carry the log's id, so that a record of an older log can never win over one of a newer, and the writer's term
        (modulo 8), so that a woken worker can only replace what it wrote itself. Where they have come to lie is told to `index.confirmed`.
        """
        out: list[tuple[bytes, bytes]] = []
        through = self.expect - 1
        changed = self.expect >= 0 and (self._changed or everything)
        if changed:
            out.append((self._key("open", term), msgspec.msgpack.encode([through, self.log, [asdict(alert) for alert in self.open_alerts]])))
        if self.expect >= 0 and (self._moved or everything):
            out.append((self._key("head", term), msgspec.msgpack.encode([through, self.log, self.resume_input, self.index.needed({})])))
        if out:
            self.index.written({}, ["open"] if changed else [])
        self._changed = self._moved = False
        return out

    @staticmethod
    def needs(records: Mapping[bytes, bytes]) -> list[Range] | None:
        """The ranges of the changelog that the best head among these records names; None where there is no head."""
        return named([msgspec.msgpack.decode(value) for key, value in records.items() if key.endswith(b"/head")])

    @classmethod
    def restore(cls, partition: int, records: Mapping[bytes, bytes], offsets: Mapping[bytes, int] | None = None) -> Detector:
        """The detector as its records describe it; those of other partitions and of older logs are ignored. `offsets` in the changelog, by key.

        Raises `StateError`.
        """
        detector = cls(partition)
        prefix = b"%d/" % partition
        own = [(key, value) for key, value in records.items() if key.startswith(prefix)]
        try:
            decoded = [(key.rpartition(b"/")[2], [*msgspec.msgpack.decode(value), offsets[key] if offsets else 0]) for key, value in own]
            if not decoded:
                return detector
            detector.log = max(value[1] for _, value in decoded)
            newest: dict[bytes, list[Any]] = {}
            for name, value in decoded:
                if value[1] == detector.log and value[0] >= newest.get(name, [-2])[0]:
                    newest[name] = value
            detector.resume_input = newest.get(b"head", (0, "", 0))[2]
            detector.expect = max(value[0] for value in newest.values()) + 1
            if b"open" in newest:
                _, _, alerts, offset = newest[b"open"]
                detector.index.restored(offset, {}, ["open"])
                for alert in alerts:
                    detector._keep(OpenAlert(**alert))
        except (msgspec.MsgspecError, TypeError, IndexError, KeyError) as error:
            raise StateError(f"the state of detect for partition {partition} cannot be read: {error}") from error
        return detector

    def _key(self, name: str, term: int) -> bytes:
        return f"{self.partition}/{self.log}/{term % 8}/{name}".encode()

    def _reset(self, log: str) -> None:
        self.log = log
        self.index.clear()
        self.expect = -1
        self._open = {}
        self._owner = {}
        self._changed = True

    def _keep(self, alert: OpenAlert) -> None:
        self._open.setdefault(alert.source, {})[alert.symbol, alert.rule] = alert
        self._owner[alert.symbol] = alert.source

    def _drop(self, alert: OpenAlert) -> None:
        by = self._open[alert.source]
        del by[alert.symbol, alert.rule]
        if not any(symbol == alert.symbol for symbol, _ in by):
            del self._owner[alert.symbol]
        if not by:
            del self._open[alert.source]

    def _close_seconds(self, columns: _Columns, rows: slice, source: str, second: int, out: list[Alert]) -> None:
        self._end_taken_over(columns, rows, source, out)
        hits = columns.hits(rows)
        if not hits and source not in self._open:
            return
        position = 0
        while True:
            own = self._open.get(source, {})
            now = min(hits[position].second if position < len(hits) else math.inf, min((alert.due for alert in own.values()), default=math.inf))
            if now > second and position == len(hits):
                break
            told: list[Alert] = []
            touched: set[tuple[str, str]] = set()
            while position < len(hits) and hits[position].second == now:
                hit = hits[position]
                position += 1
                touched.add((hit.symbol, hit.rule))
                told += self._hit(hit.row, hit.symbol, hit.rule, source)
            told += [self._end(alert) for key, alert in list(own.items()) if alert.due <= now and key not in touched]
            out += sorted(told, key=lambda alert: (alert.symbol, alert.rule))

    def _end_taken_over(self, columns: _Columns, rows: slice, source: str, out: list[Alert]) -> None:
        """Close what another source left open in symbols that this one now speaks of."""
        if self._open.keys() <= {source}:
            return
        foreign = {symbol for symbol, owner in self._owner.items() if owner != source}
        for symbol in sorted(foreign and foreign.intersection(columns.symbols(rows))):
            left = [alert for (name, _), alert in self._open[self._owner[symbol]].items() if name == symbol]
            out += [self._end(alert) for alert in sorted(left, key=lambda alert: alert.rule)]

    def _hit(self, row: dict[str, Any], symbol: str, rule: str, source: str) -> list[Alert]:
        second = int(row["second"])
        value, baseline, threshold, severity = _judge(rule, row)
        self._changed = True
        alert = self._open.get(source, {}).get((symbol, rule))
        if alert is None:
            alert = OpenAlert(symbol, rule, source, second, second, severity, value, baseline, threshold, row)
            self._keep(alert)
            return [_tell(alert, "opened", second, _sentence(alert))]
        alert.last = second
        if not (value > alert.value if rule == VOLUME_SPIKE else value < alert.value):
            return []
        alert.value, alert.baseline, alert.threshold, alert.window = value, baseline, threshold, row
        if severity == "critical":
            alert.severity = severity
        return [_tell(alert, "updated", second, _sentence(alert))]

    def _end(self, alert: OpenAlert) -> Alert:
        self._drop(alert)
        self._changed = True
        since = datetime.fromtimestamp(alert.last, UTC).strftime("%H:%M:%S")
        what = "volume back to normal" if alert.rule == VOLUME_SPIKE else "no longer 1 % below the price a minute before"
        return _tell(alert, "closed", alert.due, f"{alert.symbol}: {what} for {QUIET_S} s, since {since} UTC.")


@dataclass(frozen=True, slots=True)
class _Hit:
    """A row that has a rule's condition."""

    second: int
    symbol: str
    rule: str
    row: dict[str, Any]


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
        volume_5m, seconds_5m = numbers(rows, "volume_5m"), numbers(rows, "seconds_5m")
        usual = volume_5m / np.maximum(seconds_5m, 1)
        spike = (self._volume > 0) & (seconds_5m >= VOLUME_MIN_SECONDS) & (self._volume >= VOLUME_MULTIPLE * usual) & self._fresh
        drop = (numbers(rows, "close") <= PRICE_FACTOR * numbers(rows, "price_60s")) & self._fresh
        self._hit_rows, self._hits = self._find(rows, spike, drop)

    def _find(self, rows: pa.RecordBatch, spike: NDArray[np.bool_], drop: NDArray[np.bool_]) -> tuple[list[int], list[_Hit]]:
        """The rows with a condition and what hits them, a row with both conditions twice."""
        found = np.flatnonzero(spike | drop)
        if not len(found):
            return [], []
        indices = pa.array(found)
        told, symbols = rows.select(WINDOW_COLUMNS).take(indices).to_pylist(), self._symbol.take(indices).to_pylist()
        hits = [
            (index, _Hit(row["second"], symbol, rule, row))
            for index, symbol, row in zip(found.tolist(), symbols, told, strict=True)
            for rule, mask in ((PRICE_DROP, drop), (VOLUME_SPIKE, spike))
            if mask[index]
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


def _judge(rule: str, row: Mapping[str, Any]) -> tuple[float, float, float, Severity]:
    if rule == VOLUME_SPIKE:
        value, baseline = float(row["volume"]), row["volume_5m"] / row["seconds_5m"]
        return value, baseline, VOLUME_MULTIPLE * baseline, "critical" if value >= VOLUME_CRITICAL_MULTIPLE * baseline else "warning"
    value, baseline = row["close"], row["price_60s"]
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
        message=message, window=dict(alert.window),
    )  # fmt: skip
