"""How far the ticks of each source come behind its watermark in this worker's partitions: the figures of `/api/pipeline` and `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from stockstream.transforms.cleaning.lags import EDGES_MS, SHOWN, SourceLags, percentiles
from stockstream.transforms.timing import MAX_LATENESS_MS

MAX_SOURCES = 64
"""Further ones are counted together, as `other`."""
SPAN_S, SLOTS = 300, 12
"""Percentiles are of the last hour, in parts of five minutes."""
STEP_MS = 100
"""A suggested lateness is a multiple of it."""
SHOWN_SYMBOLS = 10


class _Source:
    def __init__(self) -> None:
        self.total, self.late_rows = SourceLags(), 0
        self.recent: dict[int, tuple[SourceLags, list[int]]] = {}
        """By number of the part of time: its counts, and its late rows."""

    def part(self, number: int) -> tuple[SourceLags, list[int]]:
        if number not in self.recent:
            self.recent[number] = SourceLags(), [0]
            for old in [one for one in self.recent if one <= number - SLOTS]:
                del self.recent[old]
        return self.recent[number]


class WatermarkLags(Collector):
    """Lags by source since the worker's start, and of the last hour. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sources: dict[str, _Source] = {}

    def add(self, found: Mapping[str, SourceLags]) -> None:
        """What `clean` has counted since the last call, by source."""
        for name, lags in found.items():
            source = self._source(name)
            source.total.merge(lags)
            source.part(self._part())[0].merge(lags)

    def add_late_rows(self, name: str, rows: int) -> None:
        """Rows of a source that `aggregate` has sent for the first time, but late."""
        source = self._source(name)
        source.late_rows += rows
        source.part(self._part())[1][0] += rows

    def report(self) -> list[dict[str, Any]]:
        """The last hour of each source as `openapi.SourceLateness`, by name."""
        return [self._of(name, source) for name, source in sorted(self._sources.items())]

    def _of(self, name: str, source: _Source) -> dict[str, Any]:
        recent, rows, oldest = SourceLags(), 0, self._part() - SLOTS
        for number, (lags, late_rows) in sorted(source.recent.items()):
            if number > oldest:
                recent.merge(lags)
                rows += late_rows[0]
        p50, p99, p999 = percentiles(recent.lag, (0.5, 0.99, 0.999))
        (needed,) = percentiles(recent.needed, (0.999,))
        return {
            "source": name, "lateness_ms": source.total.lateness_ms, "ticks": recent.ticks, "late_ticks": recent.late, "rejected_late": recent.rejected,
            "late_rows": rows, "lag_ms": {"p50": p50, "p99": p99, "p99_9": p999},
            "suggested_lateness_ms": None if needed is None else min(-(-needed // STEP_MS) * STEP_MS, MAX_LATENESS_MS),
            "slow_symbols": recent.slow_symbols(SHOWN_SYMBOLS),
        }  # fmt: skip

    def collect(self) -> Iterator[Metric]:
        """The metrics; called by the registry."""
        lag = HistogramMetricFamily("stockstream_source_lag_seconds", "how far ticks come behind their source's watermark", labels=["source"])
        late = CounterMetricFamily("stockstream_source_late_ticks", "accepted ticks whose second was closed", labels=["source"])
        rejected = CounterMetricFamily("stockstream_source_rejected_late", "ticks that came too late to count", labels=["source"])
        rows = CounterMetricFamily("stockstream_source_late_rows", "first rows of a symbol and second that came late", labels=["source"])
        lateness = GaugeMetricFamily("stockstream_source_lateness_seconds", "the lateness that holds for the source", labels=["source"])
        for name, source in sorted(self._sources.items()):
            upto = source.total.lag.cumsum()
            buckets = [(str(edge / 1_000), float(upto[place])) for edge, place in zip(EDGES_MS[SHOWN].tolist(), SHOWN.tolist(), strict=True)]
            lag.add_metric([name], [*buckets, ("+Inf", float(upto[-1]))], None)
            for family, value in ((late, source.total.late), (rejected, source.total.rejected), (rows, source.late_rows)):
                family.add_metric([name], value)
            lateness.add_metric([name], source.total.lateness_ms / 1_000)
        yield from (lag, late, rejected, rows, lateness)

    def _part(self) -> int:
        return int(self._clock() // SPAN_S)

    def _source(self, name: str) -> _Source:
        if name not in self._sources:
            name = name if len(self._sources) < MAX_SOURCES else "other"
            self._sources.setdefault(name, _Source())
        return self._sources[name]
