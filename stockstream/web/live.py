"""The state behind the views: the newest state of every symbol, in memory, built from messages only.

Pure: no I/O and no clock of its own. Rows of `windows` go into rings of one-second bars (`bars`); the last row of each symbol is kept whole, in
columns. Predictions are decoded when they are requested. Measured: 10,000 symbols that tick every
second take 210 MB and 22 ms of CPU for each of their seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from stockstream.errors import FrameError
from stockstream.records import SHARES, Alert, Horizon, Outcome, Prediction
from stockstream.sources.reports import SourceReports
from stockstream.sources.sessions import Sessions
from stockstream.sources.symbols import exchange_of
from stockstream.transforms.cleaning.limits import MAX_TIME, symbol_fault
from stockstream.transforms.frames import Frame
from stockstream.transforms.shares import for_json
from stockstream.transforms.timing import GAP_S as STALE_S
from stockstream.transforms.timing import MAX_REVISE_S
from stockstream.web.alert_index import AlertIndex
from stockstream.web.answers import (
    BOOLS,
    FLOATS,
    GAP,
    IN_SHARES,
    INTS,
    STRINGS,
    WINDOW_5M,
    AlertFilter,
    Bar,
    OutcomeCount,
    Page,
    PredictionSummary,
    SymbolDetail,
    SymbolSummary,
    Window5m,
    WindowRow,
    whole_or_null,
)
from stockstream.web.bars import NO_BARS, Array, BarRings, answered
from stockstream.web.exchanges import Exchanges, delay_of
from stockstream.web.gap_index import GapIndex
from stockstream.web.message_checks import (
    MAX_ALERT_BYTES,
    MAX_DEPTH,
    MAX_METADATA_BYTES,
    MAX_PREDICTION_BYTES,
    check_outcome,
    check_row,
    columns_of,
    depth,
    require_symbol,
    within,
)
from stockstream.web.outcome_counts import OutcomeCounts
from stockstream.web.symbol_list import SymbolList

FIRST_SYMBOLS = 1_024
"""The initial capacity, which doubles."""
MAX_SYMBOLS = 50_000
"""The most symbols that are shown (18 KB each). Further symbols are only counted, so that a faulty producer cannot fill the memory."""

MAX_ALERTS = 100_000
"""The most alerts that are kept (about 0.5 KB each): ten hours of 10,000 symbols with one an hour. Beyond, the oldest closed ones are forgotten."""

MAX_JUDGED = 20
"""How many outcomes per symbol are remembered by identity (model, version, horizon). Beyond, the oldest are forgotten."""

MAX_CLOCKS = 50_000
"""The most pairs of partition and source; each replay is a source."""

OPEN_SHOWN = 100

_SUMMARY = ("second", "price", "return_60s", "volume_5m")

_NOTHING, _FROM_LATEST, _FROM_WINDOWS = 0, 1, 2


class _PredictionKey(msgspec.Struct):
    symbol: str
    as_of: int
    offset: int


class _PredictionHorizons(msgspec.Struct):
    as_of: int
    horizons: list[Horizon]


@dataclass(slots=True)
class Changes:
    """The changes since the last call of `take_changes`, by symbol and alert id."""

    symbols: list[str] = field(default_factory=list)
    predictions: list[str] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.symbols or self.predictions or self.alerts)


class Live:
    """The state. Feed it with `frame`, `latest`, `metadata`, `prediction`, `outcomes`, `alert`; each raises `FrameError`, `msgspec.MsgspecError`,
    `UnicodeDecodeError` or, of deep nesting, `RecursionError` on a message that cannot be read, and is then unchanged. `sources` and `gaps` take the
    messages about sources. `sessions` decides which symbols are stale."""

    def __init__(self, max_symbols: int = MAX_SYMBOLS, max_alerts: int = MAX_ALERTS, sessions: Sessions | None = None) -> None:
        self._max_symbols = max_symbols
        self._index: dict[str, int] = {}
        self._names: list[str] = []
        self._last: dict[str, Array] = {}
        self._origin: npt.NDArray[np.int8] = np.zeros(0, np.int8)
        self._dirty: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._rings = BarRings()
        self._logs: dict[int, str] = {}
        self._clocks: dict[tuple[int, str], int] = {}
        self._metadata: dict[str, dict[str, Any]] = {}
        self._predictions: dict[str, tuple[int, int, bytes]] = {}
        self._new_predictions: set[str] = set()
        self._alerts = AlertIndex(max_alerts)
        self._new_alerts: dict[str, None] = {}
        self._outcomes = OutcomeCounts(MAX_JUDGED * max_symbols)
        self._list = SymbolList()
        self.sources = SourceReports()
        self.gaps = GapIndex()
        self.exchanges = Exchanges(sessions or Sessions())
        self.symbols_refused = 0
        self.frames_stale = 0
        self._grow(FIRST_SYMBOLS)

    # ---- messages in

    def frame(self, partition: int, frame: Frame) -> None:
        """One whole frame of `windows`. A frame of a newer log forgets the partition's rows, one of an older log is counted and dropped."""
        log = self._logs.get(partition)
        if log is not None and frame.log < log:
            self.frames_stale += 1
            return
        columns = columns_of(frame.rows)
        if log is not None and frame.log > log:
            self._forget(partition)
        self._logs[partition] = frame.log
        for closing in frame.closings:
            key = (partition, closing.source)
            self._clocks[key] = max(self._clocks.get(key, closing.second), closing.second)
        if len(self._clocks) > MAX_CLOCKS:
            oldest = sorted(self._clocks, key=self._clocks.__getitem__)[: MAX_CLOCKS // 2]
            for key in oldest:
                del self._clocks[key]
        if frame.rows.num_rows:
            self._take_rows(columns)

    def latest(self, data: bytes) -> None:
        """One message of `latest`: a row that is used until `windows` has a row of its symbol."""
        row = _decode_row(data)
        values: dict[str, Any] = msgspec.structs.asdict(row)
        check_row(values)
        at = self._place(values["symbol"])
        if at is None or self._origin[at] == _FROM_WINDOWS:
            return
        for name, column in self._last.items():
            value = values[name]
            column[at] = np.nan if value is None else value
        self._origin[at] = _FROM_LATEST
        self._dirty[at] = True

    def metadata(self, symbol: str, data: bytes | None) -> None:
        """One message of `symbols`; no value forgets the symbol's metadata."""
        if not data:
            if self._metadata.pop(symbol, None) is not None:
                self._list.hide(symbol)
                if self.known(symbol):
                    self._list.show(symbol)
            return
        require_symbol(symbol)
        values = _decode_object(within(data, MAX_METADATA_BYTES))
        if depth(values) > MAX_DEPTH:
            raise FrameError("nested too deep")
        _encode(values)                                                  # views encode it again later: what cannot be encoded is refused here
        if symbol not in self._metadata and len(self._metadata) >= self._max_symbols:
            self.symbols_refused += 1
            return
        self._metadata[symbol] = values
        self.exchanges.see(values.get("exchange"))
        self._list.show(symbol, str(values.get("name") or ""))

    def prediction(self, data: bytes) -> None:
        """One message of `predictions`. The newest is kept: a repeat of an older one changes nothing, nor does one of a row that came
        late. One of a second long before, with a higher offset, is of another series."""
        key = _decode_key(within(data, MAX_PREDICTION_BYTES))
        require_symbol(key.symbol)
        if not (0 <= key.as_of <= MAX_TIME and 0 <= key.offset < 1 << 63):
            raise FrameError("as_of or offset is out of range")
        held = self._predictions.get(key.symbol)
        if held is None:
            if len(self._predictions) >= self._max_symbols:
                self.symbols_refused += 1
                return
            self._list.show(key.symbol)
        elif key.as_of < held[0] and (key.offset <= held[1] or key.as_of > held[0] - MAX_REVISE_S * 1_000):
            return
        self._predictions[key.symbol] = (key.as_of, key.offset, data)
        self._new_predictions.add(key.symbol)

    def outcomes(self, data: bytes) -> None:
        """One message of `outcomes`, counted by model, version, role and horizon; a repeat is not counted again."""
        items = _decode_outcomes(data)
        for item in items:
            check_outcome(item)
        for item in items:
            self._outcomes.count(item)

    def alert(self, data: bytes) -> None:
        """One message of `alerts`. The newest state of each alert is kept."""
        alert = _decode_alert(within(data, MAX_ALERT_BYTES))
        require_symbol(alert.symbol)
        if not (0 <= alert.opened_at <= MAX_TIME and 0 <= alert.as_of <= MAX_TIME) or depth(alert.window) > MAX_DEPTH:
            raise FrameError("opened_at or as_of is out of range, or the window nested too deep")
        _encode(alert)
        before = self._alerts.get(alert.id)
        forgotten = self._alerts.put(alert)
        if forgotten is None:
            return
        self._new_alerts[alert.id] = None
        self._list.show(alert.symbol)
        for gone in forgotten:
            self._new_alerts.pop(gone.id, None)
        for gone in (*forgotten, *([before] if before is not None and before.symbol != alert.symbol else [])):
            if not self.known(gone.symbol):
                self._list.hide(gone.symbol)

    # ---- answers

    @property
    def counts(self) -> dict[str, int]:
        """How much is held, and how much was refused."""
        return {
            "symbols": len(self._list), "predictions": len(self._predictions), "alerts": len(self._alerts),
            "open_alerts": self.open_alerts(), "symbols_refused": self.symbols_refused, "frames_stale": self.frames_stale,
            "outcomes_forgotten": self.outcomes_forgotten,
        }  # fmt: skip

    @property
    def outcomes_forgotten(self) -> int:
        """Outcomes that were not counted, or whose repeats would be counted again, because too many are remembered."""
        return self._outcomes.forgotten

    @property
    def newest_second(self) -> int | None:
        """The newest closed second of all partitions and sources, epoch s."""
        return max(self._clocks.values(), default=None)

    def known(self, symbol: str) -> bool:
        """Whether any message has named the symbol."""
        at = self._index.get(symbol, -1)
        return (at >= 0 and self._origin[at] != _NOTHING) or symbol in self._metadata or symbol in self._predictions or symbol in self._alerts

    def symbols(self, limit: int, after: str = "", search: str = "", now: float | None = None) -> Page[SymbolSummary]:
        """Symbols after `after`, in alphabetical order, whose symbol or name contains `search`, ignoring case. Ages refer to `now`
        (epoch s); they are null without it."""
        items: list[SymbolSummary] = []
        for name in self._list.after(after, search):
            if len(items) == limit:
                return Page(items=items, next=items[-1].symbol)
            items.append(self._summary(name, now))
        return Page(items=items, next=None)

    def symbol(self, symbol: str) -> SymbolDetail | None:
        """The state of one symbol; None if it is unknown."""
        if not self.known(symbol):
            return None
        row = self._row(symbol)
        return SymbolDetail(
            symbol=symbol,
            metadata=self._metadata.get(symbol),
            last=msgspec.convert(row, WindowRow) if row else None,
            window_5m=msgspec.convert({name: row[name] for name in WINDOW_5M}, Window5m) if row else None,
            prediction=self._prediction(symbol),
            alerts=self._alerts.newest_open(symbol, OPEN_SHOWN),
        )

    def bars(self, symbol: str, interval_s: int, limit: int, before: int | None = None) -> Page[Bar]:
        """The newest `limit` bars that begin before `before` (epoch s), oldest first, of the last 300 seconds of the symbol's source.

        A bar of a minute at the window's edge holds what the window holds. Seconds without a tick have no bar. `next` is the `before` for the
        bars before these.
        """
        bars = answered(self._ring(symbol), interval_s)
        if before is not None:
            bars = bars[: bisect_left([bar.second for bar in bars], before)]
        kept = bars[-limit:]
        return Page(items=kept, next=str(kept[0].second) if len(kept) < len(bars) else None)

    def alerts(self, limit: int, state: AlertFilter | None = None, symbol: str = "", rule: str = "", after: tuple[int, str] | None = None) -> Page[Alert]:
        """Alerts, those opened last first; `open` is opened or updated; `after` is (opened_at, id) of the last one seen."""
        items, following = self._alerts.page(limit, state, symbol, rule, after)
        return Page(items=items, next=None if following is None else f"{following[0]}:{following[1]}")

    def predictions(self, limit: int, after: str = "", symbol: str = "") -> Page[Prediction]:
        """The newest prediction of each symbol, in alphabetical order."""
        names: Iterable[str] = [symbol] if symbol else self._list.after(after)
        items: list[Prediction] = []
        for name in names:
            prediction = self._prediction(name)
            if prediction is None:
                continue
            if len(items) == limit:
                return Page(items=items, next=items[-1].symbol)
            items.append(prediction)
        return Page(items=items, next=None)

    def outcome_counts(self) -> list[OutcomeCount]:
        """Running counts by model, version, role and horizon."""
        return self._outcomes.by_model()

    def open_alerts(self) -> int:
        """How many alerts are open."""
        return self._alerts.open_count()

    # ---- what changed, for the event stream

    def take_changes(self) -> Changes:
        """Symbols with new rows, symbols with new predictions, ids of changed alerts, since the last call."""
        at = np.flatnonzero(self._dirty)
        self._dirty[at] = False
        changes = Changes([self._names[i] for i in at.tolist()], list(self._new_predictions), list(self._new_alerts))
        self._new_predictions.clear()
        self._new_alerts.clear()
        return changes

    def summary_columns(self, symbols: list[str]) -> dict[str, list[Any]]:
        """Columns `symbol second price return_60s volume_5m` of the symbols' last rows, NaN without a value; shares as integers where they are whole."""
        at = np.fromiter((self._index[s] for s in symbols), np.int64, len(symbols))
        return {"symbol": symbols, **{name: for_json(self._last[name][at]) if name in SHARES else self._last[name][at].tolist() for name in _SUMMARY}}

    def prediction_columns(self, symbols: list[str]) -> dict[str, list[Any]]:
        """Columns `symbol as_of horizon_s predicted_return p_up` of the symbols' newest predictions, first horizon."""
        columns: dict[str, list[Any]] = {name: [] for name in ("symbol", "as_of", "horizon_s", "predicted_return", "p_up")}
        for symbol in symbols:
            summary = self._prediction_summary(symbol)
            if summary is not None:
                columns["symbol"].append(symbol)
                for name in ("as_of", "horizon_s", "predicted_return", "p_up"):
                    columns[name].append(getattr(summary, name))
        return columns

    def alert_states(self, ids: list[str]) -> list[Alert]:
        """The newest state of each of the alerts."""
        return [alert for alert in map(self._alerts.get, ids) if alert is not None]

    # ---- inside

    def _grow(self, size: int) -> None:
        have = len(self._origin)
        for name in (*FLOATS, *IN_SHARES, GAP, *INTS, *BOOLS, *STRINGS):
            kind: Any = np.int64 if name in INTS else np.bool_ if name in BOOLS else object if name in STRINGS else np.float64
            bigger = np.full(size, "" if kind is object else 0, kind)
            if have:
                bigger[:have] = self._last[name]
            self._last[name] = bigger
        self._origin = np.concatenate([self._origin, np.zeros(size - have, np.int8)])
        self._dirty = np.concatenate([self._dirty, np.zeros(size - have, np.bool_)])

    def _place(self, symbol: str) -> int | None:
        at = self._index.get(symbol)
        if at is None:
            at = len(self._names)
            if at >= self._max_symbols or symbol_fault(symbol):
                self.symbols_refused += 1
                return None
            self._index[symbol] = at
            self._names.append(symbol)
            if at >= len(self._origin):
                self._grow(2 * len(self._origin))
        if self._origin[at] == _NOTHING:
            self._list.show(symbol)
        return at

    def _take_rows(self, columns: dict[str, Array]) -> None:
        order = np.lexsort((columns["offset"], columns["second"]))
        places = [self._place(symbol) for symbol in columns["symbol"][order].tolist()]
        if None in places:
            order = order[[place is not None for place in places]]
        at = np.array([place for place in places if place is not None], np.int64)
        rows = {name: column[order] for name, column in columns.items()}
        self._rings.write(at, rows)
        self._write_last(at, rows)

    def _write_last(self, at: Array, rows: dict[str, Array]) -> None:
        second, offset = self._last["second"][at], self._last["offset"][at]
        counts = (
            (self._origin[at] != _FROM_WINDOWS)
            | (rows["second"] > second)
            | ((rows["second"] == second) & (rows["offset"] >= offset))
            | ((rows["source"] != self._last["source"][at]) & (rows["offset"] > offset))
        )
        at = at[counts]
        for name, column in self._last.items():
            column[at] = rows[name][counts]
        self._origin[at] = _FROM_WINDOWS
        self._dirty[at] = True

    def _forget(self, partition: int) -> None:
        gone = np.flatnonzero((self._origin != _NOTHING) & (self._last["partition"] == partition))
        self._origin[gone] = _NOTHING
        self._dirty[gone] = False
        for at in gone.tolist():
            self._rings.clear(at)
        self._clocks = {key: second for key, second in self._clocks.items() if key[0] != partition}
        for symbol in (self._names[at] for at in gone.tolist()):
            if not self.known(symbol):
                self._list.hide(symbol)

    def _row(self, symbol: str) -> dict[str, Any] | None:
        at = self._index.get(symbol)
        if at is None or self._origin[at] == _NOTHING:
            return None
        row: dict[str, Any] = {"symbol": symbol}
        for name, column in self._last.items():
            value = column[at]
            row[name] = value if isinstance(value, str) else whole_or_null(name, value.item())
        return row

    def _ring(self, symbol: str) -> Array:
        """The symbol's bars, oldest first: of its last row's source, of the 300 seconds up to that source's clock."""
        at = self._index.get(symbol)
        if at is None or self._origin[at] != _FROM_WINDOWS:
            return NO_BARS
        source, last = self._last["source"][at], self._last["second"][at].item()
        clock = max(last, self._clocks.get((self._last["partition"][at].item(), source), last))
        return self._rings.read(at, source, last, clock)

    def _prediction(self, symbol: str) -> Prediction | None:
        held = self._predictions.get(symbol)
        if held is None:
            return None
        try:
            prediction = _decode_prediction(held[2])
            _encode(prediction)
            return prediction
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
            return None

    def _prediction_summary(self, symbol: str) -> PredictionSummary | None:
        held = self._predictions.get(symbol)
        if held is None:
            return None
        try:
            prediction = _decode_horizons(held[2])
            _encode(prediction)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
            return None
        if not prediction.horizons:
            return None
        first = prediction.horizons[0]
        return PredictionSummary(as_of=prediction.as_of, horizon_s=first.horizon_s, predicted_return=first.predicted_return, p_up=first.p_up)

    def _summary(self, symbol: str, now: float | None) -> SymbolSummary:
        metadata = self._metadata.get(symbol, {})
        at = self._index.get(symbol, -1)
        has_row = at >= 0 and self._origin[at] != _NOTHING

        def row(name: str) -> Any:
            return whole_or_null(name, self._last[name].item(at)) if has_row else None

        def text(name: str) -> str | None:
            value = metadata.get(name)
            return value if isinstance(value, str) else None

        second = row("second")
        age_s = None if second is None or now is None else max(0, int(now - second - 1))
        exchange = text("exchange") or exchange_of(symbol)
        delay_s = delay_of(row("source") or "")
        session, then = self.exchanges.at(exchange, now), self.exchanges.at(exchange, None if now is None else now - delay_s)
        return SymbolSummary(
            symbol=symbol, name=text("name"), currency=text("currency"), exchange=exchange, session=None if session.state == "unknown" else session.state,
            source=row("source"), second=second, age_s=age_s, delay_s=delay_s,
            stale=None if age_s is None else age_s > STALE_S + delay_s and session.is_open is not False and then.is_open is not False,
            price=row("price"), return_60s=row("return_60s"), volume_5m=row("volume_5m"), quality=row("quality"),
            prediction=self._prediction_summary(symbol), open_alerts=self._alerts.open_of(symbol),
        )  # fmt: skip


_decode_row = msgspec.json.Decoder(WindowRow).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_decode_key = msgspec.json.Decoder(_PredictionKey).decode
_decode_horizons = msgspec.json.Decoder(_PredictionHorizons).decode
_decode_prediction = msgspec.json.Decoder(Prediction).decode
_decode_outcomes = msgspec.json.Decoder(list[Outcome]).decode
_decode_alert = msgspec.json.Decoder(Alert).decode
_encode = msgspec.json.Encoder().encode
