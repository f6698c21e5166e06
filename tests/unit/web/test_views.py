from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import faust
import jsonschema
import msgspec
import pytest
from aiohttp import ClientTimeout, web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from stockstream.metrics import Metrics
from stockstream.records import Budget, Connection, Feed, SourceReport
from stockstream.sources.sessions import Sessions, Span
from stockstream.web import events, openapi, views
from stockstream.web.live import Live
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.asyncio

Client = TestClient[web.Request, web.Application]


class FakeStatus:
    is_ready: tuple[bool, str] = (True, "8 partitions")
    is_healthy: tuple[bool, str] = (True, "running")

    def ready(self) -> tuple[bool, str]:
        return self.is_ready

    def healthy(self) -> tuple[bool, str]:
        return self.is_healthy

    def pipeline(self) -> dict[str, Any]:
        return {"lag": [{"topic": "ticks.raw", "partition": 0, "lag": 3}], "archive": [{"partition": 0, "offset": 41}], "extra": float("nan")}

    def models(self) -> list[dict[str, Any]]:
        place = {"partition": 0, "state": "suspended", "since_offset": 7, "reason": "it gave numbers that are not finite"}
        return [{
            "name": "xgboost", "version": "1", "role": "champion", "state": "suspended", "reason": place["reason"], "not_predicted": 3, "partitions": [place],
            "auc": float("nan"),
        }]  # fmt: skip


@asynccontextmanager
async def serving(live: Live, status: FakeStatus | None = None, metrics: Metrics | None = None) -> AsyncIterator[Client]:
    application = web.Application()
    views.mount(application, live, status or FakeStatus(), metrics or Metrics(), version="1.2.3")
    async with TestClient(TestServer(application), timeout=ClientTimeout(total=20)) as client:
        yield client


def filled(make: Any) -> Live:
    live = Live()
    rows = [make.row(symbol, make.second + i, offset=10 + i, return_60s=None) for i in range(3) for symbol in ("AAA", "BBB", "B/C", "ÄÖ%")]
    live.frame(0, make.frame(rows))
    live.metadata("CCC", b'{"name": "Only a name", "currency": "USD"}')
    live.prediction(make.prediction("AAA"))
    live.prediction(make.prediction("BBB"))
    live.alert(make.alert(1, symbol="AAA"))
    live.alert(make.alert(2, "closed", symbol="BBB", rule="price_drop"))
    live.outcomes(msgspec.json.encode([make.outcome(0.1, 0.2)]))
    now = time.time_ns() // 1_000_000
    report = SourceReport(
        source="yahoo", worker="host:1", name="yahoo", state="running", reason="", since=now, next_attempt=None, failures=0, symbols=3, at=now,
        last_tick_at=now, connections=(Connection(name="yahoo-1", state="open", symbols=3, since=now),),
        budgets=(Budget(per="day", limit=25, left=0, resets_at=now),),
    )  # fmt: skip
    live.sources.report(b"yahoo@host:1", msgspec.json.encode(report))
    for symbol, state in (("AAPL", "fresh"), ("MSFT", "closed"), ("XYZZY", "unknown_symbol")):
        live.sources.watch(symbol.encode(), msgspec.json.encode({"symbol": symbol, "source": "yahoo"}))
        feed = Feed(symbol=symbol, source="yahoo", worker="host:1", state=state, reason="", since=now, last_event_time=now - 9_000, at=now)  # type: ignore[arg-type]
        live.sources.feed(symbol.encode(), msgspec.json.encode(feed))
        live.gaps.put(msgspec.json.encode({"symbol": symbol, "source": "yahoo", "from": 5, "to": 9, "reason": "silent"}))
    return live


async def get(client: Client, path: str | URL, status: int = 200) -> Any:
    async with client.get(path) as response:
        body = await response.read()
        assert response.status == status, body
        assert response.content_type == "application/json"
        assert b"NaN" not in body
        answer = msgspec.json.decode(body)
        if status >= 400:
            assert answer == {"error": {"status": status, "message": answer["error"]["message"]}}
            return answer["error"]["message"]
        return answer


async def test_symbols(make: Any) -> None:
    async with serving(filled(make)) as client:
        page = await get(client, "/api/symbols?limit=2")
        assert [item["symbol"] for item in page["items"]] == ["AAA", "B/C"]
        assert page["items"][0]["price"] == 11.0 and page["items"][0]["return_60s"] is None and page["items"][0]["open_alerts"] == 1
        page = await get(client, f"/api/symbols?limit=10&next={page['next']}")
        assert [item["symbol"] for item in page["items"]] == ["BBB", "CCC", "ÄÖ%"] and page["next"] is None
        assert [item["symbol"] for item in (await get(client, "/api/symbols?q=only"))["items"]] == ["CCC"]
        assert (await get(client, "/api/symbols?q=nothing"))["items"] == []


async def test_symbols_have_their_age_and_are_stale_after_a_minute(make: Any) -> None:
    live, now = Live(), int(time.time())
    live.frame(0, make.frame([make.row("OLD", now - 90), make.row("NEW", now - 2, offset=11)]))
    live.metadata("NONE", b'{"name": "Only a name"}')
    async with serving(live) as client:
        new, none, old = (await get(client, "/api/symbols"))["items"]
        assert none["age_s"] is None and none["stale"] is None
        assert 1 <= new["age_s"] < 30 and new["stale"] is False
        assert 89 <= old["age_s"] < 120 and old["stale"] is True


@pytest.mark.parametrize(("state", "stale"), [("regular", True), ("closed", False), ("holiday", False), ("pre", False), ("post", False), ("unknown", True)])
async def test_a_symbol_is_stale_only_while_its_exchange_is_open(make: Any, state: Any, stale: bool) -> None:
    def load(calendar: str, year: int) -> list[Span]:
        return [(0, 1 << 42, state)] if calendar == "XNYS" else []

    live, now = Live(sessions=Sessions(load)), int(time.time())
    live.metadata("OLD", b'{"exchange": "NMS"}')
    live.frame(0, make.frame([make.row("OLD", now - 90), make.row("BTC-USD", now - 90), make.row("ELSE", now - 90), make.row("FAR.L", now - 90)]))
    live.frame(1, make.frame([make.row("LATE.L", now - 1_000, source="yahoo.LSE"), make.row("LATER.L", now - 1_300, source="yahoo.LSE", offset=11)]))
    async with serving(live) as client:
        await get(client, "/api/symbols")
        async with asyncio.timeout(PATIENCE_S):
            while set(sessions := (await get(client, "/api/pipeline"))["views"]["sessions"]) != ({"CCC"} if state == "unknown" else {"CCC", "NMS"}):
                await asyncio.sleep(0.01)
        assert sessions["CCC"] == "always"
        items = {item["symbol"]: (item["exchange"], item["session"], item["stale"]) for item in (await get(client, "/api/symbols"))["items"]}
        assert items == {
            "OLD": ("NMS", None if state == "unknown" else state, stale), "BTC-USD": ("CCC", "always", True), "ELSE": (None, None, True),
            "FAR.L": ("LSE", None, True), "LATE.L": ("LSE", None, False), "LATER.L": ("LSE", None, True),
        }  # fmt: skip


async def test_sources_feeds_and_gaps(make: Any) -> None:
    async with serving(filled(make)) as client:
        (source,) = (await get(client, "/api/sources"))["items"]
        assert (source["source"], source["state"], source["watched"]) == ("yahoo", "running", 3)
        assert source["feeds"] == {"closed": 1, "fresh": 1, "unknown_symbol": 1}
        assert source["budgets"][0]["left"] == 0 and source["workers"][0]["connections"][0]["name"] == "yahoo-1"
        page = await get(client, "/api/sources/yahoo/symbols?limit=2")
        assert [(item["symbol"], item["state"]) for item in page["items"]] == [("AAPL", "fresh"), ("MSFT", "closed")] and page["next"] == "MSFT"
        assert 9 <= page["items"][0]["age_s"] < 60
        page = await get(client, f"/api/sources/yahoo/symbols?limit=2&next={page['next']}")
        assert [item["symbol"] for item in page["items"]] == ["XYZZY"] and page["next"] is None
        assert [item["symbol"] for item in (await get(client, "/api/sources/yahoo/symbols?state=closed"))["items"]] == ["MSFT"]
        assert [item["symbol"] for item in (await get(client, "/api/gaps?symbol=MSFT&source=yahoo"))["items"]] == ["MSFT"]
        page = await get(client, "/api/gaps?limit=2")
        assert page["items"][0] == {"symbol": "XYZZY", "source": "yahoo", "from": 5, "to": 9, "reason": "silent"}
        assert [item["symbol"] for item in (await get(client, URL(f"/api/gaps?limit=2&next={quote(page['next'])}", encoded=True)))["items"]] == ["AAPL"]
        note = (await get(client, "/api/pipeline"))["sources_note"]
        assert note.startswith("yahoo has used its 25 requests of the day; the next at ") and note.endswith("1 symbol of yahoo: unknown symbol (XYZZY)")


async def test_of_an_empty_group_there_is_nothing_and_no_error() -> None:
    async with serving(Live()) as client:
        assert await get(client, "/api/sources") == {"items": [], "next": None}
        assert await get(client, "/api/gaps?symbol=AAPL") == {"items": [], "next": None}
        assert "no source 'yahoo' is known here; known: none" in await get(client, "/api/sources/yahoo/symbols", 404)
        assert (await get(client, "/api/pipeline"))["sources_note"] == ""


@pytest.mark.parametrize("symbol", ["AAA", "B%2FC", "%C3%84%C3%96%25"])
async def test_one_symbol(make: Any, symbol: str) -> None:
    async with serving(filled(make)) as client:
        detail = await get(client, f"/api/symbols/{symbol}")
        assert detail["last"]["second"] == make.second + 2
        assert detail["window_5m"]["volume_5m"] == 5_000
        assert len((await get(client, f"/api/symbols/{symbol}/bars"))["items"]) == 3
        if symbol == "AAA":
            assert detail["prediction"]["horizons"][0]["horizon_s"] == 60
            assert [alert["state"] for alert in detail["alerts"]] == ["opened"]


@pytest.mark.parametrize("symbol", ["{x}", "{symbol}", "}{", "a/b", "a//b", "%", "%2F", "é", "?", "#", "+", "&=", "A B", "\\", '"', "日本"])
async def test_a_symbol_of_any_characters_has_its_answers(make: Any, symbol: str) -> None:
    live, encoded = Live(), quote(symbol, safe="")
    live.frame(0, make.frame([make.row(symbol)]))
    live.prediction(make.prediction(symbol))
    live.alert(make.alert(1, symbol=symbol))
    async with serving(live) as client:
        assert (await get(client, URL(f"/api/symbols/{encoded}", encoded=True)))["symbol"] == symbol
        assert len((await get(client, URL(f"/api/symbols/{encoded}/bars", encoded=True)))["items"]) == 1
        for kind in ("alerts", "predictions"):
            (item,) = (await get(client, URL(f"/api/{kind}?symbol={encoded}", encoded=True)))["items"]
            assert item["symbol"] == symbol


async def test_a_symbol_in_another_unicode_form_is_the_same(make: Any) -> None:
    live = Live()
    live.frame(0, make.frame([make.row("\u00e9")]))
    async with serving(live) as client:
        assert (await get(client, URL("/api/symbols/e%CC%81", encoded=True)))["symbol"] == "\u00e9"


async def test_bars(make: Any) -> None:
    async with serving(filled(make)) as client:
        bars = await get(client, "/api/symbols/AAA/bars?interval=1s&limit=2")
        assert [bar["second"] for bar in bars["items"]] == [make.second + 1, make.second + 2]
        assert bars["next"] == str(make.second + 1)
        bars = await get(client, f"/api/symbols/AAA/bars?next={bars['next']}")
        assert [bar["second"] for bar in bars["items"]] == [make.second]
        (bar,) = (await get(client, "/api/symbols/AAA/bars?interval=1m"))["items"]
        assert (bar["volume"], bar["seconds"]) == (300, 3)
        assert (await get(client, "/api/symbols/CCC/bars"))["items"] == []


async def test_alerts_and_predictions(make: Any) -> None:
    async with serving(filled(make)) as client:
        page = await get(client, "/api/alerts?limit=1")
        assert [alert["symbol"] for alert in page["items"]] == ["BBB"]
        page = await get(client, f"/api/alerts?limit=1&next={page['next']}")
        assert [alert["symbol"] for alert in page["items"]] == ["AAA"] and page["next"] is None
        assert len((await get(client, "/api/alerts?state=open"))["items"]) == 1
        assert len((await get(client, "/api/alerts?symbol=BBB&rule=price_drop"))["items"]) == 1
        assert [p["symbol"] for p in (await get(client, "/api/predictions"))["items"]] == ["AAA", "BBB"]
        assert [p["symbol"] for p in (await get(client, "/api/predictions?symbol=BBB"))["items"]] == ["BBB"]
        assert (await get(client, "/api/predictions?symbol=CCC"))["items"] == []


async def test_numbers_have_twelve_digits_at_most_also_in_the_stream(make: Any) -> None:
    live = filled(make)
    long = 24.115000000000002
    live.frame(0, make.frame([make.row("AAA", make.second + 3, offset=50, close=long, mid=long, price=long, return_60s=-1e-5 / 3)]))
    live.prediction(make.prediction("AAA", price=long, offset=99))
    async with serving(live) as client:
        for path in ("/api/symbols", "/api/symbols/AAA", "/api/symbols/AAA/bars", "/api/predictions?symbol=AAA", "/api/pipeline"):
            async with client.get(path) as response:
                text = await response.text()
            assert re.findall(r"[:,\[]-?(?=[\d.]{14})\d+\.\d+", text) == [], path
        assert (await get(client, "/api/symbols/AAA"))["last"]["mid"] == 24.115
        columns = json.loads(events.encode("tick-summary", {"columns": events.short_columns(live.summary_columns(["AAA"]))}).split(b"data: ")[1])["columns"]
        assert columns["price"] == [24.115] and columns["return_60s"] == [-3.33333333333e-06] and columns["symbol"] == ["AAA"]
    assert live.summary_columns(["AAA"])["price"] == [long]     # only what is printed is rounded


async def test_models_and_pipeline(make: Any) -> None:
    metrics = Metrics()
    metrics.observe("score", 0.01)
    metrics.ticks_rejected("late")
    async with serving(filled(make), metrics=metrics) as client:
        (model,) = (await get(client, "/api/models"))["items"]
        assert model["auc"] is None and msgspec.convert(model, openapi.Model).partitions[0].since_offset == 7
        pipeline = await get(client, "/api/pipeline")
        assert pipeline["lag"] == [{"topic": "ticks.raw", "partition": 0, "lag": 3}] and pipeline["archive"][0]["offset"] == 41
        assert pipeline["latency_ms"]["score"]["count"] == 1 and pipeline["rejected"] == {"late": 1} and pipeline["extra"] is None
        assert pipeline["outcomes"][0]["hits"] == 1 and pipeline["views"]["symbols"] == 5
        async with client.get("/metrics") as response:
            assert 'stockstream_ticks_rejected_total{reason="late"} 1.0' in await response.text()


async def test_health() -> None:
    status = FakeStatus()
    async with serving(Live(), status) as client:
        assert await get(client, "/healthz") == {"status": "ok", "detail": "running"}
        assert await get(client, "/readyz") == {"status": "ok", "detail": "8 partitions"}
        status.is_ready = (False, "recovering 3 tables")
        assert await get(client, "/readyz", 503) == "recovering 3 tables"
        status.is_healthy = (False, "no heartbeat for 4 s")
        assert await get(client, "/healthz", 503) == "no heartbeat for 4 s"


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/api/symbols/NONE", 404, "'NONE'.*api/symbols"),
        ("/api/symbols/NONE/bars", 404, "'NONE'"),
        ("/api/alerts?symbol=NONE", 404, "'NONE'"),
        ("/api/predictions?symbol=NONE", 404, "'NONE'"),
        ("/api/nothing", 404, "/api/nothing.*/api/symbols"),
        ("/api/symbols/AAA/bars/x", 404, "/api/pipeline"),
        ("/nothing", 404, "/nothing"),
        ("/static/nothing.js", 404, "nothing.js"),
        ("/static/..%2Fviews.py", 404, "no file"),
        ("/api/symbols?limit=0", 400, "1 to 1000"),
        ("/api/alerts?rule=foo", 400, "'foo': allowed are price_drop, volume_spike"),
        ("/api/symbols?limit=1001", 400, "1 to 1000"),
        ("/api/symbols?limit=x", 400, "'x'.*1 to 1000"),
        ("/api/symbols?limit=", 400, "1 to 1000"),
        ("/api/symbols?limit=1.5", 400, "whole number"),
        ("/api/symbols?limit=" + "9" * 5_000, 400, "whole number"),
        ("/api/symbols?limit=%D9%A3", 400, "whole number"),
        ("/api/symbols?limit=1&limit=2", 400, "twice"),
        ("/api/symbols?q=" + "x" * 101, 400, "1 to 100"),
        ("/api/symbols?colour=red", 400, "'colour'.*limit, next, q"),
        ("/api/symbols/AAA?limit=3", 400, "none"),
        ("/api/symbols/AAA/bars?interval=5m", 400, "1s, 1m"),
        ("/api/symbols/AAA/bars?limit=301", 400, "1 to 300"),
        ("/api/symbols/AAA/bars?next=abc", 400, "whole number"),
        ("/api/alerts?state=new", 400, "open, opened, updated, closed"),
        ("/api/alerts?next=abc", 400, "next"),
        ("/api/gaps?next=abc", 400, "answer of /api/gaps"),
        ("/api/sources/nobody/symbols", 404, "'nobody'.*known: yahoo"),
        ("/api/sources/yahoo/symbols?state=good", 400, "'good': allowed are waiting, fresh"),
    ],
)
async def test_errors_say_why(make: Any, path: str, status: int, says: str) -> None:
    async with serving(filled(make)) as client:
        assert re.search(says, await get(client, path, status))


@pytest.mark.parametrize("path", ["/api/symbols", "/api/symbols/AAA", "/events", "/", "/healthz"])
async def test_a_wrong_method_is_405(make: Any, path: str) -> None:
    async with serving(filled(make)) as client:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            async with client.request(method, path) as response:
                assert response.status == 405
                assert "GET" in response.headers["Allow"]
                assert (await response.json())["error"]["message"].startswith(f"{method} is not allowed")


async def test_our_own_mistake_is_500_in_json(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Live, *_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Live, "symbols", fail)
    async with serving(Live()) as client:
        assert "secret" not in await get(client, "/api/symbols", 500)


async def test_the_page_asks_nobody_else(make: Any) -> None:
    async with serving(filled(make)) as client:
        async with client.get("/") as response:
            text = await response.text()
            assert response.content_type == "text/html" and "default-src 'none'" in response.headers["Content-Security-Policy"]
        assets = re.findall(r'(?:src|href)="([^"]+)"', text)
        assert assets and all(asset.startswith("/static/") for asset in assets)
        assert "style=" not in text and "onclick" not in text and "<script>" not in text and "<style" not in text
        seen = set()
        while assets:
            asset = assets.pop()
            if asset in seen:
                continue
            seen.add(asset)
            async with client.get(asset) as response:
                assert response.status == 200, asset
                tag = response.headers["ETag"]
                body = await response.text()
                assert not re.search(r"https?://(?!www\.w3\.org/)", body)
                assets += ["/static/" + name for name in re.findall(r'from "\./([^"]+)"', body)]
            async with client.get(asset, headers={"If-None-Match": tag}) as response:
                assert response.status == 304


async def test_every_view_answers_as_the_document_says(make: Any) -> None:
    async with serving(filled(make)) as client:
        document = await get(client, "/openapi.json")
        served = {resource.canonical for resource in client.app.router.resources()} if client.app else set()
        assert set(document["paths"]) == served - {"/static/{name}"} == {op.path for op in views.OPERATIONS}
        assert document["info"]["version"] == "1.2.3"
        components = {"components": document["components"]}
        checked = set()
        for path, operations in document["paths"].items():
            content = operations["get"]["responses"]["200"]["content"]
            schema = content.get("application/json", {}).get("schema")
            if schema is None:
                continue
            for symbol in ("AAA", "CCC"):
                answer = await get(client, path.replace("{symbol}", symbol).replace("{source}", "yahoo"))
                jsonschema.Draft202012Validator({**schema, **components}).validate(answer)
            checked.add(path)
            error = operations["get"]["responses"].get("404")
            if error:
                jsonschema.Draft202012Validator({**error["content"]["application/json"]["schema"], **components}).validate(
                    {"error": {"status": 404, "message": await get(client, re.sub(r"{\w+}", "NONE", path) + ("" if "{" in path else "?symbol=NONE"), 404)}}
                )
        assert len(checked) == 13
        page = document["paths"]["/api/symbols"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert not jsonschema.Draft202012Validator({**page, **components}).is_valid({"items": [{"symbol": 3}], "next": None})


async def test_the_documents_defaults_and_bounds_are_those_of_the_views(make: Any) -> None:
    async with serving(filled(make)) as client:
        document = await get(client, "/openapi.json")
        for path, operations in document["paths"].items():
            at = path.replace("{symbol}", "AAA").replace("{source}", "yahoo")
            for parameter in operations["get"]["parameters"]:
                if parameter["in"] == "query":
                    for edge, status in (("minimum", 200), ("maximum", 200)):
                        if edge in parameter["schema"]:
                            await get(client, f"{at}?{parameter['name']}={parameter['schema'][edge]}", status)
                    for choice in parameter["schema"].get("enum", []):
                        await get(client, f"{at}?{parameter['name']}={choice}")


async def read_events(response: Any, until: Callable[[dict[str, list[Any]]], bool]) -> dict[str, list[Any]]:
    got: dict[str, list[Any]] = {}
    kind = ""
    async with asyncio.timeout(PATIENCE_S):
        while not until(got):
            line = (await response.content.readline()).decode().rstrip("\n")
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                got.setdefault(kind, []).append(msgspec.json.decode(line[6:]))
    return got


async def test_events_tell_what_changes(make: Any) -> None:
    live, metrics = filled(make), Metrics()
    async with serving(live, metrics=metrics) as client:
        async with client.get("/events") as one, client.get("/events") as two:
            assert one.content_type == "text/event-stream"
            for response in (one, two):
                assert (await read_events(response, lambda got: "pipeline" in got))["pipeline"][0]["lag"]
            live.frame(0, make.frame([make.row("BBB", make.second + 9, offset=99, return_60s=None)]))
            live.prediction(make.prediction("BBB", offset=99))
            live.alert(make.alert(7, symbol="BBB"))
            for response in (one, two):
                got = await read_events(response, lambda got: {"tick-summary", "predictions", "alerts"} <= got.keys())
                columns = {"symbol": ["BBB"], "second": [make.second + 9], "price": [11.0], "return_60s": [None], "volume_5m": [5_000]}
                assert got["tick-summary"] == [{"columns": columns}]
                assert got["predictions"][0]["columns"]["symbol"] == ["BBB"]
                assert got["alerts"][0]["items"][0]["symbol"] == "BBB" and got["alerts"][0]["open_alerts"] == 2
        assert b"stockstream_web_clients" in metrics.exposition()


async def test_streams_end_with_the_server(make: Any) -> None:
    application = web.Application()
    views.mount(application, Live(), FakeStatus(), Metrics())
    server = TestServer(application)
    async with TestClient(server) as client, client.get("/events") as response:
        await response.content.readline()
        async with asyncio.timeout(PATIENCE_S):
            await server.close()
            while await response.content.readline():
                pass


async def test_a_slow_client_is_dropped_and_the_others_go_on(make: Any) -> None:
    live, metrics = Live(), Metrics()
    stream = events.Events(live, dict, metrics, interval_s=3_600)
    aborted: list[str] = []
    slow, quick = events._Client(lambda: aborted.append("slow")), events._Client(lambda: aborted.append("quick"))
    stream._clients |= {slow, quick}
    for offset in range(events.QUEUE + 1):
        live.frame(0, make.frame([make.row(offset=offset)]))
        stream.publish()
        quick.queue.get_nowait()
    assert aborted == ["slow"] and stream._clients == {quick}
    assert b"stockstream_web_slow_clients_total 1.0" in metrics.exposition()


async def test_too_many_streams_are_refused(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_CLIENTS", 1)
    async with serving(Live()) as client, client.get("/events") as response:
        await response.content.readline()
        assert "1 event streams" in await get(client, "/events", 503)


async def test_on_a_faust_app_ours_win(make: Any) -> None:
    app = faust.App("views-test", broker="kafka://127.0.0.1:1", web_enabled=True)
    server: Any = app.web
    views.mount(server.web_app, filled(make), FakeStatus(), Metrics())
    application = await server.wsgi()
    async with TestClient(TestServer(application)) as client:
        async with client.get("/") as response:
            assert "stockstream" in await response.text()
        assert (await get(client, "/api/symbols"))["items"]
        assert "/api/symbols" in await get(client, "/api/x", 404)
