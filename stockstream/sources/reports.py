"""The topics `watchlist`, `feeds` and `sources` combined: the state of each source of the group, and of each watched symbol.

Pure: no I/O and no clock of its own. The views and the commands show the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from heapq import nsmallest
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from stockstream.errors import FrameError
from stockstream.records import Budget, Feed, FeedState, SourceReport
from stockstream.skipped import shortened
from stockstream.sources.ingestion import MAX_WATCHED, Watch
from stockstream.transforms.cleaning.decoding import UNREADABLE
from stockstream.transforms.cleaning.limits import MAX_SOURCE, MAX_TIME, composed, symbol_fault
from stockstream.wording import clock_time, counted

REPORT_MS = 30_000
"""A report that is older counts as none: its worker has ended or lost its broker. Workers report every 5 s."""
REPLACED_MS = 10_000
"""A report that is so much older than one of the same source, host and web port is of a process that was killed and started again."""
MAX_REPORTS = 1_000
EXAMPLES = 3
MAX_BYTES = 65_536
"""Of one message. A report is smaller, however many connections the source has (`MOST_CONNECTIONS` of `reporter.py`)."""

TROUBLE: tuple[FeedState, ...] = ("failed", "feed_dead", "not_permitted", "rate_limited", "unknown_symbol")
"""States of a feed in which it brings nothing although its market may be open."""
FEED_STATES: tuple[str, ...] = get_args(FeedState)

SummaryState = Literal["stopped", "failed", "running", "starting", "idle", "missing"]
_WORST_FIRST: tuple[SummaryState, ...] = ("stopped", "failed", "running", "starting", "idle")


class SourceSummary(msgspec.Struct, kw_only=True):
    """One source of the group. It is `stopped` or `failed` if it is on any worker, and `missing` if the watchlist names it and no worker runs it.

    `watched` counts its symbols on the watchlist, `feeds` these by state; `examples` names the first three in each state of trouble. `budgets` are those of
    the worker that has the least left; `last_error` and `last_tick_at` are the newest of all workers. Times are epoch ms.
    """

    source: str
    name: str
    state: SummaryState
    reason: str
    watched: int
    feeds: dict[str, int]
    examples: dict[str, list[str]]
    budgets: list[Budget]
    next_attempt: int | None
    last_error: str
    last_tick_at: int | None
    workers: list[SourceReport]


class FeedEntry(msgspec.Struct, kw_only=True):
    """The state of one symbol of the watchlist. `worker` is empty if no worker ingests it.

    `age_s` is how long ago its newest tick happened; of a `fresh` symbol, how long before its worker reported it, which is at most a minute ago.
    """

    symbol: str
    source: str
    worker: str
    state: FeedState
    reason: str
    since: int | None
    last_event_time: int | None
    age_s: float | None


class _Kind(NamedTuple):
    """The source of a watched symbol, and what is reported of it; no worker if nothing is."""

    source: str
    worker: str
    state: FeedState


class SourceReports:
    """The newest messages of `watchlist`, `feeds` and `sources`.

    `watch`, `feed` and `report` take the messages; each raises `FrameError`, `msgspec.MsgspecError` or `UnicodeDecodeError` on one that cannot be read, and
    changes nothing then.
    """

    def __init__(self) -> None:
        self._watched: dict[str, str] = {}
        """By symbol: its source."""
        self._feeds: dict[str, Feed] = {}
        self._reports: dict[str, SourceReport] = {}
        """By key: `<source>@<worker>`."""
        self._kinds: dict[str, _Kind] = {}
        self._of_kind: dict[_Kind, set[str]] = {}
        """The watched symbols of each kind, so that a summary need not look at all of them."""

    # ---- messages in

    def watch(self, key: bytes, value: bytes | None) -> None:
        """One message of `watchlist`."""
        symbol = composed(key.decode())
        watch = None if value is None else _decode_watch(_within(value))
        if fault := symbol_fault(symbol) or ("its source is too long" if watch is not None and len(watch.source) > MAX_SOURCE else ""):
            raise FrameError(fault)
        if watch is None or not watch.active:
            self._watched.pop(symbol, None)
        elif symbol in self._watched or len(self._watched) < MAX_WATCHED:
            self._watched[symbol] = watch.source
        self._count(symbol)

    def feed(self, key: bytes, value: bytes | None) -> None:
        """One message of `feeds`."""
        symbol = composed(key.decode())
        feed = None if value is None else _decode_feed(_within(value))
        if fault := symbol_fault(symbol):
            raise FrameError(fault)
        if feed is None:
            self._feeds.pop(symbol, None)
        else:
            _require_times(feed.since, feed.last_event_time, feed.at)
            if symbol in self._feeds or len(self._feeds) < MAX_WATCHED:
                self._feeds[symbol] = feed
        self._count(symbol)

    def report(self, key: bytes, value: bytes | None) -> None:
        """One message of `sources`."""
        name = key.decode()
        if value is None:
            self._reports.pop(name, None)
            return
        report = _decode_report(_within(value))
        _require_times(report.since, report.at, report.next_attempt, report.last_tick_at)
        msgspec.json.encode(report)                                      # the views encode it later: what cannot be encoded is refused here
        self._reports[name] = report
        if len(self._reports) > MAX_REPORTS:
            del self._reports[min(self._reports, key=lambda held: self._reports[held].at)]

    def _count(self, symbol: str) -> None:
        """Counts the symbol anew."""
        before = self._kinds.pop(symbol, None)
        if before is not None:
            self._of_kind[before].discard(symbol)
            if not self._of_kind[before]:
                del self._of_kind[before]
        source = self._watched.get(symbol)
        if source is not None:
            feed = self._feeds.get(symbol)
            kind = _Kind(source, feed.worker, feed.state) if feed is not None and feed.source == source else _Kind(source, "", "waiting")
            self._kinds[symbol] = kind
            self._of_kind.setdefault(kind, set()).add(symbol)

    # ---- answers

    def known_sources(self, now_ms: int) -> list[str]:
        """The sources that a worker runs or the watchlist names, in alphabetical order."""
        return sorted({report.source for report in self._fresh(now_ms)} | {kind.source for kind in self._of_kind})

    def watched(self, symbol: str) -> str | None:
        """The source of a symbol on the watchlist; None if it is not there."""
        return self._watched.get(symbol)

    @property
    def watched_count(self) -> int:
        """How many symbols the watchlist has."""
        return len(self._watched)

    def is_run(self, source: str, now_ms: int) -> bool:
        """Whether a worker runs the source."""
        return any(report.source == source for report in self._fresh(now_ms))

    def summaries(self, now_ms: int) -> list[SourceSummary]:
        """All sources in alphabetical order."""
        reports: dict[str, list[SourceReport]] = {}
        for report in self._fresh(now_ms):
            reports.setdefault(report.source, []).append(report)
        workers = {(source, report.worker) for source, of in reports.items() for report in of}
        feeds: dict[str, Counter[str]] = {}
        examples: dict[str, dict[str, list[str]]] = {}
        for kind, symbols in self._of_kind.items():
            state = kind.state if (kind.source, kind.worker) in workers else "waiting"
            feeds.setdefault(kind.source, Counter())[state] += len(symbols)
            if state in TROUBLE:
                named = examples.setdefault(kind.source, {})
                named[state] = nsmallest(EXAMPLES, (*named.get(state, ()), *nsmallest(EXAMPLES, symbols)))
        known = self.known_sources(now_ms)
        return [_summary(source, reports.get(source, []), feeds.get(source, Counter()), examples.get(source, {})) for source in known]

    def entries(self, now_ms: int, source: str | None = None, state: str | None = None, after: str = "") -> Iterator[FeedEntry]:
        """The symbols of the watchlist after `after`, in alphabetical order: of one source, in one state."""
        workers = {(report.source, report.worker) for report in self._fresh(now_ms)}
        for symbol in sorted(name for name, of in self._watched.items() if name > after and source in (None, of)):
            entry = _entry(symbol, self._watched[symbol], self._feeds.get(symbol), workers, now_ms)
            if state in (None, entry.state):
                yield entry

    def note(self, now_ms: int) -> str:
        """The sources that are in trouble and why, in one line; empty if none is."""
        return "; ".join(filter(None, map(trouble, self.summaries(now_ms))))

    def _fresh(self, now_ms: int) -> list[SourceReport]:
        fresh = [report for _, report in sorted(self._reports.items()) if now_ms - report.at <= REPORT_MS]
        newest: dict[tuple[str, str], int] = {}
        for report in fresh:
            newest[_place(report)] = max(report.at, newest.get(_place(report), 0))
        return [report for report in fresh if newest[_place(report)] - report.at <= REPLACED_MS]


def _place(report: SourceReport) -> tuple[str, str]:
    """The source, and the worker without its process."""
    return report.source, report.worker.rpartition(":")[0] or report.worker


def trouble(summary: SourceSummary) -> str:
    """What is wrong with a source, in one line; empty if nothing is."""
    parts: list[str] = []
    source = summary.source
    if summary.state == "missing":
        return f"no worker runs {source}, which {counted(summary.watched, 'symbol')} of the watchlist {'waits' if summary.watched == 1 else 'wait'} for"
    down = summary.state in ("stopped", "failed")
    if down:
        how = "has failed" if summary.state == "failed" else "is stopped until its settings change"
        parts.append(f"{source} {how}{_where(summary)}" + (f": {without_name(source, summary.reason)}" if summary.reason else ""))
    elif summary.reason and summary.state in ("running", "starting"):
        parts.append(with_name(source, summary.reason))
    if spent := [budget for budget in summary.budgets if budget.left <= 0 and budget.per == "day" and not parts]:
        parts.append(f"{source} has used its {counted(spent[0].limit, 'request')} of the day; the next at {clock_time(spent[0].resets_at)}")
    lost = [connection for report in summary.workers for connection in report.connections if connection.state in ("silent", "closed")]
    away = sum(connection.count for connection in lost)
    if lost and not summary.reason:
        why = f" ({lost[0].reason})" if lost[0].reason else ""
        of = sum(connection.count for report in summary.workers for connection in report.connections)
        parts.append(f"{away} of {counted(of, 'connection')} of {source} {'is' if away == 1 else 'are'} {lost[0].state}{why}")
    if not down:
        single = [state for state in TROUBLE if summary.feeds.get(state) and not (state in ("failed", "rate_limited") and parts)]
        parts += [f"{counted(summary.feeds[state], 'symbol')} of {source}: {in_words(state)} ({_examples(summary, state)})" for state in single]
    return shortened("; ".join(parts))


def without_name(source: str, text: str) -> str:
    """A reason without the source's name before it."""
    named, colon, rest = text.partition(": ")
    return rest if colon and named.lower().replace(" ", "_") == source else text


def with_name(source: str, text: str) -> str:
    """A reason with the source's name before it, once."""
    return text if text.startswith(f"{source} ") else f"{source}: {without_name(source, text)}"


def in_words(state: str) -> str:
    """A state as text for a person."""
    return state.replace("_", " ")


def _examples(summary: SourceSummary, state: str) -> str:
    names = summary.examples.get(state, [])
    return ", ".join(names) + (" ..." if summary.feeds[state] > len(names) else "")


def _where(summary: SourceSummary) -> str:
    down = [report.worker for report in summary.workers if report.state == summary.state]
    return f" on {', '.join(down)}" if len(down) < len(summary.workers) else ""


def _summary(source: str, reports: list[SourceReport], feeds: Counter[str], examples: dict[str, list[str]]) -> SourceSummary:
    state: SummaryState = next((state for state in _WORST_FIRST if any(report.state == state for report in reports)), "missing")
    of_state = [report for report in reports if report.state == state]
    reason = next((report.reason for report in of_state if report.reason), "") if reports else "no worker runs it"
    if state == "running":
        reason = next((report.reason for report in reports if report.state == "running" and report.reason), "")
    budgets: dict[Any, Budget] = {}
    for budget in (budget for report in reports for budget in report.budgets):
        if budget.per not in budgets or budget.left < budgets[budget.per].left:
            budgets[budget.per] = budget
    newest = max(reports, key=lambda report: (bool(report.last_error), report.at), default=None)
    return SourceSummary(
        source=source, name=reports[0].name if reports else "", state=state, reason=reason, watched=feeds.total(), feeds=dict(sorted(feeds.items())),
        examples=examples, budgets=list(budgets.values()), next_attempt=min((r.next_attempt for r in reports if r.next_attempt is not None), default=None),
        last_error=newest.last_error if newest else "", last_tick_at=max((r.last_tick_at for r in reports if r.last_tick_at is not None), default=None),
        workers=reports,
    )  # fmt: skip


def _ingested(feed: Feed | None, source: str, workers: set[tuple[str, str]]) -> Feed | None:
    """The feed, if it is of this source and of a worker that still reports."""
    return feed if feed is not None and feed.source == source and (source, feed.worker) in workers else None


def _entry(symbol: str, source: str, held: Feed | None, workers: set[tuple[str, str]], now_ms: int) -> FeedEntry:
    last = held.last_event_time if held is not None and held.source == source else None
    age_s = None if last is None else max(0, now_ms - last) / 1000
    feed = _ingested(held, source, workers)
    if feed is not None:
        if feed.state == "fresh" and last is not None:
            age_s = max(0, feed.at - last) / 1000
        return FeedEntry(
            symbol=symbol, source=source, worker=feed.worker, state=feed.state, reason=feed.reason, since=feed.since, last_event_time=last, age_s=age_s
        )
    if source not in {of for of, _ in workers}:
        reason = f"no worker runs {source} (STOCKSTREAM_SOURCE)"
    elif held is None or held.source != source:
        reason = "no worker has reported it yet"
    else:
        reason = f"{held.worker} no longer reports; another worker takes over"
    return FeedEntry(symbol=symbol, source=source, worker="", state="waiting", reason=reason, since=None, last_event_time=last, age_s=age_s)


def _within(value: bytes) -> bytes:
    if len(value) > MAX_BYTES:
        raise FrameError(f"it has {len(value)} bytes, at most {MAX_BYTES} are read")
    return value


def _require_times(*times: int | None) -> None:
    if not all(time is None or 0 <= time < MAX_TIME for time in times):
        raise FrameError("a time is out of range")


_decode_watch = msgspec.json.Decoder(Watch).decode
_decode_feed = msgspec.json.Decoder(Feed).decode
_decode_report = msgspec.json.Decoder(SourceReport).decode


def read_all(messages: Iterable[tuple[str, bytes, bytes]]) -> SourceReports:
    """The reports of (topic, key, value); messages that cannot be read are left out."""
    reports = SourceReports()
    take = {"watchlist": reports.watch, "feeds": reports.feed, "sources": reports.report}
    for topic, key, value in messages:
        try:
            take[topic](key, value)
        except (FrameError, *UNREADABLE):
            continue
    return reports
