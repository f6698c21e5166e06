"""Rows of `windows` of a span: archived ones, and for hours without them rows computed from the ticks."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from stockstream.records import WINDOWS_SCHEMA
from stockstream.research.frames import INDEX
from stockstream.research.queries import among, equal
from stockstream.research.reading import Reading
from stockstream.research.recomputed import hours_of, windows_from_ticks
from stockstream.research.times import Span, time_of

SCHEMA = pa.schema([*WINDOWS_SCHEMA, ("log", pa.string()), ("record_offset", pa.int64())])
"""Rows with the place of their record. Computed ones have the raw log and the raw offset there."""
COLUMNS = [name for name in WINDOWS_SCHEMA.names if name != "second"]
"""Of the frames: the second is their index."""
_FLOATS = ("gap_s",)
"""Integers that may be missing."""


def rows(reading: Reading, symbols: Sequence[str], span: Span, source: str | None, computed: bool | None) -> tuple[pa.Table, list[str]]:
    """Rows of these symbols in the span, revisions included, as SCHEMA, and the spans that were computed, in words.

    `computed`: None: only what is not archived; False: nothing; True: all.
    """
    missing: list[Span] = []
    if computed is not False:
        missing = hours_of(span, reading.hours("ticks", span), [] if computed else reading.hours("windows", span))
    parts = [SCHEMA.empty_table()]
    if not computed:
        parts.append(_archived(reading, symbols, span, source))
    for part in missing:
        lateness, revise_s = reading.settings.lateness, reading.settings.revise_s
        found = windows_from_ticks(reading.table, symbols, part, source, lateness=lateness, revise_s=revise_s)
        parts.append(found.append_column("record_offset", found.column("offset")))
    spans = [f"{time_of(part.begin or 0):%Y-%m-%dT%H:%M:%SZ}/{time_of(part.end or 0):%Y-%m-%dT%H:%M:%SZ}" for part in missing]
    return pa.concat_tables(parts), spans


def _archived(reading: Reading, symbols: Sequence[str], span: Span, source: str | None) -> pa.Table:
    where = among("symbol", symbols) + equal("source", source) + span.conditions("time", hours=True)
    return reading.stored("windows", SCHEMA.names, where, span).cast(SCHEMA)


def first_known(table: pa.Table) -> pa.Table:
    """The rows as they were when their second closed, without revisions; by second, symbol and source."""
    return _once(table.filter(pc.invert(table.column("revised"))), "ascending")


def newest(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Of each symbol, source and second the row that was sent last, with the index and these columns."""
    table = _once(table, "descending")
    for name in _FLOATS:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table.column(name).cast(pa.float64()))
    return table.select(columns).add_column(0, INDEX, times(table))


def times(table: pa.Table) -> pa.ChunkedArray:
    """The seconds of the rows as times in UTC."""
    return table.column("second").cast(pa.timestamp("s")).cast(pa.timestamp("ms", "UTC"))


def _once(table: pa.Table, order: str) -> pa.Table:
    """One row of each second, symbol and source: the first by the place of its record, in this order."""
    keys = [("second", "ascending"), ("symbol", "ascending"), ("source", "ascending"), ("log", order), ("record_offset", order), ("offset", order)]
    table = table.take(pc.sort_indices(table, sort_keys=keys))
    if table.num_rows < 2:
        return table
    differs = [pc.not_equal(table.column(name).slice(1), table.column(name).slice(0, table.num_rows - 1)) for name in ("second", "symbol", "source")]
    first = pc.or_(pc.or_(differs[0], differs[1]), differs[2])
    return table.filter(pa.chunked_array([pa.array([True]), *first.chunks]))
