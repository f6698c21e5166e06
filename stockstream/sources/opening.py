"""Creates the sources that the settings name. A new source is constructed here, under its name in `SOURCES` of `stockstream/settings.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from stockstream.budgets import Limits, RequestLog
from stockstream.settings import Settings
from stockstream.sources.alpha_vantage.client import Client
from stockstream.sources.alpha_vantage.source import AlphaVantageSource
from stockstream.sources.base import Clock, MarketDataSource
from stockstream.sources.quota import MemoryRequestLog, Scheduler
from stockstream.sources.sessions import Sessions
from stockstream.sources.simulated import SimulatedSource
from stockstream.sources.symbols import exchange_of
from stockstream.sources.yahoo.polling import YahooMetadata, YahooPolling
from stockstream.sources.yahoo.query import YahooQuery
from stockstream.sources.yahoo.streaming import YahooStream

OpenRequestLog = Callable[[], RequestLog]
"""Returns a new reader and writer of the log of requests, which all workers share."""


def open_sources(
    settings: Settings, clock: Clock, *, sessions: Sessions | None = None, request_log: OpenRequestLog | None = None, worker: Callable[[], str] = lambda: "",
    yahoo: YahooQuery | None = None,
) -> dict[str, MarketDataSource]:  # fmt: skip
    """Creates the sources of the settings, by their names in the watchlist.

    Args:
        settings: of the worker.
        clock: of the worker.
        sessions: of the exchanges, shared by all that ask for them; new ones if None.
        request_log: opens the log of requests; one in memory if None, for a worker without a group.
        worker: returns the worker's name, known once it runs.
        yahoo: Yahoo's REST service, if it is open already.
    """
    sources: dict[str, MarketDataSource] = {}
    sessions = sessions or Sessions()
    request_log = request_log or (lambda: MemoryRequestLog(clock))
    if "simulated" in settings.source:
        sources["simulated"] = SimulatedSource(settings.seed, clock=clock, events_file=settings.state_dir / f"simulated.{settings.seed}.events.jsonl")
    if uses_yahoo(settings):
        yahoo = yahoo or open_yahoo(settings, clock, request_log=request_log, worker=worker)
    if "yahoo" in settings.source and yahoo is not None:
        metadata = YahooMetadata(yahoo)
        sources["yahoo"] = YahooStream(
            settings.yahoo_stream_url, clock=clock, session_at=sessions.at, exchange_of=exchange_of, describe=partial(metadata.describe, source="yahoo"),
            unknown=metadata.unknown, budgets=yahoo.quota.budgets, close=yahoo.stop,
        )  # fmt: skip
    if "yahoo_polling" in settings.source and yahoo is not None:
        sources["yahoo_polling"] = YahooPolling(yahoo, clock=clock)
    if "alpha_vantage" in settings.source:
        key = settings.alpha_vantage_key.get_secret_value()
        scheduler = Scheduler("alpha_vantage", Limits.parse(settings.alpha_vantage_budget), request_log(), clock=clock, worker=worker)
        client = Client(settings.alpha_vantage_url, key)
        sources["alpha_vantage"] = AlphaVantageSource(client, scheduler, clock=clock, sessions=sessions, has_key=bool(key))
    return sources


def uses_yahoo(settings: Settings) -> bool:
    """Whether one of the settings' sources is Yahoo's."""
    return not {"yahoo", "yahoo_polling"}.isdisjoint(settings.source)


def open_yahoo(settings: Settings, clock: Clock, *, request_log: OpenRequestLog, worker: Callable[[], str]) -> YahooQuery:
    """Yahoo's REST service within the budget of the settings. One of a process serves both sources and the repairs."""
    quota = Scheduler("yahoo", Limits.parse(settings.yahoo_budget), request_log(), clock=clock, worker=worker)
    return YahooQuery(settings.yahoo_query_url, quota, settings.state_dir / "yfinance")
