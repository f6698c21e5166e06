"""What `clean` remembers of one partition, and how it is stored: a versioned snapshot, in pieces where one message cannot hold it.

Keys in the changelog are `snapshot/<term>` for a whole snapshot and `snapshot/<term>/<slot>/<piece>` for a piece of one. Pieces of successive snapshots
alternate between two slots: a writer that dies halfway leaves the snapshot before it whole. `<term>` tells writers apart (modulo `TERMS`).
"""

# ruff: noqa: RUF012 (msgspec gives each record its own copy of an empty list)

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import msgspec

from stockstream.errors import StateError
from stockstream.transforms import versioned as stored
from stockstream.transforms.cleaning.lags import SourceLags
from stockstream.transforms.cleaning.limits import MAX_OFFSET, composed
from stockstream.transforms.timing import FORGET_MS
from stockstream.transforms.versioned import TERMS, Stored, by_slot, pieces_in_slot

VERSION = 3
DIGEST_BYTES = 8
"""Of what is remembered of a numbered tick or a trade's id: among 50,000 ids two are alike once in 10 billion partitions."""
COMPRESSED_FROM = 400_000
"""Bytes of a snapshot from which on it is compressed (to about a fifth): about 4,000 symbols."""
_WHOLE = re.compile(rb"snapshot/\d{1,9}")
_PIECE = re.compile(rb"snapshot/\d{1,9}/\d/\d{1,5}")


class Step(msgspec.Struct, frozen=True, array_like=True):
    """The last step of a cumulative volume, which the next figures may take back: the figure `before` it, and that figure's event time.

    Where it was a rise: event time, price and counted size of its tick, and whether the size had accrued over some time.
    """

    before: float
    before_time: int
    event_time: int = 0
    price: float = 0.0
    size: float = 0.0
    accrued: bool = False


@dataclass(slots=True)
class Feed:
    """The last of one symbol from one source, kept where numbering, cumulative volume or snapshots need it. `snapshot` is a digest."""

    seq: int = -1
    day_volume: float = -1.0
    """The highest figure of the present count."""
    day_time: int = 0
    """Event time of the last figure."""
    session: str | None = None
    snapshot: bytes = b""
    ts: int = 0
    epoch: int = -1
    newest: int = 0
    """Newest event time that was accepted."""
    contents: bytes = b""
    """Digests of the ticks numbered `seq`; empty where they are not known."""
    undigested: Any = None
    """The tick numbered `seq`, where it is the only one and its digest was not needed yet."""
    run: int = 0
    """Duplicates that may belong to a numbering that has begun again, and the number of the last of them."""
    run_seq: int = -1
    step: Step | None = None


@dataclass(slots=True)
class SourceState:
    """A source in this partition: its watermark and what follows from it. Where nothing is closed yet, `closed` is None.

    `ts` is the log clock when a tick or punctuation of it was accepted last, `lateness_ms` what was set for it when it was first heard.
    `heard` is when that last record arrived, by the worker's clock: it is not stored.
    """

    watermark: int = 0
    closed: int | None = None
    closes_at: int = 0
    late_before: int = 0
    ts: int = 0
    newest: int = -1
    unsent: bool = False
    feeds: dict[str, Feed] = field(default_factory=dict)
    heard: float = field(default=0.0, compare=False)
    lateness_ms: int = 0
    reached: int = field(default=0, compare=False)
    """The highest event_time of its ticks, which no punctuation moves; not stored."""
    lags: SourceLags = field(default_factory=SourceLags, compare=False)
    """What was counted since it was last taken; not stored."""

    def has_closed(self, event_time: int) -> bool:
        """Whether the second of a tick is closed."""
        return self.closed is not None and event_time < (self.closed + 1) * 1000

    def forgotten(self, now: int) -> bool:
        """Whether nothing of it was accepted for a day of the log clock; what is still to be closed keeps it."""
        return now - self.ts > FORGET_MS and not self.unsent


@dataclass(slots=True)
class Held:
    """The living series of a symbol: its source, newest second, and the log clock at the last accepted tick."""

    source: str
    newest: int
    ts: int
    traded: int = 0
    """Second of its newest trade; 0: none since its currency is known."""
    price: float = 0.0
    """Of that trade."""
    currency: str | None = None
    """The last that was named."""
    since: int = 0
    """Epoch ms: another currency began here, and what is older is late."""
    gap_from: int = 0
    """The least `gap_from` of ticks that were late: the next accepted tick has it. 0: none."""


class State(Stored):
    """A snapshot: columns of sources (`source_*`), of their feeds (`feed_*`, `feed_counts` of each source), of symbols (`held_*`) and of trades (`trade_*`).

    `source_lateness` is empty in snapshots of releases with one lateness for all sources, `lateness_ms`. `held_owners` are places in `owners`,
    `held_currencies` in `currencies`, `feed_sessions` in `sessions`. What few feeds have is by the feed's place: `feed_epochs`, `feed_runs` (`run` and
    `run_seq`), `feed_steps`; what few symbols have by the symbol's: `held_away`. `trade_keys` follow each other, `trade_waits` are the ms from one to the
    next. With `compressed` all other fields but `v` are in there: a packed State.
    """

    expect: int = -1
    log: str = ""
    lateness_ms: int = 0
    revise_s: int = 0
    partitions: int = 0
    last_record: tuple[int, int] = (0, 0)
    accepted: int = 0
    rejected: int = 0
    log_clock: int = msgspec.field(default=0, name="clock")
    source_names: list[str] = []
    source_watermarks: list[int] = msgspec.field(default_factory=list, name="source_clocks")
    source_closed: list[int | None] = []
    source_ts: list[int] = []
    source_newest: list[int] = []
    source_unsent: list[bool] = []
    source_lateness: list[int] = []
    feed_counts: list[int] = []
    feed_symbols: list[str] = []
    feed_seq: list[int] = []
    feed_day_volume: list[float] = []
    feed_day_time: list[int] = []
    feed_sessions: list[int] = []
    feed_snapshots: list[bytes] = []
    feed_ts: list[int] = []
    feed_newest: list[int] = []
    feed_contents: list[bytes] = []
    feed_epochs: dict[int, int] = {}
    feed_runs: dict[int, tuple[int, int]] = {}
    feed_steps: dict[int, Step] = {}
    trade_keys: bytes = b""
    trade_waits: list[int] = []
    sessions: list[str | None] = []
    owners: list[str] = []
    held_symbols: list[str] = []
    held_owners: list[int] = []
    held_newest: list[int] = []
    held_ts: list[int] = []
    held_traded: list[int] = []
    held_price: list[float] = []
    held_currencies: list[int] = []
    held_since: list[int] = []
    held_away: dict[int, int] = {}
    currencies: list[str | None] = []
    raw_format: str = ""
    compressed: bytes = b""

    def put(self, sources: Mapping[str, SourceState], held: Mapping[str, Held], trades: Mapping[bytes, int]) -> None:
        """Takes these as its columns. No feed may have a tick that is not digested."""
        of = sources.values()
        feeds = [feed for source in of for feed in source.feeds.values()]
        self.source_names = list(sources)
        self.source_watermarks, self.source_closed = [s.watermark for s in of], [s.closed for s in of]
        self.source_ts, self.source_lateness = [s.ts for s in of], [s.lateness_ms for s in of]
        self.source_newest, self.source_unsent = [s.newest for s in of], [s.unsent for s in of]
        self.feed_counts = [len(s.feeds) for s in of]
        self.feed_symbols = [symbol for source in of for symbol in source.feeds]
        self.feed_seq, self.feed_ts = [f.seq for f in feeds], [f.ts for f in feeds]
        self.feed_day_volume, self.feed_day_time = [f.day_volume for f in feeds], [f.day_time for f in feeds]
        self.feed_snapshots = [f.snapshot for f in feeds]
        self.feed_newest, self.feed_contents = [f.newest for f in feeds], [f.contents for f in feeds]
        self.feed_epochs = {place: f.epoch for place, f in enumerate(feeds) if f.epoch >= 0}
        self.feed_runs = {place: (f.run, f.run_seq) for place, f in enumerate(feeds) if f.run}
        self.feed_steps = {place: f.step for place, f in enumerate(feeds) if f.step is not None}
        self.trade_keys = b"".join(trades)
        self.trade_waits = [at - before for before, at in pairwise([0, *trades.values()])]
        self.sessions, self.feed_sessions = _numbered(f.session for f in feeds)
        self.owners, self.held_owners = _numbered(h.source for h in held.values())
        self.held_symbols, self.held_newest, self.held_ts = list(held), [h.newest for h in held.values()], [h.ts for h in held.values()]
        self.held_traded, self.held_price = [h.traded for h in held.values()], [h.price for h in held.values()]
        self.held_since = [h.since for h in held.values()]
        self.held_away = {place: h.gap_from for place, h in enumerate(held.values()) if h.gap_from}
        self.currencies, self.held_currencies = _numbered(h.currency for h in held.values())

    def require_fitting(self) -> None:
        """Raises `ValueError` where `sources` or `held` would fail, or no log has such an offset; it takes a quarter of their time."""
        if not -1 <= self.expect <= MAX_OFFSET:
            raise ValueError(f"no log goes on from offset {self.expect}")
        sources = (self.source_watermarks, self.source_closed, self.source_ts, self._lateness, self.source_newest, self.source_unsent)
        feeds = (
            self.feed_seq, self.feed_day_volume, self.feed_day_time, self.feed_sessions, self.feed_snapshots, self.feed_ts, *self._newest_and_contents()
        )  # fmt: skip
        held = (self.held_owners, self.held_newest, self.held_ts, *self._series())
        for first, others in ((self.source_names, (*sources, self.feed_counts)), (self.feed_symbols, feeds), (self.held_symbols, held)):
            if any(len(other) != len(first) for other in others):
                raise ValueError("columns of different lengths")
        if sum(self.feed_counts) != len(self.feed_symbols) or min(self.feed_counts, default=0) < 0:
            raise ValueError(f"{len(self.feed_symbols)} feeds where the sources have {sum(self.feed_counts)}")
        for places, of in ((self.feed_sessions, self.sessions), (self.held_owners, self.owners), (self.held_currencies, self.currencies)):
            if places and not 0 <= min(places) <= max(places) < len(of):
                raise ValueError("a place that is none of its list")
        for some in (self.feed_epochs, self.feed_runs, self.feed_steps):
            if some and not 0 <= min(some) <= max(some) < len(self.feed_symbols):
                raise ValueError("a place that is no feed's")
        if self.held_away and not 0 <= min(self.held_away) <= max(self.held_away) < len(self.held_symbols):
            raise ValueError("a place that is no symbol's")
        if len(self.trade_keys) != DIGEST_BYTES * len(self.trade_waits):
            raise ValueError("columns of different lengths")

    @property
    def _lateness(self) -> list[int]:
        return self.source_lateness or [self.lateness_ms] * len(self.source_names)

    def sources(self) -> dict[str, SourceState]:
        """The sources, without what follows from the settings. Raises `ValueError` or `IndexError` where columns do not fit together."""
        newest, contents = self._newest_and_contents()
        columns = (self.feed_seq, self.feed_day_volume, self.feed_day_time, self.feed_sessions, self.feed_snapshots, self.feed_ts, newest, contents)
        feeds = [
            Feed(seq, volume, time, self.sessions[session], snapshot, ts, self.feed_epochs.get(place, -1), latest, known)
            for place, (seq, volume, time, session, snapshot, ts, latest, known) in enumerate(zip(*columns, strict=True))
        ]
        for place, (run, run_seq) in self.feed_runs.items():
            feeds[place].run, feeds[place].run_seq = run, run_seq
        for place, step in self.feed_steps.items():
            feeds[place].step = step
        found: dict[str, SourceState] = {}
        at = 0
        of_sources = zip(
            self.source_names, self.source_watermarks, self.source_closed, self.source_ts, self._lateness, self.source_newest,
            self.source_unsent, self.feed_counts, strict=True,
        )  # fmt: skip
        for name, watermark, closed, ts, lateness_ms, second, unsent, count in of_sources:
            mine = dict(zip(self.feed_symbols[at : at + count], feeds[at : at + count], strict=True))
            found[name] = SourceState(watermark, closed, 0, 0, ts, second, unsent, mine, lateness_ms=lateness_ms)
            at += count
        if at != len(feeds):
            raise ValueError(f"{len(feeds)} feeds where the sources have {at}")
        return found

    def held(self) -> dict[str, Held]:
        """The symbols. Raises `ValueError` or `IndexError` where columns do not fit together."""
        traded, price, currency, since = self._series()
        names = self.currencies or [None]
        return {
            symbol: Held(self.owners[owner], newest, ts, second, last, names[which], begins, self.held_away.get(place, 0))
            for place, (symbol, owner, newest, ts, second, last, which, begins) in enumerate(zip(
                self.held_symbols, self.held_owners, self.held_newest, self.held_ts, traded, price, currency, since, strict=True
            ))
            if composed(symbol) == symbol                                # others are of an earlier release: no tick of today is of them
        }

    def _series(self) -> tuple[list[int], list[float], list[int], list[int]]:
        """What snapshots of earlier releases do not have: nothing is known then."""
        none = [0] * len(self.held_symbols)
        return self.held_traded or none, self.held_price or [0.0] * len(none), self.held_currencies or none, self.held_since or none


    def trades(self) -> list[tuple[bytes, int]]:
        """Keys and times of trades, the oldest first."""
        keys = (self.trade_keys[at : at + DIGEST_BYTES] for at in range(0, len(self.trade_keys), DIGEST_BYTES))
        return list(zip(keys, accumulate(self.trade_waits), strict=True))

    def _newest_and_contents(self) -> tuple[list[int], list[bytes]]:
        """Of feeds. A snapshot of an earlier release has neither: the newest second that a symbol had is used, and contents are not known."""
        if self.feed_newest or not self.feed_symbols:
            return self.feed_newest, self.feed_contents
        newest = dict(zip(self.held_symbols, self.held_newest, strict=True))
        return [newest.get(symbol, 0) * 1000 + 999 for symbol in self.feed_symbols], [b""] * len(self.feed_symbols)


def _numbered(values: Iterable[Any]) -> tuple[list[Any], list[int]]:
    """The different values in the order of their first appearance, and for each value its place among them."""
    places: dict[Any, int] = {}
    which = [places.setdefault(value, len(places)) for value in values]
    return list(places), which


DIGESTED = frozenset((
    "symbol", "event_time", "price", "size", "source", "seq", "bid", "ask", "bid_size", "ask_size", "day_volume", "exchange", "condition", "currency",
    "session", "snapshot", "received_at",
))  # fmt: skip
"""A snapshot tick's fields that are digested even where they are null: those of the first release, whose digests are stored. Fields added later are digested
only where they have a value."""


def digest(snapshot: bytes) -> bytes:
    """What is kept of a snapshot tick, to recognise a repeat."""
    return hashlib.blake2b(snapshot, digest_size=16).digest()


# -- reading ----------------------------------------------------------------


def upgrade(value: bytes) -> State:
    """The state in a value of version 1: a packed array, compressed by zlib where it was large. Raises `msgspec.MsgspecError`, `ValueError`, `zlib.error`."""
    data = zlib.decompress(value) if value[:1] == b"\x78" else value
    expect, log, lateness, revise, of, last_record, accepted, rejected, packed, symbols, owners, newest, seen = msgspec.msgpack.decode(data)
    sources: dict[str, SourceState] = {}
    for name, watermark, closed, ts, newest_second, unsent, feed_symbols, feeds in packed:
        mine = {
            symbol: Feed(seq, volume, time, session, digest(snapshot) if snapshot else b"", heard)
            for symbol, (seq, volume, time, session, snapshot, heard) in zip(feed_symbols, feeds, strict=True)
        }
        sources[name] = SourceState(watermark, closed, 0, 0, ts, newest_second, unsent, mine, lateness_ms=lateness)
    names = list(sources)
    held = {
        symbol: Held(owner if isinstance(owner, str) else names[owner], second, ts)
        for symbol, owner, second, ts in zip(symbols, owners, newest, seen, strict=True)
    }
    for holder in held.values():
        if (source := sources.get(holder.source)) is not None:
            source.ts = max(source.ts, holder.ts)                        # it was the last record's time, which may have gone back
    state = State(
        v=VERSION, expect=expect, log=log, lateness_ms=lateness, revise_s=revise, partitions=of, last_record=(last_record[0], last_record[1]),
        accepted=accepted, rejected=rejected, log_clock=max((*(source.ts for source in sources.values()), *(holder.ts for holder in held.values())), default=0),
    )  # fmt: skip
    state.put(sources, held, {})
    state.feed_newest, state.feed_contents = [], []                       # they are not known
    return msgspec.msgpack.decode(stored.pack(state), type=State)         # checks the types of what was an untyped array


_BROKEN = (msgspec.MsgspecError, ValueError, TypeError, KeyError, IndexError, OverflowError, zlib.error)


def decoded(value: bytes) -> State:
    """The state in a whole value of any version. Raises `StateError` where a newer stockstream wrote it, else one of `_BROKEN`."""
    if stored.version_of(value) == 1:
        return upgrade(value)
    state = stored.unpack(State, value, VERSION)
    if state.compressed:
        state = stored.unpack(State, zlib.decompress(state.compressed), VERSION)
    return state


def encoded(state: State) -> bytes:
    """The state as a whole value."""
    data = stored.pack(state)
    return data if len(data) < COMPRESSED_FROM else stored.pack(State(v=VERSION, compressed=zlib.compress(data, 1)))


def readable(key: bytes, value: bytes) -> str:
    """Empty where this is a record of `clean`'s changelog, else why it is not. Raises `StateError` where a newer stockstream wrote it."""
    piece, whole = _PIECE.fullmatch(key), _WHOLE.fullmatch(key)
    if not piece and not whole:
        return "the key is none of clean's"
    try:
        if piece:
            stored.unpack(stored.Piece, value, VERSION)
        else:
            decoded(value).require_fitting()
    except _BROKEN as error:
        return f"not a {'piece of a snapshot' if piece else 'snapshot'}: {type(error).__name__}: {error}"[:300]
    return ""


def highest_snapshot(records: Mapping[bytes, bytes]) -> tuple[State, int] | None:
    """The complete snapshot of the newest log with the highest offset, and the slot of its pieces (-1: it is whole); None where there is none.

    What cannot be read is passed over. Raises `StateError` where a newer stockstream wrote one.
    """
    wholes: list[tuple[bytes, int]] = []
    pieces: list[tuple[bytes, bytes]] = []
    for key, value in records.items():
        if _PIECE.fullmatch(key):
            pieces.append((key, value))
        elif _WHOLE.fullmatch(key):
            wholes.append((value, -1))
    for place, slot in by_slot(pieces, lambda key: key.rpartition(b"/")[0]).items():
        try:
            for value in slot.values():
                stored.require_known(stored.version_of(value), VERSION)
            whole = stored.joined(slot.values())
        except _BROKEN:
            continue
        if whole is not None:
            wholes.append((whole, int(place.rpartition(b"/")[2])))
    best: tuple[State, int] | None = None
    for value, number in wholes:
        try:
            state = decoded(value)
            state.require_fitting()
        except _BROKEN:
            continue
        if best is None or (state.log, state.expect) > (best[0].log, best[0].expect):
            best = state, number
    return best


def records(value: bytes, term: int, slot: int) -> list[tuple[bytes, bytes]]:
    """The records that hold a whole value: one, or pieces in this slot."""
    key = b"snapshot/%d" % (term % TERMS)
    pieces = pieces_in_slot(value, VERSION, lambda number: b"%s/%d/%d" % (key, slot, number))
    return pieces if len(pieces) > 1 else [(key, value)]


def require_settings(state: State, **settings: int) -> None:
    """Raises `StateError` where the state was made with other settings (`revise_s`, `partitions`)."""
    for name, now in settings.items():
        then = getattr(state, name)
        if then != now:
            raise StateError(f"STOCKSTREAM_{name.upper()} is {now} but this log was begun with {then}: use another STOCKSTREAM_TOPIC_PREFIX")


def require_format(state: State, identity: str) -> None:
    """Raises `StateError` where records of the log were read with another format of foreign messages."""
    if state.expect >= 0 and state.raw_format != identity:
        then = f"with {state.raw_format}" if state.raw_format else "without one"
        now = f"means {identity} now" if identity else "is not set"
        raise StateError(f"STOCKSTREAM_RAW_FORMAT {now} but this log was begun {then}: use another STOCKSTREAM_TOPIC_PREFIX")
