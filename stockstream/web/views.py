"""The HTTP views, on Faust's own web server: a thin layer over `Live` and the worker's `Status`.

`OPERATIONS` is the map. Answers are JSON as msgspec writes it (never NaN); errors are `{"error": {"status", "message"}}`.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from aiohttp import web

from stockstream.metrics import CONTENT_TYPE, Metrics
from stockstream.records import Alert, Gap, Prediction
from stockstream.sources.reports import FEED_STATES, FeedEntry, SourceSummary
from stockstream.transforms.cleaning.limits import MAX_SOURCE, MAX_SYMBOL, composed
from stockstream.transforms.rules.conditions import RULE_NAMES
from stockstream.transforms.timing import WINDOW_S
from stockstream.web import events, openapi
from stockstream.web.answers import Bar, Page, SymbolDetail, SymbolSummary
from stockstream.web.live import Live
from stockstream.web.openapi import BadParameter, Health, Model, Operation, Parameter, Pipeline

if TYPE_CHECKING:
    from stockstream.web.tail import Tail

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_INTERVALS = {"1s": 1, "1m": 60}
_STATES = ("open", "opened", "updated", "closed")

_LIMIT = Parameter("limit", "the most items to return", "integer", default=100, minimum=1, maximum=1_000)
_NEXT = Parameter("next", "the `next` of the page before", maximum=200)
_SYMBOL = Parameter("symbol", "only of this symbol; it must be known", maximum=MAX_SYMBOL)
_SYMBOL_PATH = Parameter("symbol", "the symbol, percent-encoded", place="path", maximum=MAX_SYMBOL)
_SOURCE_PATH = Parameter("source", "the source's name in the settings, percent-encoded", place="path", maximum=MAX_SOURCE)
_UNKNOWN = {404: "The symbol is unknown."}

OPERATIONS = (
    Operation("/", "dashboard", "The dashboard.", content_type="text/html"),
    Operation(
        "/events", "events",
        "Server-sent events: `tick-summary` and `predictions` (columns of what changed), `alerts` (newest states), `pipeline` (as /api/pipeline).",
        content_type="text/event-stream", errors={503: "Too many event streams, or the worker is stopping."},
    ),
    Operation(
        "/api/symbols", "symbols", "All known symbols in alphabetical order, each with its last price, its age and its first horizon.", Page[SymbolSummary],
        parameters=(_LIMIT, _NEXT, Parameter("q", "only symbols whose symbol or name contains this, ignoring case", maximum=100)),
    ),
    Operation(
        "/api/symbols/{symbol}", "symbol", "One symbol: last second, 5-minute window, newest prediction, open alerts, metadata.", SymbolDetail,
        parameters=(_SYMBOL_PATH,), errors=_UNKNOWN,
    ),
    Operation(
        "/api/symbols/{symbol}/bars", "bars", f"The newest bars of the last {WINDOW_S} s, oldest first; `next` brings those before them.", Page[Bar],
        parameters=(
            _SYMBOL_PATH, Parameter("interval", "length of a bar", default="1s", choices=tuple(_INTERVALS)),
            Parameter("limit", "the most bars to return", "integer", default=WINDOW_S, minimum=1, maximum=WINDOW_S),
            Parameter("next", "the `next` of the page before: only bars that begin before this second", "integer", minimum=0, maximum=2**32),
        ),
        errors=_UNKNOWN,
    ),
    Operation(
        "/api/alerts", "alerts", "Alerts in their newest state, those opened last first.", Page[Alert],
        parameters=(
            Parameter("state", "only in this state; `open` is opened or updated", choices=_STATES), _SYMBOL,
            Parameter("rule", "only of this rule", choices=RULE_NAMES), _LIMIT, _NEXT,
        ),
        errors=_UNKNOWN,
    ),
    Operation(
        "/api/predictions", "predictions", "The newest prediction of each symbol in alphabetical order.", Page[Prediction],
        parameters=(_SYMBOL, _LIMIT, _NEXT), errors=_UNKNOWN,
    ),
    Operation("/api/sources", "sources", "The sources of the group: state, budgets, states of the symbols, and each worker's report.", Page[SourceSummary]),
    Operation(
        "/api/sources/{source}/symbols", "feeds", "The symbols that the watchlist assigns to a source: where each is ingested, how fresh it is, and why not.",
        Page[FeedEntry], parameters=(_SOURCE_PATH, Parameter("state", "only in this state", choices=FEED_STATES), _LIMIT, _NEXT),
        errors={404: "No worker runs the source, and the watchlist does not name it."},
    ),
    Operation(
        "/api/gaps", "gaps", "Times in which a source brought nothing of a symbol although it should have; those that began last first.", Page[Gap],
        parameters=(
            Parameter("symbol", "only of this symbol", maximum=MAX_SYMBOL), Parameter("source", "only of this `source` of ticks", maximum=MAX_SOURCE),
            _LIMIT, _NEXT,
        ),
    ),
    Operation("/api/models", "models", "The models that score, and those that should but do not, with the reason.", Page[Model]),
    Operation("/api/pipeline", "pipeline", "Lag, sources, latency of each hop, rates, rejects and archive position of this worker.", Pipeline),
    Operation("/healthz", "healthz", "Whether this worker is alive.", Health, errors={503: "It is not; the message gives the reason."}),
    Operation("/readyz", "readyz", "Whether this worker works and its views are up to date.", Health, errors={503: "Not yet; the message gives the reason."}),
    Operation("/metrics", "metrics", "Prometheus metrics of this worker.", content_type="text/plain"),
    Operation("/openapi.json", "openapi", "This document.", {"type": "object"}),
)  # fmt: skip
"""Every view, with its parameters and its answer."""


class Status(Protocol):
    """The status of the worker."""

    def ready(self) -> tuple[bool, str]:
        """Whether its partitions are being processed, and the state as text."""
        ...

    def healthy(self) -> tuple[bool, str]:
        """Whether it is alive, and the state as text."""
        ...

    def pipeline(self) -> dict[str, Any]:
        """`lag`: list of `{topic, partition, lag}`; `archive`: list of `{partition, offset}`; `sources`: list of `openapi.SourceState`. It may have more.

        The counts of `Metrics` are added.

        It also sets the gauges of `Metrics` with the same figures; `/metrics` calls it for that.
        """
        ...

    def models(self) -> list[dict[str, Any]]:
        """Each has the members of `openapi.Model`; further members are allowed."""
        ...


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def mount(
    application: web.Application, live: Live, status: Status, metrics: Metrics, tail: Tail | None = None, *, read_at_once: bool = True, version: str = "0"
) -> None:
    """Adds the views to an aiohttp application, which then starts and stops the event stream and the tail (it starts the tail only if `read_at_once`).

    On a Faust app's (`app.web.web_app`) they precede Faust's own pages if those are added later.
    """
    views = _Views(live, status, metrics, tail, version)
    for operation in OPERATIONS:
        path = re.sub(r"{(\w+)}", r"{\1:[^/]+}", operation.path)          # aiohttp's default refuses braces
        application.router.add_get(path, views.handler(operation), allow_head=operation.name != "events")
    application.router.add_get("/static/{name}", views.asset)
    application.middlewares.append(_errors_as_json)

    async def start(_: web.Application) -> None:
        await views.events.start()
        if tail is not None and read_at_once:
            await tail.start()

    async def stop(_: web.Application) -> None:
        await views.events.close()
        if tail is not None:
            await tail.stop()

    application.on_startup.append(start)
    application.on_shutdown.append(stop)


class _Views:
    def __init__(self, live: Live, status: Status, metrics: Metrics, tail: Tail | None, version: str) -> None:
        self._live, self._status, self._metrics, self._tail = live, status, metrics, tail
        self._assets = {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in _TYPES}
        self._document = events.to_json(openapi.document(OPERATIONS, version))
        self.events = events.Events(live, self.answer_pipeline, metrics)

    def handler(self, operation: Operation) -> Handler:
        """The aiohttp handler of an operation: reads its parameters, then calls the method of its name."""
        answer: Callable[..., Any] = getattr(self, f"answer_{operation.name}")

        async def handle(request: web.Request) -> web.StreamResponse:
            if not operation.path.startswith("/api/"):
                return cast(web.StreamResponse, await answer(request))
            try:
                values = operation.read(request.match_info, request.query.items())
                if values.get("symbol"):
                    values["symbol"] = composed(values["symbol"])
                return _json(answer(**values))
            except BadParameter as error:
                raise web.HTTPBadRequest(text=str(error)) from None

        return handle

    async def asset(self, request: web.Request) -> web.Response:
        """A file of the page."""
        return self._asset(request, request.match_info["name"])

    def _asset(self, request: web.Request, name: str) -> web.Response:
        body = self._assets.get(name)
        if body is None:
            raise web.HTTPNotFound(text=f"there is no file {name!r} here")
        tag = hashlib.sha256(body).hexdigest()[:16]
        headers = {**SECURITY_HEADERS, "Cache-Control": "no-cache", "ETag": f'"{tag}"'}
        if any(held.value == tag for held in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type=_TYPES[Path(name).suffix], charset="utf-8", headers=headers)

    async def answer_dashboard(self, request: web.Request) -> web.Response:
        return self._asset(request, "index.html")

    async def answer_events(self, request: web.Request) -> web.StreamResponse:
        return await self.events.stream(request)

    async def answer_healthz(self, _: web.Request) -> web.Response:
        return _health(*self._status.healthy())

    async def answer_readyz(self, _: web.Request) -> web.Response:
        return _health(*self._ready())

    def _ready(self) -> tuple[bool, str]:
        ready, words = self._status.ready()
        if ready and self._tail is not None:
            ready, tail_words = self._tail.ready()
            words = words if ready else tail_words
        return ready, words

    async def answer_metrics(self, _: web.Request) -> web.Response:
        self._status.pipeline()     # sets the gauges
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def answer_openapi(self, _: web.Request) -> web.Response:
        return web.Response(body=self._document, content_type="application/json")

    def answer_symbols(self, limit: int, next: str | None, q: str | None) -> Page[SymbolSummary]:
        return self._live.symbols(limit, next or "", q or "", now=time.time())

    def answer_symbol(self, symbol: str) -> SymbolDetail:
        detail = self._live.symbol(symbol)
        if detail is None:
            raise _unknown(symbol)
        return detail

    def answer_bars(self, symbol: str, interval: str, limit: int, next: int | None) -> Page[Bar]:
        self._must_be_known(symbol)
        return self._live.bars(symbol, _INTERVALS[interval], limit, next)

    def answer_alerts(self, state: Any, symbol: str | None, rule: str | None, limit: int, next: str | None) -> Page[Alert]:
        self._must_be_known(symbol)
        after = _after(next, "/api/alerts")
        return self._live.alerts(limit, state, symbol or "", rule or "", after)

    def answer_predictions(self, symbol: str | None, limit: int, next: str | None) -> Page[Prediction]:
        self._must_be_known(symbol)
        return self._live.predictions(limit, next or "", symbol or "")

    def answer_sources(self) -> Page[SourceSummary]:
        return Page(items=self._live.sources.summaries(_now_ms()), next=None)

    def answer_feeds(self, source: str, state: str | None, limit: int, next: str | None) -> Page[FeedEntry]:
        sources, now_ms = self._live.sources, _now_ms()
        if source not in (known := sources.known_sources(now_ms)):
            names = ", ".join(known) or "none (STOCKSTREAM_SOURCE, stockstream watch add)"
            raise web.HTTPNotFound(text=f"no source {source[:40]!r} is known here; known: {names}")
        items = list(islice(sources.entries(now_ms, source, state, next or ""), limit + 1))
        return Page(items=items[:limit], next=items[limit - 1].symbol if len(items) > limit else None)

    def answer_gaps(self, symbol: str | None, source: str | None, limit: int, next: str | None) -> Page[Gap]:
        return self._live.gaps.page(limit, symbol, source, _after(next, "/api/gaps"))

    def answer_models(self) -> dict[str, Any]:
        return {"items": self._status.models(), "next": None}

    def answer_pipeline(self) -> dict[str, Any]:
        ready, words = self._ready()
        views = {
            **self._live.counts, "newest_second": self._live.newest_second, "sessions": self._live.exchanges.states(time.time()),
            **({"tail": self._tail.summary()} if self._tail is not None else {}),
        }  # fmt: skip
        return {
            "ready": ready, "status": words, "lag": [], "archive": [], "sources": [], **self._metrics.pipeline(), **self._status.pipeline(),
            "outcomes": self._live.outcome_counts(), "sources_note": self._live.sources.note(_now_ms()), "views": views,
        }  # fmt: skip

    def _must_be_known(self, symbol: str | None) -> None:
        if symbol is not None and not self._live.known(symbol):
            raise _unknown(symbol)


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return _error(405, f"{request.method} is not allowed here; allowed: {allowed}", {"Allow": allowed})
    except web.HTTPNotFound as error:
        own_words = error.text if error.text != f"{error.status}: {error.reason}" else None
        paths = ", ".join(op.path for op in OPERATIONS)
        return _error(404, own_words or f"there is nothing at {request.path}; the paths are: {paths}")
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _error(error.status, error.text or error.reason)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _error(500, "internal error; the worker's log has the details")


def _after(next: str | None, path: str) -> tuple[int, str] | None:
    """The time and the name in the `next` of an answer. Raises `BadParameter`."""
    if next is None:
        return None
    time_ms, colon, name = next.partition(":")
    if not colon or not time_ms.isascii() or not time_ms.isdigit():
        raise BadParameter(f"next is not the `next` of an answer of {path}")
    return int(time_ms), name


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _unknown(symbol: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(text=f"no symbol {symbol[:40]!r} is known here; /api/symbols lists all symbols (names are case-sensitive)")


def _health(good: bool, words: str) -> web.Response:
    return _json(Health(status="ok", detail=words)) if good else _error(503, words)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    answer = openapi.ErrorAnswer(error=openapi.ErrorDetail(status=status, message=message))
    return web.Response(body=events.to_json(answer), status=status, content_type="application/json", headers=headers)


def _json(answer: Any) -> web.Response:
    return web.Response(body=events.to_json(answer), content_type="application/json", headers={"Cache-Control": "no-store"})
