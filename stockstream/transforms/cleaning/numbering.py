"""Duplicates: by `seq` within a source and symbol, and by `trade_id`.

A source numbers the ticks of a symbol in the order of sending, so a number that is not above the last is a duplicate. There are two exceptions. Two ticks of
the last number with other content are both real. And a numbering may begin again, after a restart of the producer: a greater `epoch` shows it, or else RUN
ticks in a row that are at or below the last number, rise among themselves, and are newer by event time than all that was accepted.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from operator import attrgetter
from typing import Any, Literal

import msgspec

from stockstream.records import Tick
from stockstream.transforms.cleaning.limits import NO_DATA
from stockstream.transforms.cleaning.state import DIGEST_BYTES, Feed
from stockstream.transforms.shares import rounded

RUN = 10
"""Ticks in a row that show that a numbering has begun again; the last of them is accepted."""
MOST_CONTENTS = 16
"""Ticks of one number whose contents are remembered; the oldest goes first."""
TRADE_IDS_MS = 120_000
"""By the log clock, how long a trade's id is remembered. Providers send trades again that are up to 60 s old."""
MOST_TRADE_IDS = 50_000
"""Ids of a partition that are remembered; the oldest goes first."""

Numbered = Literal["rises", "duplicate", "same_number", "new_epoch", "begins_again"]

_encode = msgspec.json.Encoder().encode
_pack_trade = struct.Struct("<qdd").pack
_MORE = (
    "bid", "ask", "bid_size", "ask_size", "day_volume", "exchange", "condition", "currency", "session", "trade_id", "snapshot", "epoch",
)  # fmt: skip
"""Fields that tell two ticks of one number apart, besides event_time, price and size. Later ones go to the end: digests are stored, and leave out what is
missing at the end."""
_more_of = attrgetter(*_MORE)


def content(tick: Any) -> bytes:
    """Digest of a tick's content, DIGEST_BYTES long: the same whether `clean` has already rounded sizes and dropped NO_DATA or not."""
    size = tick.size
    data = _pack_trade(tick.event_time, tick.price or 0.0, rounded(float(size)) if size and size not in NO_DATA else 0.0)
    more = _more_of(tick) if hasattr(tick, "bid") else ()
    if any(more):
        values = [None if not value or value in NO_DATA else float(value) if type(value) is int else value for value in more]
        while values and values[-1] is None:
            values.pop()
        data += _encode(values) if values else b""
    return _digest(data)


def contents(feed: Feed) -> bytes:
    """Digests of the ticks of the feed's last number, the oldest first."""
    if feed.undigested is not None:
        feed.contents, feed.undigested = content(feed.undigested), None
    return feed.contents


def judge(tick: Tick, feed: Feed) -> Numbered:
    """What the number of a tick, which it must have, is to the feed. Where nothing is known of the last number's ticks, they are all the same."""
    seq, last = tick.seq, feed.seq
    assert seq is not None
    if last < 0:
        return "rises"
    if tick.epoch is not None and tick.epoch != feed.epoch:
        return "new_epoch" if tick.epoch > feed.epoch else "duplicate"
    if seq > last:
        return "rises"
    if seq == last and (known := contents(feed)):
        mine = content(tick)
        if all(known[at : at + DIGEST_BYTES] != mine for at in range(0, len(known), DIGEST_BYTES)):
            return "same_number"
    return "begins_again" if feed.run == RUN - 1 and seq > feed.run_seq and _may_be_anew(tick, feed) else "duplicate"


def add_duplicate(tick: Tick, feed: Feed) -> None:
    """A tick was a duplicate: it may belong to a run that begins again. A repeat of what the run has, or of what was accepted, changes nothing."""
    if tick.seq is None or tick.seq == feed.run_seq or not _may_be_anew(tick, feed):
        return
    feed.run = feed.run + 1 if tick.seq > feed.run_seq else 1
    feed.run_seq = tick.seq


def accept_next(tick: Any, feed: Feed) -> None:
    """A tick was accepted under a number that rises, of the feed's epoch. Its digest is made when it is needed."""
    feed.contents, feed.undigested = b"", tick
    feed.seq, feed.run, feed.run_seq = tick.seq, 0, -1
    feed.newest = max(feed.newest, tick.event_time)


def duplicate_detail(tick: Tick, feed: Feed) -> str:
    if tick.epoch is not None and tick.epoch < feed.epoch:
        return f"epoch {tick.epoch} is below the last accepted, {feed.epoch}"
    return f"seq {tick.seq} is not above the last accepted, {feed.seq}"


def accept(tick: Tick, feed: Feed, numbered: Numbered) -> None:
    """A tick was accepted under its number."""
    assert tick.seq is not None
    known = contents(feed) if numbered == "same_number" else b""
    feed.contents, feed.undigested = (known + content(tick))[-MOST_CONTENTS * DIGEST_BYTES :], None
    feed.seq, feed.run, feed.run_seq = tick.seq, 0, -1
    feed.epoch = feed.epoch if tick.epoch is None else tick.epoch


def _may_be_anew(tick: Tick, feed: Feed) -> bool:
    return (feed.epoch < 0 or tick.epoch is None) and tick.event_time > feed.newest


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def trade_key(source: str, symbol: str, trade_id: str) -> bytes:
    """What is remembered of a trade's id."""
    return _digest(f"{source}\0{symbol}\0{trade_id}".encode())


class TradeIds:
    """The ids of the trades that were accepted within the last TRADE_IDS_MS of the log clock, at most MOST_TRADE_IDS."""

    def __init__(self) -> None:
        self.times: OrderedDict[bytes, int] = OrderedDict()
        """By key, the oldest first: the log clock when the trade was accepted."""

    def has(self, key: bytes, now: int) -> bool:
        at = self.times.get(key)
        return at is not None and now - at <= TRADE_IDS_MS

    def add(self, key: bytes, now: int) -> None:
        """A trade was accepted; `now` is the log clock with its record."""
        self.purge(now)
        self.times[key] = now
        if len(self.times) > MOST_TRADE_IDS:
            self.times.popitem(last=False)

    def date(self, now: int) -> None:
        """The first record with a Kafka time dates what was accepted before it."""
        self.times = OrderedDict.fromkeys(self.times, now)

    def purge(self, now: int) -> None:
        """Drops what is too old."""
        times = self.times
        while times and now - next(iter(times.values())) > TRADE_IDS_MS:
            times.popitem(last=False)
