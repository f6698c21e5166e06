"""Why `windows` stays exact: the rules of recovery (docs/architecture.md) as a small machine, crashed, cloned and re-chunked at random.

usage: python -m tests.model.recovery_model FROM_SEED TO_SEED        (400 trials take 4 s)

A worker reads frames of any length, sends the rows of the closings in them, then writes its records to a changelog. It dies while sending or while
writing; copies of it, frozen earlier, wake and send and write too. Every row ever sent must be, byte for byte, the one of windows_model.py, and none may
be missing. Take a rule away (marked RULE) and the trials fail within seconds.
"""
import copy
import json
import random
import sys
from typing import Any

from tests.model import windows_model as model

RING = 601 + model.REVISE_S


def random_log(rng: Any, n: int) -> Any:
    """A partition of raw ticks: three sources of different delay sharing a symbol, late and very late ticks, silences, frames, holes in the offsets."""
    now, log, offset, currency = 1_700_000_000_000, [], 0, rng.choice((None, "GBp"))
    slow, gaps = rng.choice((0, 1_300, 3_000)), rng.random() < .7
    while len(log) < n:
        now += rng.choice((3, 40, 200, 900, 1500)) if rng.random() < .97 else rng.choice((5000, 40_000, 62_000, 250_000, 400_000))
        if currency and rng.random() < .05:
            currency = rng.choice(("GBp", "GBP"))
        record = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            source = rng.choices("abc", (6, 2, 2))[0]
            delay = rng.choice((0, 0, 0, 0, 100, 1200, 5000, 29_000, 45_000)) if rng.random() < .3 else 0
            symbol = rng.choice({"a": "XYZ", "b": "UVX", "c": "XW"}[source])
            delay += slow if symbol == "X" else 0
            record.append(dict(symbol=symbol, source=source, event_time=now - delay - (900_000 if source == "b" else 0),
                               **(dict(price=round(rng.choice((100, 100, 100, 50)) + rng.random(), 2), size=rng.choice((rng.randrange(9), round(rng.random(), rng.randrange(1, 9))))) if rng.random() < .8 else dict(price=None, size=0)),
                               bid=rng.choice((None, 99.5)), ask=rng.choice((None, 99.5, 99.4, 100.1, 109.4, 109.6, 200_000.0)),
                               **(dict(currency=rng.choice((currency, currency, None))) if currency else {})))
            if gaps and rng.random() < (.3 if delay > 30_000 else .05):
                record[-1]["gap_from"] = record[-1]["event_time"] - rng.choice((0, 300, 1_500, 5_000, 30_000, 200_000, -2_000))
        if rng.random() < .02:
            record = {"punctuate": now // 1000 - (900 if (source := rng.choice("abc")) == "b" else 0), "source": source}
        log.append((offset, record))
        offset += rng.choice((1, 1, 1, 1, 3))
    for source in "abc":
        newest = max((t["event_time"] for _, r in log if isinstance(r, list) for t in r if t["source"] == source), default=None)
        if newest:
            log.append((offset, {"punctuate": newest // 1000, "source": source}))
            offset += 1
    return log


class Clean:
    """Judges ticks and moves the clocks; its state is exact at an offset, so a snapshot and the log after it give the same again."""

    def __init__(self):
        self.clock, self.closed, self.owner = {}, {}, {}
        self.currency, self.trades = {}, {}       # symbol -> the last that was named and its first second; -> second and price of its trades in it
        self.missed = {}                          # symbol -> the least gap_from of late ticks

    def _miss(self, held, tick):
        if held and held[0] == tick["source"] and tick.get("gap_from") is not None:
            self.missed[tick["symbol"]] = min(tick["gap_from"], self.missed.get(tick["symbol"], tick["gap_from"]))

    def record(self, offset, record):
        accepted, closings, clock, first = [], [], {}, {}
        if isinstance(record, dict):
            clock[record["source"]] = (record["punctuate"] + 1) * 1000 + model.LATENESS_MS
        else:
            for index, tick in enumerate(record):
                source, symbol, second = tick["source"], tick["symbol"], tick["event_time"] // 1000
                held = self.owner.get(symbol)
                if held and held[0] != source and second - held[1] <= model.WINDOW_S:
                    continue                                             # other_source
                clock[source] = max(clock.get(source, 0), tick["event_time"])
                if source in self.closed and second <= self.closed[source] - model.REVISE_S:
                    self._miss(held, tick)
                    continue                                             # late
                currency, since = self.currency.get(symbol, (None, 0))
                other = bool(tick.get("currency") and currency and tick["currency"] != currency)
                shown = second <= self.closed.get(source, -1)
                if second < since or (other and (second < held[1] or (second == held[1] and shown))):
                    self._miss(held, tick)
                    continue                                             # late: of another series than the one that is sent
                if other:
                    since = second
                    self.trades.pop(symbol, None)
                self.currency[symbol] = tick.get("currency") or currency, since
                tick = tick | {"begins": True} if other else tick
                if tick["price"] is not None:
                    last, before = self.trades.get(symbol, (-model.MAX_GAP_S, None))
                    if model.GAP_S < second - last <= model.MAX_GAP_S:
                        tick = tick | {"gap_s": second - last, "price_before_gap": before}
                    if second >= last:
                        self.trades[symbol] = second, tick["price"]
                before = self.missed.pop(symbol, None)
                if before is not None and held and held[0] == source:
                    tick = tick | {"gap_from": min(before, tick.get("gap_from") or before)}
                if tick.get("gap_from") is not None:
                    tick = tick | {"away": min(tick["gap_from"] // 1000 + 1, second)}
                accepted.append((offset, index, tick))
                first[source] = min(first.get(source, second), second)
                self.owner[symbol] = (source, max(second, held[1]) if held and held[0] == source else second)
        for source in sorted(clock):
            self.clock[source] = max(self.clock.get(source, 0), clock[source])
            new = model.closed_through(self.clock[source])
            old = self.closed.setdefault(source, min([new] + ([first[source] - 1] if source in first else [])))
            if new > old or isinstance(record, dict):                   # RULE: a punctuation always closes, if only to send revisions
                closings.append((offset, source, old, max(old, new)))
                self.closed[source] = max(old, new)
        return accepted, closings


class Aggregate:
    """Adds up accepted ticks and sends rows when told that seconds close. Records: ((source, slot), through, (second, ticks)) and ("head", through, resume)."""

    def __init__(self, changelog):
        self.buckets, self.through = {}, {}       # (source, second) -> ticks; -> the offset that the stored bucket counts through
        self.sent = -1                            # closings up to here were delivered
        self.unsaved, self.changed = set(), {}    # ticks not stored yet; source -> {(symbol, second, offset)} for revisions
        self.counted = {}                         # source -> its last closing: all ticks up to it in closed seconds were sent
        best = {}
        for key, through, value in changelog:
            if key not in best or through >= best[key][0]:               # RULE: the highest offset counts, not the last record
                best[key] = (through, value)
        resume = 0
        for key, (through, value) in best.items():
            self.sent = max(self.sent, through)                          # RULE: records are written after delivery
            if key == "head":
                resume = value
            else:
                bucket = key[0], value[0]
                self.buckets[bucket], self.through[bucket] = list(value[1]), through
                self.counted[key[0]] = max(self.counted.get(key[0], -1), through)       # RULE: what a stored bucket counts was sent
        self.expect = resume

    def frame(self, start, through, accepted, closings):
        """Rows to send, then the records to write once they are delivered; None where the frame starts beyond what is expected."""
        if start > self.expect:                                          # RULE: somebody else's future
            return None
        done, rows, dirty, last = self.expect - 1, [], set(), None
        for offset in sorted({a[0] for a in accepted if a[0] > done} | {c[0] for c in closings if c[0] > done}):
            for _, index, tick in (a for a in accepted if a[0] == offset):
                bucket = tick["source"], tick["event_time"] // 1000
                self.changed.setdefault(tick["source"], set()).add((tick["symbol"], bucket[1], offset))
                if offset > self.through.get(bucket, -1):                # RULE: what the stored bucket counts already is skipped
                    self.buckets.setdefault(bucket, []).append((offset, index, tick))
                    self.unsaved.add((offset, bucket))
            for _, source, old, new in (c for c in closings if c[0] == offset):
                if offset > self.sent:                                   # RULE: a delivered closing is not sent again, its state has moved on
                    rows += self.closing(offset, source, old, new)
                self.counted[source] = max(self.counted.get(source, -1), offset)
                self.changed[source] = {c for c in self.changed.get(source, ()) if c[1] > new}
                dirty |= {b for _, b in self.unsaved if b[0] == source and b[1] <= new}
                last = offset
        self.expect = max(self.expect, through + 1)
        if last is None:
            return rows, []
        records = []
        counted = {s: max(c[0] for c in closings if c[1] == s) for s in {b[0] for b in dirty}}
        for bucket in sorted(dirty):
            upto = counted[bucket[0]]                                    # RULE: late ticks whose revision is still to be sent are not stored yet
            records.append(((bucket[0], bucket[1] % RING), upto, (bucket[1], [t for t in self.buckets[bucket] if t[0] <= upto])))
            self.through[bucket] = max(self.through.get(bucket, -1), upto)
            self.unsaved -= {(o, b) for o, b in self.unsaved if b == bucket and o <= upto}
        resume = min((o for o, _ in self.unsaved), default=self.expect)  # RULE: go on from the first offset with an effect not stored
        return rows, records + [("head", last, resume)]

    def closing(self, offset, source, old, new):
        """Rows to send: a row was sent before where its second, closed already, had ticks that the closing before counted."""
        before = self.counted.get(source, -1)
        series = {}
        for (s, second), ticks in self.buckets.items():
            if s == source:
                for _, _, tick in ticks:
                    series.setdefault(tick["symbol"], {}).setdefault(second, []).append(tick)
        out = []
        for symbol, seconds in series.items():
            since = min((x for y, x, _ in self.changed.get(source, ()) if y == symbol and x <= old), default=None)
            begins = {}                                                  # second -> which of its ticks begins a series
            for second, ticks in seconds.items():
                begins |= {second: number for number, tick in enumerate(ticks) if "begins" in tick}
            for second in seconds:
                if old < second <= new or (second <= old and since is not None and second >= since):
                    again = second <= old and any(o <= before for o, _, tick in self.buckets[source, second] if tick["symbol"] == symbol)
                    start = max((x for x in begins if x <= second), default=0)
                    mine = {x: ticks[begins[x]:] if x == start else ticks for x, ticks in seconds.items() if x >= start}
                    away = [(tick["away"], x) for x, ticks in seconds.items() for tick in ticks if "away" in tick]
                    out.append(model.row(symbol, second, mine, again, second <= old and not again, away) | {"source": source, "offset": offset})
        return out


def trial(seed):
    rng = random.Random(seed)
    log = random_log(rng, rng.randrange(20, 160))
    text = lambda row: json.dumps(row, sort_keys=True)
    want = {(r["symbol"], r["second"], r["offset"]): text(r) for c in model.closings(log) for r in c["rows"]}
    clean = Clean()
    cleaned = [(offset, *clean.record(offset, record)) for offset, record in log]
    changelog, sent, wrong, crashes, sleepers = [], set(), [], 0, []

    def next_frame(worker):
        some = [c for c in cleaned if c[0] >= worker.expect][:rng.randrange(1, 12)]
        return some and (worker.expect, some[-1][0], [a for c in some for a in c[1]], [x for c in some for x in c[2]])

    def send(rows):
        for r in rows:
            key = r["symbol"], r["second"], r["offset"]
            sent.add(key)
            if want.get(key) != text(r):
                wrong.append((key, r))

    worker = Aggregate(changelog)
    while frame := next_frame(worker):
        rows, records = worker.frame(*frame)
        die = rng.random()
        if die < .06:                                                    # while sending
            send(rows[:rng.randrange(len(rows) + 1)])
            worker, crashes = Aggregate(changelog), crashes + 1
            continue
        send(rows)
        if die < .12:                                                    # while writing
            changelog += records[:rng.randrange(len(records) + 1)]
            worker, crashes = Aggregate(changelog), crashes + 1
            continue
        changelog += records
        if rng.random() < .05:
            sleepers.append(copy.deepcopy(worker))
        if sleepers and rng.random() < .1:                               # a frozen worker wakes and goes on with what it knew
            zombie = sleepers.pop(rng.randrange(len(sleepers)))
            for _ in range(rng.randrange(1, 4)):
                if late := next_frame(zombie):
                    rows, records = zombie.frame(*late)
                    send(rows)
                    changelog += records
    return len(want), want.keys() - sent, wrong, crashes


if __name__ == "__main__":
    rows = crashes = 0
    for seed in range(int(sys.argv[1]), int(sys.argv[2])):
        n, missing, wrong, died = trial(seed)
        rows, crashes = rows + n, crashes + died
        if missing or wrong:
            raise SystemExit(f"seed {seed}: {len(missing)} missing, {len(wrong)} wrong of {n}")
    print(f"{rows} rows, {crashes} crashes, none wrong or missing")
