"""What the views' indexes answer is what a plain look at everything gives."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from stockstream.records import Alert
from stockstream.web import alert_index
from stockstream.web.alert_index import AlertIndex
from stockstream.web.live import MAX_JUDGED, Live
from stockstream.web.symbol_list import SymbolList

STATES = ("opened", "updated", "closed")
RULES = ("price_drop", "volume_spike")


def alert(number: int, state: Any, as_of: int, opened_at: int, symbol: str, rule: str) -> Alert:
    return Alert(
        id=f"a{number:03d}", symbol=symbol, rule=rule, state=state, severity="warning", opened_at=opened_at, as_of=as_of, value=1.0, baseline=1.0,
        threshold=1.0, message="", window={},
    )  # fmt: skip


class Plain:
    """The same by looking at all of them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: dict[str, Alert] = {}

    def put(self, new: Alert) -> None:
        held = self.held.get(new.id)
        if held is not None and (new.as_of, STATES.index(new.state)) < (held.as_of, STATES.index(held.state)):
            return
        self.held[new.id] = new
        while len(self.held) > self.most:
            closed = [one for one in self.held.values() if one.state == "closed"]
            del self.held[min(closed or self.held.values(), key=lambda one: (one.opened_at, one.id)).id]

    def all(self, state: str | None, symbol: str, rule: str) -> list[str]:
        found = [
            one for one in self.held.values()
            if (not state or one.state == state or (state == "open" and one.state != "closed")) and (not symbol or one.symbol == symbol)
            and (not rule or one.rule == rule)
        ]  # fmt: skip
        return [one.id for one in sorted(found, key=lambda one: (one.opened_at, one.id), reverse=True)]


@pytest.mark.parametrize("seed", range(6))
def test_every_filter_pages_through_what_a_plain_look_finds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alert_index, "MOST_LOOKED_AT", 7)
    draw = random.Random(seed)
    index, plain = AlertIndex(60), Plain(60)
    for _ in range(400):
        number = draw.randrange(120)
        opened_at = number // 3 if draw.random() < 0.9 else draw.randrange(40)
        new = alert(number, draw.choice(STATES), draw.randrange(20), opened_at, f"S{number % 5}", RULES[number % 2])
        index.put(new)
        plain.put(new)
        assert len(index) == len(plain.held) and index.open_count() == len(plain.all("open", "", ""))
    for state in (None, "open", *STATES):
        for symbol in ("", "S0", "S4", "NONE"):
            for rule in ("", *RULES, "none"):
                for limit in (1, 3, 50, 1_000):
                    reported: list[str] = []
                    after = None
                    while True:
                        items, after = index.page(limit, state, symbol, rule, after)
                        assert len(items) <= limit
                        reported += [one.id for one in items]
                        if after is None:
                            break
                    assert reported == plain.all(state, symbol, rule), (state, symbol, rule, limit)
    for symbol in ("S0", "S4"):
        assert [one.id for one in index.newest_open(symbol, 2)] == plain.all("open", symbol, "")[:2]
        assert index.open_of(symbol) == len(plain.all("open", symbol, ""))
    assert set(index.symbols) == {one.symbol for one in plain.held.values()}


@pytest.mark.parametrize("seed", range(3))
def test_symbols_are_listed_and_found_whatever_came_and_went(seed: int) -> None:
    draw = random.Random(seed)
    listed, plain = SymbolList(), dict[str, str]()
    for _ in range(500):
        symbol = f"S{draw.randrange(60)}"
        if draw.random() < 0.3:
            listed.hide(symbol)
            plain.pop(symbol, None)
        else:
            name = draw.choice((None, "Straße AG", "Acme", ""))
            listed.show(symbol, name)
            plain[symbol] = plain.get(symbol, "") if name is None else name
    for after in ("", "S3", "S59", "T"):
        for search in ("", "s1", "STRASSE", "acme", "nothing", "G"):
            wanted = search.casefold()
            want = [symbol for symbol in sorted(plain) if symbol > after and (wanted in symbol.casefold() or wanted in plain[symbol].casefold())]
            assert list(listed.after(after, search)) == want
    assert len(listed) == len(plain)


def test_outcomes_beyond_the_bound_are_counted_and_the_oldest_forgotten(make: Any) -> None:
    live = Live(max_symbols=1)
    outcome = msgspec.to_builtins(make.outcome(0.1, 0.1))

    def tell(*symbols: str) -> None:
        live.outcomes(msgspec.json.encode([outcome | {"symbol": symbol} for symbol in symbols]))

    names = [f"S{number}" for number in range(MAX_JUDGED)]
    tell(*names)
    tell(*names)
    assert live.outcome_counts()[0].outcomes == MAX_JUDGED and live.outcomes_forgotten == live.counts["outcomes_forgotten"] == 0
    tell("ONE", "MORE")
    assert live.outcome_counts()[0].outcomes == MAX_JUDGED + 2 and live.counts["outcomes_forgotten"] == 2
    tell(names[2], "ONE")
    assert live.outcome_counts()[0].outcomes == MAX_JUDGED + 2, "those that are known are not counted again"


def test_a_symbol_that_nothing_names_any_more_leaves_the_list(make: Any) -> None:
    live = Live(max_alerts=1)
    live.metadata("META", b'{"name":"Acme"}')
    live.alert(make.alert(1, symbol="FIRST"))
    live.alert(make.alert(2, symbol="META"))
    assert [item.symbol for item in live.symbols(10).items] == ["META"]
    live.metadata("META", None)
    assert [item.symbol for item in live.symbols(10).items] == ["META"] and not live.symbols(10, search="acme").items
