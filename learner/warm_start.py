"""Supervised steps on demonstrations before RL: the policy learns to speak the protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agent.errors import Fault, UserError
from agent.records import BoolArray, IntArray
from learner.config import OptimizerConfig, WarmStartConfig
from learner.optimizer import ClippedAdamW, schedule_factor
from learner.packing import pack_rows
from learner.policy import Policy


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Demonstration:
    """One expert trajectory of T tokens, prompt included."""

    token_ids: IntArray
    """(T,)"""
    action_mask: BoolArray
    """(T,) true at the expert's actions; false at the prompt and at observations."""

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.action_mask):
            raise ValueError(f"{len(self.token_ids)} tokens with a mask of {len(self.action_mask)}")
        if len(self.token_ids) < 2 or self.action_mask[0] or not self.action_mask.any():
            raise ValueError("a demonstration needs a prompt and at least one action token after it")


def warm_start(
    policy: Policy,
    demonstrations: Sequence[Demonstration],
    config: WarmStartConfig,
    *,
    rng: np.random.Generator,
    optimizer: OptimizerConfig | None = None,
    microbatch_tokens: int = 16384,
    logits_chunk: int = 4096,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Trains ``policy`` in place for ``config.steps`` steps; returns the loss of each.

    Loss of a step: mean over its action tokens + ``context_weight`` * mean over all its tokens. Batches of
    ``batch_size`` walk through permutations drawn from ``rng``. AdamW (0.9, 0.95) without decay, of the kind of
    ``optimizer`` (the plain one by default), where that keeps it and as exact, with ``config.muon_lr`` Muon on the
    hidden matrices; warm-up, then cosine to 0. ``progress`` is called with (step from 0, loss) after each step.

    Raises ``UserError`` without demonstrations, ``Fault`` when a loss or gradient isn't finite.
    """
    if not demonstrations and config.steps:
        raise UserError("algorithm.warm_start.steps is above 0, but there are no demonstrations")
    place = optimizer or OptimizerConfig()
    adamw = ClippedAdamW(
        policy.parameters(),
        OptimizerConfig(
            kind=place.kind,
            offload=place.offload,
            exact_master=place.exact_master,
            float32_gradients=place.float32_gradients,
            lr=config.lr,
            betas=[0.9, 0.95],
            weight_decay=0.0,
            max_grad_norm=config.max_grad_norm,
        ),
        matrices=policy.hidden_matrices() if config.muon_lr else (),
        muon_lr=config.muon_lr,
        rng=rng,
    )
    losses = []
    batches = _batches(len(demonstrations), config.batch_size, rng)
    for step in range(config.steps):
        chosen = [demonstrations[i] for i in next(batches)]
        loss = _backward(policy, chosen, config.context_weight, microbatch_tokens, logits_chunk)
        norm = adamw.clip()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Fault(f"warm start: step {step + 1} has loss {loss} and gradient norm {norm}; lower warm_start.lr")
        adamw.step(schedule_factor("cosine", step, config.steps, config.warmup_steps))
        losses.append(loss)
        if progress is not None:
            progress(step, loss)
    return losses


def _batches(count: int, size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Endless batches of ``size`` indices below ``count``: each occurs once before any occurs again."""
    left: list[int] = []
    while True:
        while len(left) < size:
            left += rng.permutation(count).tolist()
        yield left[:size]
        del left[:size]


def _backward(
    policy: Policy,
    chosen: Sequence[Demonstration],
    context_weight: float,
    microbatch_tokens: int,
    logits_chunk: int,
) -> float:
    """Adds up the gradient of one batch; returns its loss."""
    masks = [d.action_mask for d in chosen]
    # Every token but a sequence's first can be predicted; without a context loss, only actions are.
    predicted = [np.arange(len(m)) > 0 if context_weight else m for m in masks]
    actions = sum(int(m.sum()) for m in masks)
    total = sum(int(p.sum()) for p in predicted)
    weights = [m[p] / actions + context_weight / total for m, p in zip(masks, predicted, strict=True)]
    losses = []
    for row in pack_rows([d.token_ids for d in chosen], predicted, microbatch_tokens):
        logprobs = policy.logprobs(row, chunk=logits_chunk).values
        loss = -(policy.to_device(row.concatenate(weights)).to(logprobs.dtype) * logprobs).sum()
        loss.backward()
        losses.append(loss.detach())
    return float(torch.stack(losses).sum())
