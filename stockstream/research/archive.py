"""The archive, as notebooks read it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stockstream.errors import ArchiveError
from stockstream.research import queries
from stockstream.research.frames import to_pandas, with_index
from stockstream.research.results import Result
from stockstream.research.times import Moment, Span, span

if TYPE_CHECKING:
    import pandas as pd

    from models import ScoringModel
    from stockstream.research.reading import Reading
    from stockstream.sql.duckdb_engine import Parameters

Symbols = str | Sequence[str]


class UnknownSymbol(ArchiveError):
    """The archive has no tick of this symbol on any date."""


class Archive:
    """An archive that is read: bars, ticks, windows, features and SQL as pandas, Arrow or polars.

        with Archive("s3://my-bucket/stockstream") as archive:
            bars = archive.bars("AAPL", "1m", "2025-10-09")

    Every call reads the archive as it is then, of the dates that it needs, and keeps nothing open. So an `Archive` may be used by several threads, and
    pickled; that of a folder also after a fork, where that of a bucket would share connections.

    Args:
        url: a folder (path or file://path) or s3://bucket/prefix; by default STOCKSTREAM_ARCHIVE.
        settings: settings that replace those of the environment, by their names without the prefix in lower case: `s3_endpoint`, `aws_region`,
            `s3_requester_pays`, `lateness_ms`, `models` and so on.

    Raises `ArchiveError` if there is no such archive, `SettingsError` if the settings name none that can be read.

    Methods take times as a date, a datetime, a pandas Timestamp or a text in ISO 8601; one without a zone is in UTC. They are half-open: from `start` on
    and before `end`. Without `end`, a date is that whole day (UTC), and a time goes on to the last row. They raise `ValueError` for a time, interval or
    column that is none, and `UnknownSymbol` for a symbol that no tick has. For a span without data they give a frame without rows, with the same types.
    """

    def __init__(self, url: str | Path | None = None, **settings: Any) -> None:
        from stockstream.research.reading import open_for_reading  # DuckDB, the settings and AWS take half a second

        self._opened = open_for_reading(url, settings)
        self._closed = False

    @property
    def url(self) -> str:
        """Where the archive is."""
        return self._opened.store.url

    def close(self) -> None:
        """Ends the use of this archive; later calls raise `ArchiveError`. Nothing is open between calls, so it may be left out."""
        self._closed = True

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- SQL ----------------------------------------------------------------

    def sql(self, sql: str, params: Parameters = None) -> Result:
        """The answer to one SELECT over the views of `stockstream query`, read when it is asked for: `.df()`, `.arrow()`, `.pl()`, `.rows()`, or in batches.

        `params` are the values of `?` or `$1` by place, or of `$name` by name. Raises `ArchiveError` if the SQL is not one SELECT.
        """
        from stockstream.sql.duckdb_engine import require_one_select

        require_one_select(sql)
        if self._closed:
            raise ArchiveError(f"this Archive of {self.url} is closed")
        return Result(sql, lambda rows: self._reading.batches(sql, params, rows))

    # -- bars and ticks -----------------------------------------------------

    def bars(
        self, symbols: Symbols, interval: str = "1m", start: Moment | None = None, end: Moment | None = None, *, columns: Sequence[str] | None = None,
        source: str | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """Bars of `1s`, `1m`, `5m`, `1h`, `1d` or another interval that divides a day, by their begin (UTC) and symbol.

        Columns: symbol, source, open, high, low, close, volume, vwap, ticks, gap, repaired, as in the view `bars_1m`. Bars of less than a minute are made of
        ticks, and have no repaired ones. A bar holds only what lies in the span, so none looks ahead of `end`. Intervals without a price have no bar. A symbol
        with several sources has bars of each, unless `source` names one.
        """
        names, times, given = _symbols(symbols), span(start, end), queries.chosen(columns, queries.BARS)
        return self._frame(queries.bars(interval, times, names, source, given), times, names)

    def ticks(
        self, symbols: Symbols, start: Moment | None = None, end: Moment | None = None, *, columns: Sequence[str] | None = None, source: str | None = None
    ) -> pd.DataFrame:
        """Accepted ticks by event time and symbol, those of one symbol and millisecond in the order of the log.

        Columns: those of the view `ticks`. `gap_from` is a time. The frame holds all of them: for more than fits into memory use `sql(...)` in batches.
        """
        names, times, given = _symbols(symbols), span(start, end), queries.chosen(columns, list(queries.TICKS))
        where = queries.among("symbol", names) + queries.equal("source", source) + times.conditions("event_time", hours=True)
        sql = queries.select("ticks", "event_time", queries.TICKS, given, where, 'symbol, log, "offset", "index"')
        return self._frame(sql, times, names)

    # -- what the pipeline made of them -------------------------------------

    def alerts(self, symbols: Symbols | None = None, start: Moment | None = None, end: Moment | None = None, *, rule: str | None = None) -> pd.DataFrame:
        """Changes of alerts by `as_of`, of these symbols (by default all) and of one rule (by default all). `window` is JSON."""
        return self._results("alerts", queries.ALERTS, symbols, span(start, end), queries.equal("rule", rule))

    def predictions(
        self, symbols: Symbols | None = None, start: Moment | None = None, end: Moment | None = None, *, horizon_s: int | None = None,
        model: str | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """The champion's predictions by `as_of`, a row for each horizon; of these symbols, of one horizon and of one model (by default all)."""
        where = queries.equal("horizon_s", horizon_s) + queries.equal("model", model)
        return self._results("predictions", queries.PREDICTIONS, symbols, span(start, end), where)

    def outcomes(
        self, symbols: Symbols | None = None, start: Moment | None = None, end: Moment | None = None, *, horizon_s: int | None = None,
        model: str | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """What the price did by the horizon of each prediction, by the prediction's `as_of`; chosen as by `predictions`."""
        where = queries.equal("horizon_s", horizon_s) + queries.equal("model", model)
        return self._results("outcomes", queries.OUTCOMES, symbols, span(start, end), where)

    def symbols(self) -> pd.DataFrame:
        """Every symbol of every source, with its first and last time, ticks, volume and last price, from the bars of all dates."""
        return to_pandas(self._reading.table("SELECT * FROM symbols ORDER BY symbol, source"))

    def windows(
        self, symbols: Symbols, start: Moment | None = None, end: Moment | None = None, *, columns: Sequence[str] | None = None,
        source: str | None = None, computed: bool | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """The newest revision of each row of `windows`, by second and symbol.

        Columns: those of the topic. `computed` is as in `features`.
        """
        from stockstream.research import windows  # the pipeline's code takes as long

        names, times, given = _symbols(symbols), span(start, end), queries.chosen(columns, windows.COLUMNS)
        rows, hours = windows.rows(self._reading, names, times, source, computed)
        self._require_known(names, set(rows.column("symbol").unique().to_pylist()), times)
        return with_index(windows.newest(rows, given), computed=hours)

    def features(
        self, symbols: Symbols, start: Moment | None = None, end: Moment | None = None, *, model: ScoringModel | str | None = None,
        source: str | None = None, computed: bool | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """What the models see: for each second with a price one row, as it was first known, with the features that `score` computes of it, bit for bit.

        Columns: symbol, source, price, then `models.features.FEATURES` (float32, NaN if an input is missing). The index is the second; the row is known at
        its end. A later revision of a row is not in it, because no model saw it.

        Args:
            model: a model, or the name of one in the registry, whose champion is taken: its answers are added, `predicted_return_10s` and `p_up_10s` for a
                horizon of 10 s. Raises `ModelError` if there is none, or if it was trained on other features.
            source: the source of the ticks; by default every one.
            computed: None: hours without archived windows are computed from the ticks, by the code of `aggregate`; False: none is; True: all are. The
                frame's `attrs["computed"]` lists the spans that were.
        """
        from stockstream.research import features, windows

        names, times = _symbols(symbols), span(start, end)
        asked = features.model_of(model, self._reading.settings) if model is not None else None
        rows, hours = windows.rows(self._reading, names, times, source, computed)
        self._require_known(names, set(rows.column("symbol").unique().to_pylist()), times)
        return with_index(features.table(windows.first_known(rows), asked), computed=hours)

    # -- how it reads -------------------------------------------------------

    @property
    def _reading(self) -> Reading:
        if self._closed:
            raise ArchiveError(f"this Archive of {self.url} is closed")
        return self._opened

    def _frame(self, sql: str, times: Span, symbols: Sequence[str] | None) -> pd.DataFrame:
        table = self._reading.table(sql, times)
        if symbols is not None:
            found = set(table.column("symbol").unique().to_pylist()) if "symbol" in table.column_names else set(symbols if table.num_rows else ())
            self._require_known(symbols, found, times)
        return with_index(table)

    def _results(self, view: str, columns: Mapping[str, str], symbols: Symbols | None, times: Span, where: str) -> pd.DataFrame:
        names = None if symbols is None else _symbols(symbols)
        where += queries.among("symbol", names) + times.conditions("as_of", hours=view != "alerts")
        return self._frame(queries.select(view, "as_of", columns, list(columns), where, "symbol, id"), times, names)

    def _require_known(self, symbols: Sequence[str], found: set[str], times: Span) -> None:
        """Raises `UnknownSymbol` for a symbol that is not among these, nor anywhere in the archive."""
        missing = [symbol for symbol in symbols if symbol not in found]
        if missing and (unknown := self._reading.unknown(missing, times)) is not None:
            raise UnknownSymbol(unknown)

    # -- what it holds ------------------------------------------------------

    def __repr__(self) -> str:
        return f"<Archive {self.url}: {self._summary()}>"

    def _repr_html_(self) -> str:
        return f"<b>Archive</b> <code>{html.escape(self.url)}</code><br>{html.escape(self._summary())}"

    def _summary(self) -> str:
        if self._closed:
            return "closed"
        try:
            return self._opened.summary()
        except ArchiveError as error:
            return str(error)


def _symbols(symbols: Symbols) -> list[str]:
    """The names, each once. Raises `ValueError` if there is none, `TypeError` for what is no name."""
    names = [symbols] if isinstance(symbols, str) else list(dict.fromkeys(symbols))
    if not names:
        raise ValueError("name at least one symbol")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{name!r} is no symbol: symbols are texts")
    return names
