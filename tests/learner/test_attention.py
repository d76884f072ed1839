from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen3Config
from transformers import Qwen2ForCausalLM as Qwen2
from transformers import Qwen3ForCausalLM as Qwen3

from agent.errors import UserError
from learner.attention import ATTENTION, Layout, packed_attention
from learner.packing import PackedRow, pack_rows
from learner.policy import Policy

SIZES: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.1,
    "attn_implementation": ATTENTION,
}


def build(name: str, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    model: torch.nn.Module
    if name == "qwen2":
        model = Qwen2(Qwen2Config(**SIZES))
    elif name == "qwen3":
        model = Qwen3(Qwen3Config(**SIZES, head_dim=8))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.to(dtype=dtype)
    assert isinstance(model, PreTrainedModel)
    return model


def gradients(model: PreTrainedModel) -> torch.Tensor:
    out = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return out


@pytest.mark.one_in(5)
@pytest.mark.parametrize("checkpointing", ["none", "mlp", "layers"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama"])
def test_packed_is_each_sequence_alone(name: str, dtype: torch.dtype, tolerance: float, checkpointing: str) -> None:
    policy = Policy(build(name, dtype), gradient_checkpointing=checkpointing)
    rng = np.random.default_rng(1)
    ids = [rng.integers(0, 41, n).astype(np.int32) for n in (9, 1, 5, 5, 7, 2, 5)]
    (row,) = pack_rows(ids, [np.arange(len(i)) > 0 for i in ids], 1000)
    logits = policy.hidden(row) @ policy.head.t()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    (logits * direction).sum().backward()
    packed = gradients(policy.model)

    policy.model.set_attn_implementation("sdpa")
    alone = torch.cat([policy.model(input_ids=torch.tensor(ids[m])[None].long()).logits[0] for m in row.members])
    (alone * direction).sum().backward()
    expected = gradients(policy.model)
    assert (logits - alone).abs().max() < tolerance * alone.abs().max().clamp(min=1)
    assert (packed - expected).abs().max() < tolerance * expected.abs().max()


def family(rng: np.random.Generator) -> PackedRow:
    """Three sequences that begin with the same 30 tokens, two that begin with the same 18, and two others."""
    starts = [rng.integers(0, 41, n) for n in (30, 30, 30, 18, 18, 0, 0)]
    starts[1], starts[2], starts[4] = starts[0], starts[0], starts[3]
    ids = [
        np.concatenate([s, [i], rng.integers(0, 41, n)]).astype(np.int32)
        for i, (s, n) in enumerate(zip(starts, (4, 4, 7, 4, 1, 4, 9), strict=True))
    ]
    masks = [np.arange(len(i)) >= len(s) + 1 for i, s in zip(ids, starts, strict=True)]
    (row,) = pack_rows(ids, masks, 1000, families=[0, 0, 0, 1, 1, 2, 2])
    return row


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama"])
def test_what_sequences_share_is_computed_once_and_changes_nothing(name: str) -> None:
    policy = Policy(build(name, torch.float64))
    row = family(np.random.default_rng(1))
    assert row.before.tolist() == [-1, -1, -1, -1, 1, 1, 0, 0, 0], "nothing is in common in the last family"
    assert len(row.token_ids) == row.whole_tokens - 2 * 30 - 18
    hidden = policy.hidden(row)
    logits = hidden @ policy.head.t()
    wanted = torch.from_numpy(row.sources)
    direction = torch.randn((len(wanted), 41), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (logits[wanted] * direction).sum().backward()
    packed = gradients(policy.model)

    policy.model.set_attn_implementation("sdpa")
    places, at, total = row.places(), 0, torch.zeros((), dtype=torch.float64)
    for place, count in zip(places, row.selected.tolist(), strict=True):
        alone = policy.model(input_ids=torch.from_numpy(row.token_ids[place]).long()[None]).logits[0]
        assert (logits[torch.from_numpy(place)] - alone).abs().max() < 1e-12
        mine = [int(np.flatnonzero(place == s)[0]) for s in row.sources[at : at + count]]
        total = total + (alone[mine] * direction[at : at + count]).sum()
        at += count
    total.backward()
    expected = gradients(policy.model)
    # transformers' norms round a gradient to float32: that of what is shared once, and not once for each sequence.
    assert (packed - expected).abs().max() < 1e-6 * expected.abs().max()


def test_a_short_sliding_window_is_refused() -> None:
    x = torch.zeros(1, 2, 8, 4)
    (row,) = pack_rows([np.zeros(8, np.int32)], [np.arange(8) > 0], 8)
    layout = Layout.of(row, x.device)
    packed_attention(torch.nn.Module(), x, x, x, None, layout=layout, sliding_window=8)
    with pytest.raises(UserError, match="sliding window of 7"):
        packed_attention(torch.nn.Module(), x, x, x, None, layout=layout, sliding_window=7)
    with pytest.raises(UserError, match="softcap"):
        packed_attention(torch.nn.Module(), x, x, x, None, layout=layout, softcap=30.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_flash_kernel_agrees_with_sdpa() -> None:
    row = family(np.random.default_rng(0))
    layout, n = Layout.of(row, torch.device("cuda")), len(row.token_ids)
    q, k, v = (torch.randn(1, h, n, 64, device="cuda", dtype=torch.bfloat16) for h in (4, 2, 2))
    arguments: dict[str, Any] = {"layout": layout, "scaling": 0.125}
    flash, _ = packed_attention(torch.nn.Module(), q, k, v, None, **arguments)
    plain, _ = packed_attention(torch.nn.Module(), q.float(), k.float(), v.float(), None, **arguments)
    assert (flash.float() - plain).abs().max() < 2e-2
