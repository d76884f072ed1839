"""The picture of early exit: exact match against searches and against generated tokens, over all thresholds."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from agent.inference.calibration import Calibration
from tracking.palette import COLOURS


def draw(file: Path, found: Calibration) -> None:
    """Draws ``found`` into ``file``."""
    figure(found).savefig(file, dpi=130)


def figure(found: Calibration) -> Figure:
    """Two panels: a line through the points of the grid, the full episodes, and the threshold that was chosen."""
    drawn = Figure(figsize=(10, 3.8), layout="constrained")
    for axes, x, label in zip(
        drawn.subplots(1, 2, sharey=True),
        ("searches", "tokens"),
        ("searches per question", "generated tokens per question, probes included"),
        strict=True,
    ):
        axes.plot(
            [getattr(p, x) for p in found.points],
            [p.em for p in found.points],
            ".-",
            color=COLOURS[0],
            linewidth=1.2,
            label="early exit, by threshold",
        )
        axes.plot(getattr(found, x), found.em, "s", color="black", label="full episodes")
        if found.chosen is not None:
            label_of = f"threshold {found.chosen.threshold:.4g}"
            axes.plot(getattr(found.chosen, x), found.chosen.em, "o", color=COLOURS[1], markersize=9, label=label_of)
        axes.set(xlabel=label, ylabel="exact match" if x == "searches" else "")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    drawn.axes[0].legend(frameon=False, loc="lower right")
    return drawn
