"""What real feeds send and what must come of it: small recordings in `tests/fixtures/cases`, each run through `stockstream backtest`.

A case is a file of raw records, a line a record, and an entry in CASES: a function that checks what came of it. The files are of one partition,
source `s`, symbol `X` unless the function says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests import backtests
from tests.backtests import Ran
from tests.fixtures.make import Model

FOLDER = Path(__file__).parents[1] / "fixtures" / "cases"


def halt_of_20_min(ran: Ran) -> None:
    """After a silence of 20 minutes a new series begins, whose first row knows the gap; its fall is none like a crash within a minute."""
    rows = ran.rows
    (reopened,) = [row for before, row in pairwise(rows) if row["second"] - before["second"] > 300]
    assert reopened["close"] == 8.5 and reopened["return_60s"] is None and reopened["seconds_5m"] == 1
    assert (reopened["gap_s"], reopened["price_before_gap"], reopened["quality"]) == (1_201, 10.0, "partial,after_gap")
    assert [row["second"] for row in rows if row["gap_s"] is not None] == [reopened["second"]]
    assert ran.opened("price_drop") == []


def delayed_beside_live(ran: Ran) -> None:
    """A feed that is 15 minutes behind and a live one: neither's clock touches the other's symbols. A symbol of both changes over 300 s after the live one."""
    live, delayed, both = ran.of("LIVE"), ran.of("DELAYED"), ran.of("BOTH")
    assert len(live) == 301 and len(delayed) == 26 and not any("late" in row["quality"].split(",") for row in (*live, *delayed, *both))
    assert [row["source"] for row in both] == ["yahoo"] * 13 + ["alpha_vantage"] * 4
    assert both[13]["second"] - both[12]["second"] == 360 and (both[13]["seconds_5m"], both[13]["return_60s"]) == (1, None)
    rejected = ran.tables["rejected"]
    assert len(rejected) == 22 and {row["reason"] for row in rejected} == {"other_source"}


def feed_gap_of_90_s(ran: Ran) -> None:
    """The feed was away for 90 s. Each row whose window has some of that says so, also one that comes late from inside the gap; and so does the alert."""
    first = ran.rows[0]["second"]
    gap = {row["second"] - first: row["quality"] for row in ran.of("X") if "gap" in row["quality"].split(",")}
    assert list(gap) == [150, *range(160, 460)]
    assert (gap[150], gap[160], gap[161], gap[459]) == ("partial,late,gap", "partial,after_gap,gap", "partial,gap", "gap")
    assert not any("gap" in row["quality"] for row in ran.of("Y")), "another symbol"
    (alert,) = ran.opened("price_drop")
    assert (alert["window"]["quality"], alert["window"]["gap_s"], alert["window"]["price_before_gap"]) == ("partial,after_gap,gap", 91, 10.0)
    assert alert["message"] == (
        "X: 9.80 is 2.00 % below 10.00, the price 60 s before. It is the first trade after 91 s without one; the price before was 10.00. "
        "The feed was away within these 5 minutes, so trades may be missing."
    )


def bars_of_a_minute(ran: Ran) -> None:
    """The volume of a bar of a minute was traded over that minute: it has accrued, and is no spike. That of a bar of a second is."""
    bars = ran.of("X")
    assert [(row["volume"], row["quality"]) for row in bars] == [*[(6_000, "partial,accrued")] * 4, (60_000, "partial,accrued")]
    assert [row["accrued_5m"] for row in bars] == [6_000, 12_000, 18_000, 24_000, 84_000] and ran.opened("volume_spike") == []
    assert len(ran.opened("volume_spike", "Y")) == 1 and not any("accrued" in row["quality"] for row in ran.of("Y"))


def crossed_and_locked(ran: Ran) -> None:
    """A mid needs a bid below the ask, and a spread of at most 10 % of the last trade, which a quote without a trade carries on."""
    found = [(row["mid"], row["price"], row["quality"]) for row in ran.of("X")]
    assert found[:2] == [(None, 10.0, "partial,crossed"), (None, 10.0, "partial,locked")]
    assert found[2:4] == [(10.0, 10.0, "partial"), (None, 10.0, "partial,wide")]
    assert found[4] == (pytest.approx(10.01), pytest.approx(10.01), "partial")
    (quoted,) = ran.of("QUOTED")
    assert (quoted["mid"], quoted["price"], quoted["quality"]) == (None, None, "partial,wide")


def quote_placeholders(ran: Ran) -> None:
    """What stands for "no value" in a quote is null, and loses no trade; a size of 0 is one."""
    assert ran.tables["rejected"] == [] and ran.volume == 700
    quotes = [(row["bid"], row["ask"], row["bid_size"], row["ask_size"]) for row in ran.rows]
    assert quotes == [(None, None, None, None)] * 6 + [(9.99, 10.01, 0.0, 200.0)]


def record_times_0_and_minus_1(ran: Ran) -> None:
    """Records with and without a time in any order: none of their ticks is lost."""
    assert ran.tables["rejected"] == [] and ran.volume == 600


def smallest_and_greatest_price(ran: Ran) -> None:
    """Prices from 1e-10 to 1e11, and none beyond."""
    assert [row["close"] for row in ran.rows] == [1e-10, 1e11]
    assert [rejected["reason"] for rejected in ran.tables["rejected"]] == ["out_of_range"] * 2


def times_of_other_units(ran: Ran) -> None:
    """Times that are not epoch milliseconds from 1990 on are rejected, with the unit that they look like."""
    assert ran.volume == 100
    details = [rejected["detail"] for rejected in ran.tables["rejected"] if rejected["reason"] == "out_of_range"]
    assert [detail.partition("looks like ")[2] for detail in details] == [
        "seconds", "microseconds", "nanoseconds", "a date (YYYYMMDD)", "", "", "", "milliseconds"
    ]  # fmt: skip


def two_forms_of_a_symbol(ran: Ran) -> None:
    """A symbol is the same in each of Unicode's forms, and is published composed."""
    assert [row["symbol"] for row in ran.rows] == ["CAF\u00c9"] * 2


def record_time_minus_1(ran: Ran) -> None:
    """A record without a time is no reason to reject its tick."""
    assert ran.tables["rejected"] == [] and ran.volume == 100


def seconds_are_1970(ran: Ran) -> None:
    """A time in seconds is rejected, and the detail names the unit."""
    (rejected,) = ran.tables["rejected"]
    assert rejected["reason"] == "out_of_range" and "looks like seconds" in rejected["detail"]
    assert ran.rows == []


def volumes(ran: Ran) -> list[tuple[int, float, str]]:
    """Seconds since the first, volume, and flags but `partial`, of the rows with a volume."""
    first = ran.rows[0]["second"]
    flags = [",".join(flag for flag in row["quality"].split(",") if flag != "partial") for row in ran.rows]
    return [(row["second"] - first, row["volume"], text) for row, text in zip(ran.rows, flags, strict=True) if row["volume"]]


def volume_us_winter(ran: Ran) -> None:
    """The total of the evening before ends no count at midnight UTC: the count begins at the open."""
    opened = 1_795_617_000 - ran.rows[0]["second"]
    assert volumes(ran) == [(opened + number, 5_000, "") for number in range(1, 10)] and ran.volume == 45_000


def volume_night_session(ran: Ran) -> None:
    """A night session counts from 1,200; no second has that, or less than nothing."""
    assert volumes(ran) == [(10 + number, 100, "") for number in range(1, 10)]


def volume_next_day_first(ran: Ran) -> None:
    """The first figure of the next day is a baseline."""
    assert ran.volume == 100 and ran.rows[-1]["volume"] == 100


def two_trades_one_number(ran: Ran) -> None:
    """Both are real."""
    (row,) = ran.rows
    assert (row["volume"], row["close"], row["ticks"]) == (600, 48.1, 2) and ran.summary.rejected == {}


def volume_impossible_figure(ran: Ran) -> None:
    """A figure of 4 billion for one tick: its second is revised, and the count goes on from before it."""
    assert volumes(ran) == [(1, 100, ""), (2, 50, ""), (4, 150, "accrued"), (5, 100, "")] and ran.volume == 400
    wrong, right = [row for row in ran.tables["windows"] if row["second"] == ran.rows[3]["second"]]
    assert wrong["volume"] == 3_999_998_850 and (right["volume"], right["revised"]) == (0, True)
    assert (right["volume_5m"], ran.rows[-1]["volume_5m"]) == (150, 400)


def volume_accrued(ran: Ran) -> None:
    """What accrued over 5 s is in the second of its figure, and flagged; what accrued over 301 s is in none."""
    assert volumes(ran) == [(1, 100, ""), (6, 5_000, "accrued"), (7, 100, ""), (309, 100, "")]
    assert ran.rows[3]["accrued_5m"] == 5_000


def volume_sentinels(ran: Ran) -> None:
    """-1, 0 and the greatest integers are no figures and no sizes; six billion shares are."""
    assert volumes(ran) == [(1, 100, ""), (6, 40, "accrued"), (8, 0.5, "")] and ran.summary.rejected == {}


def numbering_begins_again(ran: Ran) -> None:
    """A producer restarts at 1 and nothing shows it but its ticks: the tenth is accepted. Another writes an epoch and loses none."""
    assert ran.summary.rejected == {"duplicate": 9}
    assert sum(row["volume"] for row in ran.of("X")) == 3 + 6 and sum(row["volume"] for row in ran.of("Y")) == 3 + 5


def trades_sent_again(ran: Ran) -> None:
    """A provider sends the trades of the last minute again after it has reconnected; their ids show it. Afterwards an id may name another trade."""
    assert ran.summary.rejected == {"duplicate": 3} and ran.volume == 6 + 4 + 1


def small_price_alert(ran: Ran) -> None:
    """The text of the alert keeps the digits of a small price."""
    (alert,) = ran.opened("price_drop")
    assert "0.000301" in alert["message"] and "0.000318" in alert["message"]


def stub_quote_is_the_price(ran: Ran) -> None:
    """A quote of 0.01 / 199,999.99 is no price: the last trade's stays."""
    before, stub = ran.rows
    assert (before["mid"], before["price"], before["quality"]) == (10.0, 10.0, "partial")
    assert (stub["mid"], stub["price"], stub["quality"]) == (None, 10.0, "partial,wide")
    assert (stub["bid"], stub["ask"]) == (0.01, 199_999.99)


def zero_ask_loses_the_trade(ran: Ran) -> None:
    """An ask of 0 is no ask, and the trade counts."""
    assert ran.tables["rejected"] == []
    (row,) = ran.rows
    assert (row["volume"], row["bid"], row["ask"], row["mid"]) == (100, 9.99, None, None)


def slow_symbol_in_a_fast_source(ran: Ran) -> None:
    """A symbol that is always behind its source's watermark is looked at and scored like the others."""
    for symbol, quality in (("X", {"partial"}), ("SLOW", {"partial,late"})):
        first = [row for row in ran.tables["windows"] if row["symbol"] == symbol and not row["revised"]]
        assert len(first) == len({row["second"] for row in first}) == 130 and {row["quality"] for row in first[:100]} == quality
        predicted = [one["as_of"] // 1000 - 1 for one in ran.tables["predictions"] if one["symbol"] == symbol]
        assert predicted == [row["second"] for row in first]
    assert len(ran.opened("price_drop", "SLOW")) == 1 and ran.opened("price_drop") == []
    judged = {symbol: [one["horizon_s"] for one in ran.tables["outcomes"] if one["symbol"] == symbol] for symbol in ("X", "SLOW")}
    assert len(judged["SLOW"]) >= len(judged["X"]) - 4 > 0


def pence_to_pounds(ran: Ran) -> None:
    """Another currency begins a series: nothing of before is in its rows, no price drops, and no prediction is evaluated across the change."""
    rows = ran.of("X")
    begins = rows[70]
    assert [row["second"] for row in rows if "new_series" in row["quality"]] == [begins["second"]]
    assert (begins["seconds_5m"], begins["volume_5m"], begins["high_5m"], begins["return_1s"]) == (1, 100, 80.0, None)
    assert rows[-1]["seconds_5m"] == 60 and rows[-1]["volume_5m"] == 6_000 and rows[-1]["high_5m"] == 80.04
    assert ran.tables["alerts"] == [] and not any("possible_split" in row["quality"] for row in rows)
    judged = {symbol: [one for one in ran.tables["outcomes"] if one["symbol"] == symbol and one["horizon_s"] == 10] for symbol in "XY"}
    assert len(judged["Y"]) - len(judged["X"]) == 10 and max(abs(one["realised_return"]) for one in judged["X"]) < 0.01


def split_2_to_1(ran: Ran) -> None:
    """The first row after the split, and no other, is flagged; nothing of its figures is changed."""
    (split,) = [row for row in ran.rows if "possible_split" in row["quality"]]
    (first,) = [row for before, row in pairwise(ran.rows) if before["close"] == 200 and row["close"] == 100]
    assert split == first and split["volume"] == 200 and split["gap_s"] is None


def fractional_share(ran: Ran) -> None:
    """Sizes have decimals."""
    assert ran.tables["rejected"] == []
    (row,) = ran.rows
    assert (row["volume"], row["volume_5m"], row["ticks"], row["vwap_5m"]) == (0.0387, 0.0387, 1, 10.0)


CASES: dict[str, Callable[[Ran], None]] = {
    "bars_of_a_minute": bars_of_a_minute,
    "crossed_and_locked": crossed_and_locked,
    "delayed_beside_live": delayed_beside_live,
    "feed_gap_of_90_s": feed_gap_of_90_s,
    "fractional_share": fractional_share,
    "halt_of_20_min": halt_of_20_min,
    "numbering_begins_again": numbering_begins_again,
    "pence_to_pounds": pence_to_pounds,
    "quote_placeholders": quote_placeholders,
    "record_time_minus_1": record_time_minus_1,
    "record_times_0_and_minus_1": record_times_0_and_minus_1,
    "seconds_are_1970": seconds_are_1970,
    "slow_symbol_in_a_fast_source": slow_symbol_in_a_fast_source,
    "small_price_alert": small_price_alert,
    "smallest_and_greatest_price": smallest_and_greatest_price,
    "split_2_to_1": split_2_to_1,
    "stub_quote_is_the_price": stub_quote_is_the_price,
    "times_of_other_units": times_of_other_units,
    "trades_sent_again": trades_sent_again,
    "two_forms_of_a_symbol": two_forms_of_a_symbol,
    "two_trades_one_number": two_trades_one_number,
    "volume_accrued": volume_accrued,
    "volume_impossible_figure": volume_impossible_figure,
    "volume_next_day_first": volume_next_day_first,
    "volume_night_session": volume_night_session,
    "volume_sentinels": volume_sentinels,
    "volume_us_winter": volume_us_winter,
    "zero_ask_loses_the_trade": zero_ask_loses_the_trade,
}
"""By file, what is true of its results."""


@pytest.mark.parametrize("name", CASES)
def test_a_case_comes_out_as_it_should(name: str, tmp_path: Path) -> None:
    CASES[name](backtests.run(FOLDER / f"{name}.jsonl", tmp_path / "out", model=Model()))


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.jsonl")))
def test_a_case_gives_the_same_in_any_chunks(name: str, tmp_path: Path) -> None:
    whole = backtests.run(FOLDER / f"{name}.jsonl", tmp_path / "whole")
    cut = backtests.run(FOLDER / f"{name}.jsonl", tmp_path / "cut", chunk=7)
    for path in sorted(whole.folder.iterdir()):
        assert path.read_bytes() == (cut.folder / path.name).read_bytes(), path.name
