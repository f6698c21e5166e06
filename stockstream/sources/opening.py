"""Creates the sources that the settings name. A new source is constructed here, under its name in `SOURCES` of `stockstream/settings.py`."""

from __future__ import annotations

from collections.abc import Callable

from stockstream.budgets import Limits, RequestLog
from stockstream.settings import Settings
from stockstream.sources.alpha_vantage.client import Client
from stockstream.sources.alpha_vantage.source import AlphaVantageSource
from stockstream.sources.base import Clock, MarketDataSource
from stockstream.sources.quota import MemoryRequestLog, Scheduler
from stockstream.sources.sessions import Sessions
from stockstream.sources.simulated import SimulatedSource
from stockstream.sources.symbols import exchange_of
from stockstream.sources.yahoo.streaming import YahooStream

OpenRequestLog = Callable[[], RequestLog]
"""Returns a new reader and writer of the log of requests, which all workers share."""


def open_sources(
    settings: Settings, clock: Clock, *, sessions: Sessions | None = None, request_log: OpenRequestLog | None = None, worker: Callable[[], str] = lambda: ""
) -> dict[str, MarketDataSource]:  # fmt: skip
    """Creates the sources of the settings, by their names in the watchlist.

    Args:
        settings: of the worker.
        clock: of the worker.
        sessions: of the exchanges, shared by all that ask for them; new ones if None.
        request_log: opens the log of requests; one in memory if None, for a worker without a group.
        worker: returns the worker's name, known once it runs.
    """
    sources: dict[str, MarketDataSource] = {}
    sessions = sessions or Sessions()
    request_log = request_log or (lambda: MemoryRequestLog(clock))
    if "simulated" in settings.source:
        sources["simulated"] = SimulatedSource(settings.seed, clock=clock, events_file=settings.state_dir / f"simulated.{settings.seed}.events.jsonl")
    if "yahoo" in settings.source:
        sources["yahoo"] = YahooStream(settings.yahoo_stream_url, clock=clock, session_at=sessions.at, exchange_of=exchange_of)
    if "alpha_vantage" in settings.source:
        key = settings.alpha_vantage_key.get_secret_value()
        scheduler = Scheduler("alpha_vantage", Limits.parse(settings.alpha_vantage_budget), request_log(), clock=clock, worker=worker)
        client = Client(settings.alpha_vantage_url, key)
        sources["alpha_vantage"] = AlphaVantageSource(client, scheduler, clock=clock, sessions=sessions, has_key=bool(key))
    return sources
