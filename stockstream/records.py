"""The messages: fields, units, and the clock of each time.

Times are integers, epoch milliseconds UTC, unless the name ends in `_s` or the field is `second` (epoch seconds). `event_time` is the market's time,
`timestamp` Kafka's, `made_at` and `judged_at` the worker's. Prices are in the symbol's currency, sizes and volumes in shares, returns natural logarithms.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec
import pyarrow as pa
from msgspec import UNSET, UnsetType

SCHEMA_VERSION = 1

Role = Literal["champion", "shadow"]


class TickField(NamedTuple):
    """A field of a tick. `clean` carries a field on, to `ticks.clean` and the archive, or only reads it.

    Kinds: `core` is in every accepted tick, `quote` an optional number, `text` an optional text of at most MAX_TEXT characters, `control` a field
    that `clean` acts on.
    """

    name: str
    kind: Literal["core", "quote", "text", "control"]
    type: pa.DataType
    carried: bool
    meaning: str


TICK_FIELDS = (
    TickField("symbol", "core", pa.string(), True, "the symbol"),
    TickField("source", "core", pa.string(), True, "the feed"),
    TickField("event_time", "core", pa.int64(), True, "the market's time, epoch ms UTC"),
    TickField("price", "core", pa.float64(), True, "price of the trade, in the symbol's currency; null in a pure quote"),
    TickField("size", "core", pa.float64(), True, "shares traded in this tick, derived from day_volume if the source gives no size"),
    TickField("bid", "quote", pa.float64(), True, "best bid, in the symbol's currency"),
    TickField("ask", "quote", pa.float64(), True, "best ask, in the symbol's currency"),
    TickField("bid_size", "quote", pa.float64(), True, "shares at the best bid"),
    TickField("ask_size", "quote", pa.float64(), True, "shares at the best ask"),
    TickField("exchange", "text", pa.string(), True, "where it was traded, as the source names it"),
    TickField("condition", "text", pa.string(), True, "the trade's condition, as the source names it"),
    TickField("trade_id", "text", pa.string(), True, "the trade's id, as the venue or the source gives it"),
    TickField("currency", "text", pa.string(), False, "the currency of its prices"),
    TickField("session", "text", pa.string(), False, "the market's session, as the source names it: day_volume may restart in another one"),
    TickField("seq", "control", pa.int64(), False, "rises in the order of sending, by source and symbol"),
    TickField("epoch", "control", pa.int64(), False, "numbering of `seq`: a greater one begins again, a lower one is over"),
    TickField("day_volume", "control", pa.float64(), False, "shares traded this day so far"),
    TickField("snapshot", "control", pa.bool_(), False, "gives the present state instead of an event; if it equals the one before, it is a duplicate"),
    TickField("received_at", "control", pa.int64(), False, "epoch ms UTC at which the producer got it"),
    TickField("gap_from", "control", pa.int64(), True, "in the first tick after its feed was away: event time until which the feed was there, epoch ms UTC"),
    TickField("interval_s", "control", pa.float64(), False, "seconds up to its event time over which its size was traded, as in a bar of a minute"),
)
"""All fields of a tick. The columns of `ticks.clean`, the limits of texts, the decoders and the checks of frames follow from this table.
A new optional text needs a line here, two in `Tick`, its lines in docs/topics.md and `make schema`: a test holds them to each other."""

QUOTES = tuple(field.name for field in TICK_FIELDS if field.kind == "quote")
TEXTS = tuple(field.name for field in TICK_FIELDS if field.kind == "text")
CARRIED_TEXTS = tuple(field.name for field in TICK_FIELDS if field.kind == "text" and field.carried)


class Tick(msgspec.Struct, kw_only=True, gc=False):
    """One trade, quote or snapshot, as any producer may write it to `ticks.raw`."""

    symbol: str
    event_time: int
    price: float | None
    size: int | float | UnsetType = UNSET
    source: str = "default"
    seq: int | None = None
    bid: float | None = None
    ask: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None
    day_volume: float | None = None
    exchange: str | None = None
    condition: str | None = None
    currency: str | None = None
    session: str | None = None
    snapshot: bool = False
    received_at: int | None = None
    trade_id: str | None = None
    epoch: int | None = None
    gap_from: int | None = None
    interval_s: float | None = None

    def has_extras(self) -> bool:
        """Whether the tick has any of QUOTES or TEXTS, a gap or an interval. Each is named here, because `clean` calls this for every tick that it validates
        singly."""
        return (
            self.bid is not None or self.ask is not None or self.bid_size is not None or self.ask_size is not None
            or self.exchange is not None or self.condition is not None or self.currency is not None or self.session is not None
            or self.trade_id is not None or self.gap_from is not None or self.interval_s is not None
        )  # fmt: skip


class Punctuation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Closes a source's seconds up to and including `punctuate` (epoch seconds) in one partition; written without key, partition given."""

    punctuate: int
    source: str = "default"


class Rejection(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A record, or one tick of a frame, that cannot be used: one message of `ticks.rejected`."""

    reason: str
    detail: str
    partition: int
    offset: int
    index: int = msgspec.field(default=-1)
    value: str | None = None
    value_base64: str | None = None


class Alert(msgspec.Struct, kw_only=True):
    """One change of one alert. `id` is symbol, rule and opening second; (id, state, as_of) is published once, or again with the same content."""

    id: str
    symbol: str
    rule: str
    state: Literal["opened", "updated", "closed"]
    severity: Literal["warning", "critical"]
    opened_at: int
    as_of: int
    value: float
    baseline: float
    threshold: float
    message: str
    window: dict[str, Any]


class DeadAlert(msgspec.Struct, kw_only=True):
    """A change of an alert that a route did not deliver: the route refused it, or failed at the last of its `attempts`. `at`: when it was given up."""

    route: str
    reason: str
    attempts: int
    at: int
    alert: Alert


class Horizon(msgspec.Struct, kw_only=True):
    """What a model expects `horizon_s` seconds after the prediction's `as_of`: log return of the price, and the probability that it is above 0."""

    horizon_s: int
    predicted_return: float
    p_up: float


class Prediction(msgspec.Struct, kw_only=True):
    """The champion's prediction for one symbol and second; `as_of` = (second + 1) x 1000. `latency_ms` has a figure for each hop."""

    id: str
    symbol: str
    as_of: int
    price: float
    model: str
    version: str
    feature_hash: str
    partition: int
    offset: int
    made_at: int
    latency_ms: dict[str, int]
    horizons: list[Horizon]


class Outcome(msgspec.Struct, kw_only=True):
    """What the price did by a prediction's horizon; one item of a message of `outcomes`."""

    id: str
    symbol: str
    as_of: int
    horizon_s: int
    predicted_return: float
    p_up: float
    model: str
    version: str
    role: Role
    realised_return: float
    price_then: float
    judged_at: int


class Closing(msgspec.Struct, frozen=True, array_like=True):
    """At raw offset `offset` the source's seconds s with `after` < s <= `second` closed."""

    offset: int
    source: str
    after: int
    second: int


ACCRUED, CORRECTION, NEW_SERIES, AFTER_FEED_GAP = 1, 2, 4, 8
"""What `flags` of an accepted tick is a sum of. ACCRUED: its size traded over more than 2 s. CORRECTION: it takes back the size of a tick of that second and
price, and is itself no tick. NEW_SERIES: its second begins a new series. AFTER_FEED_GAP: its feed was away before it, from `gap_from` on."""

TICKS_SCHEMA = pa.schema([
    *((field.name, field.type) for field in TICK_FIELDS if field.carried),
    ("flags", pa.int32()), ("gap_s", pa.int64()), ("price_before_gap", pa.float64()), ("offset", pa.int64()), ("index", pa.int32()),
])  # fmt: skip
"""Columns of a `ticks.clean` frame, in log order."""

WINDOWS_SCHEMA = pa.schema([
    ("symbol", pa.string()), ("source", pa.string()), ("second", pa.int64()),
    ("open", pa.float64()), ("high", pa.float64()), ("low", pa.float64()), ("close", pa.float64()),
    ("volume", pa.float64()), ("ticks", pa.int64()), ("quotes", pa.int64()),
    ("bid", pa.float64()), ("ask", pa.float64()), ("bid_size", pa.float64()), ("ask_size", pa.float64()), ("mid", pa.float64()),
    ("mean_5m", pa.float64()), ("vwap_5m", pa.float64()), ("volume_5m", pa.float64()), ("high_5m", pa.float64()), ("low_5m", pa.float64()),
    ("return_std_5m", pa.float64()), ("ticks_5m", pa.int64()), ("seconds_5m", pa.int64()), ("quality", pa.string()), ("revised", pa.bool_()),
    ("partition", pa.int32()), ("offset", pa.int64()),
    ("price", pa.float64()), ("price_60s", pa.float64()),
    ("return_1s", pa.float64()), ("return_5s", pa.float64()), ("return_10s", pa.float64()), ("return_30s", pa.float64()), ("return_60s", pa.float64()),
    ("volume_10s", pa.float64()), ("volume_60s", pa.float64()), ("ticks_10s", pa.int64()),
    ("accrued_5m", pa.float64()), ("gap_s", pa.int64()), ("price_before_gap", pa.float64()),
])  # fmt: skip
"""Columns of a `windows` frame: one row for each symbol and second with a tick.

`price` is the mid, else the close, else the price carried within the series (null where there is none); `price_60s` the price carried (last traded
price) 60 s before, null where the series is younger; `return_Ns` the log return of the carried price over N seconds, null likewise.
"""

SHARES = ("size", "volume", "volume_5m", "volume_10s", "volume_60s", "accrued_5m")
"""Columns of numbers of shares: doubles that are never null. They were int64 in frames and objects up to version 2."""
TRADE_GAPS = ("gap_s", "price_before_gap")
"""Columns that describe a gap in trading, null where there is none."""

GapReason = Literal["source_away", "worker_away", "silent", "halted"]
FeedState = Literal[
    "waiting", "fresh", "quiet", "closed", "holiday", "halted", "not_permitted", "rate_limited", "unknown_symbol", "feed_dead", "failed",
]  # fmt: skip


class Gap(msgspec.Struct, kw_only=True, frozen=True):
    """A time in which a source brought nothing of a symbol although it should have: one message of `gaps`, written once the feed has resumed."""

    symbol: str
    source: str
    from_: int = msgspec.field(name="from")
    """Event time until which the feed was there, epoch ms."""
    to: int
    """Event time at which it was there again, epoch ms."""
    reason: GapReason


class Repair(msgspec.Struct, kw_only=True, frozen=True):
    """A one-minute bar that was fetched for a gap: one message of `repairs`. It goes to the archive, never into windows. `minute` is its start, epoch ms."""

    symbol: str
    source: str
    minute: int
    open: float
    high: float
    low: float
    close: float
    volume: int | float


class Feed(msgspec.Struct, kw_only=True, frozen=True):
    """The state of a watched symbol: one message of `feeds`. Times are epoch ms."""

    symbol: str
    source: str
    """The source's name in the watchlist."""
    worker: str
    state: FeedState
    reason: str
    since: int
    """When the state began."""
    last_event_time: int | None
    """Of the newest tick that the broker confirmed; null before the first."""
    at: int
    """When this was written."""


class Connection(msgspec.Struct, kw_only=True, frozen=True):
    """One connection of a source, or several in one state as one entry. Times are epoch ms."""

    name: str
    state: Literal["connecting", "open", "silent", "closed"]
    symbols: int
    since: int
    last_message_at: int | None = None
    reason: str = ""
    count: int = 1
    """How many connections these are. `symbols` is of all, `since` the oldest, `last_message_at` the newest, `reason` of one."""


class Budget(msgspec.Struct, kw_only=True, frozen=True):
    """What a source may still request, of all workers together. `resets_at` is epoch ms."""

    per: Literal["second", "minute", "day"]
    limit: int
    left: int
    resets_at: int


class SourceReport(msgspec.Struct, kw_only=True, frozen=True):
    """A source on one worker: one message of `sources`. Times are epoch ms."""

    source: str
    """Its name in the settings and the watchlist."""
    worker: str
    name: str
    """The `source` of its ticks."""
    state: Literal["starting", "running", "idle", "failed", "stopped"]
    reason: str
    since: int
    next_attempt: int | None
    failures: int
    symbols: int
    connections: tuple[Connection, ...] = ()
    budgets: tuple[Budget, ...] = ()
    last_error: str = ""
    last_tick_at: int | None = None
    at: int


class Reservation(msgspec.Struct, kw_only=True, frozen=True):
    """One step of a source's budget of requests: one message of `requests`. The steps of a source count in the order of their offsets. Times are epoch ms.

    `request` reserves a request, `returned` gives back one that was not sent, and `pause` stops all workers' requests until a time.
    """

    source: str
    step: Literal["request", "returned", "pause"]
    id: str
    """Of the request; of the pause itself."""
    worker: str
    budget: str
    """The limits by which the reservation is judged, such as 1/s,25/d."""
    symbols: tuple[str, ...] = ()
    """What is requested."""
    until: int = 0
    """When a pause ends."""
    reason: str = ""
    """Of a pause: `daily` (the provider reports that the day's requests are spent), `burst`, `minute` or `rate`."""
    at: int
    """When this was written."""
