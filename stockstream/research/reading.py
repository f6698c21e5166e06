"""How `Archive` reads: a connection for each call, over the objects of the dates that the call needs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stockstream.errors import SettingsError
from stockstream.research.frames import in_utc, utc_schema
from stockstream.research.queries import among
from stockstream.research.times import Span
from stockstream.settings import Settings, load_settings
from stockstream.sinks.archive.current import current
from stockstream.sinks.s3 import S3Store
from stockstream.sinks.stores import FileStore, open_archive
from stockstream.sql.duckdb_engine import DuckdbEngine, Parameters
from stockstream.sql.results import Result as Answer
from stockstream.wording import counted

ALL = Span()
_FOLDER = re.compile(r"/date=(\d{4}-\d\d-\d\d)/hour=(\d\d)/")
NEAR = 3
"""How many names an error suggests at most."""


def open_for_reading(url: str | Path | None, given: Mapping[str, Any]) -> Reading:
    """The archive that `url`, or else the setting, names. `given`: settings that replace those of the environment.

    Raises `SettingsError` if a setting cannot be used or none names an archive, `ArchiveError` if there is no such archive.
    """
    for name in given:
        if name not in Settings.model_fields:
            near = difflib.get_close_matches(name, Settings.model_fields, 1)
            raise SettingsError(f"there is no setting {name!r}" + (f": did you mean {near[0]}?" if near else "; docs/settings.md lists all"))
    settings = load_settings(**given)
    place = settings.archive if url is None else str(url)
    if place == "none":
        raise SettingsError("there is no archive: STOCKSTREAM_ARCHIVE is none; name the archive's folder or bucket")
    return Reading(open_archive(place, settings), settings)


class Reading:
    """Reads the objects of an archive that count. It keeps nothing open between calls.

    Each call lists the objects of the dates of its span, and reads what the SQL needs of them.
    """

    def __init__(self, store: FileStore | S3Store, settings: Settings) -> None:
        self.store, self.settings = store, settings

    def table(self, sql: str, span: Span = ALL) -> pa.Table:
        """The rows of SQL over views, of whose objects those of the span's dates are read. Raises `ArchiveError`."""
        return self._whole(span, lambda engine: engine.run(sql))

    def stored(self, area: str, columns: Sequence[str], where: str, span: Span) -> pa.Table:
        """Columns of the rows of an area as they are stored, with all revisions; `where` begins with AND. Raises `ArchiveError`."""
        return self._whole(span, lambda engine: engine.stored(area, columns, where))

    def batches(self, sql: str, params: Parameters, rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of the user's SQL in batches, at least one. Raises `ArchiveError`."""
        with DuckdbEngine(self.store, progress=False) as engine:
            result = engine.run(sql, params, rows)
            batch = None
            for batch in result.batches:
                yield in_utc(batch)
            if batch is None:
                yield in_utc(pa.RecordBatch.from_pylist([], result.schema))

    def _whole(self, span: Span, run: Callable[[DuckdbEngine], Answer]) -> pa.Table:
        with DuckdbEngine(self.store, span.first_date, span.last_date, progress=False) as engine:
            return run(engine).whole(lambda result: pa.Table.from_batches([in_utc(batch) for batch in result.batches], utc_schema(result.schema)))

    def hours(self, area: str, span: Span) -> list[int]:
        """The hours (epoch hours) of the folders with objects of an area."""
        folders = {match.groups() for entry in current(self.store, area, span.first_date, span.last_date) if (match := _FOLDER.search(entry.name))}
        return sorted(int(datetime.fromisoformat(f"{day}T{hour}:00+00:00").timestamp()) // 3_600 for day, hour in folders)

    def unknown(self, symbols: Sequence[str], span: Span) -> str | None:
        """Which of these symbols no tick of any date has, in words, with names like it; None if there is none, or the archive holds nothing at all.

        Looks in the dates of the span first.
        """
        missing = set(symbols)
        for view, dates in (("bars_1m", span), ("bars_1m", ALL), ("ticks", ALL)):    # a symbol with quotes only has no bars
            if missing:
                rows = self.table(f"SELECT DISTINCT symbol FROM {view} WHERE true{among('symbol', sorted(missing))}", dates)
                missing -= set(rows.column("symbol").to_pylist())
        known = self.table("SELECT DISTINCT symbol FROM bars_1m").column("symbol").to_pylist() if missing else []
        if not known:
            return None
        first = min(missing, key=list(symbols).index)
        by_upper = {name.upper(): name for name in known}
        near = [by_upper[name] for name in difflib.get_close_matches(first.upper(), by_upper, NEAR)]
        hint = f": did you mean {' or '.join(near)}?" if near else f"; .symbols() lists the {counted(len(known), 'symbol')} that it has"
        return f"the archive has no symbol {first!r}{hint}"

    def summary(self) -> str:
        """Dates, symbols of the last one and, roughly, ticks: from a listing, the footer of one object and the bars of one date."""
        entries = current(self.store, "ticks")
        dates = sorted({match[1] for entry in entries if (match := _FOLDER.search(entry.name))})
        if not dates:
            return "holds nothing yet"
        size = sum(entry.size for entry in entries)
        largest = max(entries, key=lambda entry: entry.size)
        ticks = round(pq.read_metadata(pa.BufferReader(self.store.read(largest.name))).num_rows / largest.size * size)
        last = Span.of_date(dates[-1])
        (symbols,) = self.table("SELECT count(DISTINCT symbol) AS n FROM bars_1m", last).column("n").to_pylist()
        days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]} ({counted(len(dates), 'date')})"
        of = "" if len(dates) == 1 else " on the last one"
        return f"{days}, {counted(symbols, 'symbol')}{of}, about {counted(_rough(ticks), 'tick')} in {size / 1e6:,.1f} MB"


def _rough(number: int) -> int:
    """The number with two significant digits."""
    return int(float(f"{number:.1e}"))
