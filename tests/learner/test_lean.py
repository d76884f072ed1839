"""What a layer keeps changes the result of no pass: values to the bit, gradients to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from learner.attention import ATTENTION
from learner.lean import _Norm, keep_less
from learner.packing import PackedRow, pack_rows
from learner.policy import Policy

SIZES: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.1,
}
KINDS: dict[str, Any] = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
LEVELS = [("layers", 0), ("mlp", 0), ("mlp", 2), ("none", 0)]


def build(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    more = {"head_dim": 8} if kind == "qwen3" else {}
    model = AutoModelForCausalLM.from_config(KINDS[kind](**SIZES, **more), attn_implementation=ATTENTION)
    with torch.no_grad():
        for module in model.modules():
            if "RMSNorm" in type(module).__name__:
                module.weight.uniform_(0.5, 1.5)
    model.to(dtype=dtype)
    assert isinstance(model, PreTrainedModel)
    return model


def row() -> PackedRow:
    rng = np.random.default_rng(1)
    ids = [rng.integers(0, 41, n).astype(np.int32) for n in (9, 5, 5, 7)]
    (made,) = pack_rows(ids, [np.arange(len(i)) > 2 for i in ids], 1000)
    return made


def result(policy: Policy) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities, and all gradients by their names."""
    values = policy.logprobs(row()).values
    (values * torch.linspace(-1, 1, len(values))).sum().backward()
    gradients = {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}
    return values.detach(), {name: g.clone() for name, g in gradients.items()}


class Plain(Policy):
    """A policy whose model is left as transformers made it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("level", "whole"), LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_that_of_the_plain_model(kind: str, level: str, whole: int, dtype: torch.dtype) -> None:
    values, gradients = result(Policy(build(kind, dtype), gradient_checkpointing=level, whole_layers=whole))
    expected, wanted = result(Plain(build(kind, dtype)))
    assert torch.equal(values, expected)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        apart = (gradient - wanted[name]).float().norm() / wanted[name].float().norm()
        assert apart < (1e-5 if dtype == torch.float32 else 2e-2), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_leaves_what_a_norm_was_given(dtype: torch.dtype) -> None:
    """Others may have kept the same tensor for their own backward."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 32, generator=generator).to(dtype).requires_grad_()
    before, weight = x.detach().clone(), torch.ones(32, dtype=dtype, requires_grad=True)
    _Norm.apply(x, weight, 1e-6).square().sum().backward()
    assert torch.equal(x, before)


def test_names_copies_and_adapters_stay_what_they_are() -> None:
    plain = build("qwen2")
    policy = Policy(build("qwen2"), gradient_checkpointing="mlp", whole_layers=1)
    assert list(policy.model.state_dict()) == list(plain.state_dict())
    twin = policy.frozen_copy()
    before = twin.logprobs(row()).values
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(1.0)
    assert torch.equal(twin.logprobs(row()).values, before), "a copy's feed-forward part has the copy's own norm"
    lora = [Policy(build("qwen2"), gradient_checkpointing=k, lora_rank=2, seed=3) for k in ("mlp", "none")]
    (values, gradients), (expected, wanted) = map(result, lora)
    assert torch.equal(values, expected)
    assert gradients.keys() == wanted.keys()
    assert all("lora" in name for name in gradients)


def test_a_layer_of_another_kind_is_checkpointed_whole() -> None:
    model: Any = AutoModelForCausalLM.from_config(GPTNeoXConfig(**SIZES))
    before = {name: type(module) for name, module in model.named_modules()}
    keep_less(model, "mlp", 1)
    assert model.is_gradient_checkpointing
    assert {name: type(module) for name, module in model.named_modules()} == before
