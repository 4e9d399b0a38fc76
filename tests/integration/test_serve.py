"""jobs.serve as people meet it: a page in a browser, and fifty clients that click at once."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from pipelines.toy.scenes import draw_scene
from semsam.data import rle
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import ImageSize, Predictor
from tests.browser import CHROMIUM, Page, open_page
from tests.conftest import ROOT
from tests.free_ports import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

CLIENTS = 50
IMAGE_SIZE = ImageSize(64, 96)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a job that serves random weights, and that ends when it is told to."""
    [port] = free_ports(1)
    command = [sys.executable, "-m", "jobs.serve", f"port={port}", "image_size={short_side: 64, max_long_side: 96}"]
    command += ["objects=[car, dog]"]
    said = tmp_path_factory.mktemp("serve") / "said"
    with said.open("wb") as file:
        job = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=os.environ)
    deadline = time.monotonic() + 240
    while f"serving random weights, debug at http://127.0.0.1:{port}\n" not in said.read_text():
        assert job.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 128 + signal.SIGTERM, said.read_text()
    lines = [line for line in said.read_text().splitlines() if line]
    assert len(lines) == 2, said.read_text()  # Where it serves, and that it was ended.


def photo(seed: int, height: int = 120, width: int = 160) -> bytes:
    """A picture that is no other's."""
    rng = np.random.default_rng(seed)
    pixels = np.kron(rng.integers(0, 256, (height // 20, width // 20, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def counts_of(answer: dict[str, Any]) -> set[str]:
    return {mask["rle"]["counts"] for mask in answer["masks"]}


def test_fifty_clients_that_click_at_once_each_have_their_own_answers(server: str) -> None:
    own = Predictor(SemanticSam.untrained("debug"), IMAGE_SIZE)
    own.set_vocabulary(["car", "dog"], [])

    def client(number: int) -> tuple[list[float], list[set[str]]]:
        took, found = [], []
        with httpx.Client(base_url=server, timeout=120) as http:
            while (image := http.post("/api/images", content=photo(number))).status_code == 429:
                time.sleep(float(image.headers["retry-after"]))
            for click in range(4):
                prompt = {"points": [{"x": 10 + 30 * click, "y": 20 + number}], "objects": ["car", "dog"]}
                begun = time.perf_counter()
                while (answer := http.post(f"/api/images/{image.json()['id']}/answer", json=prompt)).status_code == 429:
                    time.sleep(float(answer.headers["retry-after"]))
                assert answer.status_code == 200, answer.text
                took.append(1000 * (time.perf_counter() - begun))
                found.append(counts_of(answer.json()))
        return took, found

    [replica] = [one for one in psutil.process_iter() if "ServeReplica" in " ".join(_command(one))]
    before = replica.memory_info().rss
    alone, _ = client(CLIENTS)
    with ThreadPoolExecutor(CLIENTS) as pool:
        results = list(pool.map(client, range(CLIENTS)))
    for number, (_, found) in enumerate(results):
        own.set_image(photo(number))
        for click, counts in enumerate(found):
            masks = own.predict(points_xy=[[10 + 30 * click, 20 + number]]).masks[0]
            assert counts == {rle.encode(mask).decode() for mask in masks if mask.any()}
    times = np.sort(np.concatenate([took for took, _ in results]))
    grown = (replica.memory_info().rss - before) / 2**20
    print(f"one client: {np.median(alone):.0f} ms; {CLIENTS}: median {np.median(times):.0f} ms, 95% within ", end="")
    print(f"{np.quantile(times, 0.95):.0f} ms; memory grew by {grown:.0f} MiB")
    assert grown < 400


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class Visitor:
    """Somebody at the page: a mouse, a keyboard and eyes."""

    def __init__(self, page: Page, pictures: Path) -> None:
        self.page, self.pictures = page, pictures

    async def choose(self, file: Path) -> None:
        """Open a file by the page's button."""
        document = await self.page.ask("DOM.getDocument")
        node = await self.page.ask("DOM.querySelector", nodeId=document["root"]["nodeId"], selector="#file")
        await self.page.ask("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(file)])
        await self.page.wait_for("!document.getElementById('view').hidden")

    async def click(self, x: float, y: float, to: tuple[float, float] | None = None, button: str = "left") -> None:
        """Press the mouse at a place of the image, given as shares of its sides; drag it `to` another."""
        await self.page.run("document.getElementById('view').scrollIntoView({block: 'center'})")
        area = await self.page.run(
            "JSON.parse(JSON.stringify(document.getElementById('view').getBoundingClientRect()))"
        )
        places = [(x, y)] if to is None else [(x, y), ((x + to[0]) / 2, (y + to[1]) / 2), to]
        at = [(area["x"] + u * area["width"], area["y"] + v * area["height"]) for u, v in places]
        kinds = ["mousePressed", *["mouseMoved"] * (len(at) - 1), "mouseReleased"]
        for kind, (left, top) in zip(kinds, [*at, at[-1]], strict=True):
            await self.page.ask("Input.dispatchMouseEvent", type=kind, x=left, y=top, button=button, clickCount=1)

    async def press(self, selector: str) -> None:
        """Click a control."""
        await self.page.run(f"document.querySelector({selector!r}).click()")

    async def wait_for_masks(self) -> int:
        """How many there are, once an answer is shown."""
        await self.page.wait_for("document.getElementById('masks').children.length > 0")
        return int(await self.page.run("document.getElementById('masks').children.length"))

    async def see(self, name: str) -> None:
        """Keep what is seen, at a desk and on a telephone."""
        for width, height in ((1440, 900), (390, 844)):
            await self.page.resize(width, height)
            await asyncio.sleep(0.3)
            assert await self.page.run("document.documentElement.scrollWidth") <= width
            await self.page.screenshot(self.pictures / f"{name}-{width}.png")
        await self.page.resize(1440, 900)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_visitor_clicks_slides_names_and_downloads(server: str, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("SEMSAM_SCREENSHOTS", tmp_path))
    scene = tmp_path / "scene.jpg"
    Image.fromarray(draw_scene(np.random.default_rng(4), ["car", "dog"], 0.0).image).save(scene)
    asyncio.run(visit(server, scene, pictures, tmp_path))


async def visit(server: str, scene: Path, pictures: Path, folder: Path) -> None:
    downloads = folder / "downloads"
    downloads.mkdir()
    async with open_page(server, folder / "profile") as page:
        visitor = Visitor(page, pictures)
        await page.resize(1440, 900)
        await page.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        await visitor.see("empty")
        await visitor.choose(scene)
        await visitor.click(0.5, 0.6)
        masks = await visitor.wait_for_masks()
        assert await page.run("document.querySelector('#masks b').textContent.split(' ')[0]") in ("car", "dog")
        assert re.search(r"^\d+ ms: ", await page.run("document.getElementById('time').textContent"))
        await page.run("document.getElementById('slider').focus()")
        before = await page.run("document.getElementById('slider').value")
        if masks > 1:
            await page.run(f"document.getElementById('slider').value = {0 if before != '0' else 1}")
            await page.run("document.getElementById('slider').dispatchEvent(new Event('input'))")
            assert await page.run("document.getElementById('slider').value") != before
        await visitor.see("click")
        await visitor.press("[name=tool][value=negative]")
        await page.run("document.getElementById('masks').replaceChildren()")
        await visitor.click(0.1, 0.1)
        await visitor.wait_for_masks()
        await page.run("document.getElementById('masks').replaceChildren()")
        await page.run("document.getElementById('objects').value = 'zebra, tram'")
        await page.run("document.getElementById('objects').dispatchEvent(new Event('change'))")
        await page.wait_for("/^(zebra|tram) /.test(document.querySelector('#masks b')?.textContent)")
        await visitor.press("[name=tool][value=box]")
        await page.run("document.getElementById('masks').replaceChildren()")
        await visitor.click(0.3, 0.3, to=(0.7, 0.8))
        await visitor.wait_for_masks()
        await visitor.see("box")
        for suffix in ("png", "rle.json", "coco.json"):
            await visitor.press(f"[data-format='{suffix}']")
            await _wait_for_file(downloads / f"scene.{suffix}")
        await page.prefer("dark")
        await page.run("document.getElementById('masks').replaceChildren()")
        await visitor.press("#everything")
        # Random weights are seldom sure of anything, and then the page says so.
        nothing = "document.getElementById('busy').textContent === 'Nothing that the model is sure of'"
        await page.wait_for(f"document.getElementById('masks').children.length > 0 || {nothing}")
        await visitor.see("everything")
        await visitor.press("#clear")
        await page.wait_for("document.getElementById('masks').children.length === 0")
        assert page.complaints == []
        assert all(one.startswith((server, "data:", "blob:")) for one in page.requests)


async def _wait_for_file(path: Path) -> None:
    for _ in range(300):
        if path.exists() and path.stat().st_size:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{path.name} was not downloaded: {[one.name for one in path.parent.iterdir()]}")
