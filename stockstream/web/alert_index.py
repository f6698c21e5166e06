"""The alerts that the views hold, indexed so that no filter reads all of them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from heapq import merge
from itertools import islice

from stockstream.records import Alert

MOST_LOOKED_AT = 5_000
"""The most alerts of one symbol that one page reads, in a few ms."""

RANK = {"opened": 0, "updated": 1, "closed": 2}
OPEN = ("opened", "updated")

Key = tuple[int, str]
"""When an alert was opened (epoch ms), and its id: the order of pages."""


def _progress(alert: Alert) -> tuple[int, int, int]:
    """Orders the states of one alert: by the raw offset of its row first, as a row that comes late updates it with an `as_of` that is not the newest."""
    offset = alert.window.get("offset")
    return offset if isinstance(offset, int) else -1, alert.as_of, RANK[alert.state]


class AlertIndex:
    """The newest states of alerts by id, at most `most`. The oldest closed ones are forgotten first.

    Each alert is in ascending lists of keys: all, by state, by rule and state, and by symbol.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._alerts: dict[str, Alert] = {}
        self._all: list[Key] = []
        self._by_state: dict[str, list[Key]] = {state: [] for state in RANK}
        self._by_rule: dict[tuple[str, str], list[Key]] = {}
        self._by_symbol: dict[str, list[Key]] = {}
        self._open_of: dict[str, list[Key]] = {}

    def __len__(self) -> int:
        return len(self._alerts)

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._by_symbol

    @property
    def symbols(self) -> Iterable[str]:
        """The symbols that have alerts."""
        return self._by_symbol.keys()

    def get(self, key: str) -> Alert | None:
        """The alert of this id."""
        return self._alerts.get(key)

    def put(self, alert: Alert) -> list[Alert] | None:
        """Adds a state. Returns None if a newer one is held, else the alerts that were forgotten for it."""
        held = self._alerts.get(alert.id)
        if held is not None:
            if _progress(alert) < _progress(held):
                return None
            self._remove(held)
        self._alerts[alert.id] = alert
        key = alert.opened_at, alert.id
        for keys in self._lists(alert):
            insort(keys, key)
        forgotten = []
        while len(self._alerts) > self._most:
            closed = self._by_state["closed"]
            forgotten.append(self._alerts[(closed or self._all)[0][1]])
            self._remove(forgotten[-1])
        return forgotten

    def open_of(self, symbol: str) -> int:
        """How many of a symbol's alerts are open."""
        return len(self._open_of.get(symbol, ()))

    def newest_open(self, symbol: str, most: int) -> list[Alert]:
        """A symbol's open alerts, those opened last first."""
        return [self._alerts[key] for _, key in reversed(self._open_of.get(symbol, [])[-most:])]

    def open_count(self) -> int:
        """How many alerts are open."""
        return sum(len(self._by_state[state]) for state in OPEN)

    def page(self, limit: int, state: str | None, symbol: str, rule: str, after: Key | None) -> tuple[list[Alert], Key | None]:
        """Alerts below `after`, those opened last first, and the key for the next page, None at the end.

        A page of a symbol may have fewer than `limit` alerts without being the last, because it reads at most MOST_LOOKED_AT.
        """
        states = OPEN if state == "open" else (state,) if state else tuple(RANK)
        if symbol:
            return self._of_symbol(limit, states, self._by_symbol.get(symbol, []), rule, after)
        if rule:
            lists = [self._by_rule.get((rule, one), []) for one in states]
        else:
            lists = [self._by_state[one] for one in states] if state else [self._all]
        # read no more of each list than the page can hold
        ends = [bisect_left(keys, after) if after else len(keys) for keys in lists]
        parts = [keys[max(0, end - limit - 1) : end][::-1] for keys, end in zip(lists, ends, strict=True)]
        found = list(islice(merge(*parts, reverse=True), limit + 1))
        return [self._alerts[key] for _, key in found[:limit]], found[limit - 1] if len(found) > limit else None

    def _of_symbol(self, limit: int, states: Iterable[str | None], keys: list[Key], rule: str, after: Key | None) -> tuple[list[Alert], Key | None]:
        end = bisect_left(keys, after) if after else len(keys)
        found: list[Alert] = []
        for at in range(end - 1, max(-1, end - 1 - MOST_LOOKED_AT), -1):
            alert = self._alerts[keys[at][1]]
            if alert.state in states and (not rule or alert.rule == rule):
                if len(found) == limit:
                    return found, (found[-1].opened_at, found[-1].id)
                found.append(alert)
        return found, keys[end - MOST_LOOKED_AT] if end > MOST_LOOKED_AT else None

    def _lists(self, alert: Alert) -> list[list[Key]]:
        lists = [
            self._all, self._by_state[alert.state], self._by_rule.setdefault((alert.rule, alert.state), []), self._by_symbol.setdefault(alert.symbol, []),
        ]  # fmt: skip
        return [*lists, self._open_of.setdefault(alert.symbol, [])] if alert.state in OPEN else lists

    def _remove(self, alert: Alert) -> None:
        key = alert.opened_at, alert.id
        for keys in self._lists(alert):
            del keys[bisect_left(keys, key)]
        del self._alerts[alert.id]
        for of, name in ((self._by_symbol, alert.symbol), (self._open_of, alert.symbol)):
            if name in of and not of[name]:
                del of[name]
        if not self._by_rule[alert.rule, alert.state]:
            del self._by_rule[alert.rule, alert.state]
