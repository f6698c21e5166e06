"""Duplicates by number and by trade id: what is told twice, what is real, and how a numbering that begins again is recognised."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning import numbering
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.cleaning.numbering import MOST_CONTENTS, RUN, TRADE_IDS_MS

NOW = 1_700_000_000_000
Tick = dict[str, Any]


def cleaner() -> Cleaner:
    return Cleaner(0, 1, lateness_ms=200, revise_s=30, log="x")


def restored(core: Cleaner) -> Cleaner:
    core.make_frame()
    return Cleaner.restore(0, 1, dict(core.records(0)), lateness_ms=200, revise_s=30)


def tick(seq: int | None = None, ms: int = 0, **more: Any) -> Tick:
    return {"symbol": "X", "event_time": NOW + ms, "price": 10.0, "size": 100} | ({} if seq is None else {"seq": seq}) | more


def fates(ticks: Sequence[Tick], core: Cleaner | None = None, *, restarts: bool = False, arrived_ms: Sequence[int] = ()) -> str:
    """A letter for each tick: `a` accepted, `d` duplicate, `-` rejected for something else."""
    core, letters = core or cleaner(), []
    for number, item in enumerate(ticks):
        at = arrived_ms[number] if arrived_ms else 60_000
        rejected = core.chunk([RawRecord(max(core.expect, 0), NOW + at, json.dumps(item).encode())])
        letters.append({"duplicate": "d"}.get(rejected[0].reason, "-") if rejected else "a")
        core = restored(core) if restarts else core
    return "".join(letters)


@pytest.mark.parametrize("restarts", [False, True])
def test_two_ticks_of_one_number_with_other_content_are_both_real(restarts: bool) -> None:
    one, other = tick(5), tick(5, price=10.5, size=500)
    assert fates([one, other, one, other, tick(5, condition="T"), tick(6), one, tick(6, size=100.0), tick(6, received_at=7)], restarts=restarts) == "aaddaaddd"


def test_a_tick_is_the_same_however_it_was_judged_and_its_numbers_are_written() -> None:
    core = cleaner()
    begin = [tick(1, size=1), {"punctuate": NOW // 1000 - 5}]
    assert fates(begin, core) == "aa"
    for seq, repeats in ((2, [tick(2, size=100.0), tick(2, epoch=None, bid=None, snapshot=False)]), (3, [tick(3, price=10)])):
        assert fates([tick(seq), *repeats], core) == "a" + "d" * len(repeats)
    some = [json.dumps(tick(10 + number, size=0.1)).encode() for number in range(1_000)]
    assert core.chunk([RawRecord(core.expect + number, NOW + 60_000, value) for number, value in enumerate(some)]) == []
    assert fates([tick(1_009, size=0.1), tick(1_009, size=0.2)], core) == "da"


def test_the_contents_of_a_number_are_bounded() -> None:
    core = cleaner()
    several = [tick(5, size=number + 1) for number in range(MOST_CONTENTS + 4)]
    assert fates(several, core) == "a" * len(several)
    assert fates([several[-1], several[4], several[3]], core) == "dda", "the oldest were forgotten"
    assert core.noted == {("numbering", "same_number"): MOST_CONTENTS + 4}


@pytest.mark.parametrize("restarts", [False, True])
def test_a_greater_epoch_begins_the_numbering_again_and_a_lower_one_is_over(restarts: bool) -> None:
    told = [tick(7), tick(1, epoch=1), tick(1, epoch=1), tick(2), tick(2, epoch=0), tick(9, epoch=0), tick(0, epoch=2), tick(9, epoch=1), tick(1, epoch=2)]
    assert fates(told, restarts=restarts) == "aadaddada"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_run_of_numbers_below_the_last_while_time_goes_on_begins_again(restarts: bool, caplog: pytest.LogCaptureFixture) -> None:
    anew = [tick(number, 1_000 + number) for number in range(1, 15)]
    assert fates([tick(500), *anew], restarts=restarts) == "a" + "d" * (RUN - 1) + "aaaaa"
    [message] = caplog.messages
    assert message == (
        "ticks.raw[0] offset 10: the numbering of X in source default has begun again: its last seq was 500, and now 10 ticks in a row rise to 10 while time "
        "goes on. The first 9 of them were rejected as duplicate. A producer that writes an epoch with each tick loses none"
    )


def test_it_is_recognised_although_every_tick_comes_twice_and_old_ones_between_them() -> None:
    old = tick(499, -100)
    anew = [item for number in range(1, 11) for item in (old, tick(number, 1_000 + number), tick(number, 1_000 + number))]
    assert fates([old, tick(500), *anew, tick(11, 1_011)]) == "aa" + "ddd" * (RUN - 1) + "dad" + "a"


@pytest.mark.parametrize(
    "others",
    [
        [tick(number, -number) for number in range(400, 480)],
        [tick(number, 0) for number in range(400, 480)],
        [tick(number, 1_000 + number) for number in range(480, 400, -1)],
        [item for number in range(400, 480, 4) for item in (*(tick(number + n, 1_000 + number) for n in range(4)), tick(1_000 + number, 900))],
    ],
    ids=["older ones", "of one time", "falling", "others between them"],
)
def test_repeats_are_no_numbering_that_begins_again(others: list[Tick]) -> None:
    core = cleaner()
    got = fates([tick(500), *others], core)
    assert got == "a" + "".join("a" if item["seq"] >= 1_000 else "d" for item in others)
    assert ("numbering", "begins_again") not in core.noted


def test_a_source_that_writes_epochs_is_believed() -> None:
    assert fates([tick(500, epoch=3), *(tick(number, 1_000 + number, epoch=3) for number in range(1, 30))]) == "a" + "d" * 29


def test_numbers_without_an_epoch_may_begin_again_after_one() -> None:
    without = [tick(number, 1_000 + number) for number in range(1, 30)]
    assert fates([tick(500, epoch=3), *without]) == "a" + "d" * (RUN - 1) + "a" * (30 - RUN)


def test_a_run_that_is_late_begins_nothing() -> None:
    core = cleaner()
    far = {"symbol": "Y", "event_time": NOW + 50_000, "price": 1.0, "size": 1}
    late = [tick(number, 1_000 + number) for number in range(1, 30)]
    assert fates([tick(500), far, *late], core) == "aa" + "d" * (RUN - 1) + "-" * 20
    assert fates([tick(31, 40_000)], core) == "a"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_trade_id_is_a_duplicate_for_two_minutes_of_the_log_clock(restarts: bool) -> None:
    first, other = tick(trade_id="7"), tick(ms=10, trade_id="8")
    again, elsewhere, quote = tick(ms=10, trade_id="7"), tick(ms=10, trade_id="7", symbol="Y"), tick(ms=10, price=None, size=0, trade_id="7")
    told = [first, again, other, elsewhere, quote, again, again, again]
    arrived = [1_000, 1_000, 1_000, 1_000, 1_000, 1_000 + TRADE_IDS_MS, 1_001 + TRADE_IDS_MS, 1_001 + TRADE_IDS_MS]
    assert fates(told, restarts=restarts, arrived_ms=arrived) == "adaaadad"


def test_ids_are_bounded_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbering, "MOST_TRADE_IDS", 3)
    core = cleaner()
    assert fates([tick(trade_id=str(number)) for number in range(5)], core) == "aaaaa"
    assert fates([tick(trade_id="4"), tick(trade_id="2"), tick(trade_id="1"), tick(trade_id="2")], core) == "ddaa"
    assert len(core.memory.trade_ids.times) == 3


@pytest.mark.parametrize("seed", range(5))
def test_ids_among_many_records_are_judged_as_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    ticks = [tick(ms=number, trade_id=str(number if rng.random() < 0.999 else number - rng.randrange(9))) for number in range(4_000)]
    records = [RawRecord(number, NOW + 60_000, json.dumps(item).encode()) for number, item in enumerate([tick(), {"punctuate": NOW // 1000 - 9}, *ticks])]
    alone, together = cleaner(), cleaner()
    want = [rejection for record in records for rejection in alone.chunk([record])]
    assert [rejection for begin in range(0, len(records), 900) for rejection in together.chunk(records[begin : begin + 900])] == want
    assert alone.make_frame() == together.make_frame() and alone.snapshot() == together.snapshot()


def test_a_snapshot_of_before_knows_no_contents_and_takes_a_repeat_for_one() -> None:
    core = cleaner()
    fates([tick(5)], core)
    core.make_frame()
    core.snapshot()
    core.memory.sources["default"].feeds["X"].contents = b""
    assert fates([tick(5), tick(5, size=7)], core) == "dd"


def test_from_the_snapshot_of_an_earlier_release_no_repeat_begins_a_numbering_again_and_a_real_one_does() -> None:
    core = cleaner()
    assert fates([tick(500), tick(501, 900)], core) == "aa"
    core.make_frame()
    [(key, value)] = core.records(0)
    content = msgspec.msgpack.decode(value)
    for name in ("feed_newest", "feed_contents", "feed_epochs", "feed_runs", "feed_steps", "trade_keys", "trade_waits"):
        content.pop(name, None)
    earlier = msgspec.msgpack.encode(content | {"v": 2, "feed_day_volume": [-1]})
    core = Cleaner.restore(0, 1, {key: earlier}, lateness_ms=200, revise_s=30)
    assert fates([tick(501, 900), *(tick(number, number) for number in range(400, 480))], core) == "d" * 81
    assert fates([tick(number, 1_000 + number) for number in range(1, 12)], core) == "d" * (RUN - 1) + "aa"
