"""DAVID-GRPO's loss (arXiv 2601.21699 and its public code): every question of an update weighs the same.

A token's weight is 1 / (Q S_q T_s): Q questions, S_q sequences of its question, T_s tokens of its sequence. Where no
group has lost a sequence this is GRPO's mean of sequences. Its KL term is ``algorithm.kl=k2`` with a coefficient of
0.001, which ``algorithm=david`` sets.
"""

from __future__ import annotations

from learner.losses.base import Choices
from learner.losses.clipped import ClippedLoss


class Loss(ClippedLoss):
    """Means of sequences, of questions, of the update, under a symmetric clip range."""

    defaults = Choices(advantage="std", aggregation="prompt_balanced", clip_low=0.2, clip_high=0.2)
