"""From a loss's surrogate to the number that is minimised: weights, KL term, and what is worth knowing of both.

    loss = sum_t  w_t * c_t * surrogate_t  +  beta * sum_t  w'_t * kl_t,          d = logpi - logpi_ref

The surrogates are in ``learner/losses``. A token of weight 0 is taken out of the log-probabilities *before* anything
is exponentiated or squared: 0 * inf is NaN, and so is its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from agent.errors import UserError
from agent.own import told
from learner.config import AlgorithmConfig
from learner.losses.base import KEY, Loss, LossInput, Surrogate
from learner.ranks import Ranks

APART = 0.01
"""Nats; rounding in float32 stays far below it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossMetrics:
    """Sums over tokens; ``merge`` adds parts up."""

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

    @classmethod
    def of(cls, values: Sequence[float]) -> LossMetrics:
        """From the sums of ``policy_loss``, read."""
        return cls(**dict(zip(cls.__slots__, values, strict=True)))

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
    return LossInput(
        logprobs=torch.where(trained, logprobs, 0.0),
        old=torch.where(trained, old, 0.0),
        mismatch=torch.where(trained, mismatch, 0.0),
        advantages=advantages,
        trained=trained,
        sequence=_sequences(lengths, logprobs.device),
        sequences=len(lengths),
    )


def _sequences(lengths: Sequence[int], device: torch.device) -> Tensor:
    """(A,) The number of each token's sequence."""
    return torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device, non_blocking=True)


def _surrogate(loss: Loss, row: LossInput, name: str) -> Surrogate:
    """What ``loss``, which may be a user's own, makes of ``row``. Raises ``UserError`` as ``_check_each``."""
    with told(f"{KEY}={name}: surrogate()", but=(torch.OutOfMemoryError,)):
        found: object = loss.surrogate(row)
    if not isinstance(found, Surrogate):
        raise UserError(f"{KEY}={name}: surrogate() returned {type(found).__name__}, and a Surrogate is needed")
    for part in ("values", "clipped", "ratio"):
        _check_each(getattr(found, part), row, f"{KEY}={name}: surrogate() returned {part}", marks=part == "clipped")
    if row.logprobs.requires_grad and not found.values.requires_grad:
        raise UserError(
            f"{KEY}={name}: surrogate() returned values without a gradient; they have to be computed from row.logprobs"
        )
    return found


def _importance(loss: Loss, row: LossInput, name: str, cap: float) -> Tensor:
    """(A,) weights of ``loss``, which may be a user's own. Raises ``UserError`` as ``_check_each``."""
    with told(f"{KEY}={name}: importance()", but=(torch.OutOfMemoryError,)):
        factor = loss.importance(row, cap)
    _check_each(factor, row, f"{KEY}={name}: importance() returned factors")
    return factor.detach()  # a weight, also where a user's own is computed from what carries the gradient


def _check_each(value: object, row: LossInput, returned: str, *, marks: bool = False) -> None:
    """Raises ``UserError`` that begins with ``returned`` if ``value`` isn't a tensor with one value for each token.

    ``marks`` are true or false, everything else is a float; all are where the row is.
    """
    wanted = tuple(row.old.shape)
    if not isinstance(value, Tensor):
        raise UserError(f"{returned} as {type(value).__name__}, and a tensor of shape {wanted} is needed")
    if (shape := tuple(value.shape)) != wanted:
        raise UserError(f"{returned} of shape {shape}, and {wanted} is needed: one for each token")
    if not (value.dtype == torch.bool if marks else value.is_floating_point()):
        raise UserError(f"{returned} of type {value.dtype}, and {'torch.bool' if marks else 'a float'} is needed")
    if value.device != row.old.device:
        raise UserError(f"{returned} on {value.device}, and the row is on {row.old.device}")


def try_loss(loss: Loss, config: AlgorithmConfig, device: torch.device) -> None:
    """Asks ``loss`` for a row of two short sequences, so that a broken one is told before anything is played.

    Raises ``UserError`` as ``policy_loss``, for what backward raises, for a loss or a gradient that isn't finite, and
    for one in which a token's loss depends on what else is in its row.
    """
    logprobs = torch.linspace(-2.0, -0.5, 5, device=device).requires_grad_()
    before, ones = logprobs.detach() - 0.1, torch.ones(5, device=device)
    row = loss_input(logprobs, before, 0.1 * ones, 1 - logprobs.detach(), ones, [3, 2])
    total, _ = policy_loss(loss, row, logprobs, ones, replace(config, kl="none"))
    with told(f"{KEY}={config.loss}: the gradient of surrogate()", but=(torch.OutOfMemoryError,)):
        total.backward()
    gradient = logprobs.grad
    if gradient is None or not (total.isfinite() and gradient.isfinite().all()):
        raise UserError(
            f"{KEY}={config.loss}: for a row of ordinary values the loss of surrogate(), or its gradient, isn't finite"
        )
    _try_apart(loss, config, device)


def _try_apart(loss: Loss, config: AlgorithmConfig, device: torch.device) -> None:
    """Compares what ``loss`` says of two sequences in one row and in a row each. One that draws at random isn't judged.

    Raises ``UserError`` if that differs by more than rounding: what is learned would depend on the memory there is.
    """
    logprobs = torch.linspace(-2.0, -0.5, 5, device=device).requires_grad_()
    old, ones = logprobs.detach() - 0.1 * torch.arange(5, device=device), torch.ones(5, device=device)
    mismatch, advantages = 0.1 * old, torch.tensor([0.5, 0.5, 0.5, -1.0, -1.0], device=device)

    def said(begin: int, *lengths: int) -> Tensor:
        of = slice(begin, begin + sum(lengths))
        row = loss_input(logprobs[of], old[of], mismatch[of], advantages[of], ones[of], lengths)
        values = _surrogate(loss, row, config.loss).values.detach()
        if not (config.importance_cap and config.old_logprobs == "learner"):
            return values
        return torch.stack([values, _importance(loss, row, config.loss, config.importance_cap)])

    together = said(0, 3, 2)
    if not torch.equal(together, said(0, 3, 2)):
        return
    if not torch.allclose(together, torch.cat([said(0, 3), said(3, 2)], dim=-1), rtol=1e-3, atol=1e-6):
        raise UserError(
            f"{KEY}={config.loss}: surrogate() or importance() gives a token something else beside another sequence "
            "than alone; sequences share rows as memory allows, so it may take no mean or sum over a row "
            "(row.sequence_mean is one over each sequence, and algorithm.aggregation divides)"
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
) -> tuple[Tensor, Tensor]:
    """The loss of A tokens (sums, never means: the weights hold every denominator), and the values of ``LossMetrics``.

    The latter are a float64 tensor on the loss's device: on CUDA, reading them would wait for it.

    All tensors are (A,). ``logprobs`` carries the gradient, as ``row.logprobs`` does; ``reference`` and ``kl_weights``
    are needed for ``config.kl`` other than ``none``.

    Raises ``UserError`` for a loss of the user's own that raises, or gives something else than a value for each token.

    KL estimators (Schulman): k1 = d, k2 = d^2 / 2, k3 = exp(-d) + d - 1. On policy, k1's gradient
    has mean zero: as a loss it restrains nothing.
    """
    trained = row.trained
    surrogate = _surrogate(loss, row, config.loss)
    factor = torch.ones_like(row.old)
    if config.importance_cap and config.old_logprobs == "learner":
        factor = _importance(loss, row, config.loss, config.importance_cap)
    total = torch.where(trained, weights * factor * surrogate.values, 0.0).sum()
    nothing = total.new_zeros(())
    with torch.no_grad():
        lost, weighed = trained & surrogate.clipped, torch.where(trained, factor, 0.0)
        largest = weighed.amax() if len(factor) else nothing
        ratio = torch.where(trained, surrogate.ratio, 0.0).sum()
        sums = [trained.sum(), lost.sum(), ratio, weighed.sum(), largest]
    kl_sums = [nothing, nothing]
    if config.kl != "none":
        if reference is None or kl_weights is None:
            raise ValueError("a KL term needs the reference's log-probabilities and weights")
        restrained = kl_weights > 0
        d = torch.where(restrained, logprobs - reference, 0.0)
        kl = {"k1": lambda: d, "k2": lambda: d.square() / 2, "k3": lambda: (-d).expm1() + d}[config.kl]()
        total = total + config.kl_coefficient * (kl_weights * kl).sum()
        kl_sums = [restrained.sum(), kl.detach().sum()]
    return total, torch.stack([s.to(torch.float64) for s in (*sums, *kl_sums)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatch:
    """|logpi_learner - logpi_engine| over tokens that both computed from the same weights.

    The alarm for stale weights, another temperature, or a different tokenisation: about 1e-6 in
    float32 when nothing is wrong.
    """

    tokens: float = 0
    total: float = 0.0
    largest: float = 0.0
    apart: float = 0
    """Tokens that differ by more than ``APART``."""
    beside: float = 0
    """Of these, where the engine's value is nearly that of the learner's token before or after: a shift by one."""

    @staticmethod
    def of(learner: Tensor, engine: Tensor, comparable: Tensor, lengths: Sequence[int]) -> Tensor:
        """The values as a float64 tensor, from (A,) log-probabilities; ``comparable`` (A,) marks what counts.

        ``lengths`` are the action tokens of each sequence, in order.
        """
        learner = learner.detach()
        difference = torch.where(comparable, (learner - engine).abs(), 0.0).to(torch.float64)
        largest = difference.amax() if len(difference) else difference.new_zeros(())
        sequence = _sequences(lengths, learner.device)
        alike = sequence[1:] == sequence[:-1]
        before = torch.cat([learner[:1], torch.where(alike, learner[:-1], learner[1:])])
        after = torch.cat([torch.where(alike, learner[1:], learner[:-1]), learner[-1:]])
        nearest = torch.minimum((before - engine).abs(), (after - engine).abs())
        apart = difference > APART
        beside = apart & (nearest < 0.1 * difference)
        sums = [comparable.sum(), difference.sum(), largest, apart.sum(), beside.sum()]
        return torch.stack([value.to(torch.float64) for value in sums])

    @classmethod
    def of_values(cls, values: Sequence[float]) -> Mismatch:
        """From what ``of`` gives, read."""
        return cls(**dict(zip(cls.__slots__, values, strict=True)))

    def __add__(self, other: Mismatch) -> Mismatch:
        return Mismatch(
            tokens=self.tokens + other.tokens,
            total=self.total + other.total,
            largest=max(self.largest, other.largest),
            apart=self.apart + other.apart,
            beside=self.beside + other.beside,
        )

    @property
    def mean(self) -> float:
        """NaN when no token is comparable."""
        return self.total / self.tokens if self.tokens else float("nan")

    @property
    def shifted(self) -> float:
        """Share of the tokens that are apart which fit the token beside them; NaN when none is apart."""
        return self.beside / self.apart if self.apart else float("nan")


class Tally:
    """Adds up what the microbatches of an update say, on the device; it is read once, with the other ranks'."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2 + len(LossMetrics.__slots__) + len(Mismatch.__slots__), dtype=torch.float64)
        self._sums = self._sums.to(device)
        self._most = torch.zeros_like(self._sums)

    def add_mismatch(self, mismatch: Tensor) -> None:
        """The values of ``Mismatch`` alone."""
        nothing = mismatch.new_zeros(())
        self.add(nothing, mismatch.new_zeros(0), mismatch.new_zeros(len(LossMetrics.__slots__)), mismatch)

    def add(self, loss: Tensor, entropy: Tensor, metrics: Tensor, mismatch: Tensor | None) -> None:
        """One microbatch: its loss, (A,) entropies, and the values of ``LossMetrics`` and ``Mismatch``."""
        with torch.no_grad():
            first = torch.stack([loss.detach(), entropy.sum()]).to(torch.float64)
            apart = metrics.new_zeros(len(Mismatch.__slots__)) if mismatch is None else mismatch
            values = torch.cat([first, metrics, apart])
            self._sums += values
            self._most = torch.maximum(self._most, values)

    def read(self, ranks: Ranks) -> tuple[float, float, LossMetrics, Mismatch]:
        """Loss, sum of the entropies, metrics and mismatch of all microbatches of all ranks."""
        ranks.add([self._sums])
        ranks.most([self._most])
        sums, most = torch.stack([self._sums, self._most]).tolist()
        of_loss = 2 + len(LossMetrics.__slots__)
        metrics, mismatch = LossMetrics.of(sums[2:of_loss]), Mismatch.of_values(sums[of_loss:])
        return (
            sums[0],
            sums[1],
            replace(metrics, importance_max=LossMetrics.of(most[2:of_loss]).importance_max),
            replace(mismatch, largest=Mismatch.of_values(most[of_loss:]).largest),
        )
