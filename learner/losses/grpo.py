"""GRPO, as DeepSeekMath has it (arXiv 2402.03300, eq. 3).

    J = E[ 1/G sum_i 1/T_i sum_t min(rho_it A_i, clip(rho_it, 1 - eps, 1 + eps) A_i) - beta KL ]
    A_i = (r_i - mean) / std

The mean over a sequence's tokens, then over the sequences. The paper doesn't print eps; 0.2 is PPO's, and what the
field's implementations take. Its KL term is ``algorithm.kl=k3`` with a coefficient of 0.04, which ``algorithm=grpo``
sets.
"""

from __future__ import annotations

from learner.losses.base import Choices
from learner.losses.clipped import ClippedLoss


class Loss(ClippedLoss):
    """Means of sequences under a symmetric clip range, advantages divided by the group's deviation."""

    defaults = Choices(advantage="std", aggregation="sequence_mean", clip_low=0.2, clip_high=0.2)
