"""Weighted draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agent.pool.sum_tree import SumTree


def naive(weights: np.ndarray, target: float) -> int:
    return int(np.searchsorted(np.cumsum(weights), target, side="right"))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 31, 32, 33, 100])
def test_finds_what_cumulated_sums_find(n):
    rng = np.random.default_rng(n)
    weights = rng.integers(0, 4, n).astype(float)  # whole numbers: every sum is exact
    weights[rng.integers(n)] = 2.0
    tree = SumTree(weights)
    assert tree.total == weights.sum()
    for target in np.arange(0, weights.sum(), 0.5):
        assert tree.find(target) == naive(weights, target)


def test_a_hundred_thousand_changes_leave_no_drift():
    rng = np.random.default_rng(1)
    n = 1000
    tree = SumTree(rng.random(n))
    values = rng.random(100_000) * 10.0 ** rng.integers(-8, 8, 100_000)
    for index, value in zip(rng.integers(0, n, 100_000).tolist(), values.tolist(), strict=True):
        tree.set(index, value)
    assert tree.total == SumTree(tree.weights).total, "the same weights give the same sums, whatever came before"
    assert tree.total == pytest.approx(math.fsum(tree.weights), rel=1e-12)
    for index in range(n):
        tree.set(index, 0.0)
    assert tree.total == 0.0
    tree.set(617, 1e-300)
    assert tree.find(0.0) == 617


def test_never_returns_a_weightless_index():
    rng = np.random.default_rng(2)
    for _ in range(300):
        n = int(rng.integers(1, 40))
        weights = rng.random(n) * 10.0 ** rng.integers(-12, 12, n) * (rng.random(n) < 0.3)
        weights[rng.integers(n)] += 1e-9
        tree = SumTree(weights)
        total = tree.total
        edges = np.cumsum(weights)
        targets = [0.0, total, np.nextafter(total, 0), *(rng.random(50) * total), *edges, *np.nextafter(edges, 0)]
        for target in targets:
            if 0 <= target <= total:
                assert weights[tree.find(float(target))] > 0


def test_draws_are_as_frequent_as_heavy():
    weights = np.array([1.0, 0.0, 3.0, 0.5, 2.0, 0.0, 0.25])
    tree = SumTree(weights)
    rng = np.random.default_rng(3)
    draws = 20_000
    counts = np.bincount([tree.find(u * tree.total) for u in rng.random(draws)], minlength=len(weights))
    expected = draws * weights / weights.sum()
    assert (counts[weights == 0] == 0).all()
    heavy = weights > 0
    chi_square = ((counts - expected)[heavy] ** 2 / expected[heavy]).sum()
    assert chi_square < 18.5  # 4 degrees of freedom, p = 0.001
