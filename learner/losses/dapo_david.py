"""DAPO's clip range with DAVID-GRPO's aggregation: the default of a run, and no paper's.

The surrogate is ``dapo``'s, the weights of its tokens are ``david``'s.
"""

from __future__ import annotations

from learner.losses.base import Choices
from learner.losses.clipped import ClippedLoss


class Loss(ClippedLoss):
    """Means of sequences, of questions, of the update, under DAPO's clip range."""

    defaults = Choices(advantage="std", aggregation="prompt_balanced", clip_low=0.2, clip_high=0.28)
