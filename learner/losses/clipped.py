"""The clipped surrogate of PPO, which most of the losses share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.losses.base import Loss, LossInput, Surrogate

if TYPE_CHECKING:
    from torch import Tensor


class ClippedLoss(Loss):
    """max(-rho_t A, -clip(rho_t, 1 - low, 1 + high) A) with rho_t = pi / pi_old (arXiv 1707.06347, eq. 7)."""

    def surrogate(self, row: LossInput) -> Surrogate:
        return self.clip(row.log_ratio.exp(), row.advantages)

    def clip(self, ratio: Tensor, advantages: Tensor) -> Surrogate:
        """The surrogate of (A,) ratios: each token's own, or its sequence's."""
        free, bounded = -ratio * advantages, -ratio.clamp(self.low, self.high) * advantages
        return Surrogate(values=free.maximum(bounded), clipped=bounded.detach() > free.detach(), ratio=ratio.detach())
