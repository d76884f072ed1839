"""CISPO: the clipped ratio is a weight without gradient, so that no token's gradient is dropped.

MiniMax-M1 (arXiv 2506.13585, eq. 4 and 5):

    J = E[ 1/(sum_i T_i) sum_i sum_t sg( clip(rho_it, 1 - eps_low, 1 + eps_high) ) A_i logpi_it ]

The paper has no lower bound (``clip_low=1``) and doesn't print the upper one. ScaleRL (arXiv 2510.13786) takes ratios
of at most 5, which is ``clip_high=4``. No KL term.
"""

from __future__ import annotations

from agent.errors import UserError
from learner.losses import base
from learner.losses.base import Choices, LossInput, Surrogate


class Loss(base.Loss):
    """REINFORCE weighted by clipped ratios, the mean of all tokens."""

    defaults = Choices(advantage="std", aggregation="token_mean", clip_low=1.0, clip_high=4.0)

    def surrogate(self, row: LossInput) -> Surrogate:
        ratio = row.log_ratio.detach().exp()
        weight = ratio.clamp(self.low, self.high)
        return Surrogate(values=-weight * row.advantages * row.logprobs, clipped=weight != ratio, ratio=ratio)

    @classmethod
    def check(cls, choices: Choices) -> None:
        if not 0 < choices.clip_low <= 1 or choices.clip_high <= 0:
            raise UserError(
                "algorithm.loss=cispo: algorithm.clip_low must lie in (0, 1], where 1 is no lower bound, and "
                "algorithm.clip_high above 0"
            )
