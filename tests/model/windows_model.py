"""What `windows` must hold: the definition in code, slow and plain.

`closings(log)` takes one partition of `ticks.raw` after cleaning and yields, in order, every moment at which rows are sent. The log is a list of
records in offset order; a record is (offset, [tick, ...]) or (offset, {"punctuate": second, "source": name}), with the record's Kafka time (epoch ms)
behind it where forgetting matters. A tick is a dict with symbol, source, event_time (epoch ms), price (or None in a pure quote, whose size is 0),
size, and optionally bid, ask, bid_size, ask_size.

    closing = {"offset": int, "source": str, "after": second, "second": second, "rows": [row, ...], "rejected": [(offset, index, reason), ...]}

It closes the seconds s of the source with after < s <= second, and sends what late ticks have changed; a punctuation always makes a closing. A row is
`revised` where one of its symbol and second was sent before. One that is sent for the first time, of a second that was closed already, has `late` in
its `quality`.

How far the clock must pass a second's end before it closes is a matter of the source: what the setting has for it when it is first heard, and again where
it was forgotten and is heard anew. `lateness(source, offset)` is the setting's value for a source at that offset of the log.

The log's clock is the greatest Kafka time of a record of which something was accepted. A source or symbol of which nothing was accepted for a day is
forgotten, by that clock or by the time of the record that is judged, whichever is greater; a source only once all that it has said is sent.
"""
import math
from typing import Any
from collections import defaultdict
from fractions import Fraction

WINDOW_S, LATENESS_MS, REVISE_S = 300, 200, 30
FORGET_MS = 24 * 3600 * 1000


def shares(sizes):
    """Their sum: the double nearest to that of the decimals."""
    return float(sum(Fraction(repr(size)) for size in sizes))


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
    former = {}                          # source that was forgotten -> (last closed second, its ticks)
    fixed = {}                           # source -> its lateness, as the setting had it when the source was first heard
    sent = set()                         # (symbol, source, second) of the rows that were sent

    def forgotten(source):
        unsent = bool(revised[source]) or newest.get(source, -1) > closed.get(source, -1)
        return source in heard and now - heard[source] > FORGET_MS and not unsent

    def accept(source):
        if forgotten(source):            # it begins anew
            clock.pop(source, None), newest.pop(source, None)
            former[source] = closed.pop(source), {key: ticks.pop(key) for key in list(ticks) if key[1] == source}
            fixed.pop(source)
        fixed.setdefault(source, lateness(source, offset))
        heard[source] = now

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
                        continue
                    revised[source].add((symbol, second))
                accept(source)
                log_clock = seen[symbol] = now
                newest[source] = max(second, newest.get(source, -1))
                ticks[symbol, source].setdefault(second, []).append(t)
                owner[symbol] = (source, max(second, held[1]) if held and held[0] == source else second)
        # 2. then the clocks move, and what they have passed is sent, with this offset
        for source in sorted(touched):
            clock[source] = max(clock.get(source, 0), touched[source])
            new = closed_through(clock[source], fixed[source])
            old = closed.get(source)
            if old is None:
                last, kept = former.pop(source, (None, {}))
                closed[source] = old = min([new] + [second - 1 for (_, s), by in ticks.items() if s == source for second in by])
                if last is not None and old >= last:                    # it goes on where it was: else it is another series
                    for key, by in kept.items():
                        ticks[key] = by | ticks[key]
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
                    if old < second <= new or (second <= old and changed is not None and second >= changed):
                        again = (symbol, s, second) in sent
                        rows.append(row(symbol, second, by, again, second <= old and not again))
                        sent.add((symbol, s, second))
            closed[source] = new
            revised[source].clear()
            rows.sort(key=lambda r: (r["second"], r["symbol"]))
            for r in rows:
                r |= {"source": source, "offset": offset}
            yield {"offset": offset, "source": source, "after": old, "second": new, "rows": rows, "rejected": rejected}
            rejected = []


def row(symbol, second, by, revised, late=False):
    """One row from a series' seconds `by`; only what is at or before `second` counts."""
    own = by[second]
    out = {"symbol": symbol, "second": second, "revised": revised}
    prices = [t["price"] for t in own if t["price"] is not None]
    out |= {"open": prices[0] if prices else None, "high": max(prices, default=None), "low": min(prices, default=None), "close": prices[-1] if prices else None,
            "volume": shares(t["size"] for t in own), "ticks": len(prices), "quotes": len(own) - len(prices)}
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
    volume = shares(t["size"] for t in inside)
    last_60s, last_10s = ([t for s, ts in by.items() if second - lag < s <= second for t in ts] for lag in (60, 10))
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
            "vwap_5m": math.fsum(t["price"] * t["size"] for t in traded) / volume if volume else None, "volume_5m": volume,
            "volume_60s": shares(t["size"] for t in last_60s), "volume_10s": shares(t["size"] for t in last_10s),
            "high_5m": max((t["price"] for t in traded), default=None), "low_5m": min((t["price"] for t in traded), default=None),
            "return_std_5m": math.sqrt(math.fsum((r - mean) ** 2 for r in returns) / (len(returns) - 1)) if len(returns) > 1 else None,
            "ticks_5m": len(traded), "seconds_5m": len(series)}
    flags = ["partial"] * (len(series) < WINDOW_S) + ["late"] * late
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
    out["quality"] = ",".join(flags)
    return out
