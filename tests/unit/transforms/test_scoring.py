"""`Scorer` against a slow, plain oracle, cut into frames and killed in every way."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import features
from stockstream.errors import ModelError, StateError
from stockstream.records import SHARES, WINDOWS_SCHEMA, Closing, Horizon, Outcome, Prediction, Role
from stockstream.transforms.frames import Frame, decode, encode
from stockstream.transforms.scoring import scored as scored_columns
from stockstream.transforms.scoring import scorer as scoring
from stockstream.transforms.scoring.scorer import Contender, Member, Outcomes, Predictions, Scored, Scorer, encode_outcomes, encode_predictions
from tests.changelogs import Changelog
from tests.seeds import some_quick

Row = dict[str, Any]


@dataclass(frozen=True)
class Fake:
    """Says something that hangs on the row alone."""

    version: str = "1"
    name: str = "fake"
    horizons_s: tuple[int, ...] = (10, 60)
    feature_hash: str = field(default_factory=features.feature_hash)

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.version

    def predict(self, matrix: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        spread = np.nan_to_num(matrix[:, features.FEATURES.index("hour_utc")]).astype(np.float64)
        value = np.stack([np.sin(spread * 1e5 + h + len(self.version)) * 1e-4 for h in self.horizons_s], axis=1)
        return value, 1 / (1 + np.exp(-value * 1e4))


def row(symbol: str, second: int, price: float | None, offset: int, source: str = "s", revised: bool = False, quality: str = "") -> Row:
    blank: Row = {name: None if pa.types.is_floating(WINDOWS_SCHEMA.field(name).type) and name not in SHARES else 0 for name in WINDOWS_SCHEMA.names}
    blank["gap_s"] = None
    known = {"symbol": symbol, "source": source, "second": second, "price": price, "close": price, "mid": price, "offset": offset, "revised": revised}
    return blank | known | {"quality": quality}


@dataclass(frozen=True)
class Log:
    """Closings in log order, each with its rows."""

    closings: list[Closing]
    rows: list[Row]
    end: int

    def frame(self, start: int, through: int, log: str = "a") -> Frame:
        rows = [r for r in self.rows if start <= r["offset"] <= through]
        closings = tuple(c for c in self.closings if start <= c.offset <= through)
        frame = Frame(log, start, through, closings, pa.RecordBatch.from_pylist(rows, schema=WINDOWS_SCHEMA))
        return decode(encode(frame), WINDOWS_SCHEMA)

    def cut(self, cuts: Iterable[int]) -> list[Frame]:
        edges = sorted({0, self.end + 1, *(cut for cut in cuts if 0 < cut <= self.end)})
        return [self.frame(low, high - 1) for low, high in pairwise(edges)]


def oracle(log: Log, roster: Sequence[tuple[int, Sequence[tuple[Fake, str]]]]) -> tuple[dict[str, tuple[Any, ...]], dict[tuple[str, int], tuple[Any, ...]]]:
    """Predictions by id and outcomes by (id, horizon), straight from the definition."""
    predictions: dict[str, tuple[Any, ...]] = {}
    outcomes: dict[tuple[str, int], tuple[Any, ...]] = {}
    good = [r for r in log.rows if not r["revised"] and r["price"] is not None]
    for r in good:
        contenders = next((c for start, c in reversed(roster) if start <= r["offset"]), ())
        columns = {name: np.array([np.nan if r[name] is None else r[name]]) for name in features.COLUMNS}
        for model, role in contenders:
            returns, p_up = model.predict(features.matrix(columns))
            as_of = (r["second"] + 1) * 1000
            ident = f"{r['symbol']}-{as_of}-{model.name}-{model.version}"
            said = [(h, round(returns[0, i], 9), round(p_up[0, i], 6)) for i, h in enumerate(model.horizons_s)]
            if role == "champion":
                predictions[ident] = (r["symbol"], as_of, r["price"], r["offset"], said)
            for h, expected, p in said:
                reached = (c.offset for c in log.closings if c.source == r["source"] and c.offset >= r["offset"] and c.second >= r["second"] + h)
                judged_by = min(reached, default=None)                   # where it came late, that may be the closing that brought it
                anew = [x["second"] for x in log.rows if "new_series" in x["quality"] and x["symbol"] == r["symbol"] and x["source"] == r["source"]
                        and x["offset"] <= (judged_by or 0)]  # fmt: skip
                if judged_by is not None and not any(r["second"] < second <= r["second"] + h for second in anew):
                    of_symbol = [x for x in good if (x["symbol"], x["source"]) == (r["symbol"], r["source"]) and x["offset"] <= judged_by]
                    then = [x for x in of_symbol if x["second"] <= r["second"] + h]
                    price = max(then, key=lambda x: x["second"])["price"]
                    outcomes[ident, h] = (role, expected, p, round(math.log(price / r["price"]), 11), price)
    return predictions, outcomes


class Subscriber:
    """Reads messages; holds every content to the one told before under the same id."""

    def __init__(self) -> None:
        self.predictions: dict[str, tuple[Any, ...]] = {}
        self.outcomes: dict[tuple[str, int], tuple[Any, ...]] = {}
        self.told: list[Any] = []

    def read(self, scored: scoring.Scored | None) -> None:
        assert scored is not None
        messages = encode_predictions(scored, 1, {"score": 2})
        assert len(messages) == len(scored.symbols)
        for key, message in zip(scored.symbols, messages, strict=True):
            p = msgspec.json.decode(message, type=Prediction)
            assert key == p.symbol and p.partition == 3 and p.latency_ms == {"score": 2} and p.made_at == 1
            content = (p.symbol, p.as_of, p.price, p.offset, [(h.horizon_s, h.predicted_return, h.p_up) for h in p.horizons])
            assert self.predictions.setdefault(p.id, content) == content
            self.told.append(p.id)
        for message in encode_outcomes(scored, 5):
            for o in msgspec.json.decode(message, type=list[Outcome]):
                told = (o.role, o.predicted_return, o.p_up, o.realised_return, o.price_then)
                assert self.outcomes.setdefault((o.id, o.horizon_s), told) == told
                self.told.append((o.id, o.horizon_s))

    def holds(self, expected: tuple[dict[str, Any], dict[Any, Any]]) -> None:
        assert self.predictions == expected[0]
        rounded = {key: (*told[:3], round(told[3], 11), told[4]) for key, told in self.outcomes.items()}
        assert rounded == expected[1]


def random_log(rng: random.Random) -> Log:
    closed = {"s": 1_000, "t": 400}
    sent = set[tuple[str, int]]()
    late_often = rng.random() < 0.5
    closings: list[Closing] = []
    rows: list[Row] = []
    offset = 0
    for _ in range(rng.randint(5, 25)):
        offset += rng.randint(1, 3)
        for source in rng.choice((("s",), ("s",), ("t",), ("s", "t"))):
            after = closed[source]
            jump = rng.choice((0, 1, 1, 1, 1, 5, 9, 10, 13, 59, 64, 70, 128, 300))
            closed[source] = after + jump
            closings.append(Closing(offset, source, after, after + jump))
            if rng.random() < 0.5 and after > 1_000:
                rows.append(row("A", after - rng.randint(0, 5), 7.0, offset, source, revised=True))
            for second in sorted({after - rng.choice((0, 0, 1, 2, 9, 29)) for _ in range(rng.choice((0, 1, 4)))}) if late_often and after > 1_000 else ():
                for symbol in ("A", "B") if source == "s" else ("C",):
                    if (symbol, second) not in sent and rng.random() < 0.75:
                        quality = rng.choice(("late",) * 9 + ("late,new_series",))
                        rows.append(row(symbol, second, rng.choice((None, 98.0, 102.0)), offset, source, quality=quality))
                        sent.add((symbol, second))
            for second in sorted({rng.randint(after + 1, after + jump) for _ in range(rng.randint(0, 6))}) if jump else ():
                for symbol in ("A", "B") if source == "s" else ("C",):
                    if rng.random() < 0.75:
                        quality = rng.choice(("",) * 15 + ("partial,new_series",))
                        rows.append(row(symbol, second, rng.choice((None, 99.5, 100.0, 101.25)), offset, source, quality=quality))
                        sent.add((symbol, second))
    return Log(closings, rows, offset + 1)


def random_cuts(rng: random.Random) -> set[int]:
    return {rng.randint(1, 120) for _ in range(rng.choice((0, 3, 10, 60)))}


V1, V2, SHADOW = Fake("1"), Fake("2", horizons_s=(10, 1)), Fake("33", name="shadow", horizons_s=(10, 120))
MODELS = {(m.name, m.version): m for m in (V1, V2, SHADOW)}


def load(name: str, version: str) -> Fake:
    return MODELS[name, version]


@pytest.mark.slow
@given(st.integers(0, 1 << 32))
@settings(max_examples=40, deadline=None)
def test_any_cutting_tells_the_same_in_the_same_order(seed: int) -> None:
    rng = random.Random(seed)
    log, cuts, change = random_log(rng), random_cuts(rng), rng.randint(1, 80)
    roster = [(0, [(V1, "champion"), (SHADOW, "shadow")]), (change, [(V2, "champion"), (SHADOW, "shadow")])]
    orders = []
    for frames in (log.cut(()), log.cut(cuts), log.cut(range(log.end))):
        scorer, reader = Scorer(3, [Contender(V1), Contender(SHADOW, "shadow")]), Subscriber()
        scorer.set_champion(V2, change)
        for frame in frames:
            reader.read(scorer.take_frame(frame))
        reader.holds(oracle(log, roster))
        orders.append([t for t in reader.told if isinstance(t, tuple)])
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.slow
@given(st.integers(0, 1 << 32))
@settings(max_examples=200, deadline=None)
def test_a_scorer_that_dies_anywhere_says_nothing_else_and_misses_nothing(seed: int) -> None:
    rng = random.Random(seed)
    log, cuts, change = random_log(rng), random_cuts(rng), rng.randint(1, 80)
    roster = [(0, [(V1, "champion"), (SHADOW, "shadow")]), (change, [(V2, "champion"), (SHADOW, "shadow")])]
    frames, table, reader, term = log.cut(cuts), Changelog(rng), Subscriber(), 0
    scorer = Scorer(3, [Contender(V1), Contender(SHADOW, "shadow")])
    scorer.set_champion(V2, change)
    table.write(scorer.records(term), scorer.index)
    place = 0
    while place < len(frames):
        reader.read(scorer.take_frame(frames[place], place))
        place += 1
        records = scorer.records(term, everything=rng.random() < 0.1)
        if rng.random() < 0.4:
            table.write(records[: rng.randrange(len(records) + 1)])
            stored = table.read(Scorer.needs)
            scorer = Scorer.restore(3, stored.records, load, stored.offsets)
            if scorer.expect < 0:
                place = 0
            else:
                place = scorer.resume_input
                assert frames[place - 1].through + 1 == scorer.expect
            term += 1
        else:
            table.write(records, scorer.index)
    reader.holds(oracle(log, roster))


@given(st.integers(0, 1 << 32))
@settings(max_examples=40, deadline=None)
def test_frames_again_early_late_and_overlapping_change_nothing(seed: int) -> None:
    rng = random.Random(seed)
    log, cuts = random_log(rng), random_cuts(rng)
    scorer, reader = Scorer(3, [Contender(V1)]), Subscriber()
    for frame in log.cut(cuts):
        before = scorer.expect
        if before >= 0:
            assert scorer.take_frame(log.frame(before + 1, max(before + 1, log.end))) is None
            old = rng.randrange(before + 1)
            again = scorer.take_frame(log.frame(old, before - 1)) if old < before else None
            assert again is None or (not again.predictions and not again.outcomes)
            assert scorer.expect == before
            frame = log.frame(old, frame.through)
        reader.read(scorer.take_frame(frame))
    reader.holds(oracle(log, [(0, [(V1, "champion")])]))
    assert len(reader.told) == len(set(reader.told))


def small() -> Log:
    closings = [Closing(1, "s", 100, 101), Closing(5, "s", 101, 150)]
    return Log(closings, [row("A", 101, 100.0, 1), row("A", 111, 110.0, 5), row("A", 112, 120.0, 5), row("A", 113, 7.0, 5, revised=True)], 6)


def test_a_closing_that_jumps_leaks_no_later_price() -> None:
    reader = Subscriber()
    scorer = Scorer(3, [Contender(V1)])
    reader.read(scorer.take_frame(small().frame(0, 6)))
    assert reader.outcomes["A-102000-fake-1", 10][4] == 110.0


def life(first: int, offset: int) -> Log:
    """90 s of a source, second by second, from a raw offset on; the price is the offset."""
    closings = [Closing(offset + at, "s", first + at - 1, first + at) for at in range(90)]
    return Log(closings, [row("A", first + at, 100.0 + offset + at, offset + at) for at in range(90)], offset + 89)


@pytest.mark.parametrize("back", some_quick([90, 40, 5_000], 1))
@pytest.mark.parametrize("length", [1, 25, 180])
def test_a_source_that_was_forgotten_is_judged_anew(back: int, length: int) -> None:
    """It tells of seconds from `back` before its last; before each frame all that is kept are the records."""

    def outcomes(log: Log, begin: int, length: int) -> Counter[tuple[int, int, float]]:
        scorer, kept, told = Scorer(3, [Contender(V1)]), dict[bytes, bytes](), Counter[tuple[int, int, float]]()
        for start in range(begin, log.end + 1, length):
            scored = scorer.take_frame(log.frame(start, min(start + length - 1, log.end)))
            assert scored is not None
            for message in encode_outcomes(scored, 5):
                told.update((o["as_of"], o["horizon_s"], o["price_then"]) for o in msgspec.json.decode(message))
            kept |= dict(scorer.records())
            scorer = Scorer.restore(3, kept, load)
        return told

    first, second = life(10_000, 0), life(10_090 - back, 90)
    both = Log(first.closings + second.closings, first.rows + second.rows, second.end)
    assert outcomes(both, 0, length) == outcomes(first, 0, 1) + outcomes(second, 90, 1)


def test_a_newer_log_starts_afresh_and_an_older_is_dropped() -> None:
    log, scorer = small(), Scorer(3, [Contender(V1)])
    assert scorer.take_frame(log.frame(0, 6, "b"))
    assert scorer.take_frame(log.frame(7, 9, "a")) is None
    assert scorer.expect == 7
    again = scorer.take_frame(log.frame(0, 1, "c"))
    assert again is not None and again.symbols == ["A"] and not again.outcomes
    assert (scorer.log, scorer.expect) == ("c", 2)
    table = dict(scorer.records())
    assert Scorer.restore(3, table, load).log == "c"


def test_an_older_logs_records_with_higher_offsets_lose() -> None:
    log, scorer = small(), Scorer(3, [Contender(V1)])
    scorer.take_frame(log.frame(0, 600, "b"))
    table = dict(scorer.records())
    scorer.take_frame(log.frame(0, 1, "c"))
    table |= dict(scorer.records())
    restored = Scorer.restore(3, table, load)
    assert (restored.log, restored.expect, restored.champion) == ("c", 2, ("fake", "1"))


def test_every_value_begins_with_its_offset_and_nothing_is_written_without_a_closing() -> None:
    scorer = Scorer(3, [Contender(V1)])
    assert len(scorer.records()) == 1                                   # the roster, before it is used
    scorer.take_frame(small().frame(0, 2))
    first = scorer.records()
    assert [msgspec.msgpack.decode(key)[2] for key, _ in first] == ["roster", "slot", "head"]
    values = [msgspec.msgpack.decode(value) for _, value in first]
    assert [value["v"] for value in values] == [3, 3, 3] and [value.get("through") for value in values] == [None, 2, 2]
    scorer.take_frame(small().frame(3, 4))
    assert scorer.records() == []
    assert len(scorer.records(everything=True)) == 3


def test_many_symbols_are_split_into_parts_and_a_missing_part_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "ROWS_OF_A_SLOT", 2)
    rows = [row(name, 101, 100.0 + i, 1) for i, name in enumerate("ABCDE")]
    log = Log([Closing(1, "s", 100, 101), Closing(2, "s", 101, 111)], rows, 3)
    scorer, reader = Scorer(3, [Contender(V1)]), Subscriber()
    reader.read(scorer.take_frame(log.frame(0, 1)))
    table = dict(scorer.records())
    assert len(table) == 5
    reader.read(Scorer.restore(3, table, load).take_frame(log.frame(2, 3)))
    assert len(reader.outcomes) == 5
    del table[next(key for key in table if msgspec.msgpack.decode(key)[2:3] == ["slot"])]
    with pytest.raises(StateError, match="pieces of second 101"):
        Scorer.restore(3, table, load)


def test_garbage_in_the_state_is_one_clear_line() -> None:
    with pytest.raises(StateError, match="partition 3: a record of score cannot be read"):
        Scorer.restore(3, {b"\xc1": b"x"}, load)


def test_other_partitions_are_ignored() -> None:
    scorer = Scorer(4, [Contender(V1)])
    scorer.take_frame(small().frame(0, 2))
    assert Scorer.restore(3, dict(scorer.records()), load).expect == -1


def test_models_that_cannot_score_are_refused() -> None:
    scorer = Scorer(3, [Contender(V1)])
    scorer.take_frame(small().frame(0, 2))
    with pytest.raises(ModelError, match="behind 3"):
        scorer.set_champion(V2, 2)
    with pytest.raises(ModelError, match="other features"):
        scorer.set_champion(Fake("9", feature_hash="x"), 3)
    with pytest.raises(ModelError, match="horizons must be 1 to 127 s, not 500"):
        scorer.set_champion(Fake("9", horizons_s=(500,)), 3)
    for wrong in ((10, 10), (10.5,), ()):
        with pytest.raises(ModelError, match="horizons must be"):
            scorer.set_champion(Fake("9", horizons_s=wrong), 3)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="one champion"):
        Scorer(3, [Contender(V1), Contender(V2)])
    assert scorer.champion == ("fake", "1")


@dataclass(frozen=True)
class Faulty(Fake):
    """Is wrong from a second on, in one of the ways in which a model can be."""

    way: str = "not_finite"
    from_second: int = 0

    def predict(self, matrix: NDArray[np.float32]) -> Any:
        returns, p_up = super().predict(matrix)
        hours = matrix[:, features.FEATURES.index("hour_utc")]
        bad = hours >= np.float32(self.from_second % 86_400 / 3_600)
        if not bad.any():
            return returns, p_up
        if self.way == "raised":
            raise MemoryError("no \udcff more\n" + "x" * 10_000)
        if self.way == "nothing":
            return None
        if self.way == "shape":
            return returns[:, :1], p_up
        if self.way == "type":
            return returns.tolist(), p_up
        returns[bad, -1] = np.nan if self.way == "not_finite" else np.inf
        return returns, p_up


WAYS = {"not_finite": "not_finite", "infinite": "not_finite", "raised": "raised", "shape": "shape", "type": "shape", "nothing": "raised"}


def rows_of(log: Log, offsets: Iterable[int]) -> Counter[int]:
    wanted = set(offsets)
    return Counter(r["offset"] for r in log.rows if r["offset"] in wanted and not r["revised"] and r["price"] is not None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("role", ["champion", "shadow"])
def test_a_faulty_model_is_suspended_alone_from_the_next_offset_on(way: str, role: Role) -> None:
    log, bad = life(1_000, 0), Faulty(version="bad", way=way, from_second=1_005)
    other = Contender(V1, "shadow" if role == "champion" else "champion")
    scorer, reader = Scorer(3, [Contender(bad, role), other]), Subscriber()
    missed: Counter[tuple[str, str, str]] = Counter()
    for start in range(0, 20, 4):
        scored = scorer.take_frame(log.frame(start, start + 3))
        assert scored is not None
        reader.read(scored)
        missed.update({item[:3]: item.rows for item in scored.missed})
        assert [m.key for m in scored.suspended] == ([bad.key] if start == 4 else [])
        scorer.records()
    (out,) = [m for m in scorer.members if m.suspended]
    assert (out.role, out.key, out.suspended) == (role, ("fake", "bad"), WAYS[way]) and scorer.roster.since(out) == 8
    assert ("fake", "bad") not in scorer.models
    first = 4 if way in ("raised", "shape", "type", "nothing") else 5               # whole runs are lost where no row can be blamed
    silent = 20 if role == "champion" else 8                             # a suspended champion's rows have no prediction, a shadow's are nobody's
    assert missed == Counter({("fake", "bad", WAYS[way]): silent - first})
    told = {ident.rpartition("-")[2] for ident in reader.predictions}
    assert told == ({"bad"} if role == "champion" else {"1"}) and len(reader.predictions) == (first if role == "champion" else 20)
    judged = Counter(ident.rpartition("-")[2] for ident, horizon in reader.outcomes if horizon == 10)
    assert judged == Counter({"bad": first, "1": 10})


def test_a_suspended_champion_comes_back_with_another_stamp_and_the_one_before_is_remembered() -> None:
    log, bad = life(1_000, 0), Faulty(version="bad", from_second=1_010)
    scorer = Scorer(3, [Contender(V1)])
    scorer.take_frame(log.frame(0, 4))
    scorer.set_champion(bad, scorer.expect, "x")
    scorer.take_frame(log.frame(5, 12))
    assert scorer.champion is None and scorer.roster.fallbacks == (("fake", "1"),)
    kept = dict(scorer.records())
    scorer = Scorer.restore(3, kept, load)
    assert scorer.champion is None and scorer.roster.fallbacks == (("fake", "1"),) and [m.stamp for m in scorer.members if m.suspended] == ["x"]
    scorer.set_champion(V1, scorer.expect, "y")
    assert scorer.champion == ("fake", "1") and [m.key for m in scorer.members if m.suspended] == [("fake", "bad")]
    scorer.set_champion(Fake("bad"), scorer.expect, "z")
    scored = scorer.take_frame(log.frame(13, 14))
    assert scored is not None and {of.version for of in scored.predictions} == {"bad"} and not scored.missed
    assert not any(m.suspended for m in scorer.members)


def test_a_model_of_the_roster_that_cannot_be_loaded_is_no_reason_to_fail() -> None:
    log, scorer = life(1_000, 0), Scorer(3, [Contender(V1)])
    scorer.take_frame(log.frame(0, 9))
    kept = dict(scorer.records())

    def gone(name: str, version: str) -> Fake:
        raise ModelError("the registry is empty")

    scorer, reader = Scorer.restore(3, kept, gone), Subscriber()
    scored = scorer.take_frame(log.frame(10, 12))
    reader.read(scored)
    assert scored is not None and not scored.predictions and scored.missed == (scoring.Missed("fake", "1", "missing", 3),)
    assert {horizon for _, horizon in reader.outcomes} == {10} and len(reader.outcomes) == 3         # what it said before is judged
    (out,) = scorer.members
    assert (out.suspended, out.detail) == ("missing", "the registry is empty")
    scored = scorer.take_frame(log.frame(13, 14))
    assert scored is not None and scored.missed == (scoring.Missed("fake", "1", "missing", 2),)
    scorer.set_champion(V1, scorer.expect)
    scored = scorer.take_frame(log.frame(15, 16))
    assert scored is not None and len(scored.symbols) == 2 and not scored.missed


def test_rows_without_any_model_are_counted() -> None:
    scored = Scorer(3).take_frame(life(1_000, 0).frame(0, 9))
    assert scored is not None and scored.missed == (scoring.Missed("", "", "no_model", 10),)


def expected_of(log: Log, history: dict[int, tuple[Member, ...]], models: dict[tuple[str, str, str], Fake]) -> Any:
    """The oracle with models that fail: each says nothing from the first faulty closing on, until an entry lists it with another stamp."""
    silent: set[tuple[str, str, str]] = set()
    roster: list[tuple[int, list[tuple[Fake, str]]]] = []
    for offset in sorted({r["offset"] for r in log.rows}):
        members = next((m for start, m in sorted(history.items(), reverse=True) if start <= offset), ())
        speaking: list[tuple[Fake, str]] = []
        for m in members:
            model = models[m.name, m.version, m.stamp]
            good = [r for r in log.rows if r["offset"] == offset and not r["revised"] and r["price"] is not None]
            if isinstance(model, Faulty) and any(r["second"] >= model.from_second for r in good) and not m.suspended:
                silent.add((m.name, m.version, m.stamp))
            if not m.suspended and (m.name, m.version, m.stamp) not in silent:
                speaking.append((model, m.role))
        roster.append((offset, speaking))
    return oracle(log, roster)


@pytest.mark.slow
@given(st.integers(0, 1 << 32))
@settings(max_examples=200, deadline=None)
def test_models_that_fail_and_kills_around_their_suspension_say_nothing_with_two_contents(seed: int) -> None:
    rng = random.Random(seed)
    log, cuts = random_log(rng), random_cuts(rng)
    last = max((r["second"] for r in log.rows), default=1_000)
    bad = Faulty("2", way=rng.choice(["not_finite", "infinite"]), from_second=rng.randint(300, last + 5), horizons_s=(10,))
    mended = Fake("2", horizons_s=(10,))
    shadow = Faulty("33", name="shadow", horizons_s=(10, 120), from_second=rng.randint(300, last + 5))
    models = {("fake", "1", ""): V1, ("fake", "1", "again"): V1, ("fake", "2", "bad"): bad, ("fake", "2", "mended"): mended, ("shadow", "33", ""): shadow}
    now = {("fake", "1"): V1, ("fake", "2"): bad, ("shadow", "33"): shadow}
    frames, table, reader, term = log.cut(cuts), Changelog(rng), Subscriber(), 0
    scorer = Scorer(3, [Contender(V1), Contender(shadow, "shadow")])
    table.write(scorer.records(term), scorer.index)
    history: dict[int, tuple[Member, ...]] = {}
    promote, mend = rng.randrange(len(frames)), rng.randrange(len(frames))
    place = furthest = 0
    while place < len(frames):
        new: tuple[Fake, str] | None = None
        if place >= furthest:                                            # what another may have told is told by the same models
            if scorer.champion == ("fake", "1") and promote <= place < mend and not any(m.key == bad.key for m in scorer.members):
                new = bad, "bad"
            elif place >= mend and place > promote and scorer.champion != mended.key:
                new, now["fake", "2"] = (mended, "mended"), mended
            elif scorer.champion is None and scorer.roster.fallbacks:
                assert scorer.roster.fallbacks[0] == V1.key
                new = V1, "again"
        if new is not None:
            scorer.set_champion(new[0], max(scorer.expect, 0), new[1])
            records = scorer.records(term)
            if rng.random() < 0.3:                                       # a kill before the roster is written, or after
                table.write(records[: rng.randrange(len(records) + 1)])
                stored_now = table.read(Scorer.needs)
                scorer, term = Scorer.restore(3, stored_now.records, lambda name, version: now[name, version], stored_now.offsets), term + 1
                place = scorer.resume_input if scorer.expect >= 0 else 0
                continue
            table.write(records, scorer.index)
        for entry in scorer.roster.entries:
            if entry.start <= frames[place].through:
                assert history.setdefault(entry.start, entry.members) == entry.members
        reader.read(scorer.take_frame(frames[place], place))
        place += 1
        furthest = max(furthest, place)
        records = scorer.records(term, everything=rng.random() < 0.1)
        if rng.random() < 0.4:
            table.write(records[: rng.randrange(len(records) + 1)])
            stored_now = table.read(Scorer.needs)
            scorer, term = Scorer.restore(3, stored_now.records, lambda name, version: now[name, version], stored_now.offsets), term + 1
            place = scorer.resume_input if scorer.expect >= 0 else 0
        else:
            table.write(records, scorer.index)
    reader.holds(expected_of(log, history, models))


def test_messages_have_exactly_the_records_fields() -> None:
    scorer = Scorer(3, [Contender(V1)])
    scored = scorer.take_frame(small().frame(0, 6))
    assert scored is not None
    prediction = msgspec.json.decode(encode_predictions(scored, 1, {"ingest": 3})[0])
    assert set(prediction) == set(Prediction.__struct_fields__)
    (outcome, *_) = msgspec.json.decode(encode_outcomes(scored, 2)[0])
    assert set(outcome) == set(Outcome.__struct_fields__)
    assert prediction["id"] == "A-102000-fake-1" and prediction["as_of"] == 102_000 and prediction["feature_hash"] == features.feature_hash()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\\\%{}\\n\\r\\t\\0\\u2028,'), max_size=8)
NUMBERS = st.floats() | st.integers(-10_000, 10_000).map(lambda units: units / 1e9) | st.sampled_from([0.0, -0.0, 1e16, 1e-5, 1e22, 5e-324])


def numbers(data: st.DataObject, *shape: int) -> NDArray[np.float64]:
    size = math.prod(shape)
    return np.array(data.draw(st.lists(NUMBERS, min_size=size, max_size=size)), np.float64).reshape(shape)


@given(st.data())
@settings(deadline=None)
def test_predictions_are_the_bytes_that_the_record_itself_becomes(data: st.DataObject) -> None:
    symbols, model, version, feature_hash, hop = data.draw(st.lists(TEXTS, max_size=5)), *(data.draw(TEXTS) for _ in range(4))
    horizons = tuple(data.draw(st.lists(st.integers(1, 127), min_size=1, max_size=3, unique=True)))
    n, latency = len(symbols), {hop: data.draw(st.integers(-5, 1 << 40)), "100 %b": 1}
    as_of, offset = (np.array(data.draw(st.lists(st.integers(0, 1 << 60), min_size=n, max_size=n)), np.int64) for _ in range(2))
    price, returns, p_up = numbers(data, n), numbers(data, n, len(horizons)), numbers(data, n, len(horizons))
    of = Predictions(model, version, feature_hash, horizons, symbols, as_of, price, offset, returns, p_up)
    expected = [
        Prediction(
            id=f"{symbol}-{as_of[i]}-{model}-{version}", symbol=symbol, as_of=int(as_of[i]), price=float(price[i]), model=model, version=version,
            feature_hash=feature_hash, partition=3, offset=int(offset[i]), made_at=7, latency_ms=latency,
            horizons=[Horizon(horizon_s=h, predicted_return=float(returns[i, k]), p_up=float(p_up[i, k])) for k, h in enumerate(horizons)],
        )
        for i, symbol in enumerate(symbols)
    ]  # fmt: skip
    assert encode_predictions(Scored(3, 9, (of, of)), 7, latency) == [msgspec.json.encode(item) for item in (*expected, *expected)]


@given(st.data())
@settings(deadline=None)
def test_outcomes_are_the_bytes_that_the_records_themselves_become(data: st.DataObject) -> None:
    roles: st.SearchStrategy[Role] = st.sampled_from(["champion", "shadow"])
    runs = data.draw(st.lists(st.tuples(st.builds(Member, roles, TEXTS, TEXTS), st.integers(1, 3)), min_size=1, max_size=4))
    by = [member for member, count in runs for _ in range(count)]
    n = len(by)
    symbols = data.draw(st.lists(TEXTS, min_size=n, max_size=n))
    as_of, horizon = np.arange(n) * 1_000 + 1_700_000_000_000, np.arange(n) + 1
    predicted, p_up, realised, price = (numbers(data, n) for _ in range(4))
    scored = Scored(3, 9, (), Outcomes(runs, symbols, as_of, horizon, predicted, p_up, realised, price))
    expected = [
        Outcome(
            id=f"{symbol}-{as_of[i]}-{who.name}-{who.version}", symbol=symbol, as_of=int(as_of[i]), horizon_s=int(horizon[i]), role=who.role,
            predicted_return=float(predicted[i]), p_up=float(p_up[i]), model=who.name, version=who.version,
            realised_return=float(realised[i]), price_then=float(price[i]), judged_at=5,
        )
        for i, (symbol, who) in enumerate(zip(symbols, by, strict=True))
    ]  # fmt: skip
    assert encode_outcomes(scored, 5) == [msgspec.json.encode(expected)]


def test_many_outcomes_are_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(3, [Contender(V1)])
    scored = scorer.take_frame(small().frame(0, 6))
    assert scored is not None
    whole = msgspec.json.decode(encode_outcomes(scored, 5)[0])
    monkeypatch.setattr(scored_columns, "OUTCOMES_OF_A_MESSAGE", 2)
    parts = [msgspec.json.decode(message) for message in encode_outcomes(scored, 5)]
    assert [len(part) for part in parts] == [2, 1] and [*parts[0], *parts[1]] == whole


def test_without_models_only_the_offset_moves() -> None:
    scorer = Scorer(3)
    scored = scorer.take_frame(small().frame(0, 6))
    assert scored is not None and not scored.symbols and not scored.outcomes and scorer.expect == 7
    scorer.set_champion(V1, scorer.expect)
    assert scorer.champion == ("fake", "1")
