"""Sends alerts to the routes of STOCKSTREAM_ALERTS: `alerts` -> SNS, webhooks, Slack, e-mail, and `alerts.dead`. No other agent waits for it.

It reads `alerts` beside the stream, once for each route, from the positions in its ledger on.
"""

from __future__ import annotations

from collections.abc import Mapping

from faust.types import TP

from stockstream.alerts_file import FollowedAlertsFile
from stockstream.instance import app
from stockstream.kafka.topic_reader import TopicReader
from stockstream.notifying.deliveries import Deliveries
from stockstream.notifying.delivery import AT_ONCE, Delivery
from stockstream.sinks.notify.opening import open_route
from stockstream.sinks.notify.route import RouteSettings
from stockstream.skipped import Fault, SkippedRecords
from stockstream.state.ledger import KafkaLedger
from stockstream.status import metrics, status
from tables.notify import table

HAND_OVER_S = 0.25
"""How long a rebalance waits for a notice that is being sent. A route that hangs must not hold up the stream; the next owner sends it again."""
settings = app.settings
skipped = SkippedRecords(metrics, settings.topic_prefix)


class Notifying:
    """The agent's part in a rebalance: the worker that reads a partition of `ticks.raw` sends the alerts of that partition."""

    def __init__(self) -> None:
        self.ledger = KafkaLedger(app, table)
        self.deliveries = Deliveries(FollowedAlertsFile(settings.alerts), self._make, self.ledger.forget)
        self.owned: frozenset[int] = frozenset()
        status.routes, status.alerts_file_fault = self.deliveries.report, lambda: self.deliveries.file.fault
        app.parts.append(self)

    async def assign(self, partitions: Mapping[str, list[int]]) -> Mapping[TP, int | None]:
        await self.release(0.0)
        self.owned = frozenset(partitions.get(settings.topic("ticks.raw"), ()))
        self.ledger.own(self.owned)
        self.deliveries.own(self.owned)
        return {}

    async def release(self, timeout_s: float) -> None:
        if app.should_stop:
            await self.deliveries.close()
        else:
            await self.deliveries.pause(min(timeout_s, HAND_OVER_S))
        await self.ledger.release(timeout_s)

    def _make(self, name: str, of_route: RouteSettings) -> Delivery:
        return Delivery(
            name, of_route, open_route(of_route, settings), TopicReader(settings, "alerts", at_once=AT_ONCE), self.ledger,
            lambda: len(self.owned) / settings.partitions, metrics.notice, metrics.notify_lag, _skip,
        )  # fmt: skip


def _skip(partition: int, offset: int, reason: str) -> None:
    skipped.skip(settings.topic("alerts"), partition, offset, Fault("no_alert", reason))


stage = Notifying()


@app.task
async def notify() -> None:
    """Runs the routes. With none of them in the file it does nothing."""
    await stage.deliveries.run()
