from __future__ import annotations

from itertools import pairwise

from stockstream.sources.alpha_vantage.rotation import CLOSING_LOOK_MS, LAST_MS, YIELD_MS, Choice, Hours, choose

OPEN, CLOSE = 1_000_000_000, 1_000_000_000 + 23_400_000
HOURS = Hours(OPEN, CLOSE)
WHOLE = CLOSE - OPEN + CLOSING_LOOK_MS - LAST_MS


def test_a_symbol_that_was_never_requested_comes_at_once_even_while_the_market_is_closed() -> None:
    assert choose(["B", "A", "C"], {"A": 5}, OPEN, lambda _: None, left=25, newest=5) == Choice(("B",), OPEN)
    assert choose(["B", "A", "C"], {"A": 5}, OPEN, lambda _: None, left=None, newest=5, at_once=100) == Choice(("B", "C"), OPEN)


def test_what_is_left_of_the_day_is_spread_over_the_hours_of_trading_the_longest_unfresh_first() -> None:
    asked, newest, left, found = {"A": 1, "B": 2, "C": 3}, 3, 25, []
    while left:
        choice = choose(["A", "B", "C"], asked, newest, lambda _: HOURS, left=left, newest=newest)
        (symbol,) = choice.symbols
        asked[symbol] = newest = choice.due
        left -= 1
        found.append((symbol, choice.due - OPEN))
    assert "".join(symbol for symbol, _ in found) == "ABC" * 8 + "A"
    pauses = [later[1] - earlier[1] for earlier, later in pairwise(found)]
    assert max(pauses) - min(pauses) <= 25 and abs(pauses[0] - WHOLE // 25) <= 1
    assert abs(found[-1][1] - WHOLE) <= 25                               # the last one brings the closing price
    assert choose(["A"], asked, newest, lambda _: HOURS, left=0, newest=newest) == Choice()


def test_a_restart_in_the_session_spreads_what_is_left_over_the_rest() -> None:
    now = OPEN + 3_600_000
    choice = choose(["A"], {"A": now}, now, lambda _: HOURS, left=10, newest=now)
    assert choice == Choice(("A",), now + (WHOLE - 3_600_000) // 10)


def test_only_symbols_whose_market_is_open_are_requested_again() -> None:
    assert choose(["A", "B"], {"A": 1, "B": 2}, OPEN, lambda symbol: HOURS if symbol == "B" else None, left=5, newest=2).symbols == ("B",)
    assert choose(["A"], {"A": 1}, OPEN, lambda _: None, left=5, newest=1) == Choice()
    assert choose([], {}, OPEN, lambda _: HOURS, left=5, newest=1) == Choice()


def test_without_a_limit_per_day_the_next_is_due_at_once() -> None:
    assert choose(["A", "B"], {"A": 9, "B": 2}, OPEN, lambda _: HOURS, left=None, newest=9) == Choice(("B",), OPEN)


def test_a_worker_yields_to_another_whose_symbol_has_waited_longer() -> None:
    mine, both = ({"A": OPEN} | more for more in ({}, {"THEIRS": 1}))
    early, late = (choose(["A"], asked, OPEN, lambda _: HOURS, left=5, newest=OPEN) for asked in (mine, both))
    assert late.due - early.due == YIELD_MS
