"""Draws docs/images/dashboard_*.png: Ray's dashboard during a demo, and the run's numbers in Prometheus.

    python docs/dashboard_pictures.py

Starts a run of the tiny model, opens the dashboard in a browser as its user does, with the token, and fails unless
the actors are there by name. Needs Chromium and Prometheus (Debian: apt install chromium prometheus).
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from browser import PATIENCE_S, Page, browser

ROOT = Path(__file__).parents[1]
IMAGES = Path(__file__).parent / "images"
ACTORS = ("pool", "learner", "retrieval", "rollout-0")
NUMBER = "ray_slingshot_reward_mean"
STEPS = 12
"""Steps of the run before the pictures are taken, so that the curves have a shape."""


@contextmanager
def demo(folder: Path) -> Iterator[str]:
    """A run that has played some steps; the address of its dashboard."""
    output = folder / "output"
    command = [sys.executable, str(ROOT / "launch.py"), "tracker=none", "algorithm.steps=5000", "evaluation.every=0"]
    with output.open("w") as file:
        run = subprocess.Popen([*command, f"hydra.run.dir={folder}/run"], stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + PATIENCE_S
        while not re.search(rf"^step +{STEPS}/", output.read_text(), re.M):
            if run.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the run did not get to step {STEPS}:\n{output.read_text()}")
            time.sleep(0.5)
        found = re.search(r"Ray's dashboard: (http://\S+)", output.read_text())
        assert found is not None, output.read_text()
        yield found[1]
    finally:
        run.send_signal(signal.SIGINT)
        run.wait()


@contextmanager
def prometheus(folder: Path) -> Iterator[str]:
    """Prometheus over the run's metrics; its address."""
    program = shutil.which("prometheus")
    if program is None:
        raise RuntimeError("no Prometheus on this machine; on Debian: apt install prometheus")
    targets = [json.loads(Path(tempfile.gettempdir(), "ray", "prom_metrics_service_discovery.json").read_text())]
    scrape = {"job_name": "ray", "scrape_interval": "2s", "static_configs": targets[0]}
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))  # JSON is YAML
    address = "127.0.0.1:9091"
    arguments = ["--config.file", f"{folder}/prometheus.yml", "--storage.tsdb.path", f"{folder}/tsdb"]
    server = subprocess.Popen([program, *arguments, "--web.listen-address", address], stderr=subprocess.DEVNULL)
    try:
        yield f"http://{address}"
    finally:
        server.kill()
        server.wait()


async def enter(page: Page, address: str) -> None:
    """Opens the dashboard's actors and gives the token that it asks for."""
    token = subprocess.run(
        [str(Path(sys.executable).parent / "ray"), "get-auth-token"], capture_output=True, text=True, check=True
    ).stdout.strip()
    await page.open(f"{address}/#/actors")
    await page.until("document.querySelector('[role=dialog] input') !== null")
    await page.evaluate("document.querySelector('[role=dialog] input').focus()")
    await page.type(token)
    await page.until(
        "(b => b !== null && !b.disabled)(document.querySelector('[role=dialog] .MuiDialogActions-root button'))"
    )
    await page.evaluate("document.querySelector('[role=dialog] .MuiDialogActions-root button').click()")


async def actors(address: str) -> None:
    async with browser(1500, 700) as page:
        await enter(page, address)
        cells = "[...document.querySelectorAll('td')].map(cell => cell.innerText.trim())"
        await page.until(f"(cells => {json.dumps(ACTORS)}.every(name => cells.includes(name)))({cells})")
        await page.picture(IMAGES / "dashboard_actors.png")


async def number(address: str) -> None:
    async with browser(1200, 760) as page:
        await page.open(f"{address}/graph?g0.expr={NUMBER}&g0.tab=0&g0.range_input=2m")
        await page.until("document.querySelectorAll('canvas, .rickshaw_graph svg').length > 0")
        await page.picture(IMAGES / "dashboard_metrics.png")


def main() -> None:
    with tempfile.TemporaryDirectory() as name, demo(Path(name)) as address:
        asyncio.run(actors(address))
        with prometheus(Path(name)) as metrics:
            time.sleep(100)  # seconds that the curve shall show
            asyncio.run(number(metrics))


if __name__ == "__main__":
    main()
