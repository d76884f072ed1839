"""docs/hardware.md says what the plan says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from settings import composed

from actors.plan.layouts import settled
from actors.plan.table import table

PAGE = Path(__file__).parents[2] / "docs" / "hardware.md"
ROWS = {row[1]: row[0] for row in re.finditer(r"^\| `([\w-]+)` \| .* GiB \| .*$", PAGE.read_text(), re.MULTILINE)}
"""By cluster."""


def plan(cluster: str, *more: str) -> dict[str, str]:
    """What the plan of this cluster says, as the page writes it."""
    text = table(settled(composed("mode=plan", f"cluster={cluster}", "model=qwen1.5b", *more)))
    patterns = {
        "card": r"with ([\d.]+) GiB each",
        "peak": r"peak ([\d.]+) GiB",
        "tokens": r"of KV cache a token: ([\d,]+) tokens",
        "episodes": r"tokens, (\d+) episodes",
        "seconds": r"expected: ([\d.]+) s a step",
    }
    found = {name: re.findall(pattern, text)[0] for name, pattern in patterns.items()}
    return found | {"seconds": f"{float(found['seconds']):.0f}", "peak": f"{float(found['peak']):.1f}"}


@pytest.mark.parametrize("cluster", ["4x3090", "4x3090-2learners", "4x3090-shared", "2x24gb", "1x24gb", "8xh100"])
def test_the_table_of_clusters_is_the_plans(cluster: str) -> None:
    row, found = ROWS[cluster], plan(cluster)
    assert f"| {found['peak']} of {found['card']} GiB | {found['tokens']} tokens, {found['episodes']} full " in row
    (seconds,) = re.findall(r"full episodes \| (\d+)", row)
    assert seconds == found["seconds"]
    for alternating in re.findall(r"\((\d+) with `pool.max_staleness=0`\)", row):
        assert alternating == plan(cluster, "pool.max_staleness=0")["seconds"]
