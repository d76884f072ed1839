from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import MIXED, SIZES, VOCABULARY, loaded_policy, random_groups
from safetensors.torch import load_file
from torch import nn

from agent.errors import UserError
from learner.batch import make_batch
from learner.checkpoint import load_state, save_state
from learner.config import AlgorithmConfig, ModelConfig, OptimizerConfig
from learner.lora import LowRank, layers
from learner.policy import Policy
from learner.update import Updater


def adapted(rank: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> Policy:
    sizes = {**SIZES, "initializer_range": 0.2}
    return Policy.build(
        sizes, vocab_size=VOCABULARY, seed=seed, dtype=dtype, lora_rank=rank, gradient_checkpointing="layers"
    )


def plain(dtype: torch.dtype = torch.float32) -> Policy:
    return Policy.build({**SIZES, "initializer_range": 0.2}, vocab_size=VOCABULARY, seed=0, dtype=dtype)


def updater(policy: Policy, tmp: Path) -> Updater:
    config = AlgorithmConfig(optimizer=OptimizerConfig(lr=2e-2), logits_chunk=7, mismatch_limit=0)
    return Updater(policy, config, rng=np.random.default_rng(3), fault_folder=tmp)


def train(policy: Policy, tmp: Path, steps: range) -> Updater:
    learner = updater(policy, tmp)
    for step in steps:
        assert learner.update(random_groups(step, MIXED), step=step, version=step).updates == 1
    return learner


def test_adapters_begin_as_nothing_and_are_all_that_is_trained(tmp_path: Path) -> None:
    policy, base = adapted(rank=2), plain()
    before = policy.published()
    assert before.keys() == base.published().keys()
    assert all(torch.equal(before[n], t) for n, t in base.published().items())
    count = len(list(layers(policy.model)))
    assert count == 2 * 7  # two layers of q, k, v, o, gate, up and down
    assert [p.shape for p in policy.parameters()].count(torch.Size([2, 16])) > 0
    assert len(policy.parameters()) == 2 * count
    train(policy, tmp_path, range(3))
    after = policy.published()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {n for n in before if "proj.weight" in n}
    difference = after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]
    assert torch.linalg.matrix_rank(difference, rtol=1e-4) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_published_is_what_was_trained(dtype: torch.dtype, tmp_path: Path) -> None:
    """The engine's model is the learner's to the last bit, in bfloat16 too, and needs no adapters."""
    policy = adapted(dtype=dtype)
    learner = train(policy, tmp_path, range(3))
    policy.save(tmp_path / "model")
    files = load_file(tmp_path / "model" / "model.safetensors")
    published = policy.published()
    assert files.keys() == published.keys()
    assert all(torch.equal(files[n], published[n]) for n in files)
    engine = loaded_policy(tmp_path / "model", dtype)
    assert not engine.adapted
    samples = make_batch(random_groups(7, MIXED), "std").samples
    for ours, theirs in zip(learner.score(policy, samples), learner.score(engine, samples), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_gradients_are_those_of_the_merged_weight() -> None:
    """d/dA = 2 B' G and d/dB = 2 G A', G the gradient of the merged matrix."""
    policy = adapted()
    name, layer = next(iter(layers(policy.model)))
    with torch.no_grad():
        layer.lora_b.normal_(generator=torch.Generator().manual_seed(0))
    whole = nn.Parameter(layer.merged().detach())
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(1))
    nn.functional.linear(x, whole, layer.bias).square().sum().backward()
    layer(x).square().sum().backward()
    assert whole.grad is not None
    torch.testing.assert_close(layer.lora_a.grad, 2 * layer.lora_b.detach().t() @ whole.grad)
    torch.testing.assert_close(layer.lora_b.grad, 2 * whole.grad @ layer.lora_a.detach().t())
    assert layer.weight.grad is None, name


def test_resuming_is_bit_identical(tmp_path: Path) -> None:
    policy = adapted(dtype=torch.bfloat16)
    learner = train(policy, tmp_path, range(3))
    policy.save(tmp_path / "model")
    save_state(tmp_path / "s.pt", {"updater": learner.state(), "adapters": policy.adapters()})
    for step in range(3, 6):
        learner.update(random_groups(step, MIXED), step=step, version=step)
    resumed = Policy.from_folder(
        tmp_path / "model", seed=0, dtype="bfloat16", gradient_checkpointing="layers", lora_rank=2
    )
    state = load_state(tmp_path / "s.pt")
    resumed.load_adapters(state["adapters"])
    other = updater(resumed, tmp_path)
    other.load_state(state["updater"])
    for step in range(3, 6):
        other.update(random_groups(step, MIXED), step=step, version=step)
    ours, theirs = policy.adapters(), resumed.adapters()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    with pytest.raises(UserError, match=r"model\.lora_rank"):
        adapted(rank=3, dtype=torch.bfloat16).load_adapters(state["adapters"])
    with pytest.raises(UserError, match=r"model\.lora_rank"):
        plain(torch.bfloat16).load_adapters(state["adapters"])


def test_folding_is_saving_and_loading(tmp_path: Path) -> None:
    """A warm start from the cache has to begin RL like the one that filled it."""
    policy = adapted()
    train(policy, tmp_path, range(2))
    policy.save(tmp_path / "model")
    before = policy.published()
    policy.fold()
    loaded = adapted()
    loaded.load_weights(tmp_path / "model")
    ours, theirs = policy.adapters(), loaded.adapters()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert all(torch.equal(t, before[n]) for n, t in policy.published().items())
    assert not any(layer.lora_b.any() for _, layer in layers(policy.model))


def test_a_reference_is_a_plain_model(tmp_path: Path) -> None:
    policy = adapted()
    train(policy, tmp_path, range(2))
    frozen = policy.frozen_copy()
    assert not frozen.adapted
    assert frozen.parameters() == []
    ours, theirs = policy.published(), frozen.published()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    frozen.save(tmp_path / "reference")
    frozen.load_weights(tmp_path / "reference")
    assert policy.adapted


def asked_for(policy: Policy) -> list[float]:
    return [float(tensor.sum()) for _, tensor in policy.current()]


@pytest.mark.parametrize("asked", [asked_for, Policy.published, Policy.weights])
def test_a_merged_matrix_is_gone_before_the_next_but_one_is_made(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them take as much of the device as the model. What is kept is on the CPU: here, a copy of each."""
    policy, made = adapted(), list[Any]()
    merged, move = LowRank.merged, torch.Tensor.to

    def watched(layer: LowRank) -> torch.Tensor:
        assert sum(one() is not None for one in made) <= 1
        tensor = merged(layer)
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(LowRank, "merged", watched)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *where, **how: move(tensor, *where, **how).clone())
    asked(policy)
    assert len(made) == len(list(layers(policy.model)))


def test_weights_are_compared_with_those_of_a_file_without_merging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = adapted()
    train(policy, tmp_path, range(2))
    policy.save(tmp_path / "model")
    merged = policy.published()
    loaded = adapted()
    with monkeypatch.context() as patched:
        patched.setattr(LowRank, "merged", lambda layer: pytest.fail("it takes as much of the card as the model"))
        loaded.load_weights(tmp_path / "model")
    assert all(torch.equal(tensor, merged[name]) for name, tensor in loaded.published().items())


def test_a_negative_rank_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.lora_rank=-1"):
        ModelConfig(lora_rank=-1)
