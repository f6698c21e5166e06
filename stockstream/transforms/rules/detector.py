"""The anomaly rules: rows of closed seconds in, alerts and market summaries out, for one partition.

The rules stand in `conditions`. One alert of a rule is open at a time for a symbol. It is `opened` by the first row with the condition, `updated` by
a later one whose value is strictly more extreme than every value sent so far, and `closed` once the condition has been gone for 60 s of event
time: by the first closing of its source that reaches `last second with the condition + 60`, with `as_of` (that second + 1) x 1000, whether the
symbol had rows there or not. Where another source takes the symbol over, the takeover's first closing with a row of it closes it first of all, with
the same `as_of`.
A row that comes late is one like any other, but it does not take back what has been sent: `last` never goes back, and an alert that was closed stays so.
So alerts are a pure function of the raw log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from stockstream.records import Alert, Closing
from stockstream.transforms.changelog_index import ChangelogIndex, Range
from stockstream.transforms.frames import Frame
from stockstream.transforms.rules import state as alert_state
from stockstream.transforms.rules.columns import Columns, Hit
from stockstream.transforms.rules.conditions import QUIET_S, RULE_NAMES, alert_of, closing_sentence, conditions, judge, more_extreme, sentence
from stockstream.transforms.rules.state import FORMAT, MAX_LASTS, Checkpoint, Kept, OpenAlert, bucket_of, source_id
from stockstream.transforms.timing import FORGET_MS
from stockstream.transforms.versioned import TERMS, next_slot, pack

LONG_ALERTS = 1_000
"""Alerts that one frame may open, or close. Each takes about 30 us, so more would hold up other partitions."""


@dataclass(slots=True)
class _SourceAlerts:
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

    A summary counts the rows that are neither `revised` nor late; `advancers`, `decliners`, `unchanged` and the sums are over `returns_60s` symbols with a
    `return_60s`.
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
        self._sources: dict[str, _SourceAlerts] = {}
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
        return sorted(ahead + [alert for source in self._sources.values() for alert in source.alerts.values()], key=alert_order)

    def take_frame(self, frame: Frame, input_offset: int = 0) -> Detected | None:
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
        columns = Columns(frame.rows)
        summaries = columns.summaries(self.partition)
        for closing in closings:
            place = (closing.offset, closing.source)
            if self._ahead:
                self._reach(closing.offset)
            self._close_seconds(columns, columns.spans.get(place, slice(0, 0)), closing, found.alerts)
            found.markets.extend(summaries.get(place, ()))
        if self._ahead:
            self._reach(frame.through + 1)
        self._end_silent(frame.log_clock, {closing.source for closing in closings}, found.alerts)
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
        return rows.num_rows >= LONG_ALERTS and int(np.count_nonzero(np.logical_or.reduce(conditions(rows)))) >= LONG_ALERTS // len(RULE_NAMES)

    # -- state --------------------------------------------------------------

    def records(self, term: int = 0) -> list[tuple[bytes, bytes]]:
        """Keys and values of what changed since the last call, in the order of writing: buckets of open alerts, then the checkpoint (`alert_state`).

        Keys carry the log's id, so that a record of an older log can never win over one of a newer, and the writer's term
        (modulo 8), so that a woken worker can only replace what it wrote itself. Pass to `index.confirmed` the offsets where they were written.
        """
        if self.expect < 0 or not self._moved:
            return []
        place, through = f"{self.partition}/{self.log}/{term % TERMS}", self.expect - 1
        lasts = self._lasts()
        out: list[tuple[bytes, bytes]] = []
        for number in sorted(self._dirty):
            bucket = self._buckets[number]
            bucket.order = sorted(bucket.alerts.values(), key=alert_order)
            bucket.stored, bucket.slot = through, next_slot(bucket.slot)
            out += alert_state.bucket_records(place, alert_state.bucket(through, self.log, number, bucket.slot, bucket.order))
            if not bucket.alerts:
                del self._buckets[number]
        buckets = {number: bucket.stored for number, bucket in self._buckets.items()}
        buckets |= {number: kept.stored for number, kept in self._ahead.items() if kept.alerts}
        self.index.keep({str(number) for number in buckets})
        checkpoint = Checkpoint(
            v=FORMAT, through=through, log=self.log, resume_input=self.resume_input, ranges=self.index.needed({}), buckets=buckets, lasts=lasts,
            sources={source_id(name): (source.touched, source.closed) for name, source in self._sources.items()},
        )  # fmt: skip
        out.append((f"{place}/head".encode(), pack(checkpoint)))
        self.index.written({}, [str(number) for number in self._dirty])
        self._dirty.clear()
        self._moved = False
        return out

    def _lasts(self) -> dict[int, list[int]]:
        """The `last` of alerts that the checkpoint is to carry; buckets whose would be too many are written again."""
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
        """The ranges of the changelog that the highest checkpoint among these records names; None where there is none."""
        checkpoints = [alert_state.checkpoint_of(value) for key, value in records.items() if alert_state.is_checkpoint(key)]
        return max(checkpoints, key=lambda one: (one.log, one.through, one.resume_input)).ranges if checkpoints else None

    @classmethod
    def restore(cls, partition: int, records: Mapping[bytes, bytes], offsets: Mapping[bytes, int] | None = None) -> Detector:
        """The detector as its records describe it; those of other partitions and of older logs are ignored. `offsets` in the changelog, by key.

        Raises `StateError`.
        """
        detector = cls(partition)
        detector.log, found, buckets = alert_state.restored(partition, records)
        if found is not None:
            checkpoint, key = found
            detector.expect, detector.resume_input = checkpoint.through + 1, checkpoint.resume_input
            if offsets:
                detector.index.restored(offsets[key], {})                # what is needed of before has a name
        for number, kept in buckets.items():
            if offsets and kept.alerts and not kept.outdated:
                places = [offsets[key] for key in kept.keys]
                detector.index.restored(max(places), {}, [str(number)], first=min(places))
            detector._ahead[number] = kept
            for alert in kept.alerts:
                detector._sources.setdefault(alert.source, _SourceAlerts())
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
            source = self._sources[alert.source] = _SourceAlerts()
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
        if self._owner.get(alert.symbol) == alert.source and not any((alert.symbol, rule) in source.alerts for rule in RULE_NAMES):
            del self._owner[alert.symbol]
        if not source.alerts and not self._ahead:
            del self._sources[alert.source]

    # -- the life of alerts -------------------------------------------------

    def _close_seconds(self, columns: Columns, rows: slice, closing: Closing, out: list[Alert]) -> None:
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
            changed: list[Alert] = []
            touched: set[tuple[str, str]] = set()
            while position < len(hits) and hits[position].second == now:
                hit = hits[position]
                position += 1
                touched.add((hit.symbol, hit.rule))
                changed += self._hit(hit, name)
            if source is not None and due <= now:
                changed += [self._end(alert) for key, alert in list(source.alerts.items()) if alert.last + QUIET_S <= now and key not in touched]
                source.due = min((alert.last + QUIET_S for alert in source.alerts.values()), default=math.inf)
            changed.sort(key=alert_order)
            out += changed
        source = self._sources.get(name)
        if source is not None:
            source.closed = second

    def _end_taken_over(self, columns: Columns, rows: slice, source: str, out: list[Alert]) -> None:
        """Close what another source left open in symbols that this one now has rows of."""
        if self._sources.keys() <= {source}:
            return
        for symbol in sorted(symbol for symbol in columns.symbols(rows) if self._owner.get(symbol, source) != source):
            left = self._sources[self._owner[symbol]].alerts
            out += [self._end(left[symbol, rule]) for rule in RULE_NAMES if (symbol, rule) in left]

    def _end_silent(self, log_clock: int, heard: set[str], out: list[Alert]) -> None:
        """Close what sources left open that were in no frame for FORGET_MS of the log's time."""
        for name in sorted(self._sources):
            source = self._sources[name]
            if name in heard or not source.touched:
                source.touched = log_clock
            elif log_clock - source.touched > FORGET_MS:
                self._end_all(source, out)

    def _end_all(self, source: _SourceAlerts, out: list[Alert]) -> None:
        out += [self._end(alert) for alert in sorted(source.alerts.values(), key=alert_order)]

    def _hit(self, hit: Hit, source: str) -> list[Alert]:
        symbol, rule, window = hit.symbol, hit.rule, hit.window
        second = hit.second
        value, baseline, threshold, severity = judge(rule, window)
        of_source = self._sources.get(source)
        alert = of_source.alerts.get((symbol, rule)) if of_source is not None else None
        if alert is None:
            alert = OpenAlert(symbol, rule, source, second, second, severity, value, baseline, threshold, window)
            self._keep(alert, bucket_of(symbol))
            return [alert_of(alert, "opened", second, sentence(alert))]
        alert.last = max(alert.last, second)                             # a row may come late
        if not more_extreme(rule, value, alert.value):
            self._touched.add(bucket_of(symbol))
            return []
        alert.value, alert.baseline, alert.threshold, alert.window = value, baseline, threshold, window
        if severity == "critical":
            alert.severity = severity
        self._dirty.add(bucket_of(symbol))
        return [alert_of(alert, "updated", second, sentence(alert))]

    def _end(self, alert: OpenAlert) -> Alert:
        self._drop(alert)
        return alert_of(alert, "closed", alert.last + QUIET_S, closing_sentence(alert))


def alert_order(alert: OpenAlert | Alert) -> tuple[str, str]:
    return alert.symbol, alert.rule
