"""Which changes of alerts a route sends."""

from __future__ import annotations

from typing import Final

from stockstream.records import Alert
from stockstream.sinks.notify.notices import change_key
from stockstream.sinks.notify.route import RouteSettings

REMEMBERED = 2_000
"""So many changes of a partition are remembered. A crashed worker repeats what it sent since its last checkpoint, which is far less."""
RANKS: Final = {"warning": 1, "critical": 2}


class Memory:
    """The newest changes of one partition. It is filled again from `alerts` after a restart."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._changes: dict[int, None] = {}
        """Hashes of the identities, in the order of the log."""
        self._severities: dict[str, str] = {}
        """By id, of alerts that are open."""

    def take(self, alert: Alert) -> tuple[bool, bool]:
        """Remembers a change. Returns whether it repeats an earlier one, and whether it raises the alert's severity.

        Without an earlier change in memory, a critical one counts as raised: better a notice too many than none.
        """
        change = hash(change_key(alert))
        repeated = change in self._changes
        if not repeated:
            self._changes[change] = None
            if len(self._changes) > self._limit:
                del self._changes[next(iter(self._changes))]
        before = RANKS.get(self._severities.get(alert.id, "warning"), 0)
        if alert.state == "closed":
            self._severities.pop(alert.id, None)
        elif not repeated:
            self._severities[alert.id] = alert.severity
            if len(self._severities) > self._limit:
                del self._severities[next(iter(self._severities))]
        return repeated, RANKS.get(alert.severity, 0) > before


class Choice:
    """The filters of a route."""

    def __init__(self, settings: RouteSettings) -> None:
        self._least = RANKS[settings.severity]
        self._states = frozenset(settings.states)
        self._rules = frozenset(settings.rules)
        self._symbols = frozenset(settings.symbols) if settings.symbols or settings.groups else None

    def wants(self, alert: Alert, *, raised: bool) -> bool:
        """Whether the route sends this change; `raised`: it raises the alert's severity."""
        if self._states:
            if alert.state not in self._states:
                return False
        elif alert.state == "updated" and not raised:
            return False
        return (
            RANKS.get(alert.severity, 0) >= self._least
            and (not self._rules or alert.rule in self._rules)
            and (self._symbols is None or alert.symbol in self._symbols)
        )
