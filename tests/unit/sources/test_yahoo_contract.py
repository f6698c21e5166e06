"""Yahoo's stream does what every source must do."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from stockstream.sources.base import MarketDataSource
from stockstream.sources.yahoo.streaming import YahooStream
from tests.contracts.source import FakeClock, SourceContract
from tests.standins.yahoo_stream import YahooStream as Server


class TestYahooStream(SourceContract):
    @pytest.fixture(autouse=True)
    def _server(self) -> None:
        self.server = Server(rate=20)

    def surroundings(self) -> AbstractAsyncContextManager[Any]:
        return self.server

    def source(self, clock: FakeClock) -> MarketDataSource:
        return YahooStream(self.server.url, clock=clock)

    @property
    def symbols(self) -> list[str]:
        return ["AAPL", "BTC-USD", "VOD.L"]
