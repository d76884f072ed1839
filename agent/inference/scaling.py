"""What a probe's confidence is worth after so many searches.

Confidences of different depths don't compare: a policy that has learned to search twice hardly ever answers after
one search, whether it is done or not, and yet does so ten times as often where it is. So for each number of searches
a line from the confidence's logit to that of the chance that nothing is lost is fitted on development questions:
Platt's scaling (Advances in Large Margin Classifiers, 2000), with his targets, which keep the line finite where the
two sides don't overlap.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

SMALLEST = 1e-12
"""A smaller confidence counts as this, one that is closer to 1 as 1 less this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """From a confidence in [0, 1] and the searches before it to the chance that its answer loses nothing."""

    lines: Mapping[int, tuple[float, float]]
    """Slope, at least 0, and offset of the logit, by the number of searches."""

    def __call__(self, searches: int, confidence: float) -> float:
        """0 for no confidence at all, and after a number of searches that nothing is known of."""
        if confidence <= 0.0 or searches not in self.lines:
            return 0.0
        slope, offset = self.lines[searches]
        return _sigmoid(slope * _logit(confidence) + offset)

    def plain(self) -> dict[str, tuple[float, float]]:
        """The lines as JSON has them."""
        return {str(depth): line for depth, line in self.lines.items()}


def fit(probes: Iterable[tuple[int, float, bool]]) -> Scale:
    """The scale of ``probes``: searches before each, its confidence, and whether an exit there loses nothing."""
    by_depth: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for searches, confidence, kept in probes:
        if confidence > 0.0:
            by_depth[searches].append((_logit(confidence), kept))
    return Scale(lines={depth: _line(np.array(found, dtype=float)) for depth, found in sorted(by_depth.items())})


def _line(found: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the likeliest line through ``found`` [n, 2], logits and outcomes, by Newton's method."""
    x, kept = found[:, 0], found[:, 1] == 1.0
    good, bad = int(kept.sum()), int((~kept).sum())
    target = np.where(kept, (good + 1) / (good + 2), 1 / (bad + 2))
    flat = 0.0, _logit(float(target.mean()))
    if not good or not bad or np.ptp(x) < 1e-9:
        return flat
    middle, width = x.mean(), x.std()
    rows = np.stack([(x - middle) / width, np.ones_like(x)], axis=1)

    def loss(line: np.ndarray) -> float:
        z = rows @ line
        return float(np.sum(np.logaddexp(0.0, z) - target * z))

    line = np.array([0.0, flat[1]])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(rows @ line, -500, 500)))
        downhill = rows.T @ (p - target)
        bend = (rows * (p * (1 - p))[:, None]).T @ rows + 1e-9 * np.eye(2)
        step, before = np.linalg.solve(bend, downhill), loss(line)
        while loss(line - step) > before and np.abs(step).max() > 1e-9:
            step /= 2
        line = line - step
        if np.abs(step).max() < 1e-8:
            break
    slope = float(line[0] / width)
    return flat if slope <= 0.0 else (slope, float(line[1] - slope * middle))


def _logit(p: float) -> float:
    p = min(max(p, SMALLEST), 1 - SMALLEST)
    return math.log(p) - math.log1p(-p)


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))
