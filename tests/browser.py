"""Chromium without a window, driven by its DevTools protocol: what a page says, asks for and looks like."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_WITHIN = 60.0  # Seconds for a browser to start, or to answer.
_KEYS = {"ArrowRight": 39}


@dataclass
class Page:
    """An open page; `complaints` is what its console has said, `requests` all that it has asked for."""

    socket: aiohttp.ClientWebSocketResponse
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _events: set[str] = field(default_factory=set)
    _count: int = 0

    async def ask(self, method: str, **params: Any) -> Any:
        """The protocol's answer to a command."""
        self._count += 1
        await self.socket.send_json({"id": self._count, "method": method, "params": params})
        while True:
            message = await self._receive()
            if message.get("id") == self._count:
                assert "error" not in message, message
                return message["result"]

    async def open(self, url: str) -> None:
        """Go there, and come back when all of it is loaded."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.ask(f"{domain}.enable")
        await self.ask("Page.navigate", url=url)
        while "Page.loadEventFired" not in self._events:
            await self._receive()

    async def go(self, url: str) -> None:
        """Go to another place of a page that loads nothing anew: what it shows there is to be waited for."""
        await self.ask("Page.navigate", url=url)

    async def wait_for(self, script: str) -> Any:
        """The value of an expression, as soon as it is one that counts as true."""
        deadline = time.monotonic() + _WITHIN
        while not (value := await self.run(script)):
            assert time.monotonic() < deadline, f"not within {_WITHIN:.0f} s: {script}"
            await asyncio.sleep(0.1)
        return value

    async def press(self, key: str) -> None:
        """A key, such as `ArrowRight`, for what has the focus."""
        for kind in ("keyDown", "keyUp"):
            await self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_KEYS[key])

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = await self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def resize(self, width: int, height: int = 900) -> None:
        """Show it in a window of that many pixels."""
        await self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def prefer(self, scheme: str) -> None:
        """Show it to somebody who likes `light` or `dark` pages."""
        await self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def screenshot(self, file: Path) -> None:
        """What is seen now, as a PNG."""
        answer = await self.ask("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(answer["data"]))

    async def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = await self.socket.receive_json(timeout=_WITHIN)
        method, params = message.get("method", ""), message.get("params", {})
        self._events.add(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(str(params))
        return message


async def check_page(page: Page, file: Path, folder: Path) -> None:
    """Assert that a file's page asks nobody for anything, fits a telephone and a desk, and shows its images."""
    assert [one for one in page.requests if not one.startswith("data:")] == [file.as_uri()]
    for width in (390, 1440):
        await page.resize(width)
        assert await page.run("document.documentElement.scrollWidth") <= width
        await page.screenshot(folder / f"{width}.png")
    assert await page.run("[...document.images].every(one => one.naturalWidth > 0)")


@asynccontextmanager
async def open_page(url: str, profile: Path) -> AsyncIterator[Page]:
    """A page in a browser of its own, whose files go to `profile` and which can reach no other machine."""
    assert CHROMIUM is not None
    arguments = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
        *(
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
        ),
    ]
    with subprocess.Popen([CHROMIUM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            port = await _port(profile / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
                    address = (await answer.json(content_type=None))["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    page = Page(socket)
                    await page.open(url)
                    yield page
        finally:
            browser.terminate()


async def _port(file: Path) -> int:
    for _ in range(int(_WITHIN / 0.1)):
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        await asyncio.sleep(0.1)
    raise TimeoutError(f"{CHROMIUM} has not started in {_WITHIN:.0f} s")
