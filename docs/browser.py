"""A headless Chromium for pictures of pages, driven over its own debugging protocol.

    async with browser() as page:
        await page.open("http://127.0.0.1:8265")
        await page.until("document.title")
        await page.picture(Path("page.png"))

Debian's package `chromium` is enough.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",  # containers have no user namespaces; only pages of this machine are opened
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    "about:blank",
)
PATIENCE_S = 300.0


def program() -> str | None:
    """The browser of this machine, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Navigated(Exception):
    """The page went elsewhere while it was asked."""


class Page:
    """The one page of a browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        """What the browser told by itself, of the domains that were enabled (``call("Network.enable")``)."""

    async def open(self, address: str) -> None:
        await self.call("Page.navigate", url=address)

    async def evaluate(self, script: str) -> Any:
        """What ``script`` comes to; an error in it is raised."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def until(self, script: str) -> Any:
        """The first true value of ``script``, asked again and again, also of the page that the one goes to.

        Raises ``TimeoutError`` in the end.
        """
        end = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            try:
                if value := await self.evaluate(script):
                    return value
            except Navigated:
                pass
            if asyncio.get_running_loop().time() > end:
                text = await self.evaluate("document.body.innerText")
                raise TimeoutError(f"{script} stays false; the page says: {text[:2000]}")
            await asyncio.sleep(0.2)

    async def type(self, text: str) -> None:
        """Types into whatever has the focus."""
        await self.call("Input.insertText", text=text)

    async def size(self, width: int, height: int) -> None:
        """The window, in pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def picture(self, path: Path) -> None:
        """Writes what is seen as a PNG."""
        answer = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One call of the protocol, and its result."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async for message in self._socket:
            answer = json.loads(message.data)
            if "id" not in answer:
                self.events.append(answer)
            elif answer["id"] == number:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise Navigated(method)
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
        raise RuntimeError(f"{method}: the browser closed the connection")


@asynccontextmanager
async def browser(width: int = 1280, height: int = 800) -> AsyncIterator[Page]:
    """A browser with a profile of its own, which is gone afterwards. Raises ``RuntimeError`` if there is none."""
    path = program()
    if path is None:
        raise RuntimeError("no Chromium on this machine; on Debian: apt install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            path, f"--user-data-dir={profile}", *FLAGS, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            port = await _port(Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    target = next(t for t in await answer.json() if t["type"] == "page")
                async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    page = Page(socket)
                    await page.size(width, height)
                    yield page
        finally:
            process.kill()
            await process.wait()


async def _port(file: Path) -> int:
    """The port of the debugging protocol, which the browser writes into ``file`` when it is up."""
    end = asyncio.get_running_loop().time() + PATIENCE_S
    while not file.exists() or not file.read_text().strip():
        if asyncio.get_running_loop().time() > end:
            raise TimeoutError("the browser did not start")
        await asyncio.sleep(0.1)
    return int(file.read_text().split()[0])
