from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import SIZES, VOCABULARY, loaded_policy, tiny_policy
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from agent.errors import UserError
from learner.attention import ATTENTION
from learner.config import ModelConfig
from learner.packing import pack_rows
from learner.policy import ALIGNMENT, Policy
from learner.skeleton import write_skeleton
from tasks.tokenizer import train


def row_of(*lengths: int) -> Any:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, VOCABULARY, n).astype(np.int32) for n in lengths]
    (row,) = pack_rows(ids, [np.arange(n) > 0 for n in lengths], 1000)
    return row


def test_building_is_seeded_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (tiny_policy(seed).published() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert any(not torch.equal(a[n], c[n]) for n in a)


def test_logprobs_are_the_models_own() -> None:
    policy, row = tiny_policy(), row_of(6, 4)
    got = policy.logprobs(row, temperature=0.5, chunk=3, entropy=True)
    expected = []
    for start, length in ((0, 6), (6, 4)):
        ids = torch.tensor(row.token_ids[start : start + length]).long()
        policy.model.set_attn_implementation("eager")
        table = torch.log_softmax(policy.model(input_ids=ids[None]).logits[0] / 0.5, -1)
        expected.append(table[torch.arange(length - 1), ids[1:]])
    torch.testing.assert_close(got.values, torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert got.entropy is not None
    assert got.entropy.shape == got.values.shape


def test_positions_are_as_exact_in_bfloat16_as_an_engine_has_them(tmp_path: Path) -> None:
    """Its inverse frequencies stay float32, as in vLLM and transformers; rounded, they turn late tokens by more."""
    exact = Policy.build(SIZES, vocab_size=VOCABULARY, seed=0)
    exact.save(tmp_path / "model")
    train(("some text",), tags=("<search>",), folder=tmp_path / "skeleton", vocab_size=270)
    write_skeleton(tmp_path / "skeleton", ModelConfig(architecture=SIZES), context=64)
    narrow = torch.bfloat16
    built = Policy.build(SIZES, vocab_size=VOCABULARY, seed=0, dtype=narrow)
    loaded = loaded_policy(tmp_path / "model", narrow)
    begun = loaded_policy(tmp_path / "skeleton", narrow)
    for policy in (built, loaded, begun, loaded.frozen_copy()):
        assert {p.dtype for p in policy.model.parameters()} == {narrow}
        for (name, buffer), (_, right) in zip(policy.model.named_buffers(), exact.model.named_buffers(), strict=True):
            assert torch.equal(buffer, right), name
            assert buffer.dtype == torch.float32, name


def test_published_weights_are_copies_under_the_names_of_the_format(tmp_path: Path) -> None:
    policy = tiny_policy()
    weights = policy.published()
    assert "lm_head.weight" not in weights
    assert "model.embed_tokens.weight" in weights
    assert all(t.is_contiguous() and t.device.type == "cpu" and t.dtype == torch.float32 for t in weights.values())
    policy.save(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == weights.keys()
    with torch.no_grad():
        policy.head.zero_()
    assert weights["model.embed_tokens.weight"].any()


def test_an_untied_head_is_published() -> None:
    policy = Policy.build({**SIZES, "tie_word_embeddings": False}, vocab_size=VOCABULARY, seed=0)
    assert "lm_head.weight" in policy.published()


def test_save_and_load_are_exact_and_plain(tmp_path: Path) -> None:
    policy = tiny_policy()
    policy.save(tmp_path)
    twin = loaded_policy(tmp_path)
    ours, theirs = policy.published(), twin.published()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight


def test_a_skeleton_is_built_from_the_seed(tmp_path: Path) -> None:
    train(("some text",), tags=("<search>",), folder=tmp_path, vocab_size=270)
    write_skeleton(tmp_path, ModelConfig(architecture=SIZES), context=64)
    built, twin, other = (Policy.from_folder(tmp_path, seed=s, dtype="bfloat16") for s in (0, 0, 1))
    assert built.head.dtype == torch.bfloat16
    assert built.logprobs(row_of(5, 3)).values.dtype == torch.float32
    assert torch.equal(built.head, twin.head)
    assert not torch.equal(built.head, other.head)
    tiny_policy().save(tmp_path)  # a folder with weights is none, whatever lies beside them
    assert torch.equal(Policy.from_folder(tmp_path, seed=0, dtype="float32").head, tiny_policy().head)
    built.save(tmp_path / "checkpoint")
    loaded = Policy.from_folder(tmp_path / "checkpoint", seed=5, dtype="float32")
    assert torch.equal(loaded.head, built.head.float())
    (tmp_path / "checkpoint" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):  # a checkpoint is no skeleton
        Policy.from_folder(tmp_path / "checkpoint", seed=5, dtype="float32")


def test_load_weights(tmp_path: Path) -> None:
    policy, other = tiny_policy(0), tiny_policy(1)
    policy.save(tmp_path)
    other.load_weights(tmp_path)
    ours, theirs = policy.published(), other.published()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    deeper = Policy.build({**SIZES, "num_hidden_layers": 3}, vocab_size=VOCABULARY, seed=0)
    with pytest.raises(UserError, match="another model"):
        deeper.load_weights(tmp_path)
    wider = Policy.build({**SIZES, "intermediate_size": 32}, vocab_size=VOCABULARY, seed=0)
    with pytest.raises(UserError, match="another model"):
        wider.load_weights(tmp_path)


def test_frozen_copy_stays_behind() -> None:
    policy = tiny_policy()
    frozen = policy.frozen_copy()
    assert frozen.parameters() == []
    with torch.no_grad():
        policy.head.add_(1.0)
    assert not torch.equal(policy.head, frozen.head)
    assert not frozen.logprobs(row_of(4)).values.requires_grad


def test_a_policy_that_is_lent_comes_home() -> None:
    policy, row = tiny_policy().frozen_copy(host=True), row_of(5, 3)
    expected = policy.logprobs(row).values
    addresses = [t.data_ptr() for t in policy.model.parameters()]
    with policy.lent_to("cpu"):
        assert torch.equal(policy.logprobs(row).values, expected)
    assert [t.data_ptr() for t in policy.model.parameters()] == addresses
    assert policy.model.lm_head.weight is policy.model.model.embed_tokens.weight
    assert torch.equal(policy.logprobs(row).values, expected)


def test_loaded_weights_are_aligned(tmp_path: Path) -> None:
    """Where a file has them, matrix products may take another path: a resumed run would differ."""
    tiny_policy().save(tmp_path)
    assert not any(p.data_ptr() % ALIGNMENT for p in loaded_policy(tmp_path).model.parameters())


def test_a_misspelt_size_names_the_right_one() -> None:
    with pytest.raises(UserError, match=r"hidden_sise.*hidden_size"):
        Policy.build({"hidden_sise": 8}, vocab_size=8, seed=0)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path"):
        loaded_policy(tmp_path)


COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "attn_implementation": ATTENTION,
}


def test_models_with_rescaled_logits_are_refused() -> None:
    with pytest.raises(UserError, match="final_logit_softcapping"):
        Policy(Gemma2ForCausalLM(Gemma2Config(**COMMON, head_dim=4)))
    with pytest.raises(UserError, match="logit_scale"):
        Policy(CohereForCausalLM(CohereConfig(**COMMON, logit_scale=0.1)))
    with pytest.raises(UserError, match="logits_scaling"):
        Policy(GraniteForCausalLM(GraniteConfig(**COMMON, logits_scaling=8.0)))


def test_a_rescaled_head_that_no_list_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.lacking.RESCALED_LOGITS", ())
    with pytest.raises(UserError, match="differ from its own forward pass"):
        Policy(GraniteForCausalLM(GraniteConfig(**COMMON, logits_scaling=8.0)))


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_longest_of_a_row_are_refused(kind: str) -> None:
    scaling = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
    factors = {"long_factor": [2.0, 2.0], "short_factor": [1.0, 1.0]} if kind == "longrope" else {}
    config = LlamaConfig(**COMMON, head_dim=4, max_position_embeddings=128, rope_parameters=scaling | factors)
    with pytest.raises(UserError, match=f"rope_type {kind} is not supported"):
        Policy(LlamaForCausalLM(config))


def test_a_model_without_grouped_heads_is_one_group_a_head() -> None:
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            attn_implementation=ATTENTION,
        )
    )  # fmt: skip
    assert not hasattr(model.config, "num_key_value_heads")
    assert Policy(model).seen_again > 0


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0.6, "top_p": 0.9},
        {"do_sample": False, "top_k": 20},
        {"early_stopping": True},
        {"early_stopping": "x"},
        {"pad_token_id": -1},
        {"watermarking_config": 5},
        {"cache_implementation": "none such"},
    ],
)
def test_settings_of_generation_that_transformers_refuses_to_write_are_dropped(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    """Published models have them: a run would end at its first checkpoint."""
    tiny_policy().save(tmp_path / "given")
    file = tmp_path / "given" / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": 7, "_from_model_config": False, **asked}))
    policy = loaded_policy(tmp_path / "given")
    policy.save(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert written["eos_token_id"] == 7
    assert not asked.keys() & written.keys()


def test_sliding_layers_and_other_attention_are_refused() -> None:
    sizes = {**SIZES, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    with pytest.raises(UserError, match="sliding_attention"):
        Policy.build(sizes, vocab_size=VOCABULARY, seed=0)
    with pytest.raises(UserError, match="sliding window of 4"):
        Policy(MistralForCausalLM(MistralConfig(**COMMON, head_dim=4, sliding_window=4)))
    with pytest.raises(UserError, match="attention sdpa"):
        Policy(GraniteForCausalLM(GraniteConfig(**{**COMMON, "attn_implementation": "sdpa"})))
