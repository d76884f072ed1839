"""Muon: momentum whose direction is orthogonalised, for the hidden matrices of a supervised start.

After Keller Jordan's description (https://kellerjordan.github.io/posts/muon/): Nesterov momentum, then five
Newton-Schulz steps that push all singular values of the update towards 1. ``torch.optim.Muon`` computes these in
bfloat16. A processor without instructions for it (AVX2 alone) emulates bfloat16 at a fiftieth of its float32 speed,
so here they are computed in float32, and matrices of one shape together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x -> a x + b x^3 + c x^5. Steepest at 0 rather than exact at 1: singular values end between 0.7 and 1.2."""
STEPS = 5
EPSILON = 1e-7
AT_ONCE = 1 << 24
"""Most values that are orthogonalised together, of matrices that are no larger by themselves: 64 MiB, several times."""


def orthogonalised(updates: Tensor) -> Tensor:
    """(B, M, N) float32 matrices with their singular values moved near 1, and the same singular vectors."""
    a, b, c = COEFFICIENTS
    tall = updates.shape[1] > updates.shape[2]
    x = updates.mT if tall else updates
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)  # no singular value above 1
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class Muon(Optimizer):
    """``lr`` times the orthogonalised Nesterov momentum, scaled by sqrt(max(1, M / N)) for an (M, N) matrix.

    Raises ``ValueError`` for a parameter that isn't a float32 matrix.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2 or parameter.dtype != torch.float32:
                    raise ValueError(f"Muon takes float32 matrices, not {parameter.dtype} {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Updates every matrix that has a gradient. ``closure`` is torch's; none is taken."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                count = max(1, AT_ONCE // shape.numel())
                for at in range(0, len(parameters), count):
                    self._step_together(parameters[at : at + count], group)

    def _step_together(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of matrices of one shape."""
        momentum, lr = group["momentum"], group["lr"]
        updates = []
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
            updates.append(gradient.lerp(buffer, momentum))
        rows, columns = parameters[0].shape
        rate = lr * math.sqrt(max(1.0, rows / columns))
        for parameter, update in zip(parameters, orthogonalised(torch.stack(updates)), strict=True):
            parameter.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-rate)
