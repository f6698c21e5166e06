"""When an exchange is open: sessions by `exchange_calendars`, with half days, lunch breaks, holidays and daylight-saving time.

The library and its calendars are loaded when they are first asked for, in a thread, because that takes about a second. `Sessions.at` never waits: until a
calendar is loaded, its answer is `unknown`.
"""

from __future__ import annotations

import logging
import threading
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from stockstream.wording import one_line

logger = logging.getLogger(__name__)

State = Literal["pre", "regular", "post", "closed", "holiday", "always", "unknown"]

ALWAYS = frozenset({"CCC", "SIM", "24/7"})
"""Coins, and the simulated market."""
CURRENCIES = frozenset({"CCY", "24/5"})
"""Currencies are traded from Sunday 17:00 to Friday 17:00 in New York."""

_US = (
    "NMS", "NGM", "NCM", "NAS", "NYQ", "NYS", "ASE", "AMEX", "PCX", "BTS", "BATS", "CXI", "IEX", "PNK", "OTC", "OQB", "OQX", "OEM", "OID", "YHD", "SNP", "DJI",
    "NIM", "WCB", "RUS", "CGI", "NYSE", "NASDAQ", "ARCX", "XNAS", "XASE", "IEXG",
)  # fmt: skip
CALENDARS: Mapping[str, str] = dict.fromkeys(_US, "XNYS") | {
    "LSE": "XLON", "IOB": "XLON", "AQS": "XLON", "ISE": "XDUB", "GER": "XETR", "FRA": "XFRA", "BER": "XFRA", "DUS": "XFRA", "HAM": "XFRA", "HAN": "XFRA",
    "MUN": "XFRA", "STU": "XFRA", "PAR": "XPAR", "AMS": "XAMS", "BRU": "XBRU", "LIS": "XLIS", "MIL": "XMIL", "MCE": "XMAD", "EBS": "XSWX", "VIE": "XWBO",
    "STO": "XSTO", "HEL": "XHEL", "CPH": "XCSE", "OSL": "XOSL", "ICE": "XICE", "ATH": "ASEX", "WSE": "XWAR", "PRA": "XPRA", "BUD": "XBUD", "BVB": "XBSE",
    "IST": "XIST", "TAL": "XTAL", "RIS": "XRIS", "LIT": "XLIT", "MCX": "XMOS",
    "TOR": "XTSE", "VAN": "XTSE", "CNQ": "XTSE", "NEO": "XTSE", "MEX": "XMEX", "SAO": "BVMF", "BUE": "XBUE", "SGO": "XSGO", "BOG": "XBOG", "LIM": "XLIM",
    "JPX": "XTKS", "TYO": "XTKS", "OSA": "XTKS", "HKG": "XHKG", "SHH": "XSHG", "SHZ": "XSHG", "XSHE": "XSHG", "TAI": "XTAI", "TWO": "XTAI", "KSC": "XKRX",
    "KOE": "XKRX", "NSI": "XBOM", "XNSE": "XBOM", "BSE": "XBOM", "SES": "XSES", "KLS": "XKLS", "JKT": "XIDX", "SET": "XBKK", "PHS": "XPHS", "KAR": "XKAR",
    "ASX": "XASX", "NZE": "XNZE", "JNB": "XJSE", "TLV": "XTAE", "SAU": "XSAU",
    "CME": "CMES", "CBT": "CMES", "CMX": "CMES", "NYM": "CMES", "NYB": "IEPA", "XCME": "CMES", "XCBT": "CMES", "XNYM": "CMES", "IFUS": "IEPA",
}  # fmt: skip
"""Calendars of `exchange_calendars` by exchange code, Yahoo's or a MIC. A code that is not here is tried as the calendar's own name (XNYS, XLON)."""

NEW_YORK = ZoneInfo("America/New_York")
CLOSE_HOUR = 17
_PRE, _POST = timedelta(hours=4), timedelta(hours=4)
"""US shares trade before the session from 4:00 in New York, and for four hours after it."""
_MARGIN = timedelta(days=20)
"""A year is loaded with so many days around it, more than any exchange was ever closed at a new year."""
MIN_YEAR, MAX_YEAR = 1990, 2109
MOST_LOADED = 256
"""The most calendars and years that are loaded: exchanges are named in messages, which anybody may write."""


class Session(NamedTuple):
    """The state of an exchange, from `since` until before `until` (epoch ms; None if it is not known or has no end). `regular` and `always` are open."""

    state: State
    since: int | None = None
    until: int | None = None

    @property
    def is_open(self) -> bool | None:
        """Whether the exchange is in its regular session; None if that is not known."""
        return None if self.state == "unknown" else self.state in ("regular", "always")


UNKNOWN = Session("unknown")

Span = tuple[int, int, State]
"""Begin and end in epoch ms, and the state."""
_Key = tuple[str, int]
"""A calendar and a year."""
Load = Callable[[str, int], list[Span]]
"""Returns the spans of a calendar for a year and some days around it, in order and without holes. Raises any exception."""


class Sessions:
    """The sessions of exchanges. Thread-safe.

    Args:
        load: returns a calendar's spans; by `exchange_calendars` if None.
    """

    def __init__(self, load: Load | None = None) -> None:
        self._load = load or load_spans
        self._spans: dict[_Key, tuple[list[int], list[Span]]] = {}
        """Begins of the spans, and the spans. Nothing in it if the calendar cannot be loaded."""
        self._wanted: set[_Key] = set()
        self._waiting: list[_Key] = []
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    def at(self, exchange: str | None, ms: int) -> Session:
        """The state of an exchange at `ms` (epoch ms). Never waits: `unknown` for an unknown exchange, and while its calendar is being loaded."""
        return self._at(exchange, ms, self._begin)

    def wait_at(self, exchange: str | None, ms: int) -> Session:
        """As `at`, but loads the calendar first if it must. Not for an event loop."""
        return self._at(exchange, ms, self._fill)

    def _at(self, exchange: str | None, ms: int, missing: Callable[[_Key], None]) -> Session:
        code = (exchange or "").upper()
        if code in ALWAYS:
            return Session("always")
        moment = _moment(ms)
        if moment is None or not code:
            return UNKNOWN
        if code in CURRENCIES:
            return _of_currencies(moment)
        key = CALENDARS.get(code, code), moment.year
        if key not in self._spans:
            missing(key)
        begins, spans = self._spans.get(key, ([], []))
        at = bisect_right(begins, ms) - 1
        if at < 0 or ms >= spans[at][1]:
            return UNKNOWN
        since, until, state = spans[at]
        return Session(state, since, until)

    def _begin(self, key: _Key) -> None:
        """Has a calendar loaded by a thread, once."""
        with self._lock:
            if key in self._wanted or len(self._wanted) >= MOST_LOADED:
                return
            self._wanted.add(key)
            self._waiting.append(key)
            if len(self._waiting) > 1:
                return
        threading.Thread(target=self._fill_waiting, name="sessions", daemon=True).start()

    def _fill_waiting(self) -> None:
        while True:
            self._fill(self._waiting[0])
            with self._lock:
                del self._waiting[0]
                if not self._waiting:
                    return

    def _fill(self, key: _Key) -> None:
        with self._loading:
            if key in self._spans:
                return
            try:
                spans = self._load(*key)
            except Exception as error:  # noqa: BLE001  whatever the library raises: the exchange's sessions are then unknown
                logger.info("the sessions of %s in %d are not known: %s", *key, one_line(error) or type(error).__name__)
                spans = []
            self._spans[key] = [begin for begin, _, _ in spans], spans


def load_spans(calendar: str, year: int) -> list[Span]:
    """The spans of a calendar of `exchange_calendars`. Raises what the library raises for an unknown name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                  # of the library's use of pandas 3
        import exchange_calendars

        first, last = date(year, 1, 1), date(year, 12, 31)
        for start, end in ((first - _MARGIN, last + _MARGIN), (first + timedelta(days=5), last), (None, None)):
            try:
                found = exchange_calendars.get_calendar(calendar, start=start, end=end)
                break
            except ValueError:                                           # it has bounds, or a change of weekdays that the library cannot do (XTAE, 2026-01-05)
                if start is None:
                    raise
        return spans_of(found.schedule, found.tz, found.weekmask, extended=found.name == "XNYS")


def spans_of(schedule: Any, zone: Any, weekmask: str, *, extended: bool) -> list[Span]:
    """The spans from the first session to the last one of a schedule with the columns `open`, `close`, `break_start` and `break_end` (UTC)."""
    open_times: list[Span] = []
    for row in schedule.itertuples():
        opens, closes = _ms(row.open), _ms(row.close)
        if extended:
            morning = datetime.fromtimestamp(opens / 1000, NEW_YORK).replace(hour=0, minute=0) + _PRE
            open_times.append((_epoch_ms(morning), opens, "pre"))
        if row.break_start == row.break_start:                           # NaT is not itself
            open_times += [(opens, _ms(row.break_start), "regular"), (_ms(row.break_end), closes, "regular")]
        else:
            open_times.append((opens, closes, "regular"))
        if extended:
            open_times.append((closes, closes + _POST // timedelta(milliseconds=1), "post"))
    dates = {stamp.date() for stamp in schedule.index}
    return list(_with_closed(open_times, dates, zone, weekmask))


def _with_closed(open_times: Iterable[Span], sessions: set[Any], zone: Any, weekmask: str) -> Iterable[Span]:
    """The spans with those between them: `holiday` for a date without a session that is not the exchange's weekend, else `closed`."""
    before: int | None = None
    for begin, end, state in open_times:
        if before is not None and before < begin:
            yield from _closed(before, begin, sessions, zone, weekmask)
        begin = begin if before is None else max(begin, before)
        if begin < end:
            yield begin, end, state
            before = end


def _closed(begin: int, end: int, sessions: set[Any], zone: Any, weekmask: str) -> Iterable[Span]:
    """A time without trading, cut at the midnights where a holiday begins or ends."""
    at = begin
    state = _kind(begin, sessions, zone, weekmask)
    local = datetime.fromtimestamp(begin / 1000, zone)
    midnight = datetime(local.year, local.month, local.day, tzinfo=zone)
    while True:
        midnight = (midnight.replace(tzinfo=None) + timedelta(days=1)).replace(tzinfo=zone)
        cut = _epoch_ms(midnight)
        if cut >= end:
            break
        following = _kind(cut, sessions, zone, weekmask)
        if following != state:
            yield at, cut, state
            at, state = cut, following
    yield at, end, state


def _kind(ms: int, sessions: set[Any], zone: Any, weekmask: str) -> State:
    day = datetime.fromtimestamp(ms / 1000, zone).date()
    return "closed" if day in sessions or weekmask[day.weekday()] == "0" else "holiday"


def _of_currencies(moment: datetime) -> Session:
    local = moment.astimezone(NEW_YORK)
    friday = local.date() + timedelta(days=(4 - local.weekday()) % 7)
    if local.weekday() == 4 and local.hour >= CLOSE_HOUR:
        friday += timedelta(days=7)
    before, opens, closes = (_close_of(friday - timedelta(days=days)) for days in (7, 5, 0))
    ms = _epoch_ms(moment)
    return Session("regular", opens, closes) if ms >= opens else Session("closed", before, opens)


def _close_of(day: date) -> int:
    return _epoch_ms(datetime(day.year, day.month, day.day, CLOSE_HOUR, tzinfo=NEW_YORK))


def _moment(ms: int) -> datetime | None:
    try:
        moment = datetime.fromtimestamp(ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return moment if MIN_YEAR <= moment.year <= MAX_YEAR else None


def _ms(stamp: Any) -> int:
    return int(stamp.timestamp() * 1000)


def _epoch_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
