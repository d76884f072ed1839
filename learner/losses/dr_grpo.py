"""Dr. GRPO: GRPO without its two biases (arXiv 2503.20783, section 3).

    J = E[ 1/G sum_i 1/L sum_t min(rho_it A_i, clip(rho_it, 1 - eps, 1 + eps) A_i) ],  A_i = r_i - mean

Dividing by a sequence's own length favours long wrong answers, dividing by the standard deviation favours questions
that are nearly settled. L is one number for all sequences, ``algorithm.constant_length``.
"""

from __future__ import annotations

from agent.errors import UserError
from learner.losses.base import Choices
from learner.losses.clipped import ClippedLoss


class Loss(ClippedLoss):
    """Sums of sequences over a constant, advantages that are rewards less their mean."""

    defaults = Choices(advantage="mean", aggregation="constant_length", clip_low=0.2, clip_high=0.2)

    @classmethod
    def check(cls, choices: Choices) -> None:
        super().check(choices)
        if choices.advantage == "std":
            raise UserError(
                "algorithm.advantage=std divides by the standard deviation, which algorithm.loss=dr_grpo leaves out; "
                "set algorithm.advantage=mean, or algorithm.loss=grpo"
            )
        if choices.aggregation in ("sequence_mean", "prompt_balanced"):
            raise UserError(
                f"algorithm.aggregation={choices.aggregation} divides by each sequence's length, which "
                "algorithm.loss=dr_grpo leaves out; set algorithm.aggregation=constant_length, or algorithm.loss=grpo"
            )
