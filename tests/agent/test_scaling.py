"""What confidences are worth by depth: the fit against made-up policies whose answer is known, and its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agent.inference.scaling import Scale, fit


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def made_up(depth: int, slope: float, offset: float, n: int, seed: int) -> list[tuple[int, float, bool]]:
    """Probes whose chance of losing nothing is on the line of ``slope`` and ``offset`` over their logit."""
    random = np.random.default_rng(seed)
    logits = random.normal(-2.0, 2.0, n)
    kept = random.random(n) < 1 / (1 + np.exp(-(slope * logits + offset)))
    return [(depth, sigmoid(z), bool(k)) for z, k in zip(logits, kept, strict=True)]


def test_a_known_line_is_found_again_for_each_depth():
    scale = fit([*made_up(1, 1.5, 4.0, 20_000, 0), *made_up(2, 0.5, -1.0, 20_000, 1)])
    assert scale.lines[1] == pytest.approx((1.5, 4.0), rel=0.05)
    assert scale.lines[2] == pytest.approx((0.5, -1.0), rel=0.1)
    assert scale(1, sigmoid(-2.0)) == pytest.approx(sigmoid(1.0), abs=0.02)
    assert scale(2, sigmoid(-2.0)) == pytest.approx(sigmoid(-2.0), abs=0.02)


def test_two_sides_that_do_not_overlap_stay_finite():
    probes = [(1, 0.01, True)] * 50 + [(1, 0.002, False)] * 100
    scale = fit(probes)
    # With one value on each side the line goes through Platt's targets: (50 + 1) / (50 + 2) and 1 / (100 + 2).
    assert scale(1, 0.01) == pytest.approx(51 / 52)
    assert scale(1, 0.002) == pytest.approx(1 / 102)
    assert 0 < scale(1, 0.0005) < scale(1, 0.002)


def test_a_depth_without_a_difference_is_worth_the_same_everywhere():
    scale = fit([(3, c, True) for c in (0.1, 0.5, 0.9)])
    assert scale.lines[3][0] == 0.0
    assert scale(3, 0.2) == scale(3, 0.99) == pytest.approx(4 / 5)
    same = fit([(1, 0.5, True)] * 30 + [(1, 0.5, False)] * 10)
    assert same(1, 0.1) == pytest.approx((30 * 31 / 32 + 10 * 1 / 12) / 40)


def test_confidence_that_misleads_is_not_believed():
    scale = fit([(1, 0.9, False)] * 20 + [(1, 0.1, True)] * 20)
    assert scale(1, 0.9) == scale(1, 0.1) == pytest.approx(0.5)


def test_what_nothing_is_known_of_is_worth_nothing():
    scale = fit([(1, 0.9, True), (1, 0.1, False), (2, 0.0, True)])
    assert scale(2, 0.9) == 0.0
    assert scale(1, 0.0) == 0.0
    assert fit([]) == Scale(lines={})


def test_certainty_can_be_scaled():
    scale = Scale(lines={1: (2.0, 1.0)})
    assert 0.999 < scale(1, 1.0) <= 1.0
    assert 0.0 < scale(1, 1e-300) < 1e-20
    assert scale(1, 1e-300) == scale(1, 1e-12)
