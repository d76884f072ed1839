"""What a Beta(a, b) belief about a success probability says of K rollouts."""

from __future__ import annotations

from typing import Any


def chance_of_all(a: Any, b: Any, size: int) -> Any:
    """E[p^K]: the chance that all ``size`` rollouts succeed. ``a`` and ``b`` are numbers or arrays, above 0.

    >>> chance_of_all(0.5, 0.5, 2)
    0.375
    """
    chance: Any = 1.0
    for j in range(size):
        chance = chance * (a + j) / (a + b + j)
    return chance


def chance_of_any(a: Any, b: Any, size: int) -> Any:
    """The chance that at least one of ``size`` rollouts succeeds."""
    return 1 - chance_of_all(b, a, size)


def chance_of_both(a: Any, b: Any, size: int) -> Any:
    """The chance of signal: at least one success and at least one failure among ``size`` rollouts.

    >>> chance_of_both(0.5, 0.5, 2)
    0.25
    """
    return 1 - chance_of_all(a, b, size) - chance_of_all(b, a, size)
