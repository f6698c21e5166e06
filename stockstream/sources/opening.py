"""Creates the sources that the settings name. A new source is constructed here, under its name in `SOURCES` of `stockstream/settings.py`."""

from __future__ import annotations

from stockstream.settings import Settings
from stockstream.sources.base import Clock, MarketDataSource
from stockstream.sources.simulated import SimulatedSource


def open_sources(settings: Settings, clock: Clock) -> dict[str, MarketDataSource]:
    """Creates the sources of the settings, by their names in the watchlist."""
    sources: dict[str, MarketDataSource] = {}
    if "simulated" in settings.source:
        sources["simulated"] = SimulatedSource(settings.seed, clock=clock, events_file=settings.state_dir / f"simulated.{settings.seed}.events.jsonl")
    return sources
