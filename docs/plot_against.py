"""Draws the comparison that a page of results has as a table: each condition against the baseline, paired by seed.

python docs/plot_against.py docs/results/query_pool.md --out docs/results/images/recycling_against.png
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from tracking.experiments.pictures import against
from tracking.experiments.report import COMPARED

NAMES = {label: name for name, label in COMPARED.items()}
TITLE = re.compile(r"^Against `(.+)`, paired by seed", re.MULTILINE)
CELL = re.compile(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]")


def comparisons(page: str) -> dict[str, Any]:
    """The first such table of a page, as ``sweep.json`` has it, without its jobs."""
    title = TITLE.search(page)
    if title is None:
        raise SystemExit('no table "Against `BASELINE`, paired by seed" on this page')
    lines = page[title.end() :].split("\n\n")[1].splitlines()
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found: list[dict[str, Any]] = [{"condition": name} for name in header[1:]]
    for label, *cells in rows:
        kind = label.removeprefix("&nbsp;&nbsp;")
        name = NAMES.get(label, f"em_after/{kind}")
        for comparison, cell in zip(found, cells, strict=True):
            if match := CELL.fullmatch(cell):
                comparison[name] = dict(zip(("mean", "low", "high"), map(float, match.groups()), strict=True))
    return {
        "baseline": title[1],
        "conditions": [{"name": c["condition"]} for c in found],
        "comparisons": found,
        "jobs": [],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    against(comparisons(arguments.page.read_text(encoding="utf-8"))).savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
