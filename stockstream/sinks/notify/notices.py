"""What routes send: a change of an alert, a summary of those beyond a route's limit, or a test."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import msgspec

from stockstream.records import Alert
from stockstream.wording import counted, utc_time

LISTED = 8
"""How many symbols a summary names."""


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One message for a route.

    `key` identifies it: a repeat has the same. `body` is JSON. `title` is one line for people, `text` what happened. `at` is epoch ms.
    """

    key: str
    symbol: str
    rule: str
    state: str
    severity: str
    title: str
    text: str
    at: int
    body: bytes

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that stand for the key, for services that limit its characters."""
        return hashlib.sha256(self.key.encode()).hexdigest()


def change_key(alert: Alert) -> str:
    """Identifies a change of an alert: id, state and as_of."""
    return f"{alert.id}/{alert.state}/{alert.as_of}"


def notice_of(alert: Alert, body: bytes) -> Notice:
    """The notice of a change. `body`: the message of `alerts`, as it is there."""
    title = f"{alert.severity.upper()}: {alert.symbol} {alert.rule.replace('_', ' ')} {alert.state}"
    return Notice(
        key=change_key(alert), symbol=alert.symbol, rule=alert.rule, state=alert.state, severity=alert.severity, title=title, text=alert.message,
        at=alert.as_of, body=body,
    )  # fmt: skip


def summary(key: str, count: int, critical: int, symbols: Sequence[str], first_ms: int, last_ms: int) -> Notice:
    """The notice in place of `count` changes. Its JSON has `state` "summary", and names the symbols that are known."""
    named = ", ".join(symbols[:LISTED]) + (", ..." if len(symbols) > LISTED else "")
    of_them = f", {critical:,} of them critical" if critical else ""
    text = f"{counted(count, 'more alert')}{of_them}, between {utc_time(first_ms)} and {utc_time(last_ms)}: {named}. /api/alerts has them all."
    severity = "critical" if critical else "warning"
    fields = {
        "id": key, "state": "summary", "severity": severity, "count": count, "critical": critical, "symbols": list(symbols), "first": first_ms,
        "last": last_ms, "message": text,
    }  # fmt: skip
    return Notice(
        key=key, symbol="*", rule="*", state="summary", severity=severity, title=f"{severity.upper()}: {counted(count, 'more alert')}", text=text,
        at=last_ms, body=msgspec.json.encode(fields),
    )  # fmt: skip


def notice_of_test(route: str, now_ms: int | None = None) -> Notice:
    """A notice that `stockstream alerts test` sends. Its JSON has `state` "test"."""
    at = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    text = f"A test of the route {route}. No alert has occurred."
    key = f"test-{route}-{at}"
    body = msgspec.json.encode({"id": key, "symbol": "TEST", "rule": "test", "state": "test", "severity": "warning", "as_of": at, "message": text})
    return Notice(key=key, symbol="TEST", rule="test", state="test", severity="warning", title="TEST: stockstream", text=text, at=at, body=body)
