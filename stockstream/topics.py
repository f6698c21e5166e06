"""Every topic in pipeline order: the map of the system. Read it first, top to bottom.

    source -> [ingest] -> ticks.raw -> [clean] -> ticks.clean -> [aggregate] -> windows -> [detect] -> alerts, market
                              |            \\-> ticks.rejected     |                \\--> [score]  -> predictions, outcomes
                              \\--> [archive] <-- ticks.clean       \\-> latest

`stockstream.kafka.admin.topic_specs` holds their configuration: partitions, retention and compaction.
"""

from typing import Any

from stockstream.instance import app
from stockstream.transport.messages import ChunkSchema


def _input(name: str) -> Any:
    """A topic that an agent reads, in chunks."""
    return app.topic(app.settings.topic(name), schema=ChunkSchema(allow_empty=True), internal=False)


watchlist = _input("watchlist")
"""The source of each symbol: JSON by symbol, compacted, written by the commands."""
symbols = app.settings.topic("symbols")
"""Metadata of a symbol: JSON, compacted, by `ingest`."""
feeds = app.settings.topic("feeds")
"""The state of each watched symbol: where it is ingested, how fresh it is, and why it is not. JSON, compacted, by `ingest`."""
sources = app.settings.topic("sources")
"""Reports of each source on each worker, in a topic of one partition: JSON, compacted, by `ingest`."""
requests = app.settings.topic("requests")
"""Reservations of the sources' budgets of requests, in a topic of one partition: JSON, by `ingest`."""
gaps = app.settings.topic("gaps")
"""Times in which a source brought nothing of a symbol: JSON by symbol, by `ingest`."""
repairs = app.settings.topic("repairs")
"""One-minute bars that were fetched for gaps: JSON by symbol, by `ingest`."""
ticks_raw = _input("ticks.raw")
"""Ticks, frames of ticks and punctuations as producers write them."""
ticks_rejected = app.settings.topic("ticks.rejected")
"""Rejected records and ticks, with reason and place."""
ticks_clean = _input("ticks.clean")
"""Accepted ticks and closings, as frames."""
windows = _input("windows")
"""Rows of closed seconds, as frames."""
latest = app.settings.topic("latest")
"""The last row of a symbol, at most once a minute: JSON, compacted."""
market = app.settings.topic("market")
"""Summaries of each second of each partition, in a topic of one partition: JSON."""
alerts = app.settings.topic("alerts")
"""Changes of alerts: JSON by symbol."""
alerts_dead = app.settings.topic("alerts.dead")
"""Changes of alerts that a route did not deliver, by route and change: JSON, compacted, by `notify`."""
predictions = app.settings.topic("predictions")
"""The champion's predictions: JSON by symbol."""
outcomes = app.settings.topic("outcomes")
"""What prices did by the predictions' horizons: JSON arrays."""
