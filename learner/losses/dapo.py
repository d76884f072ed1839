"""DAPO's loss (arXiv 2503.14476, eq. 8): a wider clip above than below, and all tokens of the batch weigh the same.

    J = E[ 1/(sum_i T_i) sum_i sum_t min(rho_it A_i, clip(rho_it, 1 - eps_low, 1 + eps_high) A_i) ]

No KL term. Its dynamic sampling is ``pool=dynamic``; its overlong penalty isn't there.
"""

from __future__ import annotations

from learner.losses.base import Choices
from learner.losses.clipped import ClippedLoss


class Loss(ClippedLoss):
    """The mean of all tokens under DAPO's clip range."""

    defaults = Choices(advantage="std", aggregation="token_mean", clip_low=0.2, clip_high=0.28)
