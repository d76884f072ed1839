"""GSPO: ratio and clip of whole sequences (arXiv 2507.18071, eq. 5 and 7; the clip range is section 5.1's).

    J = E[ 1/G sum_i min(s_i A_i, clip(s_i, 1 - eps_low, 1 + eps_high) A_i) ],  s_i = exp( 1/T_i sum_t log rho_it )

A sequence's ratio moves far less than a token's, hence a clip range of 3e-4 and 4e-4. No KL term.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.errors import UserError
from learner.losses.base import Choices, LossInput, Surrogate
from learner.losses.clipped import ClippedLoss

if TYPE_CHECKING:
    from torch import Tensor


class Loss(ClippedLoss):
    """PPO's surrogate of each sequence's ratio, the same at all of its tokens, whose weights add up."""

    defaults = Choices(advantage="std", aggregation="sequence_mean", clip_low=3e-4, clip_high=4e-4)

    def surrogate(self, row: LossInput) -> Surrogate:
        return self.clip(row.sequence_mean(row.log_ratio), row.advantages)

    def importance(self, row: LossInput, cap: float) -> Tensor:
        """The sequence's: the tokens' geometric mean, truncated."""
        return row.sequence_mean(row.mismatch).exp().clamp(max=cap)

    @classmethod
    def check(cls, choices: Choices) -> None:
        super().check(choices)
        if choices.aggregation in ("token_mean", "constant_length"):
            raise UserError(
                f"algorithm.aggregation={choices.aggregation} weighs tokens, and algorithm.loss=gspo is of whole "
                "sequences; set algorithm.aggregation=sequence_mean or prompt_balanced"
            )
