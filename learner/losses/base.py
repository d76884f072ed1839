"""The interface of a loss, and how one is found: by the name of a module beside this one, or by an import path.

torch isn't imported here or by the shipped losses: tensors bring their operations along, and the configuration reads
a loss's defaults where torch is not to be loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from agent.errors import UserError, one_of
from agent.own import check_class, is_path, resolve
from agent.shipped import file_of, member_of, module_names
from learner import losses

if TYPE_CHECKING:
    from torch import Tensor

ADVANTAGES = ("std", "mean", "rloo")
AGGREGATIONS = ("token_mean", "sequence_mean", "constant_length", "prompt_balanced")
KEY = "algorithm.loss"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """The settings that belong to a loss: what its paper uses, or what the user has set in its place."""

    advantage: str
    """``algorithm.advantage`` (``learner/advantages.py``)."""
    aggregation: str
    """``algorithm.aggregation`` (``learner/batch.py``)."""
    clip_low: float
    clip_high: float
    """The clip range of a ratio is [1 - ``clip_low``, 1 + ``clip_high``]."""

    def check(self) -> None:
        """Raises ``UserError`` for one that is no choice, or no number."""
        one_of(self.advantage, ADVANTAGES, "algorithm.advantage")
        one_of(self.aggregation, AGGREGATIONS, "algorithm.aggregation")
        for name, value in (("clip_low", self.clip_low), ("clip_high", self.clip_high)):
            if not isinstance(value, int | float):
                raise UserError(f"algorithm.{name}={value!r} must be a number")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LossInput:
    """The A action tokens of a packed row, of S whole sequences. What isn't trained is 0 everywhere.

    Two sequences of three and two action tokens have ``sequence == [0, 0, 0, 1, 1]`` and ``sequences == 2``.
    """

    logprobs: Tensor
    """(A,) log-probabilities under the policy that is trained; alone carries a gradient."""
    old: Tensor
    """(A,) under the policy that the ratio compares with: the learner's from before the step, or the engine's."""
    mismatch: Tensor
    """(A,) the learner's from before the step minus the engine's; 0 for an expert's tokens, which no engine sampled,
    and where ``old`` is the engine's."""
    advantages: Tensor
    """(A,) the same for all tokens of a sequence."""
    trained: Tensor
    """(A,) bool: tokens in the surrogate."""
    sequence: Tensor
    """(A,) int64 in [0, S): the sequence that a token belongs to, ascending."""
    sequences: int
    """S."""

    @property
    def log_ratio(self) -> Tensor:
        """(A,) log of the ratio of each token."""
        return self.logprobs - self.old

    def sequence_mean(self, values: Tensor) -> Tensor:
        """(A,) each token's value replaced by the mean over the trained tokens of its sequence; 0 without any."""
        counts = values.new_zeros(self.sequences).index_add(0, self.sequence, self.trained.to(values.dtype))
        sums = values.new_zeros(self.sequences).index_add(0, self.sequence, values * self.trained)
        return (sums / counts.clamp(min=1))[self.sequence]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Surrogate:
    """What a loss makes of a row."""

    values: Tensor
    """(A,) each token's loss before any weight; the gradient flows through it."""
    clipped: Tensor
    """(A,) bool: tokens at which the clip range changed the gradient."""
    ratio: Tensor
    """(A,) what was compared with the clip range."""


class Loss(ABC):
    """A policy-gradient loss over action tokens: ``sum_t w_t * c_t * values_t``.

    The weights w are those of the aggregation (``learner/batch.py``), and c is ``importance``. A subclass states its
    paper and equation, sets ``defaults``, and refuses in ``check`` what has no meaning with it.
    """

    defaults: ClassVar[Choices]
    """What ``algorithm.advantage``, ``aggregation``, ``clip_low`` and ``clip_high`` are when they aren't set."""

    def __init__(self, choices: Choices) -> None:
        self.low, self.high = 1 - choices.clip_low, 1 + choices.clip_high

    @abstractmethod
    def surrogate(self, row: LossInput) -> Surrogate:
        """Each token's loss. No token may depend on another sequence's: rows are packed as memory allows."""

    def importance(self, row: LossInput, cap: float) -> Tensor:
        """(A,) truncated weights min(pi_learner / pi_engine, cap), without gradient (TIS).

        They correct for the engine having sampled from slightly other probabilities than the learner's.
        """
        return row.mismatch.exp().clamp(max=cap)

    @classmethod
    def check(cls, choices: Choices) -> None:
        """Raises ``UserError`` for a setting that has no meaning with this loss."""
        if not 0 < choices.clip_low < 1 or choices.clip_high <= 0:
            raise UserError("algorithm.clip_low must lie in (0, 1) and algorithm.clip_high above 0")


def loss_names() -> list[str]:
    """The names of the losses that are shipped: the modules beside this one."""
    return module_names(losses.__path__, "base", "clipped")


def loss_class(name: str) -> type[Loss]:
    """The loss of that name, or at that import path (``package.module:Class``). Raises ``UserError``."""
    where = f"{KEY}={name}"
    if is_path(name):
        found = resolve(name, KEY)
    else:
        one_of(name, loss_names(), KEY)
        needs = "a class `Loss`, made from learner.losses.base.Loss"
        found = member_of(losses.__name__, name, "Loss", KEY, needs, base=Loss)
        where += f": Loss of {file_of(losses.__name__, name)}"
    check_class(found, Loss, where)
    if not isinstance(found.defaults, Choices):
        raise UserError(f"{where}: its defaults must be a learner.losses.base.Choices(…)")
    try:
        found.defaults.check()
    except UserError as error:
        raise UserError(f"{where}: of its defaults, {error}") from None
    loss: type[Loss] = found
    return loss
