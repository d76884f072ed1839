"""Draws docs/images/report_*.png: a run's report, with a group's episodes side by side and one of them alone.

    python docs/report_pictures.py [RUN]

RUN is a run's folder with a report.html (mode=view writes one); without it a short run of the demo is made first.
Needs Chromium (Debian: apt install chromium).
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from browser import browser

ROOT = Path(__file__).parents[1]
IMAGES = Path(__file__).parent / "images"
SIGNAL = "[...document.querySelectorAll('#groups tbody tr')].find(row => row.innerText.includes('signal'))"
"""The newest group that taught something."""


def demo(folder: Path) -> None:
    """A run of the demo that logs all of its episodes, with a second search to watch."""
    asked = ["tracker=none", "algorithm.steps=12", "evaluation.every=4", "group=continuation", "reward=david"]
    asked += ["tracker.trajectories_per_step=-1", f"hydra.run.dir={folder}"]
    subprocess.run([sys.executable, str(ROOT / "launch.py"), *asked], check=True)


async def pictures(report: Path) -> None:
    async with browser(1500, 760) as page:
        await page.open(f"{report.absolute().as_uri()}#/groups")
        await page.until(f"{SIGNAL} !== undefined")
        await page.evaluate(f"{SIGNAL}.click()")
        await page.until("document.body.dataset.view.startsWith('#/group/')")
        await page.picture(IMAGES / "report_group.png")
        await page.evaluate("document.querySelector('#members a[href^=\"#/episode/\"]').click()")
        await page.until("document.body.dataset.view.startsWith('#/episode/')")
        await page.picture(IMAGES / "report_episode.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="a run's folder with a report.html")
    run = parser.parse_args().run
    with tempfile.TemporaryDirectory() as made:
        if run is None:
            run = Path(made) / "demo"
            demo(run)
        asyncio.run(pictures(run / "report.html"))


if __name__ == "__main__":
    main()
