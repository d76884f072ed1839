"""Small groups, policies and a plain float64 reference, shared by the learner's tests."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.groups import Group
from agent.records import NO_VERSION, Question, Score, ScoredTrajectory, StopReason, Trajectory, Turn
from agent.tickets import Ticket
from learner.config import AlgorithmConfig
from learner.policy import Policy

VOCABULARY = 37
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
}


def tiny_policy(seed: int = 0, dtype: torch.dtype = torch.float32) -> Policy:
    """A Qwen2 of about 4,000 parameters whose logits are far enough from uniform to be worth comparing."""
    sizes: dict[str, Any] = {**SIZES, "initializer_range": 0.2}
    return Policy.build(sizes, vocab_size=VOCABULARY, seed=seed, dtype=dtype)


def loaded_policy(path: Path, dtype: torch.dtype = torch.float32) -> Policy:
    """The policy that a learner starts from in the folder ``path``."""
    return Policy.from_folder(path, seed=0, dtype=str(dtype).removeprefix("torch."))


def trajectory(
    rng: np.random.Generator,
    spans: Sequence[tuple[int, int]],
    *,
    question: str = "q0",
    prompt: int = 3,
    version: int = 0,
) -> Trajectory:
    """``spans`` are (action tokens, observation tokens) of each turn."""
    turns, mask, at = [], [], 0
    for actions, observations in spans:
        end = at + actions + observations
        turns.append(Turn(action_start=at, action_end=at + actions, observation_end=end, text=""))
        mask += [True] * actions + [False] * observations
        at = end
    action = np.array(mask, dtype=np.bool_)
    return Trajectory(
        question_id=question,
        prompt_ids=rng.integers(0, VOCABULARY, prompt, dtype=np.int32),
        token_ids=rng.integers(0, VOCABULARY, at, dtype=np.int32),
        action_mask=action,
        logprobs=np.where(action, -3.5 + rng.normal(0, 0.3, at), 0.0),
        versions=np.where(action, version, -1),
        turns=tuple(turns),
        stop_reason=StopReason.ANSWERED,
    )


def as_expert(t: Trajectory) -> Trajectory:
    """The same tokens, as an expert would have written them."""
    return replace(t, expert=True, logprobs=np.zeros_like(t.logprobs), versions=np.full_like(t.versions, NO_VERSION))


def group(question: str, trajectories: Sequence[Trajectory], rewards: Sequence[float]) -> Group:
    return Group(
        question=Question(id=question, text="who?", golden_answers=("x",)),
        ticket=Ticket(claim_id=0, query=0, batch=0, order=0, seed=0),
        members=tuple(
            ScoredTrajectory(trajectory=t, score=Score(reward=r, outcome=r, evidence=None))
            for t, r in zip(trajectories, rewards, strict=True)
        ),
    )


def random_groups(seed: int, rewards: Sequence[Sequence[float]], version: int = 0) -> list[Group]:
    """One group per list of rewards, with one to three turns per trajectory."""
    rng = np.random.default_rng(seed)
    out = []
    for i, values in enumerate(rewards):
        members = [
            trajectory(
                rng,
                [(int(rng.integers(1, 6)), int(rng.integers(0, 5))) for _ in range(int(rng.integers(1, 4)))],
                question=f"q{i}",
                prompt=int(rng.integers(1, 5)),
                version=version,
            )
            for _ in values
        ]
        out.append(group(f"q{i}", members, values))
    return out


MIXED: list[list[float]] = [[1, 0, 0, 0, 0], [0, 0, 0], [0.5, 1, 0.5, 0], [1, 1], [1, 0]]
"""Signal, too hard, signal with partial rewards, too easy, signal."""


class Reference:
    """Every loss written down plainly: one unpacked sequence at a time, a loop over tokens.

    Shares no code with the learner beyond transformers; meant for float64.
    """

    def __init__(self, policy: Policy, config: AlgorithmConfig, reference: Policy | None, temperature: float = 1.0):
        self.model = copy.deepcopy(policy.model)
        self.model.set_attn_implementation("sdpa")
        self.config, self.temperature = config, temperature
        self.anchor = None
        if reference is not None:
            self.anchor = copy.deepcopy(reference.model)
            self.anchor.set_attn_implementation("sdpa")
        o = config.optimizer
        self.adamw = torch.optim.AdamW(
            self.model.parameters(), lr=o.lr, betas=(o.betas[0], o.betas[1]), eps=o.eps, weight_decay=o.weight_decay
        )
        self.losses: list[float] = []
        self.norms: list[float] = []

    def logprobs(self, model: torch.nn.Module, t: Trajectory) -> list[torch.Tensor]:
        """Of each action token, in order."""
        ids = torch.tensor([*t.prompt_ids.tolist(), *t.token_ids.tolist()])
        logits = model(input_ids=ids[None], use_cache=False).logits[0] / self.temperature
        table = torch.log_softmax(logits, dim=-1)
        first = len(t.prompt_ids)
        return [table[first + i - 1, t.token_ids[i]] for i in range(len(t.token_ids)) if t.action_mask[i]]

    @staticmethod
    def advantages(rewards: Sequence[float], method: str) -> list[float]:
        n = len(rewards)
        if n < 2 or all(r == rewards[0] for r in rewards):
            return [0.0] * n
        mean = sum(rewards) / n
        if method == "std":
            std = (sum((r - mean) ** 2 for r in rewards) / (n - 1)) ** 0.5
            return [(r - mean) / (std + 1e-6) for r in rewards]
        if method == "mean":
            return [r - mean for r in rewards]
        return [r - (sum(rewards) - r) / (n - 1) for r in rewards]

    def weight(self, groups: Sequence[Group], which: Sequence[bool], g: int, t: Trajectory) -> float:
        """Of one action token of ``t`` in group ``g``, when the groups marked in ``which`` take part."""
        counted = [
            [m.trajectory.action_tokens for m in group.members if m.trajectory.action_tokens] if on else []
            for group, on in zip(groups, which, strict=True)
        ]
        flat = [n for lengths in counted for n in lengths]
        if not which[g]:
            return 0.0
        match self.config.choices.aggregation:
            case "token_mean":
                return 1 / sum(flat)
            case "sequence_mean":
                return 1 / len(flat) / t.action_tokens
            case "constant_length":
                return 1 / len(flat) / self.config.sequence_constant
            case _:
                return 1 / sum(bool(c) for c in counted) / len(counted[g]) / t.action_tokens

    def surrogates(
        self, now: list[torch.Tensor], old: list[float], engine: list[float], advantage: float
    ) -> list[torch.Tensor]:
        """Of each action token of one sequence, its importance weight included."""
        c, clip = self.config, self.config.choices
        start = old if c.old_logprobs == "learner" else engine
        gaps = [a - b for a, b in zip(old, engine, strict=True)]
        ratios = [torch.exp(a - b) for a, b in zip(now, start, strict=True)]
        if c.loss == "gspo":
            ratios = [torch.exp(sum(torch.log(r) for r in ratios) / len(ratios))] * len(ratios)
            gaps = [sum(gaps) / len(gaps)] * len(gaps)
        corrects = c.old_logprobs == "learner" and c.importance_cap
        weights = [min(float(np.exp(gap)), c.importance_cap) if corrects else 1.0 for gap in gaps]
        out = []
        for logprob, ratio, weight in zip(now, ratios, weights, strict=True):
            bounded = torch.clamp(ratio, 1 - clip.clip_low, 1 + clip.clip_high)
            if c.loss == "cispo":
                out.append(-weight * bounded.detach() * advantage * logprob)
            else:
                out.append(-weight * torch.minimum(ratio * advantage, bounded * advantage))
        return out

    def step(self, groups: Sequence[Group], minibatches: Sequence[Sequence[int]]) -> None:
        """Runs the updates; each minibatch is a list of group indices."""
        with torch.no_grad():
            old = {
                id(m): [x.item() for x in self.logprobs(self.model, m.trajectory)] for g in groups for m in g.members
            }
        for chosen in minibatches:
            self._update([groups[i] for i in chosen], old)

    def _update(self, groups: Sequence[Group], old: dict[int, list[float]]) -> None:
        c = self.config
        signal = [len(set(g.rewards)) > 1 for g in groups]
        restrained = [s or c.kl_zero_variance for s in signal]
        loss = torch.zeros((), dtype=torch.float64)
        for g, group in enumerate(groups):
            advantages = self.advantages(group.rewards, c.choices.advantage)
            for member, advantage in zip(group.members, advantages, strict=True):
                t = member.trajectory
                if not t.action_tokens:
                    continue
                engine = t.logprobs[t.action_mask].tolist()
                anchor = [x.detach() for x in self.logprobs(self.anchor, t)] if self.anchor else None
                policy_weight, kl_weight = self.weight(groups, signal, g, t), self.weight(groups, restrained, g, t)
                now = self.logprobs(self.model, t)
                surrogates = self.surrogates(now, old[id(member)], engine, advantage)
                for i, logprob in enumerate(now):
                    loss = loss + policy_weight * surrogates[i]
                    if anchor is not None:
                        d = logprob - anchor[i]
                        kl = {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) + d - 1}[c.kl]
                        loss = loss + c.kl_coefficient * kl_weight * kl
        self.adamw.zero_grad()
        loss.backward()
        self.norms.append(float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), c.optimizer.max_grad_norm)))
        self.losses.append(loss.item())
        self.adamw.step()
