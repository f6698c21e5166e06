"""What every route must do, written once: each kind's tests inherit `RouteContract`."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

import msgspec
import pytest

from stockstream.records import Alert
from stockstream.sinks.notify.notices import Notice, notice_of, notice_of_test, summary
from stockstream.sinks.notify.route import Refused, Retry, Route

TIMEOUT_S = 1.0
"""Of the routes under test."""


def alert(symbol: str = "AAPL", rule: str = "price_drop", state: str = "opened", as_of: int = 1_760_000_001_000, severity: str = "critical",
          message: str = "close 98.50 is 1.50 % below 100.00 of 60 s ago") -> Alert:  # fmt: skip
    return msgspec.convert({
        "id": f"{symbol}-{rule}-1760000000", "symbol": symbol, "rule": rule, "state": state, "severity": severity, "opened_at": 1_760_000_001_000,
        "as_of": as_of, "value": 98.5, "baseline": 100.0, "threshold": 99.0, "message": message, "window": {"close": 98.5},
    }, Alert)  # fmt: skip


def notice(**fields: object) -> Notice:
    made = alert(**fields)  # type: ignore[arg-type]
    return notice_of(made, msgspec.json.encode(made))


class Receiver(ABC):
    """The place that a route sends to, with switches."""

    @abstractmethod
    async def received(self) -> list[str]:
        """What has arrived, as text that holds all that a reader sees, in order."""

    @abstractmethod
    async def go(self, down: str) -> None:
        """Puts it out of order: `closed` (nothing listens), `failing` (an error that may pass), `refusing` (of this message)."""

    @abstractmethod
    async def heal(self) -> None:
        """Puts it in order again."""


class RouteContract(ABC):
    secrets: tuple[str, ...] = ()
    """Texts that no reason may hold."""
    downs: tuple[str, ...] = ("closed", "failing", "hanging")
    refuses: bool = True
    """Whether the place can be made to refuse a message."""

    @pytest.fixture
    @abstractmethod
    async def receiver(self) -> AsyncIterator[Receiver]:
        """A place in order."""
        yield NotImplemented

    @pytest.fixture
    @abstractmethod
    async def route(self, receiver: Receiver) -> AsyncIterator[Route]:
        """A route to it, with a timeout of TIMEOUT_S."""
        yield NotImplemented

    async def test_delivers_in_order(self, route: Route, receiver: Receiver) -> None:
        for number in range(3):
            answer = await route.send(notice(as_of=1_760_000_001_000 + number, state="updated", message=f"message {number}"))
            assert answer and "\n" not in answer
        found = await receiver.received()
        assert [f"message {number}" in text for number, text in enumerate(found)] == [True] * 3
        assert all("AAPL" in text for text in found)

    async def test_delivers_a_test_and_a_summary(self, route: Route, receiver: Receiver) -> None:
        await route.send(notice_of_test("ops"))
        await route.send(summary("more-ops-0-7", 1_200, 3, ["AAPL", "MSFT"], 1_760_000_000_000, 1_760_000_060_000))
        first, second = await receiver.received()
        assert "A test of the route ops" in first
        assert "1,200 more alerts, 3 of them critical" in second and "MSFT" in second

    async def test_any_text(self, route: Route, receiver: Receiver) -> None:
        text = "a\r\nBcc: x@example.com <b>&</b> „naïve“ 株 " + "x" * 3_000
        await route.send(notice(symbol="ÆØ株", message=text))
        (found,) = await receiver.received()
        assert "株" in found

    async def test_a_place_that_is_down_works_again(self, route: Route, receiver: Receiver) -> None:
        for down in self.downs:
            await receiver.go(down)
            begin = time.monotonic()
            with pytest.raises(Retry) as raised:
                await route.send(notice(message=f"during {down}"))
            assert time.monotonic() - begin < 30
            self._check(str(raised.value))
            await receiver.heal()
            await route.send(notice(message=f"after {down}"))
            assert f"after {down}" in (await receiver.received())[-1]

    async def test_a_refusal(self, route: Route, receiver: Receiver) -> None:
        if not self.refuses:
            return
        await receiver.go("refusing")
        with pytest.raises(Refused) as raised:
            await route.send(notice())
        self._check(str(raised.value))

    async def test_a_cancelled_send_leaves_the_route_usable(self, route: Route, receiver: Receiver) -> None:
        if "hanging" in self.downs:
            await receiver.go("hanging")
        task = asyncio.create_task(route.send(notice(message="cancelled")))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await receiver.heal()
        await route.send(notice(message="afterwards"))
        assert any("afterwards" in text for text in await receiver.received())       # a thread may still deliver the other one

    def _check(self, reason: str) -> None:
        assert reason and "\n" not in reason and len(reason) < 400
        for secret in self.secrets:
            assert secret not in reason
