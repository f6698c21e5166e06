"""The page in a real browser, over a `Live` filled by hand: it draws, it follows the stream, it asks nobody but this worker."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
import pytest_asyncio
from aiohttp import web

from stockstream.metrics import Metrics
from stockstream.records import SHARES, WINDOWS_SCHEMA, Alert, Closing, Outcome, SourceReport
from stockstream.sources.sessions import Sessions
from stockstream.transforms.frames import Frame
from stockstream.web import views
from stockstream.web.live import Live

pytestmark = pytest.mark.asyncio

SECOND = 1_700_000_000
NOTE = "no predictions: model xgboost 1 is suspended (not finite: <b>numbers</b>)"
ROWS = "document.querySelectorAll('.row:not([hidden])').length"


class Status:
    def ready(self) -> tuple[bool, str]:
        return True, "ready"

    def healthy(self) -> tuple[bool, str]:
        return True, "healthy"

    def pipeline(self) -> dict[str, Any]:
        return {"lag": [{"topic": "ticks.raw", "partition": 0, "lag": 1}], "models_note": NOTE}

    def models(self) -> list[dict[str, Any]]:
        return [{"name": "xgboost", "version": "1", "role": "champion", "state": "suspended"}]


def frame(symbols: list[str], offset: int, price: float, begin: int = SECOND) -> Frame:
    row: dict[str, Any] = {f.name: 1 if pa.types.is_integer(f.type) or f.name in SHARES else None for f in WINDOWS_SCHEMA}
    row |= {"source": "simulated.1", "second": begin + offset, "offset": offset, "quality": "", "revised": False, "price": price}
    rows = pa.RecordBatch.from_pylist([{**row, "symbol": symbol} for symbol in symbols], schema=WINDOWS_SCHEMA)
    return Frame("1", 0, offset, (Closing(offset, "simulated.1", begin, begin + offset),), rows)


def alert(state: Any) -> bytes:
    return msgspec.json.encode(Alert(
        id="S00003:price_drop:1", symbol="S00003", rule="price_drop", state=state, severity="critical", opened_at=SECOND * 1_000, as_of=SECOND * 1_000,
        value=-0.02, baseline=10.0, threshold=-0.01, message="<b>2 % below</b> the price 60 s before", window={},
    ))  # fmt: skip


def outcome(as_of: int, realised: float) -> bytes:
    return msgspec.json.encode([Outcome(
        id=f"S00003:{as_of}", symbol="S00003", as_of=as_of, horizon_s=10, predicted_return=0.1, p_up=0.6, model="xgboost", version="1", role="champion",
        realised_return=realised, price_then=10.0, judged_at=as_of,
    )])  # fmt: skip


def failed(reason: str) -> bytes:
    now = time.time_ns() // 1_000_000
    return msgspec.json.encode(SourceReport(
        source="yahoo", worker="host:1", name="yahoo", state="failed", reason=reason, since=now, next_attempt=None, failures=1, symbols=1, at=now,
    ))  # fmt: skip


@pytest_asyncio.fixture
async def served() -> AsyncIterator[tuple[str, Live]]:
    live, application = Live(sessions=Sessions(lambda calendar, year: [(0, 1 << 42, "closed")])), web.Application()
    views.mount(application, live, Status(), Metrics())
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield "http://{}:{}".format(*runner.addresses[0][:2]), live
    await runner.cleanup()


@pytest.mark.parametrize("dark", [False, True])
async def test_the_page(browser: Any, served: tuple[str, Live], tmp_path: Path, dark: bool) -> None:
    url, live = served
    async with browser(url + "/", tmp_path, dark=dark) as page:
        await page.until("document.getElementById('empty')?.hidden === false")
        empty = await page.ask("document.getElementById('empty').textContent")
        assert "Waiting for the first closed second" in empty and "stockstream watch add AAPL MSFT --source yahoo" in empty
        assert await page.ask("document.getElementById('sources-note').hidden") is True

        live.metadata("S00004", b'{"exchange": "NMS"}')
        symbols = [f"S{i:05d}" for i in range(3_000)]
        live.frame(0, frame(symbols, 1, 12.5))
        await page.until("document.getElementById('symbols').textContent === '3,000'")
        await page.until(f"{ROWS} > 10")
        assert await page.ask(ROWS) < 60
        assert "12.50" in await page.ask("document.querySelector('.row').textContent")

        await page.ask("document.getElementById('table').scrollTop = 1e9")
        await page.until("[...document.querySelectorAll('.row:not([hidden]) a')].some((a) => a.textContent === 'S02999')")
        await page.ask("document.getElementById('filter').value = 's00003'; document.getElementById('filter').dispatchEvent(new Event('input'))")
        await page.until(f"{ROWS} === 1")

        live.frame(0, frame(["S00003"], 2, 99.5))
        await page.until("document.querySelector('.row:not([hidden])').textContent.includes('99.50')")

        strange = ["q{x}", "qa/b", "q%", "qé", "q?", "q#"]
        live.frame(0, frame(strange, 3, 0.000318))
        await page.ask("document.getElementById('filter').value = 'q'; document.getElementById('filter').dispatchEvent(new Event('input'))")
        await page.until(f"{ROWS} === {len(strange)}")
        links = "[...document.querySelectorAll('.row:not([hidden]) a')].map((a) => fetch(a.href).then((answer) => answer.json()).then(({symbol}) => symbol))"
        assert sorted(await page.ask(f"Promise.all({links})")) == sorted(strange)
        assert "0.000318" in await page.ask("document.querySelector('.row:not([hidden])').textContent")
        await page.ask("document.getElementById('filter').value = 's00003'; document.getElementById('filter').dispatchEvent(new Event('input'))")
        await page.until(f"{ROWS} === 1")

        assert "stale, " in await page.ask("document.querySelector('.row:not([hidden])').textContent")
        live.frame(0, frame(["S00003"], 4, 99.75, int(time.time())))
        await page.until("!document.querySelector('.row:not([hidden])').textContent.includes('stale')")

        await page.ask("document.getElementById('filter').value = 's00004'; document.getElementById('filter').dispatchEvent(new Event('input'))")
        await page.until("document.querySelector('.row:not([hidden])').textContent.includes('closed, ')")
        await page.ask("document.getElementById('filter').value = 's00003'; document.getElementById('filter').dispatchEvent(new Event('input'))")
        await page.until(f"{ROWS} === 1")

        live.sources.report(b"yahoo@host:1", failed("no network: <b>nothing</b> answers"))
        note = await page.until("!document.getElementById('sources-note').hidden && document.getElementById('sources-note').textContent")
        assert note == "yahoo has failed: no network: <b>nothing</b> answers"
        live.sources.report(b"yahoo@host:1", None)
        await page.until("document.getElementById('sources-note').hidden")

        live.alert(alert("opened"))
        await page.until("document.querySelector('#alert-list li')?.textContent.includes('<b>2 % below</b>')")
        assert "alert" in await page.ask("document.querySelector('.row:not([hidden])').textContent")
        live.alert(alert("closed"))
        await page.until("document.querySelectorAll('#alert-list li').length === 0")

        assert "ticks.raw" in await page.until("document.getElementById('pipeline').textContent")
        assert await page.ask("document.getElementById('models-note').textContent") == NOTE
        assert await page.ask("document.getElementById('models-note').hidden") is False

        live.outcomes(outcome(1, realised=0.0))
        await page.until("document.getElementById('pipeline').textContent.includes('no moves yet')")
        live.outcomes(outcome(2, realised=-0.1))
        live.outcomes(outcome(3, realised=0.1))
        await page.until("document.getElementById('pipeline').textContent.includes('50.0 %')")
        assert page.errors == []
        assert page.requests and all(request.startswith(url + "/") for request in page.requests)
