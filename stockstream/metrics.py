"""A worker's metrics: Prometheus collectors in a registry of their own, and rates and percentiles of the last minute.

Each observation costs O(1), and memory is bounded: label values beyond `MAX_LABELS` are counted as `other`, and symbols are never labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SPAN_S = 60
MAX_LABELS = 64
"""The most values of a label. Reasons, rules, hops, agents and topics are few and named in code, so more values are a bug."""

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0)
"""Bucket edges from the time of one chunk to twice the limit of 5 s, with edges at the targets of 250 ms and 1.5 s."""

_FINEST_S, _STEP = 1e-4, 1.05
_FINE_EDGES = _FINEST_S * _STEP ** np.arange(285)
"""Bucket edges of the last minute's histogram, 0.1 ms to 100 s. A percentile is accurate to 2.5 %."""

Values = npt.NDArray[Any] | float


class _Second:
    """A ring of `SPAN_S` slots, one per second. A slot is emptied when its second begins."""

    def __init__(self, clock: Callable[[], float], width: int) -> None:
        self._clock = clock
        self._began = self._now = int(clock())
        self.slots: npt.NDArray[np.int64] = np.zeros((SPAN_S, width), np.int64)

    def current(self) -> npt.NDArray[np.int64]:
        now = int(self._clock())
        for second in range(max(self._now + 1, now - SPAN_S + 1), now + 1):
            self.slots[second % SPAN_S] = 0
        self._now = max(self._now, now)
        slot: npt.NDArray[np.int64] = self.slots[self._now % SPAN_S]
        return slot

    def total(self) -> npt.NDArray[np.int64]:
        self.current()
        total: npt.NDArray[np.int64] = self.slots.sum(axis=0)
        return total

    def span_s(self) -> int:
        """How many seconds the ring holds so far."""
        self.current()
        return min(SPAN_S, self._now - self._began + 1)


class _Rate:
    """Events per second over the last minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._ring = _Second(clock, 1)

    def add(self, count: int) -> None:
        self._ring.current()[0] += count

    def per_s(self) -> float:
        return float(self._ring.total()[0]) / self._ring.span_s()


class _Latency:
    """The latencies of one hop: Prometheus buckets since the start, and fine buckets of the last minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(len(BUCKETS_S) + 1, np.int64)
        self.sum_s = 0.0
        self._ring = _Second(clock, len(_FINE_EDGES) + 1)

    def add(self, seconds: Values, count: int) -> None:
        if isinstance(seconds, np.ndarray):
            seconds = seconds[np.isfinite(seconds)]
            self.counts += np.bincount(np.searchsorted(BUCKETS_S, seconds), minlength=len(self.counts))
            slot = self._ring.current()
            slot += np.bincount(np.searchsorted(_FINE_EDGES, seconds), minlength=len(slot))
            self.sum_s += float(seconds.sum())
            return
        self.counts[np.searchsorted(BUCKETS_S, seconds)] += count
        self._ring.current()[np.searchsorted(_FINE_EDGES, seconds)] += count
        self.sum_s += seconds * count

    def percentiles_ms(self, *shares: float) -> list[float | None]:
        counts = self._ring.total()
        if not counts.any():
            return [None] * len(shares)
        upto = np.cumsum(counts)
        places = np.minimum(np.searchsorted(upto, [np.ceil(share * upto[-1]) for share in shares]), len(_FINE_EDGES) - 1)
        return [round(float(_FINE_EDGES[place] / _STEP**0.5) * 1_000, 3) for place in places]

    def recent(self) -> int:
        return int(self._ring.total().sum())


class Metrics(Collector):
    """All metrics of one worker. Create one and pass it on. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.registry = CollectorRegistry()
        self._accepted = self._counter("ticks_accepted", "ticks that clean accepted")
        self._rejected = self._counter("ticks_rejected", "ticks that clean rejected", "reason")
        self._volume_figures = self._counter("volume_figures", "cumulative volumes and sizes that clean did not take as they were", "reason")
        self._numbering = self._counter("numbering", "ticks whose seq, epoch or trade_id was an exception", "reason")
        self._ignored = self._counter("foreign_messages_ignored", "messages of STOCKSTREAM_RAW_FORMAT that bring no tick, such as confirmations", "kind")
        self._rows = self._counter("rows", "rows or messages written", "topic")
        self._alerts = self._counter("alerts", "changes of alerts", "rule", "state")
        self._notices = self._counter("notices", "notices of alerts by outcome: sent, failed (attempts), held for a summary, dead", "route", "outcome")
        self._predictions = self._counter("predictions", "predictions sent")
        self._not_predicted = self._counter("rows_not_predicted", "rows that a model should have predicted and did not", "model", "version", "reason")
        self._holes = self._counter("holes", "holes found in the offsets", "kind")
        self._dropped = self._counter("frames_dropped", "frames that an agent could not use", "agent", "why")
        self._restarts = self._counter("restarts", "operations that were started again", "what")
        self._unreadable = self._counter("tail_unreadable", "messages that the web's tail could not read", "topic", "reason")
        self._skipped = self._counter("records_skipped", "records that a reader or writer skipped", "topic", "reason")
        self._set_aside = self._counter("records_set_aside", "records and messages that an agent set aside", "topic", "agent")
        self._source_failures = self._counter("source_failures", "attempts of a source that failed", "source")
        self._source_up = self._gauge("source_up", "1 while a source of this worker runs, or has no ticks to send; 0 while it starts or has failed", "source")
        self._gaps = self._counter("gaps", "gaps found in the ticks of a source", "source", "reason")
        self._source_feeds = self._gauge("source_feeds", "symbols of a source on this worker, by the state of their feeds", "source", "state")
        self._source_connections = self._gauge("source_connections", "connections of a source on this worker, by their state", "source", "state")
        self._source_budget = self._gauge("source_budget_left", "requests that a source may still make, of all workers together", "source", "per")
        self._newer = self._counter("newer_messages", "messages that a newer stockstream has written", "topic")
        self._outcomes_forgotten = self._counter("outcomes_forgotten", "outcomes that the views have forgotten by identity, or never counted")
        self._slow_clients = self._counter("web_slow_clients", "event streams closed because the reader was too slow")
        self._lag = self._gauge("lag", "records not read yet", "topic", "partition")
        self._notify_lag = self._gauge("notify_lag", "records of alerts that a route has not dealt with", "route")
        self._archive = self._gauge("archive_offset", "raw offset through which the archive holds everything", "partition")
        self._clients = self._gauge("web_clients", "open event streams")
        self._labels: dict[str, set[str]] = {}
        self._latencies: dict[str, _Latency] = {}
        self._rates: dict[str, _Rate] = {}
        self._totals: dict[str, int] = {}
        self._reasons: dict[str, int] = {}
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    # ---- reports of the agents and the transport

    def ticks_accepted(self, count: int) -> None:
        self._accepted.inc(count)
        self._count("ticks_accepted", count)

    def ticks_rejected(self, reason: str, count: int = 1) -> None:
        reason = self._bounded("reason", reason)
        self._rejected.labels(reason).inc(count)
        self._reasons[reason] = self._reasons.get(reason, 0) + count
        self._count("ticks_rejected", count)

    def noted(self, subject: str, reason: str, count: int) -> None:
        """Counts what `clean` has noted about ticks; `subject` is `volume`, `numbering`, or `ignored` for messages of a foreign format."""
        counter = {"volume": self._volume_figures, "numbering": self._numbering, "ignored": self._ignored}[subject]
        counter.labels(self._bounded(f"noted.{subject}", reason)).inc(count)

    def rows(self, topic: str, count: int) -> None:
        topic = self._bounded("topic", topic)
        self._rows.labels(topic).inc(count)
        self._count(f"rows.{topic}", count)

    def alert(self, rule: str, state: str) -> None:
        self._alerts.labels(self._bounded("rule", rule), self._bounded("state", state)).inc()
        self._count("alerts", 1)

    def predictions(self, count: int) -> None:
        self._predictions.inc(count)
        self._count("predictions", count)

    def rows_not_predicted(self, model: str, version: str, reason: str, count: int) -> None:
        """Counts rows without a prediction of this model (version empty if there is no champion); `reason` is one of the scorer's reasons."""
        labels = self._bounded("model", model), self._bounded("version", version), self._bounded("not_predicted", reason)
        self._not_predicted.labels(*labels).inc(count)
        self._count("rows_not_predicted", count)

    def observe(self, hop: str, seconds: float) -> None:
        """Records one latency of `hop`, in seconds."""
        self.observe_many(hop, seconds)

    def observe_many(self, hop: str, seconds: Values, count: int = 1) -> None:
        """Records latencies of `hop` in seconds: an array, or one value that occurred `count` times. Values that are not finite are left out."""
        hop = self._bounded("hop", hop)
        latency = self._latencies.get(hop)
        if latency is None:
            latency = self._latencies[hop] = _Latency(self._clock)
        if isinstance(seconds, np.ndarray) or np.isfinite(seconds):
            latency.add(seconds, count)

    def hole(self, kind: str, count: int = 1) -> None:
        """Counts a hole of `count` offsets; `kind` is `reread` or `passed` (see `Guard.on_hole`)."""
        self._holes.labels(self._bounded("kind", kind)).inc(count)
        self._count("holes", count)

    def frame_dropped(self, agent: str, why: str) -> None:
        self._dropped.labels(self._bounded("agent", agent), self._bounded("why", why)).inc()
        self._count("frames_dropped", 1)

    def restart(self, what: str) -> None:
        self._restarts.labels(self._bounded("what", what)).inc()
        self._count("restarts", 1)

    def unreadable(self, topic: str, reason: str) -> None:
        self._unreadable.labels(self._bounded("topic", topic), self._bounded("unreadable", reason)).inc()
        self._count("tail_unreadable", 1)

    def record_skipped(self, topic: str, reason: str, count: int = 1) -> None:
        """Counts skipped records of `topic` (its name without prefix); `reason` is one of a few fixed texts."""
        self._skipped.labels(self._bounded("topic", topic), self._bounded("skipped", reason)).inc(count)
        self._count("records_skipped", count)

    def record_set_aside(self, topic: str, agent: str) -> None:
        """Counts a record or message that an agent set aside; `topic` without prefix."""
        self._set_aside.labels(self._bounded("topic", topic), self._bounded("agent", agent)).inc()
        self._count("records_set_aside", 1)

    def source_up(self, source: str, up: bool) -> None:
        self._source_up.labels(self._bounded("source", source)).set(int(up))

    def source_failed(self, source: str) -> None:
        self._source_failures.labels(self._bounded("source", source)).inc()
        self._count("source_failures", 1)

    def gap(self, source: str, reason: str) -> None:
        """Counts a gap in the ticks of one symbol."""
        self._gaps.labels(self._bounded("source", source), self._bounded("gap", reason)).inc()
        self._count("gaps", 1)

    def source_feeds(self, source: str, state: str, symbols: int) -> None:
        self._source_feeds.labels(self._bounded("source", source), self._bounded("feed", state)).set(symbols)

    def source_connections(self, source: str, state: str, connections: int) -> None:
        self._source_connections.labels(self._bounded("source", source), self._bounded("connection", state)).set(connections)

    def source_budget(self, source: str, per: str, left: int) -> None:
        self._source_budget.labels(self._bounded("source", source), self._bounded("per", per)).set(left)

    def newer_message(self, topic: str) -> None:
        """Counts a message with a newer schema version than this program's; `topic` without prefix."""
        self._newer.labels(self._bounded("topic", topic)).inc()
        self._count("newer_messages", 1)

    def outcomes_forgotten(self, count: int) -> None:
        self._outcomes_forgotten.inc(count)

    def slow_client(self) -> None:
        self._slow_clients.inc()

    def clients(self, count: int) -> None:
        self._clients.set(count)

    def lag(self, topic: str, partition: int, records: int) -> None:
        self._lag.labels(self._bounded("topic", topic), str(partition)).set(records)

    def forget_lag(self, topic: str, partition: int) -> None:
        """The partition is another worker's now."""
        self._lag.remove(self._bounded("topic", topic), str(partition))

    def notice(self, route: str, outcome: str) -> None:
        """Counts a notice of a route; `outcome` is sent, failed, held or dead."""
        self._notices.labels(self._bounded("route", route), self._bounded("outcome", outcome)).inc()
        self._count(f"notices_{outcome}", 1)

    def notify_lag(self, route: str, records: int) -> None:
        self._notify_lag.labels(self._bounded("route", route)).set(records)

    def archive_offset(self, partition: int, offset: int) -> None:
        self._archive.labels(str(partition)).set(offset)

    def forget_archive_offset(self, partition: int) -> None:
        """The partition is another worker's now."""
        self._archive.remove(str(partition))

    # ---- queries of the views

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """The latency histograms; called by the registry."""
        family = HistogramMetricFamily("stockstream_latency_seconds", "time from a record to the hop's result", labels=["hop"])
        for hop, latency in sorted(self._latencies.items()):
            upto = np.cumsum(latency.counts).tolist()
            family.add_metric([hop], [(_edge(edge), upto[i]) for i, edge in enumerate((*BUCKETS_S, float("inf")))], latency.sum_s)
        yield family

    def latency_ms(self) -> dict[str, dict[str, float | int | None]]:
        """`{hop: {p50, p99, count}}` of the last 60 s, in ms; None without observations."""
        answer: dict[str, dict[str, float | int | None]] = {}
        for hop, latency in sorted(self._latencies.items()):
            p50, p99 = latency.percentiles_ms(0.5, 0.99)
            answer[hop] = {"p50": p50, "p99": p99, "count": latency.recent()}
        return answer

    def rates(self) -> dict[str, float]:
        """Events per second over the last 60 s, by kind."""
        return {name: round(rate.per_s(), 3) for name, rate in sorted(self._rates.items())}

    def totals(self) -> dict[str, int]:
        """Events since this worker started, by kind."""
        return dict(sorted(self._totals.items()))

    def rejected(self) -> dict[str, int]:
        """Rejected ticks since this worker started, by reason."""
        return dict(sorted(self._reasons.items()))

    def pipeline(self) -> dict[str, Any]:
        """The parts of `/api/pipeline` that come from metrics: `latency_ms`, `rates_per_s`, `totals` and `rejected`."""
        return {"latency_ms": self.latency_ms(), "rates_per_s": self.rates(), "totals": self.totals(), "rejected": self.rejected()}

    # ---- inside

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"stockstream_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"stockstream_{name}", text, labels, registry=self.registry)

    def _count(self, name: str, count: int) -> None:
        rate = self._rates.get(name)
        if rate is None:
            rate = self._rates[name] = _Rate(self._clock)
        rate.add(count)
        self._totals[name] = self._totals.get(name, 0) + count

    def _bounded(self, label: str, value: str) -> str:
        known = self._labels.setdefault(label, set())
        if value in known:
            return value
        if len(known) >= MAX_LABELS:
            return "other"
        known.add(value)
        return value


def _edge(edge: float) -> str:
    return "+Inf" if edge == float("inf") else str(edge)
