"""From groups to what one optimizer update sees: samples, minibatches and their loss weights.

    groups ── make_batch ──► Batch ── minibatches ──► Minibatch (samples, weights) ── pack_rows ──► rows

The weights are fixed here, over the whole minibatch and before any packing, so that the loss is
``sum_t w_t * l_t`` and microbatches are simply added up: neither their size nor the order of rows
can change the result. No torch in this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.errors import Fault
from agent.groups import Group
from agent.records import BoolArray, FloatArray, IntArray, ScoredTrajectory
from learner.advantages import group_advantages
from learner.config import AlgorithmConfig

WeightArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """One trajectory as the loss sees it: T tokens of prompt and response, A of them actions.

    A prompt of two tokens answered with two actions, one observation and one action has
    ``action_mask == [0, 0, 1, 1, 0, 1]`` and three entries in ``engine_logprobs``.
    """

    question: int
    """Index of the question in the batch."""
    token_ids: IntArray
    """(T,) prompt and response."""
    action_mask: BoolArray
    """(T,) true at the tokens that are trained."""
    engine_logprobs: FloatArray
    """(A,) log-probabilities under the engine's policy; 0 and unused for an expert's trajectory."""
    versions: IntArray
    """(A,) policy version that sampled each action token; ``NO_VERSION`` for an expert's trajectory."""
    advantage: float
    signal: bool
    """Whether the group's rewards differ. An advantage of 0 in such a group is still a sample."""
    expert: bool = False
    """No engine sampled it: its old log-probabilities are the learner's, its importance weight is 1."""

    def __post_init__(self) -> None:
        actions = int(self.action_mask.sum())
        if len(self.action_mask) != len(self.token_ids):
            raise ValueError(f"{len(self.token_ids)} tokens with a mask of {len(self.action_mask)}")
        if not len(self.engine_logprobs) == len(self.versions) == actions:
            raise ValueError(
                f"{actions} action tokens with {len(self.engine_logprobs)} log-probabilities "
                f"and {len(self.versions)} versions"
            )
        if self.action_mask[0]:
            raise ValueError("the first token has nothing before it to be predicted from")

    @property
    def actions(self) -> int:
        """Number of action tokens, A."""
        return len(self.versions)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """The samples of one learner step, question by question in the order of the groups."""

    samples: tuple[Sample, ...]
    questions: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Minibatch:
    """The samples of one optimizer update that carry a loss, and the weight of their action tokens."""

    samples: tuple[Sample, ...]
    indices: tuple[int, ...]
    """Where each sample stands in the batch."""
    policy_weights: WeightArray
    """(S,) weight of each action token of a sample in the surrogate; 0 leaves the sample out."""
    kl_weights: WeightArray
    """(S,) the same for the KL term; differs from the above only with ``kl_zero_variance``."""


def make_batch(groups: Sequence[Group], advantage: str) -> Batch:
    """Flattens groups into samples with their advantages (``group_advantages``).

    Raises ``Fault`` for an action token whose log-probability isn't finite, naming the question: the
    engine is broken.
    """
    samples = []
    for index, group in enumerate(groups):
        values = group_advantages(group.rewards, advantage) if group.members else np.zeros(0)
        samples += [
            _sample(member, index, float(value), group.signal_bearing)
            for member, value in zip(group.members, values, strict=True)
        ]
    return Batch(samples=tuple(samples), questions=len(groups))


def _sample(member: ScoredTrajectory, question: int, advantage: float, signal: bool) -> Sample:
    trajectory = member.trajectory
    logprobs = trajectory.logprobs[trajectory.action_mask]
    if not np.isfinite(logprobs).all():
        raise Fault(f"question {trajectory.question_id}: the engine's log-probability of an action token is not finite")
    return Sample(
        question=question,
        token_ids=np.concatenate([trajectory.prompt_ids, trajectory.token_ids]),
        action_mask=np.concatenate([np.zeros(len(trajectory.prompt_ids), np.bool_), trajectory.action_mask]),
        engine_logprobs=logprobs,
        versions=trajectory.versions[trajectory.action_mask],
        advantage=advantage,
        signal=signal,
        expert=trajectory.expert,
    )


def loss_weights(
    actions: npt.NDArray[np.integer],
    questions: npt.NDArray[np.integer],
    included: BoolArray,
    aggregation: str,
    constant_length: int,
) -> WeightArray:
    """The (S,) weight of one action token of each sequence, over one optimizer minibatch.

    ``actions`` are the sequences' action tokens T_s, ``questions`` the questions they belong to, and
    ``included`` those that take part. A sequence that doesn't, or that has no action token, has
    weight 0 and counts in no denominator. With S sequences, N tokens and Q questions left, S_q of
    one question:

    - ``token_mean``: 1 / N (DAPO)
    - ``sequence_mean``: 1 / (S * T_s) (GRPO)
    - ``constant_length``: 1 / (S * constant_length) (Dr. GRPO)
    - ``prompt_balanced``: 1 / (Q * S_q * T_s) (DAVID-GRPO)
    """
    counted = included & (actions > 0)
    weights = np.zeros(len(actions), dtype=np.float64)
    if not counted.any():
        return weights
    lengths, sequences = actions[counted].astype(np.float64), int(counted.sum())
    if aggregation == "token_mean":
        weights[counted] = 1.0 / lengths.sum()
    elif aggregation == "sequence_mean":
        weights[counted] = 1.0 / (sequences * lengths)
    elif aggregation == "constant_length":
        weights[counted] = 1.0 / (sequences * constant_length)
    elif aggregation == "prompt_balanced":
        _, which, per_question = np.unique(questions[counted], return_inverse=True, return_counts=True)
        weights[counted] = 1.0 / (len(per_question) * per_question[which] * lengths)
    else:
        raise ValueError(f"unknown aggregation {aggregation!r}")
    return weights


def minibatches(batch: Batch, config: AlgorithmConfig, rng: np.random.Generator) -> tuple[Minibatch, ...]:
    """The optimizer updates of one learner step, without those that have nothing to train.

    They are as few as take at most ``minibatch_questions`` questions each (0: all of them), and as even as can be: 7
    by 3 are 3, 2 and 2, since an update of a single question would weigh as much as one of three. Those without a
    signal are counted in: whether a neighbour learns must not move a question to another update. The first epoch
    keeps the batch's order, each later one draws its own from ``rng``.
    """
    updates = max(1, -(-batch.questions // (config.minibatch_questions or max(1, batch.questions))))
    out = []
    for epoch in range(config.epochs):
        order = np.arange(batch.questions) if epoch == 0 else rng.permutation(batch.questions)
        for questions in np.array_split(order, updates):
            chosen = set(questions.tolist())
            part = _minibatch([i for i, s in enumerate(batch.samples) if s.question in chosen], batch, config)
            if part.samples:
                out.append(part)
    return tuple(out)


def _minibatch(indices: list[int], batch: Batch, config: AlgorithmConfig) -> Minibatch:
    samples = [batch.samples[i] for i in indices]
    actions = np.array([s.actions for s in samples], dtype=np.int64)
    questions = np.array([s.question for s in samples], dtype=np.int64)
    signal = np.array([s.signal for s in samples], dtype=np.bool_)
    aggregation, constant = config.choices.aggregation, config.sequence_constant
    policy = loss_weights(actions, questions, signal, aggregation, constant)
    kl = np.zeros_like(policy)
    if config.kl != "none":
        restrained = signal | config.kl_zero_variance
        kl = loss_weights(actions, questions, restrained, aggregation, constant)
    kept = np.flatnonzero((policy > 0) | (kl > 0))
    return Minibatch(
        samples=tuple(samples[i] for i in kept),
        indices=tuple(indices[i] for i in kept),
        policy_weights=policy[kept],
        kl_weights=kl[kept],
    )
