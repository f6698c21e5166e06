"""The status of a worker for the web views, and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from faust.types import TP

from stockstream.application import App
from stockstream.instance import app
from stockstream.metrics import Metrics
from stockstream.versions import NewerMessages
from stockstream.watermark_lags import WatermarkLags
from stockstream.wording import counted

metrics = Metrics()
watermark_lags = WatermarkLags()
metrics.registry.register(watermark_lags)
app.set_aside.count = metrics.record_set_aside
newer_messages = NewerMessages(metrics.newer_message)


class Status:
    """The worker's status; implements `stockstream.web.views.Status`."""

    def __init__(self, worker: App) -> None:
        self._app = worker
        self.archive_positions: Any = None
        self.archive_topics: Callable[[], list[dict[str, Any]]] = list
        self.compaction: Any = None
        self.model_list: Any = None
        self.model_note: Callable[[], str] = lambda: ""
        """Why rows are not predicted by the registry's champion; empty if they are."""
        self.sources: Callable[[], list[dict[str, Any]]] = list
        self.routes: Callable[[], list[dict[str, Any]]] = list
        self.alerts_file_fault: Callable[[], str] = lambda: ""
        """Why the alerts file, as it is now, is not used; empty if it is."""
        self._exported: set[tuple[str, int]] = set()
        """Topic and partition of each exported series of the gauge `lag`."""

    def _assigned(self) -> list[TP]:
        tables = self._app.tables.changelog_topics
        return sorted(tp for tp in (self._app.chunk_consumer.assignment() if self._app.consumer is not None else ()) if tp.topic not in tables)

    def ready(self) -> tuple[bool, str]:
        """Ready once the rebalance and the recovery are complete."""
        if self._app.fence.left:
            return False, "fenced"
        if self._app.waiting_for:
            return False, self._app.waiting_for
        if self._app.rebalancing or not self._app.tables.recovery.completed.is_set():  # type: ignore[attr-defined]
            return False, "joining the group or recovering state"
        assigned = self._assigned()
        raw = sum(tp.topic.endswith("ticks.raw") for tp in assigned)
        words, note = f"{counted(raw, 'partition')} of ticks.raw" if assigned else "no partition: other workers have them all", self.model_note()
        return True, f"{words}; {note}" if note else words

    def started(self) -> str:
        """One line with the worker's addresses, topics, models and archive."""
        settings, conf = self._app.settings, self._app.conf
        raw = sum(tp.topic == settings.topic("ticks.raw") for tp in self._assigned())
        champions = [f"{model.get('name')} {model.get('version')}" for model in self.models() if model.get("state", model.get("role")) == "champion"]
        parts = {
            "web": f"http://{conf.web_host}:{conf.web_port}/" if conf.web_enabled else "off",
            "broker": settings.broker,
            "topics": f"{settings.topic_prefix}*, {raw} of {counted(settings.partitions, 'partition')}",
            "model": ", ".join(champions) or f"none in {settings.models} yet",
            "archive": settings.archive,
        }
        if settings.plain_transport:
            parts["transport"] = "plain"
        return "ready: " + "; ".join(f"{name} {value}" for name, value in parts.items())

    def healthy(self) -> tuple[bool, str]:
        return (False, "fenced") if self._app.fence.left else (True, "alive")

    def pipeline(self) -> dict[str, Any]:
        if self._app.waiting_for:                                        # Faust has no consumer until then
            return {"app_id": self._app.settings.group}
        consumer, lags = self._app.chunk_consumer, []
        exported: set[tuple[str, int]] = set()
        for tp in self._assigned():
            lag = consumer.lag(tp)
            lags.append({"topic": tp.topic, "partition": tp.partition, "lag": lag})
            name = tp.topic.removeprefix(self._app.settings.topic_prefix)
            metrics.lag(name, tp.partition, lag)
            exported.add((name, tp.partition))
        for topic, partition in self._exported - exported:
            metrics.forget_lag(topic, partition)
        self._exported = exported
        guard = consumer.guard
        return {
            "app_id": self._app.settings.group,
            "generation": self._app.term,
            "lag": lags,
            "holes": [hole._asdict() for hole in list(guard.holes)[-100:]],
            "rereads": guard.rereads,
            "set_aside": [aside._asdict() for aside in self._app.set_aside.newest],
            "archive": self.archive_positions() if self.archive_positions else [],
            "archive_topics": self.archive_topics(),
            "compaction": self.compaction() if self.compaction else None,
            "models_note": self.model_note(),
            "sources": self.sources(),
            "lateness": watermark_lags.report(),
            "routes": self.routes(),
            "alerts_file_fault": self.alerts_file_fault(),
        }

    def models(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.model_list() if self.model_list else []
        return found


status = Status(app)


def _count_hole(kind: str, offsets: int) -> None:
    metrics.hole(kind, offsets)


app.on_hole = _count_hole
