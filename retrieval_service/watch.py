"""Who watches a long piece of work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _ignore(*told: object) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is told of it; by default nobody is."""

    say: Callable[[str], None] = _ignore
    """Takes a line for the user."""
    count: Callable[[int, int], None] = _ignore
    """Takes how many passages of how many are done; of 0 where that isn't known yet."""


SILENT = Watch()
