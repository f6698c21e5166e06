"""A headless Chromium, spoken to over its DevTools socket: enough to open a page, ask it things and take a picture."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout, ClientWebSocketResponse

from tests.patience import PATIENCE_S

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0", "--hide-scrollbars",
)  # fmt: skip


class Page:
    """One open page; `errors` are its exceptions and console errors, `requests` the addresses it asked for."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self.errors: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a DevTools command."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=PATIENCE_S)
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return dict(message["result"])
            self._note(message)

    async def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    async def until(self, expression: str, deadline_s: float = PATIENCE_S) -> Any:
        """The expression's value once it is true."""
        async with asyncio.timeout(deadline_s):
            while not (value := await self.ask(expression)):
                await asyncio.sleep(0.05)
            return value

    async def picture(self, path: Path) -> None:
        """A PNG of what is seen."""
        path.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"]))
            case "Log.entryAdded" if message["params"]["entry"]["level"] == "error":
                self.errors.append(str(message["params"]["entry"]))
            case "Runtime.consoleAPICalled" if message["params"]["type"] == "error":
                self.errors.append(str(message["params"]["args"]))
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])


@asynccontextmanager
async def opened(url: str, profile: Path, *, width: int = 1400, height: int = 860, dark: bool = False) -> AsyncIterator[Page]:
    """The page at `url` in a browser of its own, which ends with the block."""
    assert BROWSER is not None
    process = await asyncio.create_subprocess_exec(
        BROWSER, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        port_file = profile / "DevToolsActivePort"
        async with asyncio.timeout(PATIENCE_S):
            while not port_file.exists() or "\n" not in port_file.read_text():
                await asyncio.sleep(0.05)
        port = port_file.read_text().split()[0]
        async with ClientSession(timeout=ClientTimeout(total=None)) as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                target = next(page for page in await answer.json() if page["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=1 << 26) as socket:
                page = Page(socket)
                for domain in ("Runtime", "Log", "Network", "Page"):
                    await page.call(f"{domain}.enable")
                await page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
                await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
                await page.call("Page.navigate", url=url)
                yield page
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


@pytest.fixture
def browser() -> Any:
    """`opened`, where there is a browser."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    return opened
