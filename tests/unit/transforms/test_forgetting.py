"""What `clean` forgets, and when, follows from accepted ticks in the log: not from chunks, restarts, snapshots or records that it rejects."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unicodedata import normalize

import pytest

from stockstream.records import TICKS_SCHEMA
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning import cleaner as validation
from stockstream.transforms.cleaning import judging, memory
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.cleaning.limits import MAX_TIME
from stockstream.transforms.frames import Frame, decode, encode
from stockstream.transforms.timing import FORGET_MS, Lateness
from tests.model import windows_model
from tests.model.clean_model import FIRST_MS, CleanModel

NOW = 1_700_000_000_000
HOUR_MS = 3_600_000
Item = list[dict[str, Any]] | dict[str, Any] | None
Log = list[tuple[int, int, Item]]
"""Offset, Kafka time, and what the record holds; None is garbage."""


@pytest.fixture(autouse=True)
def one_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "home_partition", lambda symbol, partitions: 0)


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MANY", 2)


def cleaner(lateness: int | Lateness = 200) -> Cleaner:
    return Cleaner(0, 1, lateness_ms=lateness, revise_s=30, log="x")


def restarted(core: Cleaner, lateness: int | Lateness = 200) -> Cleaner:
    return Cleaner.restore(0, 1, dict(core.records(0)), lateness_ms=lateness, revise_s=30)


def raw(log: Log) -> list[RawRecord]:
    return [RawRecord(offset, ts, b"no" if item is None else json.dumps(item).encode()) for offset, ts, item in log]


def tick(symbol: str, source: str, event_time: int, **more: Any) -> dict[str, Any]:
    return {"symbol": symbol, "source": source, "event_time": event_time, "price": 10.0, "size": 1} | more


def jumpy_log(rng: random.Random, count: int, *, broker: bool = False, odd: bool = False) -> Log:
    """Three sources sharing symbols, numbered or not, with trade ids and cumulative volumes, repeats, numberings that begin again, impossible figures, late
    ticks, silences of more than a day, garbage; Kafka times jump ahead and back, unless they are the broker's. With `odd`, some records have no time, some
    times are not milliseconds, and one symbol comes in two forms."""
    now, numbers, timeless = NOW, {"a": 0, "b": 0, "c": 0}, rng.choice((0, 0, 20, 60))
    epoch, figures = 0, Counter[str]()
    log: Log = []
    currency = rng.choice((None, "GBp"))
    told: list[dict[str, Any]] = []
    while len(log) < count:
        if rng.random() < 0.94:
            now += rng.choice((0, 3, 40, 900, 5_000))
        else:
            quiet = rng.choice(("", "a", "ab", "abc"))                   # as the worker closes sources that have fallen quiet
            log += [(len(log) + n, now, {"punctuate": now // 1000, "source": source}) for n, source in enumerate(quiet)]
            now += rng.choice((60_000, 61_000, 400_000, FORGET_MS // 3, FORGET_MS // 3 + 1_000, FORGET_MS // 2, FORGET_MS, FORGET_MS + 1, FORGET_MS * 2))
        offset = len(log)
        ts = now + (rng.choice((25 * HOUR_MS, -25 * HOUR_MS, -50 * HOUR_MS, -1_000)) if not broker and rng.random() < 0.06 else 0)
        source = rng.choices("abc", (6, 3, 1))[0]
        event = min(ts, now - (900_000 if source == "b" else 0)) - rng.choice((0, 0, 0, 0, 700, 20_000, 45_000))
        ts = rng.choice((-1, 0)) if odd and not broker and (len(log) < timeless or rng.random() < 0.03) else ts
        if rng.random() < 0.02:
            numbers["a"], epoch = rng.randrange(3), epoch + (rng.random() < 0.5)
            log += [(offset + n, ts, tick("X", "a", event + n, seq=numbers["a"] + n)) for n in range(rng.choice((9, 10, 11, 14)))]
        elif rng.random() < 0.06:
            log.append((offset, ts if broker else ts + rng.choice((0, 25 * HOUR_MS)), None))
        elif rng.random() < 0.06:
            log.append((offset, ts, {"punctuate": event // 1000 - rng.randrange(3), "source": source}))
        else:
            ticks = []
            for _ in range(rng.choice((1, 1, 1, 2, 4))):
                if told and rng.random() < 0.05:
                    ticks.append(rng.choice(told[-6:]).copy())
                    continue
                numbers[source] += 1
                if currency and rng.random() < 0.05:
                    currency = rng.choice(("GBp", "GBP"))
                more: dict[str, Any] = {"currency": rng.choice((currency, currency, None, ""))} if currency else {}
                price = rng.choice((10.0, 10.5, 21.0, None))
                more |= {"price": price, "size": 0} if price is None else {"price": price}
                symbol = rng.choice({"a": "XYZ\u00e9" if odd else "XYZ", "b": "UVX", "c": "XW"}[source])
                time = event + rng.randrange(400)
                time = rng.choice((time // 1000, time * 1000, FIRST_MS, FIRST_MS - 1)) if odd and rng.random() < 0.03 else time
                if source == "a" or (source == "b" and rng.random() < 0.5):
                    more["seq"] = max(0, numbers[source] - rng.choice((0, 0, 0, 0, 1, 3)))
                if symbol in "YZ" and rng.random() < 0.3:
                    more["epoch"] = max(0, epoch - (rng.random() < 0.1))
                if symbol in "UY" and rng.random() < 0.5:
                    more["trade_id"] = f"t{numbers[source] - rng.choice((0, 0, 0, 5))}"
                if symbol in "VWZ" and rng.random() < 0.9:
                    figures[symbol] = figures[symbol] + rng.choice((0, 1, 10, 250)) if rng.random() < 0.95 else rng.randrange(40)
                    wrong = rng.choice((-1, 0, 2**31 - 1, 2**32 - 1, 10**9, 10**12, 3, figures[symbol] - 5, figures[symbol] * 3))
                    more["day_volume"] = abs(wrong) if wrong < -1 else figures[symbol] + rng.choice((0, 0, 0.25)) if rng.random() < 0.85 else wrong
                    more |= {"session": rng.choice(("regular", "post"))} if rng.random() < 0.03 else {}
                if rng.random() < (0.3 if event < now - 30_000 else 0.04):
                    more["gap_from"] = rng.choice((time - 1, time - 20_000, time - 400_000, time, time + 5_000, time // 1000 if odd else time - 2_000))
                if rng.random() < 0.04:
                    more["interval_s"] = rng.choice((0, 1, 2, 2.001, 60, 86_400, 367 * 86_400 if odd else 3_600))
                ticks.append(tick(normalize(rng.choice(("NFC", "NFD")), symbol), source, time, **more))
                if "day_volume" in more and rng.random() < 0.8:
                    del ticks[-1]["size"]
                elif rng.random() < 0.03:
                    ticks[-1]["size"] = rng.choice((-1, 2**31 - 1))
                told.append(ticks[-1])
            log.append((offset, ts, ticks[0] if len(ticks) == 1 else ticks))
    return log


def rows_of(frame: Frame) -> list[Any]:
    """Offset, index, event time, size, flags, gap and price before it, and gap_from of each row."""
    names = ("offset", "index", "event_time", "size", "flags", "gap_s", "price_before_gap", "gap_from")
    return list(zip(*(frame.rows[name].to_pylist() for name in names), strict=True))


def judged(log: Log, chunks: Iterator[int] | None = None, restarts: frozenset[int] = frozenset()) -> tuple[list[Any], list[Any], list[Any], Cleaner]:
    """Rejections, rows, closings, and the core at the end. `restarts` are chunks after which it is restored from its snapshot."""
    core, records = cleaner(), raw(log)
    rejected: list[Any] = []
    accepted: list[Any] = []
    closings: list[Any] = []
    at = number = 0
    while at < len(records):
        size = next(chunks) if chunks is not None else len(records)
        rejected += [(r.offset, r.index, r.reason) for r in core.chunk(records[at : at + size])]
        frame = core.make_frame()
        assert frame is not None and frame.log_clock == core.log_clock
        accepted += rows_of(frame)
        closings += [(c.offset, c.source, c.after, c.second) for c in frame.closings]
        if number in restarts:
            core = restarted(core)
        at, number = at + size, number + 1
    return rejected, accepted, closings, core


def of_the_model(log: Log, most_sources: int = 1_000, most_symbols: int = 100_000) -> CleanModel:
    model = CleanModel(most_sources, most_symbols)
    for offset, ts, item in log:
        model.record(offset, ts, item)
    return model


@pytest.mark.slow
@pytest.mark.usefixtures("few_at_once")
@pytest.mark.parametrize("broker", [True, False], ids=["the broker's times", "any times"])
@pytest.mark.parametrize("many", [2, 1_000], ids=["at once", "one by one"])
def test_the_verdicts_are_the_models_whenever_it_is_restarted_and_however_the_log_is_cut(
    many: int, broker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart drops what is forgotten; so does nothing else here."""
    monkeypatch.setattr(validation, "MANY", many)
    anew, silences = 0, set[int]()
    used = Counter[str]()
    for seed in range(120):
        rng = random.Random(seed)
        restarts = frozenset(rng.randrange(80) for _ in range(rng.randrange(6)))
        longest = rng.choice((1, 3, 12, 200))
        log = jumpy_log(rng, 150, broker=broker, odd=True)
        model = of_the_model(log)
        rejected, accepted, closings, core = judged(log, iter(lambda: rng.randrange(1, longest + 1), 0), restarts)  # noqa: B023
        silences.update(gap or -(flags & 4) for *_, flags, gap, _, _ in accepted)
        assert rejected == model.rejected, seed
        assert accepted == model.rows, seed
        assert closings == model.closings, seed
        assert core.log_clock == model.log_clock, seed
        whole = judged(log)[3]
        assert restarted(core).snapshot() and _content(core) == _content(whole), "the state is a function of the log"
        model.judged_at = model.log_clock
        assert _content(core)[0] == {name for name in model.sources if model._living(name)}
        assert _content(core)[1] == {symbol: (h[0], h[1], h[2]) for symbol in model.owner if (h := model._holder(symbol))}
        anew += model.anew
        used.update(model.seen)
    assert anew > 500 and {61, 8 * 3600, -4} <= silences
    assert min(used[rule] for rule in ("same number", "epoch", "begun again", "accrued", "correction", "bar", "gap of a late tick")) > 2, used


@pytest.mark.parametrize("seed", range(40))
def test_a_setting_of_lateness_holds_for_sources_that_are_heard_after_it_changed(seed: int) -> None:
    """Workers with one setting after the other: a source keeps what it was first heard with, until it is forgotten."""
    rng = random.Random(seed)
    log, model, core = jumpy_log(rng, 200), CleanModel(), None
    accepted: list[Any] = []
    closings: list[Any] = []
    for begin in range(0, 200, 40):
        values = {source: rng.choice((0, 200, 1_500, 40_000)) for source in "abc"}
        lateness = Lateness(200, tuple(values.items()))
        core = cleaner(lateness) if core is None else restarted(core, lateness)
        model.lateness_ms = values
        for offset, ts, item in log[begin : begin + 40]:
            model.record(offset, ts, item)
        for some in raw(log[begin : begin + 20]), raw(log[begin + 20 : begin + 40]):
            core.chunk(some)
        frame = core.make_frame()
        assert frame is not None
        accepted += rows_of(frame)
        closings += [(c.offset, c.source, c.after, c.second) for c in frame.closings]
    assert accepted == model.rows
    assert closings == model.closings


def _content(core: Cleaner) -> tuple[Any, ...]:
    core.snapshot()
    held = {symbol: (h.source, h.newest, h.ts) for symbol, h in core.memory.held.items()}
    feeds = {(name, symbol): feed for name, source in core.memory.sources.items() for symbol, feed in source.feeds.items()}
    return set(core.memory.sources), held, feeds, core.log_clock


@pytest.mark.parametrize("seed", range(30))
def test_closings_and_rejections_are_those_of_the_model_of_the_windows(seed: int) -> None:
    rng = random.Random(seed)
    log = [(offset, ts, item if isinstance(item, list) or (item and "punctuate" in item) else [item]) for offset, ts, item in jumpy_log(rng, 200) if item]
    for _, ts, item in log:
        for one in item if isinstance(item, list) else []:
            for name in ("seq", "epoch", "trade_id", "day_volume", "gap_from", "interval_s"):
                one.pop(name, None)
            one["size"] = int(one["price"] is not None)
            one["event_time"] = min(one["event_time"], ts)
    log = [(o, ts, i) for o, ts, i in log if isinstance(i, list) or i["punctuate"] * 1000 <= ts]
    rejected, _, closings, *_ = judged(log, iter(lambda: rng.randrange(1, 9), 0), frozenset(range(0, 100, 3)))  # type: ignore[arg-type]
    want = list(windows_model.closings([(offset, item, ts) for offset, ts, item in log]))
    assert closings == [(c["offset"], c["source"], c["after"], c["second"]) for c in want]
    told = [place for c in want for place in c["rejected"]]
    assert rejected[: len(told)] == told and len(rejected) - len(told) < 20, "those behind the last closing are not told by the model"


def test_a_rejected_record_ahead_and_a_snapshot_forget_nothing() -> None:
    """Findings, H9: garbage stamped 25 h ahead and a snapshot at the right moment made a repeated number count twice."""
    core = cleaner()
    core.chunk(raw([(0, NOW, tick("A", "s", NOW, seq=7)), (1, NOW + 25 * HOUR_MS, None)]))
    core.make_frame()
    core = restarted(core)
    again = core.chunk(raw([(2, NOW + 10, tick("A", "s", NOW, seq=7))]))
    assert [r.reason for r in again] == ["duplicate"]


def test_a_feed_with_old_record_times_beside_a_live_one_is_known_all_the_while() -> None:
    """Findings, H9: a recording whose producer sets old record times. Its own times are two days back, the log's clock is not."""
    log: Log = [(0, NOW, tick("LIVE", "live", NOW))]
    for number in range(20):
        old = NOW - 48 * HOUR_MS + number
        log += [(1 + 2 * number, old, tick("OLD", "recording", old, seq=number)), (2 + 2 * number, old, tick("OLD", "recording", old, seq=number))]
    rejected = judged(log)[0]
    assert [reason for _, _, reason in rejected] == ["duplicate"] * 20


@pytest.mark.parametrize("restarts", [frozenset[int](), frozenset(range(100))], ids=["", "restarted"])
def test_sources_are_bounded_and_forgotten_ones_make_room(restarts: frozenset[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(memory.LIMITS, "source", 5)
    log: Log = [(number, NOW + number, tick(f"S{number}", f"s{number}", NOW)) for number in range(8)]
    log.append((8, NOW + 9, {"punctuate": NOW // 1000, "source": "s9"}))
    log += [(9 + n, NOW + 20, {"punctuate": NOW // 1000 + 1, "source": f"s{n}"}) for n in range(5)]
    log.append((14, NOW + FORGET_MS + 10, {"punctuate": NOW // 1000 + 1, "source": "s3"}))
    log += [(15 + n, NOW + FORGET_MS + 21 + n, tick(f"S{n}", f"t{n}", NOW + 5)) for n in range(5)]
    model = of_the_model(log, most_sources=5)
    rejected, accepted, closings, _ = judged(log, iter(lambda: 1, 0), restarts)
    assert (rejected, accepted, closings) == (model.rejected, model.rows, model.closings)
    reasons = [(offset, reason) for offset, _, reason in rejected]
    assert reasons == [(5, "too_many_sources"), (6, "too_many_sources"), (7, "too_many_sources"), (8, "too_many_sources"), (19, "too_many_sources")]


@pytest.mark.parametrize("seed", range(20))
def test_bounds_are_the_models_whenever_it_is_restarted(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    monkeypatch.setitem(memory.LIMITS, "source", 3)
    monkeypatch.setitem(memory.LIMITS, "symbol", 5)
    log: Log = []
    now = NOW
    for offset in range(300):
        now += rng.choice((0, 3, 900)) if rng.random() < 0.9 else rng.choice((FORGET_MS // 3, FORGET_MS // 2, FORGET_MS + 1))
        ts = now + (rng.choice((30 * HOUR_MS, -30 * HOUR_MS)) if rng.random() < 0.05 else 0)
        source = f"s{rng.randrange(6)}"
        if rng.random() < 0.2:
            log.append((offset, ts, {"punctuate": min(now, ts) // 1000, "source": source}))
        else:
            log.append((offset, ts, tick(f"{source}-{rng.randrange(3)}", source, min(now, ts))))
    model = of_the_model(log, most_sources=3, most_symbols=5)
    got = judged(log, iter(lambda: rng.randrange(1, 9), 0), frozenset(rng.sample(range(60), 15)))
    assert got[:3] == (model.rejected, model.rows, model.closings)
    assert {"too_many_sources", "too_many_symbols"} <= {reason for _, _, reason in model.rejected}


def test_nothing_grows_in_thirty_days_of_new_symbols_and_sources() -> None:
    core, offset = cleaner(), 0
    sizes, counts = [], []
    for day in range(30):
        begin = NOW + day * 24 * HOUR_MS
        for hour in range(0, 24, 4):
            now = begin + hour * HOUR_MS
            symbols = [f"D{day}H{hour}N{number}" for number in range(200)]
            records = [(offset + n, now + n, [tick(s, f"run-{day}-{hour}-{n % 20}", now, seq=1, day_volume=5, session="regular", snapshot=True)])
                       for n, s in enumerate(symbols)]  # fmt: skip
            records += [(offset + len(records) + n, now + 900, [tick(f"OLD{n}", "steady", now, seq=day * 24 + hour)]) for n in range(50)]
            steady: Log = [*records]
            steady.append((offset + len(steady), now + 950, {"punctuate": now // 1000, "source": "steady"}))
            steady += [(offset + len(records) + 1 + n, now + 3_000, {"punctuate": now // 1000, "source": f"run-{day}-{hour}-{n}"}) for n in range(20)]
            offset += len(steady)
            assert core.chunk(raw(steady)) == []
            core.make_frame()
        sizes.append(len(core.snapshot()))
        counts.append((len(core.memory.sources), len(core.memory.held), sum(len(source.feeds) for source in core.memory.sources.values())))
    assert max(sizes[2:]) < 1.1 * sizes[1] and len(set(counts[2:])) == 1, (sizes, counts)
    assert core.memory.feed_count == counts[-1][2]
    core.chunk(raw([(offset, NOW + 40 * 24 * HOUR_MS, tick("Z", "z", NOW))]))
    core.make_frame()
    core.snapshot()
    assert (set(core.memory.held), set(core.memory.sources), core.memory.feed_count) == ({"Z"}, {"z"}, 0)


def test_a_kafka_time_beyond_all_times_makes_a_frame_that_is_read() -> None:
    """A topic may keep its producers' times, whatever they are. A frame whose `clock` is out of range is refused, and its offsets would be missing for ever."""
    core = cleaner()
    assert core.chunk([RawRecord(0, 1 << 62, json.dumps(tick("S", "a", NOW)).encode())]) == []
    frame = core.make_frame()
    assert frame is not None
    assert decode(encode(frame), TICKS_SCHEMA).log_clock == MAX_TIME
