"""Yahoo's REST service through yfinance's own session, cookie and crumb: quotes, and one-minute bars.

yfinance is synchronous. Its calls run in threads, one at a time, each with a time limit. What replaces or reads parts of yfinance stands in this module, and
`tests/unit/sources/test_yahoo_query.py` runs it against the real package.
"""

from __future__ import annotations

import asyncio
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote as quote_path
from urllib.parse import urlsplit

import numpy as np

from stockstream.errors import BrokerError, SourceError
from stockstream.sources.base import SourceUnavailable
from stockstream.sources.quota import Grant, Scheduler
from stockstream.threads import in_thread

logger = logging.getLogger(__name__)

MAX_SYMBOLS = 99
"""The most symbols of one request of quotes: Yahoo answers no more."""
MAX_BARS_S = 7 * 86_400
"""The longest time of one request of one-minute bars. Yahoo's limit is 8 days."""
REQUEST_S = 10.0
"""Time limit of one HTTP request."""
CALL_S = 35.0
"""Time limit of one call: with a new cookie and crumb, and with yfinance's second attempt after a refusal, it makes up to seven requests."""
MINUTE_MS = 60_000
ACCOUNT_S = 15.0
FIRST_REQUESTS = 3
"""HTTP requests of a first call: cookie, crumb, and its own."""
HOST = "yahoo.com"
_LIMITED = "Too Many Requests"
LIMITED = f"Yahoo limits the requests of this address (429 {_LIMITED})"


class YahooLimited(SourceUnavailable):
    """Yahoo refuses requests from this address for some minutes (429)."""


class YahooRefused(SourceUnavailable):
    """Yahoo accepts neither cookie nor crumb. The next call begins with new ones."""


class YahooQuery:
    """The REST service; one for a process, because yfinance has one session in a process.

    Its methods raise `SourceUnavailable`, or `YahooLimited` and `YahooRefused`, which are kinds of it.

    Args:
        url: replaces the scheme and host of every address; yfinance's own addresses if empty.
        quota: the budget of requests.
        folder: where yfinance keeps its cookie between starts.
    """

    def __init__(self, url: str, quota: Scheduler, folder: Path) -> None:
        self._url, self.quota, self._folder = url.rstrip("/"), quota, folder
        self._one = asyncio.Lock()
        self._session: Any = None
        self._made = self._limited = 0
        """HTTP requests, and those that were answered with 429."""

    async def quotes(self, symbols: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The quotes by symbol, as Yahoo answers them (at most MAX_SYMBOLS symbols a call). Symbols that Yahoo does not know are left out."""
        if len(symbols) > MAX_SYMBOLS:
            raise ValueError(f"{len(symbols)} symbols, at most {MAX_SYMBOLS} at once")
        if not symbols:
            return {}
        params = {"symbols": ",".join(symbols), "formatted": "false", "lang": "en-US", "region": "US"}
        status, answer = await self._call("_QUERY1_URL_", "/v7/finance/quote", params, symbols)
        found = _result(answer, "quoteResponse", status)
        return {quote["symbol"]: quote for quote in found if isinstance(quote, dict) and isinstance(quote.get("symbol"), str)}

    async def bars(self, symbol: str, first: int, end: int) -> list[tuple[int, float, float, float, float, float]]:
        """The one-minute bars that begin in [first, end), epoch ms: start (epoch ms), open, high, low, close, volume; minutes without a trade are left out.

        Empty where Yahoo has none, or does not know the symbol. [first, end) is at most MAX_BARS_S long.
        """
        params = {
            "period1": first // 1000, "period2": -(-end // 1000), "interval": "1m", "includePrePost": "true", "events": "div,splits",
        }  # fmt: skip
        status, answer = await self._call("_BASE_URL_", f"/v8/finance/chart/{quote_path(symbol)}", params, [symbol])
        if status in (400, 404, 422):
            return []
        return [bar for bar in _bars(_result(answer, "chart", status)) if first <= bar[0] < end]

    async def stop(self) -> None:
        """Closes the connections of the budget."""
        await self.quota.stop()

    async def _call(self, base: str, path: str, params: Mapping[str, Any], symbols: Sequence[str]) -> tuple[int, Any]:
        """HTTP status and decoded body of an answer that is JSON. Every HTTP request of the call counts in the budget."""
        async with self._one:
            grants = [await self.quota.acquire(symbols)]
            while self._session is None and len(grants) < FIRST_REQUESTS:
                grants.append(await self.quota.acquire())
            before, fault = self._made, None
            try:
                answer = await self._answer(base, path, params)
            except SourceUnavailable as error:
                fault = error
            finally:
                await self._account(grants, self._made - before)
            if fault is not None:                                        # after the account, which a pause would hold up
                await self.quota.report("rate" if isinstance(fault, YahooLimited) else "unanswered", reason=str(fault))
                raise fault
            await self.quota.report(None)
            return answer

    async def _answer(self, base: str, path: str, params: Mapping[str, Any]) -> tuple[int, Any]:
        try:
            async with asyncio.timeout(CALL_S):
                status, text = await in_thread(partial(self._get, base, path, params), "yahoo")
        except TimeoutError:
            self._session = None
            raise SourceUnavailable(f"Yahoo did not answer {path.rpartition('/')[0]} within {CALL_S:.0f} s") from None
        return status, _decoded(status, text)

    async def _account(self, grants: Sequence[Grant], made: int) -> None:
        """Gives back the requests that were not made, and counts those made beyond the grants: yfinance tries again after a refusal."""
        try:
            async with asyncio.timeout(ACCOUNT_S):
                for grant in grants[made:]:
                    await self.quota.give_back(grant)
                for _ in range(made - len(grants)):
                    await self.quota.acquire()
        except (SourceUnavailable, BrokerError, TimeoutError) as error:
            logger.warning("yahoo: the budget of requests is not exact: %s", str(error) or "timed out")

    # ---- in a thread

    def _get(self, base: str, path: str, params: Mapping[str, Any]) -> tuple[int, str]:
        warnings.filterwarnings("ignore", message="SOCKS support in urllib3")              # of its import of requests, which makes none of our requests
        import yfinance
        from yfinance import const
        from yfinance.data import YfData
        from yfinance.exceptions import YFException, YFRateLimitError

        session, fresh = self._session, self._session is None
        if fresh:
            self._folder.mkdir(parents=True, exist_ok=True)
            yfinance.set_tz_cache_location(str(self._folder))
            logging.getLogger("yfinance").setLevel(logging.ERROR)        # its warnings repeat what our errors state
            session = self._session = _session(self._url, self._count)
        data = YfData(session=session)
        if fresh:
            data._cookie = data._crumb = None                            # of an earlier session: yfinance would use them again
        limited = self._limited
        try:
            response = data.get(f"{getattr(const, base)}{path}", params=dict(params), timeout=REQUEST_S)
            status, text = int(response.status_code), str(response.text)
        except YFRateLimitError:
            self._forget(data)
            raise YahooLimited(LIMITED) from None
        except YFException as error:
            self._forget(data)
            raise SourceUnavailable(f"yfinance: {error}") from error
        except Exception as error:
            self._forget(data)
            raise SourceUnavailable(f"Yahoo does not answer: {_of_curl(error)}") from error
        if status == 429 or _LIMITED in text[:200] or (status in (401, 403) and self._limited > limited):
            self._forget(data)
            raise YahooLimited(LIMITED)
        if status in (401, 403):
            self._forget(data)
            raise YahooRefused(f"Yahoo refuses cookie or crumb ({status}): {_description(text)}")
        if data._cookie is None:
            data._cookie = True                                          # the session has it; yfinance would request it before each call
        return status, text

    def _forget(self, data: Any) -> None:
        """Makes the next call begin with a new cookie and crumb: yfinance keeps even the text of an error as its crumb."""
        self._session = data._cookie = data._crumb = None

    def _count(self, status: int) -> None:
        self._made += 1
        self._limited += status == 429


def _of_curl(error: Exception) -> str:
    """The text of an error of curl without what surrounds it; of another error with its type."""
    text = str(error).partition(" See https://curl.se")[0].removeprefix("Failed to perform, ")
    return text if text.startswith("curl: ") else f"{type(error).__name__}: {text}"


def _session(elsewhere: str, count: Callable[[int], None]) -> Any:
    """A session as yfinance creates it, which counts its requests, bounds their time, and sends those to Yahoo's hosts `elsewhere` if that is not empty."""
    from yfinance._http import new_session

    session = new_session()
    request = session.request

    def send(method: str, url: str, **options: Any) -> Any:
        options["timeout"] = min(options.get("timeout") or REQUEST_S, REQUEST_S)
        status = 0
        try:
            response = request(method, redirected(url, elsewhere), **options)
            status = response.status_code
        finally:
            count(status)                                                # also one without an answer: it was made
        return response

    session.request = send
    return session


def redirected(address: str, elsewhere: str) -> str:
    """The address with scheme and host of `elsewhere`, if it is one of Yahoo's and `elsewhere` is not empty."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    if not elsewhere or not (host == HOST or host.endswith(f".{HOST}")):
        return address
    query = f"?{parts.query}" if parts.query else ""
    return f"{elsewhere.rstrip('/')}{parts.path}{query}"


# ---- answers


def _decoded(status: int, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    kind = "HTML" if "<html" in text[:1000].lower() else "no JSON"
    raise SourceUnavailable(f"Yahoo answered {kind} instead of data (HTTP {status}); it may be down")


def _result(answer: Any, endpoint: str, status: int) -> list[Any]:
    body = answer.get(endpoint) or answer.get("finance") if isinstance(answer, dict) else None
    result = body.get("result") if isinstance(body, dict) else None
    if not isinstance(result, list):
        raise SourceUnavailable(f"Yahoo reports an error (HTTP {status}): {_description(json.dumps(answer))}")
    return result


def _description(text: str) -> str:
    """The description in an error's body, else its beginning."""
    try:
        body = next(iter(json.loads(text).values()))
        error = body["error"]
        return f"{error.get('code', '')}: {error.get('description', '')}"[:200]
    except (ValueError, AttributeError, KeyError, TypeError, StopIteration):
        return " ".join(text[:200].split())


def _bars(result: Sequence[Any]) -> list[tuple[int, float, float, float, float, float]]:
    try:
        chart = result[0]
        starts = chart.get("timestamp") or []
        columns = chart["indicators"]["quote"][0]
        rows = list(zip(starts, *(columns.get(name) or [None] * len(starts) for name in ("open", "high", "low", "close", "volume")), strict=True))
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise SourceError(f"Yahoo's chart has another shape than expected: {type(error).__name__}: {error}") from error
    bars: dict[int, tuple[int, float, float, float, float, float]] = {}
    for start, *prices, volume in rows:
        if start % 60 or any(price is None or not price > 0 for price in prices):    # the last trade, which Yahoo appends; a minute without a trade
            continue
        open_, high, low, close = map(plain, prices)
        bars[start] = start * 1000, open_, max(high, open_, close), min(low, open_, close), close, float(volume or 0)
    return [bars[start] for start in sorted(bars)]


def plain(price: float) -> float:
    """The shortest decimal of a price that is a float32: 244.6 for 244.60000610351562. Any other price stays as it is."""
    narrow = np.float32(price)
    return float(str(narrow)) if float(narrow) == price else float(price)
