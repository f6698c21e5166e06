"""Server-sent events: what changed in `Live`, encoded once for all clients.

Events: `tick-summary` (columns of the symbols with new rows), `predictions` (columns), `alerts` (newest states), `pipeline` (every two seconds).
A client that does not read is dropped when its queue is full; it may connect again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from aiohttp import web

from stockstream.metrics import Metrics
from stockstream.web.digits import rounded, shortened
from stockstream.web.live import Live

log = logging.getLogger(__name__)

INTERVAL_S = 0.25
"""Partitions close a second within a tenth of a second of each other: at four updates a second they become one or two events."""

PIPELINE_S = 2.0
HEARTBEAT_S = 15.0
MAX_CLIENTS = 100
QUEUE = 64
"""How many messages a client may be behind: about 15 s. Clients share the messages, so a slow client costs no copy."""

_END = b""


def encode(kind: str, data: Any) -> bytes:
    """One event. NaN becomes null."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), to_json(data))


def to_json(data: Any) -> bytes:
    """JSON in which numpy's scalars are numbers, NaN is null, and a member's number has at most twelve significant digits."""
    return shortened(msgspec.json.encode(data, enc_hook=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def short_columns(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns, those of floats rounded like a member's number. Whole numbers among them stay."""
    return {name: _short(values) for name, values in columns.items()}


def _short(values: list[Any]) -> list[Any]:
    if not any(isinstance(value, float) for value in values):
        return values
    return [value if isinstance(value, int) else short for value, short in zip(values, rounded(np.array(values)).tolist(), strict=True)]


class _Client:
    def __init__(self, abort: Callable[[], None]) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE)
        self.abort = abort


class Events:
    """The stream. `start` and `close` belong to the web application's start and shutdown."""

    def __init__(self, live: Live, pipeline: Callable[[], dict[str, Any]], metrics: Metrics, *, interval_s: float = INTERVAL_S) -> None:
        self._live, self._pipeline, self._metrics, self._interval_s = live, pipeline, metrics, interval_s
        self._clients: set[_Client] = set()
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self) -> None:
        """Begins to publish changes."""
        if self._task is None:
            self._closing = False
            self._task = asyncio.create_task(self._run(), name="web-events")

    async def close(self) -> None:
        """Ends every stream at once."""
        self._closing = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for client in list(self._clients):
            if client.queue.full():
                self._drop(client)
            else:
                client.queue.put_nowait(_END)

    def publish(self) -> None:
        """Sends the changes since the last call to all clients."""
        if not self._clients:
            return
        changes = self._live.take_changes()
        if changes.symbols:
            self._send("tick-summary", {"columns": short_columns(self._live.summary_columns(changes.symbols))})
        if changes.predictions:
            self._send("predictions", {"columns": short_columns(self._live.prediction_columns(changes.predictions))})
        if changes.alerts:
            self._send("alerts", {"items": self._live.alert_states(changes.alerts), "open_alerts": self._live.open_alerts()})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """The view of `/events`."""
        if self._closing:
            raise web.HTTPServiceUnavailable(text="this worker is stopping")
        if len(self._clients) >= MAX_CLIENTS:
            raise web.HTTPServiceUnavailable(text=f"this worker serves at most {MAX_CLIENTS} event streams, and all are in use")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        await response.prepare(request)
        transport = request.transport
        client = _Client(transport.abort if transport is not None else lambda: None)
        if not self._clients:
            self._live.take_changes()       # changes before the first client: the page reads those from the API
        self._clients.add(client)
        self._metrics.clients(len(self._clients))
        try:
            await response.write(b"retry: 2000\n\n" + encode("pipeline", self._pipeline()))
            while (message := await client.queue.get()) != _END:
                await response.write(message)
        except ConnectionError:
            log.debug("a reader of /events went away")
        finally:
            self._clients.discard(client)
            self._metrics.clients(len(self._clients))
        return response

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pipeline_at, heartbeat_at = loop.time() + PIPELINE_S, loop.time() + HEARTBEAT_S
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                self.publish()
                if self._clients and loop.time() >= pipeline_at:
                    self._send("pipeline", self._pipeline())
                    pipeline_at = loop.time() + PIPELINE_S
                if loop.time() >= heartbeat_at:
                    self._broadcast(b": still here\n\n")
                    heartbeat_at = loop.time() + HEARTBEAT_S
            except Exception:
                log.exception("an update of the event stream failed")      # one failed event must not end the stream

    def _send(self, kind: str, data: Any) -> None:
        self._broadcast(encode(kind, data))

    def _broadcast(self, message: bytes) -> None:
        for client in list(self._clients):
            try:
                client.queue.put_nowait(message)
            except asyncio.QueueFull:
                self._drop(client)

    def _drop(self, client: _Client) -> None:
        self._clients.discard(client)
        self._metrics.slow_client()
        self._metrics.clients(len(self._clients))
        client.abort()
