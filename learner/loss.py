"""From a loss's surrogate to the number that is minimised: weights, KL term, and what is worth knowing of both.

    loss = sum_t  w_t * c_t * surrogate_t  +  beta * sum_t  w'_t * kl_t,          d = logpi - logpi_ref

The surrogates are in ``learner/losses``. A token of weight 0 is taken out of the log-probabilities *before* anything
is exponentiated or squared: 0 * inf is NaN, and so is its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from learner.config import AlgorithmConfig
from learner.losses.base import Loss, LossInput


@dataclass(frozen=True, kw_only=True, slots=True)
class LossMetrics:
    """Sums over the tokens of one microbatch; ``merge`` adds microbatches up."""

    tokens: float = 0.0
    """Tokens in the surrogate."""
    clipped: float = 0.0
    """Tokens at which the clip range changed the gradient."""
    ratio: float = 0.0
    importance: float = 0.0
    importance_max: float = 0.0
    kl_tokens: float = 0.0
    kl: float = 0.0
    """Sum of the chosen estimator, without its coefficient."""

    @staticmethod
    def merge(parts: Sequence[LossMetrics]) -> LossMetrics:
        """Sums added, maxima kept."""
        if not parts:
            return LossMetrics()
        columns = list(zip(*(astuple(part) for part in parts), strict=True))
        names = LossMetrics.__slots__
        return LossMetrics(
            **{n: max(c) if n == "importance_max" else sum(c) for n, c in zip(names, columns, strict=True)}
        )

    @property
    def clip_share(self) -> float:
        return self.clipped / self.tokens if self.tokens else 0.0

    @property
    def ratio_mean(self) -> float:
        return self.ratio / self.tokens if self.tokens else 1.0

    @property
    def importance_mean(self) -> float:
        return self.importance / self.tokens if self.tokens else 1.0

    @property
    def kl_mean(self) -> float:
        """Nats per token; 0 when there is no KL term."""
        return self.kl / self.kl_tokens if self.kl_tokens else 0.0


def loss_input(
    logprobs: Tensor,
    old: Tensor,
    mismatch: Tensor,
    advantages: Tensor,
    weights: Tensor,
    lengths: Sequence[int],
) -> LossInput:
    """A row as a loss sees it, from (A,) tensors as they come: what has no weight, and may be anything, becomes 0.

    ``weights`` are those of ``loss_weights``, ``lengths`` the action tokens of each of the row's sequences, in order.
    """
    trained = weights > 0
    counts = torch.tensor(lengths, device=logprobs.device)
    return LossInput(
        logprobs=torch.where(trained, logprobs, 0.0),
        old=torch.where(trained, old, 0.0),
        mismatch=torch.where(trained, mismatch, 0.0),
        advantages=advantages,
        trained=trained,
        sequence=torch.repeat_interleave(torch.arange(len(lengths), device=logprobs.device), counts),
        sequences=len(lengths),
    )


def policy_loss(
    loss: Loss,
    row: LossInput,
    logprobs: Tensor,
    weights: Tensor,
    config: AlgorithmConfig,
    *,
    reference: Tensor | None = None,
    kl_weights: Tensor | None = None,
) -> tuple[Tensor, LossMetrics]:
    """The loss of A tokens (sums, never means: the weights hold every denominator) and its metrics.

    All tensors are (A,). ``logprobs`` carries the gradient, as ``row.logprobs`` does; ``reference`` and ``kl_weights``
    are needed for ``config.kl`` other than ``none``.

    KL estimators (Schulman): k1 = d, k2 = d^2 / 2, k3 = exp(-d) + d - 1. On policy, k1's gradient
    has mean zero: as a loss it restrains nothing.
    """
    trained = row.trained
    surrogate = loss.surrogate(row)
    factor = torch.ones_like(row.old)
    if config.importance_cap and config.old_logprobs == "learner":
        factor = loss.importance(row, config.importance_cap)
    total = torch.where(trained, weights * factor * surrogate.values, 0.0).sum()
    with torch.no_grad():
        lost = trained & surrogate.clipped
        sums = [trained.sum(), lost.sum(), surrogate.ratio[trained].sum(), factor[trained].sum()]
        sums.append(torch.where(trained, factor, 0.0).amax() if len(factor) else torch.zeros(()))
    if config.kl != "none":
        if reference is None or kl_weights is None:
            raise ValueError("a KL term needs the reference's log-probabilities and weights")
        restrained = kl_weights > 0
        d = torch.where(restrained, logprobs - reference, 0.0)
        kl = {"k1": lambda: d, "k2": lambda: d.square() / 2, "k3": lambda: (-d).expm1() + d}[config.kl]()
        total = total + config.kl_coefficient * (kl_weights * kl).sum()
        sums += [restrained.sum(), kl.detach().sum()]
    # One transfer for all the numbers: on CUDA each would otherwise wait for the device by itself.
    values = torch.stack([s.to(torch.float64) for s in sums]).tolist()
    return total, LossMetrics(**dict(zip(LossMetrics.__slots__, values, strict=False)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatch:
    """|logpi_learner - logpi_engine| over tokens that both computed from the same weights.

    The alarm for stale weights, another temperature, or a different tokenisation: about 1e-6 in
    float32 when nothing is wrong.
    """

    tokens: int = 0
    total: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, learner: Tensor, engine: Tensor, comparable: Tensor) -> Mismatch:
        """From (A,) log-probabilities; ``comparable`` (A,) marks the tokens that count."""
        apart = (learner.detach() - engine)[comparable].abs()
        if not len(apart):
            return cls()
        return cls(tokens=len(apart), total=float(apart.sum()), largest=float(apart.max()))

    def __add__(self, other: Mismatch) -> Mismatch:
        return Mismatch(
            tokens=self.tokens + other.tokens,
            total=self.total + other.total,
            largest=max(self.largest, other.largest),
        )

    @property
    def mean(self) -> float:
        """NaN when no token is comparable."""
        return self.total / self.tokens if self.tokens else float("nan")
