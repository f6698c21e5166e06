"""Rows of `windows` for hours in which the archive has ticks and no windows, computed from the ticks by the state machine of `aggregate`.

The ticks are the accepted ones, in the order of the log, so sizes, corrections and gaps are those that `clean` found. A source's seconds close where its
watermark closed them: the watermark is computed from all ticks of the partition, as `clean` does. Only punctuations are not known here. They close the seconds
of a source that is quiet for a while, so a row can differ from the worker's if a tick came late after such a pause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from stockstream.records import TICKS_SCHEMA, WINDOWS_SCHEMA, Closing
from stockstream.research.queries import among, equal, quoted
from stockstream.research.times import Span
from stockstream.sinks.archive.layout import HOUR_MS
from stockstream.transforms.batch import closings_of, windows_of_clean
from stockstream.transforms.timing import Lateness
from stockstream.transforms.windows.ring import RESTORE_S

Read = Callable[[str, Span], pa.Table]
"""Runs SQL over the view `ticks`, of which it needs the objects of a span."""


def hours_of(span: Span, with_ticks: Sequence[int], with_windows: Sequence[int]) -> list[Span]:
    """The parts of the span whose hours (epoch hours) have ticks and no windows. Hours that follow each other are one part."""
    hours = sorted(set(with_ticks) - set(with_windows))
    parts = []
    for _, run in groupby(enumerate(hours), key=lambda pair: pair[1] - pair[0]):
        numbers = [hour for _, hour in run]
        begin, end = numbers[0] * HOUR_MS, (numbers[-1] + 1) * HOUR_MS
        begin = begin if span.begin is None else max(begin, span.begin)
        end = end if span.end is None else min(end, span.end)
        if begin < end:
            parts.append(Span(begin, end))
    return parts


def windows_from_ticks(read: Read, symbols: Sequence[str], span: Span, source: str | None, *, lateness: Lateness, revise_s: int) -> pa.Table:
    """The rows of these symbols in a span with a begin and an end, revisions included, as WINDOWS_SCHEMA and `log`."""
    assert span.begin is not None and span.end is not None
    # whole seconds: a row is known at the end of its second
    first, end = -(-span.begin // 1000), -(-span.end // 1000)
    wanted = Span((first - RESTORE_S - revise_s) * 1000, end * 1000)
    columns = ", ".join(
        'epoch_ms(event_time) AS event_time' if name == "event_time" else f'"{name}"' for name in TICKS_SCHEMA.names
    )
    where = among("symbol", symbols) + equal("source", source)
    where += wanted.conditions("event_time", hours=True)
    ticks = read(f'SELECT {columns}, log, partition FROM ticks WHERE true{where} ORDER BY log, partition, "offset", "index"', wanted)
    parts = []
    sources = sorted(set(ticks.column("source").unique().to_pylist()))
    closings = _closings(read, sources, wanted, lateness, revise_s) if sources else {}
    for log, partition in sorted({*zip(ticks.column("log").to_pylist(), ticks.column("partition").to_pylist(), strict=True)}):
        mine = ticks.filter(pc.and_(pc.equal(ticks.column("log"), log), pc.equal(ticks.column("partition"), partition)))
        mine = mine.select(TICKS_SCHEMA.names).cast(TICKS_SCHEMA)
        closed = _closed_at_the_end(closings.get((log, partition), {}), mine, end)
        rows = windows_of_clean(mine, closed, partition=partition, revise_s=revise_s)
        second = rows.column("second")
        rows = rows.filter(pc.and_(pc.greater_equal(second, first), pc.less(second, end)))
        parts.append(rows.append_column("log", pa.repeat(pa.scalar(log), rows.num_rows)))
    return pa.concat_tables([WINDOWS_SCHEMA.append(pa.field("log", pa.string())).empty_table(), *parts])


def _closings(read: Read, sources: Sequence[str], ticks: Span, lateness: Lateness, revise_s: int) -> dict[tuple[str, int], dict[str, list[Closing]]]:
    """By log and partition, the closings of each source. A tick that comes later than what is read here is too late for these seconds."""
    assert ticks.end is not None
    found: dict[tuple[str, int], dict[str, list[Closing]]] = {}
    for source in sources:
        late_ms = lateness.of(source)
        span = Span(ticks.begin, ticks.end + late_ms + (revise_s + 2) * 1000)
        rows = read(
            f"""SELECT log, partition, (epoch_ms(event_time) - {late_ms}) // 1000 - 1 AS second, min("offset") AS "offset"
            FROM ticks WHERE source = {quoted(source)}{span.conditions("event_time", hours=True)} GROUP BY ALL""",
            span,
        )
        for place in sorted({*zip(rows.column("log").to_pylist(), rows.column("partition").to_pylist(), strict=True)}):
            mine = rows.filter(pc.and_(pc.equal(rows.column("log"), place[0]), pc.equal(rows.column("partition"), place[1])))
            found.setdefault(place, {})[source] = closings_of(source, mine.column("offset").to_pylist(), mine.column("second").to_pylist())
    return found


def _closed_at_the_end(by_source: dict[str, list[Closing]], ticks: pa.Table, end: int) -> list[Closing]:
    """These closings in log order, and behind all ticks one for each source with seconds before `end` that are still open."""
    closings = [closing for of in by_source.values() for closing in of]
    behind = 1 + max([int(ticks.column("offset").to_numpy()[-1]), *(closing.offset for closing in closings)])
    for source, of in by_source.items():
        seconds = ticks.filter(pc.equal(ticks.column("source"), source)).column("event_time")
        if len(seconds):
            closed = of[-1].second if of else pc.min(seconds).as_py() // 1000 - 1
            if closed < end - 1:
                closings.append(Closing(behind, source, closed, end - 1))
    return sorted(closings, key=lambda closing: (closing.offset, closing.source))
