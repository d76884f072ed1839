"""Weighted draws in O(log n): a binary tree whose inner nodes hold the sum of their children."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class SumTree:
    """n non-negative weights; ``find(u * total)`` draws an index with probability weight / total.

    Inner nodes are recomputed from their children and never adjusted by a difference, so that the
    sums don't drift, and a tree of zeros has a total of exactly 0.
    """

    def __init__(self, weights: npt.ArrayLike) -> None:
        leaves = np.asarray(weights, dtype=np.float64)
        self._n = len(leaves)
        self._size = 1 << max(0, (self._n - 1).bit_length())
        self._nodes = np.zeros(2 * self._size, dtype=np.float64)
        self._nodes[self._size : self._size + self._n] = leaves
        level = self._size
        while level > 1:
            children = self._nodes[level : 2 * level]
            self._nodes[level // 2 : level] = children[0::2] + children[1::2]
            level //= 2

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return float(self._nodes[1])

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """(n,) a view of the weights; change them with ``set``."""
        return self._nodes[self._size : self._size + self._n]

    def set(self, index: int, weight: float) -> None:
        """Gives ``index`` a new weight (>= 0)."""
        nodes, at = self._nodes, index + self._size
        nodes[at] = weight
        while at > 1:
            at >>= 1
            nodes[at] = nodes[2 * at] + nodes[2 * at + 1]

    def set_many(self, indices: npt.NDArray[np.int64], weights: npt.ArrayLike) -> None:
        """``set`` for many distinct indices at once, level by level."""
        if len(indices) == 1:
            self.set(int(indices[0]), float(np.asarray(weights, dtype=np.float64).item()))
            return
        nodes, at = self._nodes, np.asarray(indices, dtype=np.int64) + self._size
        nodes[at] = weights
        while len(at) and at[0] > 1:
            at = np.unique(at >> 1)
            nodes[at] = nodes[2 * at] + nodes[2 * at + 1]

    def find(self, target: float) -> int:
        """The index whose cumulated weight first exceeds ``target`` in [0, total)."""
        nodes, at = self._nodes, 1
        while at < self._size:
            at *= 2
            # Rounding may leave target at the edge of the left sum: an empty right side is never entered.
            if target >= nodes[at] and nodes[at + 1] > 0:
                target -= nodes[at]
                at += 1
        return at - self._size
