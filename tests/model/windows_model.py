"""What `windows` must hold: the definition in code, slow and plain.

`closings(log)` takes one partition of `ticks.raw` after cleaning and yields, in order, every moment at which rows are sent. The log is a list of
records in offset order; a record is (offset, [tick, ...]) or (offset, {"punctuate": second, "source": name}), with the record's Kafka time (epoch ms)
behind it where forgetting matters. A tick is a dict with symbol, source, event_time (epoch ms), price (or None in a pure quote, whose size is 0),
size, and optionally bid, ask, bid_size, ask_size, currency, gap_from.

    closing = {"offset": int, "source": str, "after": second, "second": second, "rows": [row, ...], "rejected": [(offset, index, reason), ...]}

It closes the seconds s of the source with after < s <= second, and sends what late ticks have changed; a punctuation always makes a closing. A row is
`revised` where one of its symbol and second was sent before. One that is sent for the first time, of a second that was closed already, has `late` in
its `quality`.

How far the clock must pass a second's end before it closes is a matter of the source: what the setting has for it when it is first heard, and again where
it was forgotten and is heard anew. `lateness(source, offset)` is the setting's value for a source at that offset of the log.

The log's clock is the greatest Kafka time of a record of which something was accepted. A source or symbol of which nothing was accepted for a day is
forgotten, by that clock or by the time of the record that is judged, whichever is greater; a source only once all that it has said is sent.

Where a symbol's currency changes, a series begins with that second: no row from there on sees anything of before, nor does the row of that second see what
came before the change. A trade more than GAP_S and at most MAX_GAP_S after the symbol's newest one carries that gap, and the price before it.

A tick with `gap_from` (epoch ms) comes after a gap of its feed: nothing of the symbol may be known from then until the tick. Its seconds are those after that
of `gap_from`, up to and including the tick's; at least the tick's. A row whose window has such a second has `gap` in its `quality`, once the tick is in the log
when the row is sent. What came before a change of currency is of no concern to the rows behind it. Where such a tick is late, the next tick of its symbol
and source that is not has its `gap_from`, or the least of several.
"""
import math
from typing import Any
from collections import defaultdict
from fractions import Fraction

WINDOW_S, LATENESS_MS, REVISE_S = 300, 200, 30
FORGET_MS = 24 * 3600 * 1000
GAP_S, MAX_GAP_S = 60, 8 * 3600
SPLITS = [1.5, 2, 3, 4, 5, 10, 15, 20, 25, 30, 40, 50, 100]


def shares(sizes):
    """Their sum: the double nearest to that of the decimals."""
    return float(sum(Fraction(repr(size)) for size in sizes))


def is_correction(tick):
    """It takes back volume of its second, and is no tick."""
    return bool((tick.get("flags") or 0) & 2)


def accrued(ticks):
    """Shares that had accrued over more than 2 s when they became known: each size in millionths."""
    return float(sum(Fraction(round(Fraction(repr(t["size"])) * 10**6), 10**6) for t in ticks if (t.get("flags") or 0) & 1))


def closed_through(clock, lateness_ms=LATENESS_MS):
    """Last closed second when the newest event_time is `clock`: a second closes when the clock has passed its end by the lateness."""
    return (clock - lateness_ms) // 1000 - 1


def closings(log: Any, lateness: Any = lambda source, offset: LATENESS_MS) -> Any:
    clock = {}                           # source -> newest event_time
    closed = {}                          # source -> last closed second
    ticks = defaultdict(dict)            # (symbol, source) -> second -> [tick, ...] in offset order
    owner = {}                           # symbol -> (source, newest second): the living series
    revised = defaultdict(set)           # source -> {(symbol, second)} changed after closing, not sent yet
    rejected = []
    log_clock, heard, seen, newest = 0, {}, {}, {}      # -> and by source and by symbol the log's clock at the last acceptance; source -> newest second
    currency, since = {}, {}             # symbol -> the last that was named; -> the second with which it began
    trades = defaultdict(list)           # symbol -> (second, price) of its trades in this currency, as they came
    begun = defaultdict(list)            # (symbol, source) -> the seconds with which another currency began
    away = defaultdict(list)             # (symbol, source) -> first and last second of each gap of the feed
    missed = {}                          # symbol -> the least gap_from of its owner's ticks that were late
    former = {}                          # source that was forgotten -> (last closed second, its ticks)
    fixed = {}                           # source -> its lateness, as the setting had it when the source was first heard
    sent = set()                         # (symbol, source, second) of the rows that were sent

    def forgotten(source):
        unsent = bool(revised[source]) or newest.get(source, -1) > closed.get(source, -1)
        return source in heard and now - heard[source] > FORGET_MS and not unsent

    def accept(source):
        if forgotten(source):            # it begins anew
            clock.pop(source, None), newest.pop(source, None)
            former[source] = closed.pop(source), *({key: of.pop(key) for key in list(of) if key[1] == source} for of in (ticks, begun, away))
            fixed.pop(source)
        fixed.setdefault(source, lateness(source, offset))
        heard[source] = now

    def note(held, t):
        if held and held[0] == t["source"] and t.get("gap_from") is not None:
            missed[t["symbol"]] = min(t["gap_from"], missed.get(t["symbol"], t["gap_from"]))

    for offset, record, *time in log:
        now = max([log_clock, *time])
        # 1. every tick of a record is judged by the clock as it was before the record
        touched = {}
        if isinstance(record, dict):     # a punctuation closes its second, and nothing is later than that
            accept(record["source"])
            touched[record["source"]] = (record["punctuate"] + 1) * 1000 + fixed[record["source"]]
            log_clock = now
        else:
            for index, t in enumerate(record):
                source, symbol, second = t["source"], t["symbol"], t["event_time"] // 1000
                held = owner.get(symbol) if now - seen.get(symbol, now) <= FORGET_MS else None
                if held and held[0] != source and second - held[1] <= WINDOW_S:
                    rejected.append((offset, index, "other_source"))    # a symbol belongs to one source while that one is heard
                    continue
                touched[source] = max(touched.get(source, 0), t["event_time"])
                if source in closed and second <= closed[source] and not forgotten(source):
                    if second <= closed[source] - REVISE_S:
                        rejected.append((offset, index, "late"))
                        note(held, t)
                        continue
                other = held and t.get("currency") and t["currency"] != currency.get(symbol, t["currency"])
                shown = source in closed and second <= closed[source] and not forgotten(source)
                if (held and second < since.get(symbol, 0)) or (other and (second < held[1] or (second == held[1] and shown))):
                    rejected.append((offset, index, "late"))
                    note(held, t)
                    continue
                if shown:
                    revised[source].add((symbol, second))
                accept(source)
                log_clock = seen[symbol] = now
                newest[source] = max(second, newest.get(source, -1))
                if held is None:
                    currency.pop(symbol, None), since.pop(symbol, None), trades.pop(symbol, None)
                if other:
                    ticks[symbol, source][second] = []
                    t = t | {"begins": True}
                    begun[symbol, source].append(second)
                    since[symbol] = second
                    trades.pop(symbol, None)
                if t.get("currency"):
                    currency[symbol] = t["currency"]
                if t["price"] is not None:
                    last = max((s for s, _ in trades[symbol]), default=-MAX_GAP_S)
                    if GAP_S < second - last <= MAX_GAP_S:
                        t = t | {"gap_s": second - last, "price_before_gap": [p for s, p in trades[symbol] if s == last][-1]}
                    trades[symbol].append((second, t["price"]))
                before = missed.pop(symbol, None)
                if before is not None and held and held[0] == source:
                    t = t | {"gap_from": min(before, t.get("gap_from") or before)}
                if t.get("gap_from") is not None:
                    t = t | {"away": min(t["gap_from"] // 1000 + 1, second)}
                    away[symbol, source].append((t["away"], second))
                ticks[symbol, source].setdefault(second, []).append(t)
                owner[symbol] = (source, max(second, held[1]) if held and held[0] == source else second)
        # 2. then the clocks move, and what they have passed is sent, with this offset
        for source in sorted(touched):
            clock[source] = max(clock.get(source, 0), touched[source])
            new = closed_through(clock[source], fixed[source])
            old = closed.get(source)
            if old is None:
                last, kept, starts, gaps = former.pop(source, (None, {}, {}, {}))
                closed[source] = old = min([new] + [second - 1 for (_, s), by in ticks.items() if s == source for second in by])
                if last is not None and old >= last:                    # it goes on where it was: else it is another series
                    for key, by in kept.items():
                        ticks[key] = by | ticks[key]
                    for key, seconds in starts.items():
                        begun[key] = seconds + begun[key]
                    for key, seconds in gaps.items():
                        away[key] = seconds + away[key]
                elif last is not None:
                    sent -= {key for key in sent if key[1] == source}
            if new <= old and not isinstance(record, dict):
                continue
            new = max(new, old)
            rows = []
            for (symbol, s), by in sorted(ticks.items()):
                if s != source:
                    continue
                changed = min((x for y, x in revised[source] if y == symbol), default=None)
                for second in sorted(by):
                    start = max((x for x in begun[symbol, source] if x <= second), default=0)
                    mine = {x: ts for x, ts in by.items() if x >= start}
                    if old < second <= new or (second <= old and changed is not None and second >= changed):
                        again = (symbol, s, second) in sent
                        rows.append(row(symbol, second, mine, again, second <= old and not again, away[symbol, source]))
                        sent.add((symbol, s, second))
            closed[source] = new
            revised[source].clear()
            rows.sort(key=lambda r: (r["second"], r["symbol"]))
            for r in rows:
                r |= {"source": source, "offset": offset}
            yield {"offset": offset, "source": source, "after": old, "second": new, "rows": rows, "rejected": rejected}
            rejected = []


def row(symbol, second, by, revised, late=False, away=()):
    """One row from a series' seconds `by`; only what is at or before `second` counts. `away` are the gaps of the feed: one that begins before the row and ends
    behind it has the row inside."""
    all_by, by = by, {s: [t for t in ts if not is_correction(t)] for s, ts in by.items()}
    own = by[second]
    out = {"symbol": symbol, "second": second, "revised": revised}
    prices = [t["price"] for t in own if t["price"] is not None]
    out |= {"open": prices[0] if prices else None, "high": max(prices, default=None), "low": min(prices, default=None), "close": prices[-1] if prices else None,
            "volume": shares(t["size"] for t in all_by[second]), "ticks": len(prices), "quotes": len(own) - len(prices)}
    for name in ("bid", "ask", "bid_size", "ask_size"):
        out[name] = next((t[name] for t in reversed(own) if t.get(name) is not None), None)

    last = {s: [t["price"] for t in ts if t["price"] is not None][-1] for s, ts in by.items() if s <= second and any(t["price"] is not None for t in ts)}
    seconds = sorted(last)
    begun = None                                            # where the living series began
    for i, s in enumerate(seconds):
        if i == 0 or s - seconds[i - 1] > WINDOW_S:
            begun = s
    alive = bool(seconds) and second - seconds[-1] <= WINDOW_S
    low = second - WINDOW_S + 1
    inside = [t for s, ts in by.items() if low <= s <= second for t in ts]
    traded = [t for t in inside if t["price"] is not None]
    counted, last_60s, last_10s = ([t for s, ts in all_by.items() if second - lag < s <= second for t in ts] for lag in (WINDOW_S, 60, 10))
    volume = shares(t["size"] for t in counted)
    series, returns = [], []
    if alive:
        price = None
        for s in range(max(begun, low - 1), second + 1):    # one second more, for the first return
            before, price = price, last.get(s, price if price is not None else next((last[x] for x in reversed(seconds) if begun <= x <= s), None))
            if s >= low:
                series.append(price)
                if before is not None:
                    returns.append(math.log(price / before))
    mean = math.fsum(returns) / len(returns) if returns else 0.0
    out |= {"mean_5m": math.fsum(series) / len(series) if series else None,
            "vwap_5m": math.fsum(t["price"] * t["size"] for t in counted if t["price"] is not None) / volume if volume > 0 else None, "volume_5m": volume,
            "volume_60s": shares(t["size"] for t in last_60s), "volume_10s": shares(t["size"] for t in last_10s),
            "accrued_5m": accrued(counted),
            "high_5m": max((t["price"] for t in traded), default=None), "low_5m": min((t["price"] for t in traded), default=None),
            "return_std_5m": math.sqrt(math.fsum((r - mean) ** 2 for r in returns) / (len(returns) - 1)) if len(returns) > 1 else None,
            "ticks_5m": len(traded), "seconds_5m": len(series)}
    out |= {name: next((t[name] for t in own if name in t), None) for name in ("gap_s", "price_before_gap")}
    before = [s for s in seconds if second - 1 - WINDOW_S <= s < second]
    former = last[before[-1]] if before else out["price_before_gap"]
    split = former is not None and prices != [] and any(abs(prices[0] / former - n) <= .02 * n for x in SPLITS for n in (x, 1 / x))
    flags = ["partial"] * (len(series) < WINDOW_S) + ["late"] * late
    flags += ["accrued"] if accrued(all_by[second]) > 0 else []
    flags += ["after_gap"] if out["gap_s"] is not None else []
    flags += ["possible_split"] if split else []
    out["mid"] = None                                       # there is none where nobody would trade at it
    bid, ask, last_trade = out["bid"], out["ask"], series[-1] if series else None
    if bid is not None and ask is not None:
        if bid > ask:
            flags.append("crossed")
        elif bid == ask:
            flags.append("locked")
        elif ask - bid > 0.1 * (last_trade if last_trade is not None else (bid + ask) / 2):
            flags.append("wide")
        else:
            out["mid"] = (bid + ask) / 2
    out["price"] = next((x for x in (out["mid"], out["close"], last_trade) if x is not None), None)
    flags += ["new_series"] * any("begins" in t for t in own)
    missing = any("away" in t for s, ts in by.items() if low <= s <= second for t in ts)
    flags += ["gap"] * (missing or any(first <= second < last for first, last in away))
    out["quality"] = ",".join(flags)
    return out
