"""Measures the demo: where the time goes between a click and the painted mask, many visitors at once, and memory.

    python scripts/benchmark_demo.py latency --rounds 9      # needs playwright and a Chromium
    python scripts/benchmark_demo.py load --visitors 50
    python scripts/benchmark_demo.py memory --images 500

Server and browser share this machine. The photo is an embedded scene of 1600 x 1200 pixels, the model the shipped one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
os.environ.setdefault("GRADIO_TEMP_DIR", tempfile.mkdtemp(prefix="hfseg-demo-"))

import httpx
from PIL import Image

from hfseg.data.shapes import scene
from hfseg.demo import start

MODEL = "hfseg/shapes-segformer"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def photo(folder: Path, number: int, size: tuple[int, int]) -> Path:
    """Writes a scene as a JPEG file."""
    file = folder / f"scene-{number}.jpg"
    Image.fromarray(scene(0, 1_000_000 + number, "source", size).image).save(file, quality=92)
    return file


def latency(url: str, folder: Path, rounds: int) -> None:
    """Prints the parts, in milliseconds: median over the rounds, after two that warm up."""
    from playwright.sync_api import sync_playwright

    file = photo(folder, 3, (1200, 1600))
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(url)
        page.wait_for_selector(".hv")
        page.set_input_files("#photo input[type=file]", str(file))
        before = "0"
        for round_ in range(rounds + 2):
            page.wait_for_function("before => document.querySelector('.hv').dataset.painted !== before", arg=before)
            before = page.get_attribute(".hv", "data-painted")
            if round_ >= 2:
                found.append(page.evaluate("window.hfsegViewer.times"))
            if round_ < rounds + 1:
                page.click("#segment")
        browser.close()
    names = list(found[0]["parts"])
    medians = {name: statistics.median(one["parts"][name] for one in found) for name in names}
    print("| part | ms |\n|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.0f} |")
    for name in ("total", "beside"):
        print(f"| {name} | {statistics.median(one[name] for one in found):.0f} |")


def load(url: str, folder: Path, visitors: int) -> None:
    """Prints how many visitors at once were served, told that the page is busy, or dropped."""
    file = photo(folder, 3, (480, 640))

    async def visit(client: httpx.AsyncClient) -> tuple[str, float]:
        began = time.perf_counter()
        try:
            [path] = (await client.post("gradio_api/upload", files={"files": (file.name, file.read_bytes())})).json()
            data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, MODEL, "",
                    "automatic", [], "as it is", None, 0.5, 0.5]
            event = (await client.post("gradio_api/call/segment", json={"data": data})).json()["event_id"]
            text = (await client.get(f"gradio_api/call/segment/{event}")).text
        except httpx.HTTPError as error:
            return f"dropped: {type(error).__name__}", 0
        kind = "served" if "event: complete" in text else "told" if "queue is full" in text.lower() else text[:80]
        return kind, time.perf_counter() - began

    async def all_of_them() -> list[tuple[str, float]]:
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
            return await asyncio.gather(*(visit(client) for _ in range(visitors)))

    answers = asyncio.run(all_of_them())
    for kind in sorted({kind for kind, _ in answers}):
        waits = [seconds for one, seconds in answers if one == kind]
        print(f"{kind}: {len(waits)} of {visitors}, median {statistics.median(waits):.1f} s, last {max(waits):.1f} s")


def memory(url: str, folder: Path, images: int) -> None:
    """Prints the memory of this process, server and client, as images go by; no two are the same."""
    status = Path("/proc/self/status")

    def resident() -> float:
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) / 1024

    with httpx.Client(base_url=url, timeout=600) as client:
        for number in range(1, images + 1):
            content = photo(folder, number, (480, 640)).read_bytes()
            [path] = client.post("gradio_api/upload", files={"files": (f"{number}.jpg", content)}).json()
            data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, MODEL, "",
                    "automatic", [], "as it is", None, 0.5, 0.5]
            event = client.post("gradio_api/call/segment", json={"data": data}).json()["event_id"]
            assert "event: complete" in client.get(f"gradio_api/call/segment/{event}").text
            if number in (1, 10, 50, 100, 200, 300, 400, images):
                print(f"after {number} images: {resident():.0f} MB", flush=True)


def main() -> None:
    """Runs what was chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["latency", "load", "memory"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--images", type=int, default=500)
    chosen = parser.parse_args()
    page, url = start(MODEL, server_port=0)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.what == "latency":
            latency(url, Path(folder), chosen.rounds)
        elif chosen.what == "load":
            load(url, Path(folder), chosen.visitors)
        else:
            memory(url, Path(folder), chosen.images)
    page.close()
    shutil.rmtree(os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)


if __name__ == "__main__":
    main()
