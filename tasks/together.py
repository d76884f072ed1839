"""Answers all of which are needed: one text that names them, in any order, is right, and one of them alone is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from agent.errors import UserError
from tasks.fields import anywhere, text
from tasks.rows import Row

MOST = 3
"""Answers that are compared as one text, in all their orders; beyond, the orders are too many to be said."""


def mean_all(row: Row, where: str) -> bool:
    """Whether the row says that all of its answers are needed (``answers_mean: all``)."""
    for named_value in anywhere(row, "answers_mean"):
        said = text(named_value, where)
        if said not in ("any", "all"):
            raise UserError(f"{where}: '{named_value[0]}' must be any or all, not '{said}'")
        return said == "all"
    return False


def together(answers: Sequence[str]) -> tuple[str, ...]:
    """The texts that name all of up to ``MOST`` answers. Punctuation is no matter to a comparison, orders are.

    >>> together(["Rome", "Paris"])
    ('Rome and Paris', 'Rome, Paris', 'Paris and Rome', 'Paris, Rome')
    """
    if len(answers) < 2:
        return tuple(answers)
    said = [
        text
        for order in permutations(answers)
        for text in (f"{', '.join(order[:-1])} and {order[-1]}", ", ".join(order))
    ]
    return tuple(said)
