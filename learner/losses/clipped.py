"""The clipped surrogate of PPO, which most of the losses share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.losses.base import Loss, LossInput, Surrogate

if TYPE_CHECKING:
    from torch import Tensor


LARGEST = 80.0
"""Nats: a ratio of this size is finite in float32, also times an advantage."""


class ClippedLoss(Loss):
    """max(-rho_t A, -clip(rho_t, 1 - low, 1 + high) A) with rho_t = pi / pi_old (arXiv 1707.06347, eq. 7)."""

    def surrogate(self, row: LossInput) -> Surrogate:
        return self.clip(row.log_ratio, row.advantages)

    def clip(self, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
        """The surrogate of (A,) logs of ratios: each token's own, or its sequence's."""
        # Far above the clip range nothing has a gradient unless its advantage is below 0; that of an infinite ratio
        # would be 0 * inf = NaN.
        ratio = log_ratio.clamp(max=LARGEST).where(advantages >= 0, log_ratio).exp()
        free, bounded = -ratio * advantages, -ratio.clamp(self.low, self.high) * advantages
        return Surrogate(values=free.maximum(bounded), clipped=bounded.detach() > free.detach(), ratio=ratio.detach())
