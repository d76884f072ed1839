"""Everything that saves memory at once, against the plain computation: float32, one sequence at a time, full logits."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_cases import MIXED, SIZES, VOCABULARY, random_groups
from torch import Tensor

from agent.groups import Group
from learner.batch import make_batch, minibatches
from learner.config import AlgorithmConfig
from learner.policy import Policy
from learner.update import Updater

TEMPERATURE = 0.7


def saving(seed: int = 0, **sizes: bool) -> Policy:
    wide = {**SIZES, "initializer_range": 0.2, **sizes}
    return Policy.build(wide, vocab_size=VOCABULARY, seed=seed, gradient_checkpointing="layers")


def ours(
    policy: Policy,
    anchor: Policy,
    groups: list[Group],
    config: AlgorithmConfig,
    tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[float, dict[str, Tensor], int]:
    """Loss, gradients by name, and the number of microbatches."""
    updater = Updater(
        policy, config, rng=np.random.default_rng(0), fault_folder=tmp, temperature=TEMPERATURE, reference=anchor
    )
    gradients: dict[str, Tensor] = {}

    def keep(*_: object) -> float:
        gradients.update({n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None})
        return 0.0

    monkeypatch.setattr(updater, "apply", keep)
    report = updater.update(groups, step=0, version=0)
    return report.loss, gradients, report.microbatches


def plain(
    policy: Policy, anchor: Policy, groups: list[Group], config: AlgorithmConfig
) -> tuple[float, dict[str, Tensor]]:
    """The same from transformers' own forward pass, all logits at once, no checkpoints, eager attention."""
    model, still = copy.deepcopy(policy.model), copy.deepcopy(anchor.model)
    for each in (model, still):
        each.zero_grad()
        each.gradient_checkpointing_disable()
        each.set_attn_implementation("eager")
    (part,) = minibatches(make_batch(groups, config.choices.advantage), config, np.random.default_rng(0))
    loss = torch.zeros(())
    for sample, weight, kl_weight in zip(part.samples, part.policy_weights, part.kl_weights, strict=True):
        ids = torch.from_numpy(sample.token_ids).long()

        def logprobs(which: torch.nn.Module, ids: Tensor = ids, mask: np.ndarray = sample.action_mask) -> Tensor:
            table = torch.log_softmax(which(input_ids=ids[None]).logits[0] / TEMPERATURE, -1)
            return table[:-1].gather(-1, ids[1:, None]).squeeze(-1)[torch.from_numpy(mask[1:])]

        current = logprobs(model)
        ratio = (current - current.detach()).exp()
        importance = (current.detach() - torch.from_numpy(sample.engine_logprobs).float()).exp().clamp(max=2.0)
        d = current - logprobs(still).detach()
        loss = loss - float(weight) * (importance * ratio * sample.advantage).sum()
        loss = loss + config.kl_coefficient * float(kl_weight) * (d.square() / 2).sum()
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("aggregation", ["prompt_balanced", "token_mean"])
def test_chunked_packed_and_checkpointed_is_plain(
    tied: bool, aggregation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = random_groups(4, MIXED)
    policy, anchor = saving(0, tie_word_embeddings=tied), saving(1, tie_word_embeddings=tied).frozen_copy()
    config = AlgorithmConfig(
        aggregation=aggregation, kl="k2", kl_coefficient=0.3, microbatch_tokens=40, logits_chunk=3, mismatch_limit=0
    )
    assert policy.model.is_gradient_checkpointing
    expected_loss, expected = plain(policy, anchor, groups, config)
    loss, gradients, rows = ours(policy, anchor, groups, config, tmp_path, monkeypatch)
    assert rows > 2
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    assert gradients.keys() == expected.keys() == dict(policy.model.named_parameters()).keys()
    scale = max(g.abs().max().item() for g in expected.values())
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).abs().max() < 1e-6 * scale, name
    assert scale > 1e-3


def test_no_array_of_all_logits_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array as wide as the vocabulary has a chunk's rows, forward and backward; a weight's has its own shape."""
    seen: set[torch.Size] = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[name-defined]
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, Tensor) and VOCABULARY in tensor.shape:
                    seen.add(tensor.shape)
            return out

    policy = saving()
    config = AlgorithmConfig(microbatch_tokens=1000, logits_chunk=3, mismatch_limit=0)
    updater = Updater(policy, config, rng=np.random.default_rng(0), fault_folder=tmp_path)
    with Watch():
        report = updater.update(random_groups(4, MIXED), step=0, version=0)
    assert report.microbatches == 1
    assert report.action_tokens > 3 * 10
    d = SIZES["hidden_size"]
    heads = {torch.Size([VOCABULARY, d]), torch.Size([d, VOCABULARY])}
    rows = {shape[0] if shape[1] == VOCABULARY else shape[1] for shape in seen - heads}
    assert max(rows) == 3
