"""How long one question or message holds the loop that the views share with the agents: `python -m benchmarks.views`, without a broker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import msgspec

from stockstream.records import Alert
from stockstream.web.events import to_json
from stockstream.web.live import Live

SYMBOLS, ALERTS, REPEAT = 20_000, 100_000, 20


def alert(number: int, state: Any) -> bytes:
    """One of the bound's alerts: of two rules, one a second."""
    return msgspec.json.encode(Alert(
        id=f"S{number % SYMBOLS:05d}-{number}", symbol=f"S{number % SYMBOLS:05d}", rule=("price_drop", "volume_spike")[number % 2], state=state,
        severity="warning", opened_at=number * 1_000, as_of=number * 1_000, value=1.5, baseline=1.0, threshold=2.0, message="a sentence", window={"close": 1.0},
    ))  # fmt: skip


def least_ms(call: Callable[[], Any]) -> float:
    """Milliseconds of the fastest of some calls."""
    best = float("inf")
    for _ in range(REPEAT):
        begun = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begun)
    return best * 1e3


def full(state: Any = "closed") -> Live:
    """The views at their bounds: names of all symbols, alerts of which the oldest half is open, the other in `state`."""
    live = Live()
    for number in range(SYMBOLS):
        live.metadata(f"S{number:05d}", json.dumps({"name": f"Company Number {number} Incorporated"}).encode())
    for number in range(ALERTS):
        live.alert(alert(number, "opened" if number < ALERTS // 2 else state))
    return live


def main() -> None:
    """Prints a table."""
    live = full()
    number = [ALERTS]

    def more() -> None:
        live.alert(alert(number[0], "opened"))
        number[0] += 1

    questions: dict[str, Callable[[], Any]] = {
        "/api/alerts": lambda: to_json(live.alerts(100)),
        "/api/alerts?state=open": lambda: to_json(live.alerts(100, "open")),
        "/api/alerts?state=updated": lambda: to_json(live.alerts(100, "updated")),
        "/api/alerts?rule=price_drop": lambda: to_json(live.alerts(100, rule="price_drop")),
        "/api/alerts?rule=none&state=open": lambda: to_json(live.alerts(100, "open", rule="none")),
        "/api/alerts?symbol=S00001&state=closed": lambda: to_json(live.alerts(100, "closed", "S00001")),
        "/api/symbols?q=nothing like it": lambda: to_json(live.symbols(100, search="nothing like it")),
        "/api/symbols?q=19999": lambda: to_json(live.symbols(100, search="19999")),
        "/api/symbols": lambda: to_json(live.symbols(100)),
        "/api/symbols?limit=1000": lambda: to_json(live.symbols(1_000)),
        "one more alert at the bound": more,
        "counts": lambda: live.counts,
    }
    print(f"{SYMBOLS:,} symbols, {ALERTS:,} alerts, half of them open; the least of {REPEAT}\n\n| what | ms |\n| --- | ---: |")
    for what, ask in questions.items():
        print(f"| {what} | {least_ms(ask):.2f} |")


if __name__ == "__main__":
    main()
