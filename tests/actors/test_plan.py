"""The plan: its static parts against real tensors, its peaks against what is alive while the learner computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_bytes import LiveBytes
from plan_box import box
from settings import composed
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from actors.plan import fit
from actors.plan import states as planned
from actors.plan.architecture import Architecture, architecture
from actors.plan.cards import CARDS, GIB, usable_bytes
from actors.plan.engine import engine_memory
from actors.plan.fit import advice, changed, longest_row, problems, refusal, smallest_change
from actors.plan.host import checkpoint_bytes, heap_bytes, memory_bytes, object_store_bytes, output_bytes
from actors.plan.learner import LearnerMemory, learner_memory
from actors.plan.roofline import _shared, work
from actors.plan.table import table
from agent.errors import UserError
from conf.schema import CheckpointConfig
from conf.topology import ClusterConfig, EngineConfig
from learner import muon as muon_module
from learner.config import ModelConfig, OptimizerConfig
from learner.optimizer import ClippedAdamW
from learner.packing import pack_rows, seen_again
from learner.policy import Policy

CONFIGS: dict[str, Any] = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
PUBLISHED = {
    "tiny": 460_160,  # with a vocabulary of model.vocab_size, the most that its tokenizer may have
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "qwen0.5b": 494_032_768,
    "qwen1.5b": 1_543_714_304,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "llama1b": 1_235_814_400,
}
"""Parameters of every shipped model, by their model cards; a base model has its sizes."""
GPU_CLUSTERS = sorted(
    {file.stem for file in (Path(__file__).parents[2] / "conf" / "cluster").glob("*.yaml")} - {"local", "auto"}
)


# --- static parts against real tensors ------------------------------------------------------------


@pytest.mark.one_in(9)
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tensors_of_every_shipped_model_are_those_that_transformers_builds(name: str) -> None:
    config = composed(f"model={name}").model
    sizes = {"vocab_size": config.vocab_size, **config.architecture}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            CONFIGS[config.family](
                tie_word_embeddings=True,
                **{"head_dim": sizes["hidden_size"] // sizes["num_attention_heads"], **sizes},
            ),
            dtype=getattr(torch, config.dtype),
        )
    ours = architecture(config)
    assert ours.tensors == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert ours.parameters == PUBLISHED[name]
    memory = learner_memory(composed(f"model={name}"))
    assert memory.weights == memory.gradients == sum(p.nbytes for p in model.parameters())


@pytest.mark.slow
def test_every_shipped_model_is_checked() -> None:
    folder = Path(__file__).parents[2] / "conf" / "model"
    shipped = {file.stem for file in folder.glob("*.yaml")} - {"folder"}
    assert {name.removesuffix("-base") for name in shipped} == set(PUBLISHED)
    for name in shipped & {f"{name}-base" for name in PUBLISHED}:
        assert architecture(composed(f"model={name}").model) == architecture(
            composed(f"model={name.removesuffix('-base')}").model
        )


def test_a_head_of_its_own_and_other_head_sizes_are_counted() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
    }
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Qwen3Config(**sizes, head_dim=16, tie_word_embeddings=False))
    found = architecture(
        ModelConfig(path="hub/name", family="qwen3", architecture={**sizes, "head_dim": 16, "tie_word_embeddings": 0})
    )
    assert found.tensors == {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_a_folder_at_hand_is_read(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}
    Qwen2Config(**sizes, num_key_value_heads=1, vocab_size=99, tie_word_embeddings=True).save_pretrained(tmp_path)
    found = architecture(ModelConfig(path=str(tmp_path)))
    assert (found.family, found.vocabulary, found.kv_heads, found.head_dim, found.tied) == ("qwen2", 99, 1, 32, True)


def test_a_kind_of_model_that_is_no_text_is_one_that_isnt_known(tmp_path: Path) -> None:
    """What is wrong with it is said where the model is checked."""
    Qwen2Config(num_hidden_layers=3).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": ["qwen2"]}))
    assert architecture(ModelConfig(path=str(tmp_path))).layers == 3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [('{"hidden_size": 8}', "num_hidden_layers is None"), ("hello", "not JSON"), ("[]", "no JSON object")],
)
def test_a_folder_with_a_bad_configuration_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=complaint) as error:
        architecture(ModelConfig(path=str(tmp_path)))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        (
            {"hidden_size": 2},
            "num_attention_heads=4 must be a multiple of num_key_value_heads=4 and no more than hidden",
        ),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 must be a multiple of num_key_value_heads=3 and no more"),
        ({"num_hidden_layers": 9_000_000}, "num_hidden_layers is 9000000, and no model has more than 1,000"),
        ({"intermediate_size": 10**9}, "intermediate_size is 1000000000, and no model has more than 100,000,000"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_sizes_that_no_model_has_are_named(sizes: dict[str, int], complaint: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.architecture: {complaint}"):
        architecture(ModelConfig(architecture={**ModelConfig().architecture, **sizes}))


def small(**changed: Any) -> LearnerMemory:
    model = Architecture(
        family="qwen2",
        vocabulary=1000,
        hidden=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        intermediate=128,
        tied=True,
    )
    given: dict[str, Any] = {
        "model": model,
        "size": 2,
        "row": 512,
        "chunk": 64,
        "optimizer": "adamw",
        "offload": False,
        "reference": "none",
        "checkpointing": "layers",
        "lora_rank": 0,
        "on_gpu": False,
    }
    return LearnerMemory(**{**given, **changed})


def policy_of(memory: LearnerMemory) -> Policy:
    m = memory.model
    sizes: dict[str, Any] = {
        "hidden_size": m.hidden,
        "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads,
        "num_key_value_heads": m.kv_heads,
        "intermediate_size": m.intermediate,
        "tie_word_embeddings": m.tied,
    }
    return Policy.build(
        sizes,
        vocab_size=m.vocabulary,
        seed=0,
        dtype=torch.bfloat16 if memory.size == 2 else torch.float32,
        gradient_checkpointing=memory.checkpointing,
        whole_layers=memory.whole,
    )


def bytes_in(value: Any) -> int:
    """Of all tensors in a nest of dicts and lists."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(bytes_in(item) for item in items)


@pytest.mark.parametrize("size", [2, 4])
def test_the_states_of_adamw_are_those_of_the_learners_optimizer(size: int) -> None:
    memory = small(size=size)
    policy = policy_of(memory)
    optimizer = ClippedAdamW(policy.parameters(), OptimizerConfig())
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.clip()
    optimizer.step(1.0)
    assert bytes_in(optimizer.state()) == memory.states


def test_the_states_of_8_bit_adamw_are_those_of_torchao() -> None:
    from torchao.optim import subclass_8bit as subclass

    memory = small(optimizer="adamw8bit")
    total = 0
    for n in memory.trained:
        for signed in (True, False):
            if n >= 4096 and n % 256 == 0:  # as torchao's optimizers decide, _AdamBase._new_buffer
                state = subclass.OptimState8bit.zeros((n,), signed, 256, "cpu")
                total += state.codes.nbytes + state.scale.nbytes + state.qmap.nbytes
            else:
                total += (12 * n + 4) // 2  # float32 moments and master
    assert memory.states == total


def test_8_bit_states_by_hand() -> None:
    # A billion values in one tensor would be 2e9 codes and 2e9 / 256 scales of 4 bytes.
    memory = small(optimizer="adamw8bit")
    quantised = [n for n in memory.trained if n >= 4096]
    rest = sum(memory.trained) - sum(quantised)
    assert quantised == [64_000] + 2 * [4096, 4096, 8192, 8192, 8192]
    tensors = len(memory.trained) - len(quantised)
    assert memory.states == sum(2 * (n + n // 64 + 1024) for n in quantised) + 12 * rest + 4 * tensors


def test_adapters_are_what_is_trained_and_stepped() -> None:
    memory, whole = small(lora_rank=4), small()
    # q 64x64, k and v 32x64, o 64x64, gate and up 128x64, down 64x128; rank 4 of in and out each, two layers
    values = 2 * 4 * (128 + 96 + 96 + 128 + 192 + 192 + 192)
    assert sum(memory.trained) == values
    assert memory.weights == whole.weights + 4 * values, "adapters are float32"
    assert memory.gradients == 4 * values
    assert memory.states == 8 * values + 4 * 2 * 14
    assert memory.layer_backward - whole.layer_backward == (
        2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64) + 12 * 128 * 64
    ), "the merged weights of a layer, the making of its largest"


def test_the_reference_and_the_states_are_where_they_are_put() -> None:
    here, away = small(reference="device"), small(reference="cpu", offload=True)
    assert here.static == small().static + small().weights
    assert away.static == away.weights + away.gradients
    assert away.host == away.states + 3 * away.weights, "states, float32 gradients, the reference"
    assert away.states == small().states
    assert small(size=4, offload=True).states == small(size=4).states + small(size=4).weights, "masters over there"
    assert small().host == 0
    assert small(reference="cpu").phases["score"] == small().phases["score"] + small().weights


# --- what lives for moments ------------------------------------------------------------------------


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So small a model is faster on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("checkpointing", "whole"), [("layers", 0), ("mlp", 0), ("mlp", 1), ("none", 0)])
@pytest.mark.parametrize(("vocabulary", "tied"), [(500, True), (8000, False)])
def test_the_peak_is_what_the_learner_really_holds(
    one_thread: None, size: int, checkpointing: str, whole: int, vocabulary: int, tied: bool
) -> None:
    """With a small vocabulary the peak is in a layer, with a large one in the logits."""
    chunk = 64
    model = replace(small().model, intermediate=256, vocabulary=vocabulary, tied=tied)
    memory = small(model=model, size=size, checkpointing=checkpointing, whole=whole, chunk=chunk, row=256)
    policy = policy_of(memory)
    ids = np.arange(memory.row, dtype=np.int32) % vocabulary
    (row,) = pack_rows([ids], [np.arange(memory.row) > 0], memory.row)

    def backward() -> None:
        policy.logprobs(row, chunk=chunk, entropy=True).values.sum().backward()

    backward()  # the gradients exist from here on
    with LiveBytes() as live:
        backward()
    planned = max(memory.phases["head"], memory.phases["layers"]) - memory.static
    assert 0.9 * planned <= live.peak <= 1.002 * planned


def test_what_is_alive_is_counted_while_it_is() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a.view(10, 100)
        c = b + 1
        del a, b
        d = c * 2
    assert (live.now, live.peak) == (8000, 8000)
    del c, d
    assert live.now == 0


def test_a_longer_row_needs_more_and_the_longest_that_fits_is_found() -> None:
    memory = small(row=512)
    limit = memory.peak
    best = longest_row(memory, limit)
    assert best >= 512
    assert replace(memory, row=best).peak <= limit < replace(memory, row=best + 1).peak
    assert longest_row(memory, memory.static) == 0


def test_muon_has_states_of_its_own_in_the_warm_start() -> None:
    """A float32 master and a momentum for each matrix, where 8-bit AdamW has half of that."""
    coarse = small(optimizer="adamw8bit", warm_start=True)
    assert "warm start" not in coarse.phases
    muon = replace(coarse, muon=True)
    matrices = 2 * [64 * 64, 64 * 64, 32 * 64, 32 * 64, 128 * 64, 128 * 64, 128 * 64]
    coarse_ones = [n for n in matrices if n >= 4096]
    counted = sum(2 * (n + n // 64 + 1024) for n in coarse_ones) + sum(12 * n + 4 for n in matrices if n < 4096)
    assert 8 * sum(matrices) > counted
    step = 2 * sum(matrices) + 6 * 4 * muon_module.AT_ONCE
    assert muon.phases["warm start"] == muon.static + 8 * sum(matrices) - counted + step
    assert planned.AT_ONCE == muon_module.AT_ONCE
    away = replace(muon, offload=True)
    assert away.phases["warm start"] == max(
        size for phase, size in away.phases.items() if phase not in ("score", "warm start")
    )


def test_keys_and_values_are_written_down_for_each_head_in_float32_on_a_gpu() -> None:
    here, there = small(size=4), small(size=4, on_gpu=True)
    assert there.kept_attention - here.kept_attention == 4 * 2 * (64 - 32)
    assert small(on_gpu=True).kept_attention == small().kept_attention


def test_what_is_not_kept_is_made_again_of_one_layer() -> None:
    layers, mlp, one, none = (
        small(checkpointing=c, whole=w) for c, w in (("layers", 0), ("mlp", 0), ("mlp", 1), ("none", 0))
    )
    of_layer = layers.kept_attention + layers.kept_mlp
    assert none.kept - layers.kept == 512 * 2 * of_layer
    assert mlp.kept - layers.kept == 512 * 2 * layers.kept_attention
    assert one.kept - mlp.kept == 512 * layers.kept_projections
    assert layers.layer_backward - none.layer_backward == 512 * of_layer
    assert mlp.layer_backward - none.layer_backward == 512 * layers.kept_mlp
    assert one.layer_backward - none.layer_backward == 512 * (layers.kept_mlp - layers.kept_projections)


def test_what_a_layer_keeps_by_hand() -> None:
    memory = small()  # in bfloat16: a layer of width 64, q 64, k 32, four heads, 128 between
    assert memory.kept_attention == (4 + 2 * 64) + 2 * (64 + 32 + 32 + 64) + 4 * 4 + 2 * 64
    assert memory.kept_mlp == (4 + 2 * 64) + 4 * 2 * 128
    assert memory.kept_projections == (4 + 2 * 64) + 2 * 2 * 128


@pytest.mark.parametrize(("checkpointing", "whole"), [("layers", 0), ("mlp", 0), ("mlp", 1), ("none", 0)])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_the_arithmetic_is_what_the_learner_really_does(
    one_thread: None, family: str, checkpointing: str, whole: int
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    memory = small(size=4, checkpointing=checkpointing, whole=whole, chunk=1000)
    model, n = memory.model, 96
    sizes = {"vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "intermediate_size": 128, "attn_implementation": "slingshot_varlen"}
    policy = Policy(
        AutoModelForCausalLM.from_config(CONFIGS[family](**sizes, **more)),
        gradient_checkpointing=checkpointing,
        whole_layers=whole,
    )
    (row,) = pack_rows([np.arange(n, dtype=np.int32)], [np.arange(n) > 60], n)
    with FlopCounterMode(display=False) as counter:
        policy.logprobs(row, chunk=1000).values.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(flops for op, flops in counts.items() if "attention" not in str(op))
    head = 3 * 2 * 35 * model.head_parameters  # a fourth product is added in place, which the counter overlooks
    assert products == work(memory, n, 0) + head
    passes = 4.5 if checkpointing == "layers" else 3.5  # what attention takes on a GPU; the CPU's kernel isn't counted
    assert work(memory, 0, n) == passes * 4 * 2 * 64 * n


def test_a_microbatch_is_packed_as_the_plan_counts_it() -> None:
    config = box(("agent.max_response_tokens", 2048), ("agent.max_prompt_tokens", 256))
    memory = learner_memory(config)
    rng, ids, masks, families = np.random.default_rng(0), [], [], []
    for question in range(24):
        start = rng.integers(0, 900, 256)
        for i, n in enumerate(rng.integers(256, 768, 8)):
            ids.append(np.concatenate([start, [1000 + i], rng.integers(0, 900, n - 1)]).astype(np.int32))
            masks.append(np.arange(len(ids[-1])) >= 256)
            families.append(question)
    again = seen_again(memory.model.hidden, memory.model.query, memory.model.key)
    assert again == pytest.approx(1 / 16)
    rows = pack_rows(ids, masks, memory.row, families=families, seen_again=again)
    computed, pairs = _shared(24, 8, 256, np.mean([len(i) for i in ids]), memory)
    assert sum(len(row.token_ids) for row in rows) == pytest.approx(computed, rel=0.03)
    assert sum(float((row.lengths * (row.seen - row.lengths / 2)).sum()) for row in rows) == pytest.approx(
        pairs, rel=0.1
    )


# --- the shipped configuration ---------------------------------------------------------------------


def test_the_learner_of_the_four_cards_takes_what_a_card_has() -> None:
    config = composed("cluster=4x3090", "model=qwen1.5b")
    assert (config.agent.max_prompt_tokens, config.agent.max_response_tokens) == (1024, 8192)
    memory = learner_memory(config)
    assert memory.row >= 1024 + 8192
    assert (memory.weights, memory.gradients) == (2 * 1_543_714_304,) * 2
    assert memory.states == 3_137_518_132 + 2 * 1_543_569_408
    assert memory.peak <= usable_bytes(config.cluster)
    plain = ("algorithm.gradient_checkpointing=layers", "algorithm.optimizer.exact_master=false")
    least = learner_memory(composed("cluster=4x3090", "model=qwen1.5b", *plain))
    assert (least.states, least.wide) == (3_137_518_132, True)
    assert least.peak <= 17 * GIB
    assert problems(config) == []


@pytest.mark.one_in(13)
@pytest.mark.parametrize("model", [m for m in PUBLISHED if m != "tiny"])
@pytest.mark.parametrize("cluster", GPU_CLUSTERS)
def test_every_shipped_model_fits_on_every_shipped_cluster(cluster: str, model: str) -> None:
    assert refusal(composed(f"cluster={cluster}", f"model={model}")) is None


def test_david_fits_on_the_four_cards() -> None:
    assert refusal(composed("cluster=4x3090", "model=qwen1.5b", "experiment=david_grpo")) is None


# --- engines ---------------------------------------------------------------------------------------


def test_the_kv_cache_is_what_the_share_leaves() -> None:
    config = box()
    engine = engine_memory(config, usable_bytes(config.cluster))
    assert engine.kv_per_token == 2 * 28 * 2 * 128 * 2 == 28_672
    assert engine.share == int(0.9 * usable_bytes(config.cluster)) == engine.total
    assert engine.weights + engine.activations + engine.overhead + engine.kv_cache == engine.share
    assert engine.kv_tokens % 16 == 0
    assert engine.full_episodes == engine.kv_tokens // 9216


def test_an_engine_on_a_cpu_takes_what_it_holds() -> None:
    engine = engine_memory(composed("cluster.engine.kv_cache_gib=3"), 0)
    assert (engine.kv_cache, engine.total) == (3 * GIB, 3 * GIB + 4 * 460_160)


# --- what does not fit -----------------------------------------------------------------------------


def test_what_does_not_fit_is_named_with_both_numbers_and_the_cure() -> None:
    config = box(("algorithm.optimizer.kind", "adamw"))
    assert refusal(box()) is None
    assert refusal(config) == (
        f"cluster=box model=m: the learner needs {learner_memory(config).peak / GIB:.1f} GiB at its peak (head, rows "
        "of 16384 tokens), and a card has 23.6 GiB; algorithm.optimizer.kind=adamw8bit makes it fit"
    )


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ([("algorithm.microbatch_tokens", 200_000)], "algorithm.microbatch_tokens="),
        ([("algorithm.logits_chunk", 16_384)], "algorithm.logits_chunk=256"),
        (
            [("algorithm.gradient_checkpointing", "none"), ("algorithm.microbatch_tokens", 9216)],
            "algorithm.gradient_ch",
        ),
        (
            [("cluster.gpu_memory_gib", 16.0), ("algorithm.kl", "k2"), ("cluster.engine.max_num_seqs", 32)],
            "algorithm.reference=cpu",
        ),
        (
            [
                ("cluster.gpu_memory_gib", 10.0),
                ("cluster.engine.gpu_memory_utilization", 0.8),
                ("algorithm.microbatch_tokens", 9216),
            ],
            "model.lora_rank=16",
        ),
        ([("cluster.engine.gpu_memory_utilization", 0.17)], "cluster.engine.gpu_memory_utilization=0.92"),
    ],
)
def test_the_cheapest_single_change_is_proposed(changes: list[tuple[str, Any]], cure: str) -> None:
    config = box(*changes)
    assert problems(config)
    change = smallest_change(config)
    assert change is not None
    assert len(change) == 1
    assert change[0].startswith(cure)


def test_a_proposed_microbatch_is_the_longest_that_fits() -> None:
    config = box(("algorithm.microbatch_tokens", 200_000))
    (change,) = smallest_change(config) or ()
    tokens = int(change.partition("=")[2])
    assert tokens % 256 == 0
    assert not problems(changed(config, "algorithm.microbatch_tokens", tokens))
    assert problems(changed(config, "algorithm.microbatch_tokens", tokens + 256))


def test_where_one_change_is_not_enough_the_smallest_combination_is_proposed() -> None:
    config = box(("algorithm.optimizer.kind", "adamw"), ("algorithm.microbatch_tokens", 200_000))
    change = smallest_change(config)
    assert change is not None
    assert [c.partition("=")[0] for c in change] == ["algorithm.microbatch_tokens", "algorithm.optimizer.kind"]
    for setting in change:
        key, _, value = setting.partition("=")
        config = changed(config, key, int(value) if value.isdigit() else value)
    assert not problems(config)


def test_where_nothing_helps_that_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "_change", None)  # no combination is tried
    config = box(("cluster.gpu_memory_gib", 2.0))
    assert smallest_change(config) is None
    assert advice(config).endswith("take a smaller model or a larger card")


def test_learner_and_engine_that_are_colocated_must_fit_side_by_side() -> None:
    turns = (("cluster.rollout_workers", 1), ("cluster.colocated", True))
    config = box(*turns)
    (problem,) = problems(config)
    assert problem.startswith("the engine's share of 21.3 GiB, its CUDA context (0.5 GiB) and the idle learner")
    (change,) = smallest_change(config) or ()
    assert change.startswith("cluster.engine.gpu_memory_utilization=0.")
    share = float(change.partition("=")[2])
    assert not problems(changed(config, "cluster.engine.gpu_memory_utilization", share))
    assert problems(changed(config, "cluster.engine.gpu_memory_utilization", share + 0.01))


def test_nothing_is_too_large_for_a_cpu_but_an_episode_for_its_kv_cache() -> None:
    assert problems(composed("algorithm.microbatch_tokens=1000000")) == []
    config = composed("model=qwen3-0.6b", "cluster.engine.kv_cache_gib=1")
    wanted = (
        "cluster=local model=qwen3-0.6b: an engine's KV cache of 1.0 GiB holds 4672 tokens, and an episode of 9216 "
        "takes 9248, with the block that vLLM keeps back; cluster.engine.kv_cache_gib=2 makes it fit"
    )
    assert refusal(config) == wanted
    assert "does not fit: an engine's KV cache" in table(config)
    assert "smallest change: cluster.engine.kv_cache_gib=2 makes it fit" in table(config)
    assert refusal(changed(config, "cluster.engine.kv_cache_gib", 2)) is None


@pytest.mark.one_in(6)
@pytest.mark.parametrize("model", PUBLISHED)
def test_every_shipped_model_can_be_tried_on_a_cpu(model: str) -> None:
    assert refusal(composed(f"model={model}")) is None


def test_an_unknown_card_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"cluster\.card=rtx309 is not known; did you mean 'rtx3090'"):
        usable_bytes(ClusterConfig(device="cuda", card="rtx309"))


def test_a_cards_memory_can_be_given() -> None:
    cluster = ClusterConfig(device="cuda", gpu_memory_gib=16.0)
    assert usable_bytes(cluster) == int(0.985 * 16 * GIB)
    assert usable_bytes(replace(cluster, gpu_memory_gib=0.0)) == int(0.985 * CARDS["rtx3090"].gib * GIB)
    assert usable_bytes(ClusterConfig()) == 0


# --- the machine around the cards -------------------------------------------------------------------


def test_the_object_store_holds_two_versions() -> None:
    assert object_store_bytes(box()) == 5 * 1_543_714_304
    assert object_store_bytes(box(("cluster.object_store_mib", 700))) == 700 * 2**20
    assert object_store_bytes(composed()) == 512 * 2**20


def test_states_on_their_way_into_a_checkpoint_have_room() -> None:
    """Those of other ranks: their copies, the object store's, and those of the rank that writes."""
    four = changed(composed("cluster=4x3090-shared", "model=qwen1.5b"), "algorithm.optimizer.shard", False)
    shared = changed(four, "algorithm.optimizer.shard", True)
    learner = learner_memory(shared)
    others = learner.states - learner.own_states
    assert others > 4 * GIB
    assert object_store_bytes(shared) - object_store_bytes(four) == others
    assert memory_bytes(shared) - memory_bytes(four) == 3 * others


def test_what_stays_on_the_disk_is_counted() -> None:
    config = box(("checkpoints", CheckpointConfig(every=20, keep=2)), ("algorithm.steps", 100))
    one = 2 * 1_543_714_304 + 6_224_656_948
    assert checkpoint_bytes(config) == one
    assert output_bytes(config) == 4 * one + GIB // 4, "two kept, the best one, and one that is written"
    assert output_bytes(changed(config, "checkpoints.best", False)) == 3 * one + GIB // 4
    assert output_bytes(changed(config, "checkpoints.keep", 0)) == 6 * one + GIB // 4
    more = "checkpoints.every_minutes, best): checkpoints.keep=0 keeps all"  # how many nobody knows before
    assert more in table(changed(config, "checkpoints.keep", 0))
    assert more not in table(config)
    few = changed(changed(config, "checkpoints.keep", 1000), "algorithm.steps", 7)
    assert output_bytes(few) == 9 * one + GIB // 4, "a run makes one a step at most"
    assert output_bytes(changed(config, "mode", "plan")) == output_bytes(config), "of a training run"
    assert output_bytes(changed(config, "mode", "serve")) == GIB // 4
    adapted = changed(config, "model.lora_rank", 8)
    memory = learner_memory(adapted)
    under = 2 * memory.model.layer_parameters
    assert checkpoint_bytes(adapted) == memory.weights + memory.states + memory.reference_weights + under


def test_what_is_moved_to_the_cpu_is_counted_there() -> None:
    away = box(("algorithm.optimizer", OptimizerConfig(offload=True)))
    moved = 16 * 1_543_714_304 + 4 * 338
    copied = learner_memory(away).states - learner_memory(box()).states  # for a checkpoint
    assert memory_bytes(away) - memory_bytes(box()) == moved + copied
    assert memory_bytes(changed(away, "mode", "plan")) == memory_bytes(away), "of a training run"


@pytest.mark.parametrize(("heap", "gib"), [("512m", 0.5), ("2G", 2.0), ("262144k", 0.25), (str(2**30), 1.0)])
def test_the_jvms_heap_in_every_spelling(heap: str, gib: float) -> None:
    assert heap_bytes(heap) == gib * GIB


# --- the table -------------------------------------------------------------------------------------


def test_the_table_has_a_line_per_part_on_each_card() -> None:
    text = table(box())
    lines = text.splitlines()
    assert lines[0] == ("cluster=box model=m: 1,543,714,304 parameters in bfloat16, 4 x rtx3090 with 23.64 GiB each")
    titles = [line for line in lines if not line.startswith(" ")]
    assert titles[1:4] == ["GPU 0: learner", "GPU 1 to 3: rollout-0 to rollout-2, each", "CPU: all actors"]
    assert "  optimizer states            5.797 GiB    6,224,656,948 bytes  adamw8bit, exact masters" in lines
    assert any(line.startswith("  28,672 bytes of KV cache a token: ") for line in lines)
    memory = lines[lines.index("CPU: all actors") + 1 : lines.index("data and index")]
    *parts, together = [int(line.partition(" GiB ")[2].split()[0].replace(",", "")) for line in memory]
    assert sum(parts) == together, "nothing of it is left unsaid"
    assert "a batch: 24 questions x 4 trajectories, at most 16 groups trained; staleness at most 0" in lines
    assert "a projection that was never run" in text
    assert "does not fit" not in text


def test_the_table_says_that_continuations_come_on_top() -> None:
    assert "continuations" not in table(composed("model=qwen1.5b", "cluster=4x3090"))
    text = table(composed("model=qwen1.5b", "cluster=4x3090", "group=continuation"))
    assert "not in these times: continuations, up to 8 shorter rollouts for each question" in text


def test_the_table_says_what_does_not_fit() -> None:
    lines = table(box(("algorithm.optimizer.kind", "adamw"))).splitlines()
    assert lines[-2].startswith("does not fit: the learner needs ")
    assert lines[-1] == "smallest change: algorithm.optimizer.kind=adamw8bit makes it fit"


def test_a_plan_without_a_gpu_has_no_times() -> None:
    text = table(composed())
    assert text.splitlines()[0] == "cluster=local model=tiny: 460,160 parameters in float32, no GPU"
    assert "roofline" not in text


def test_engines_settings_are_checked_before_they_are_planned_with() -> None:
    with pytest.raises(UserError, match="must lie in"):
        EngineConfig(gpu_memory_utilization=1.5)
    with pytest.raises(UserError, match=r"cluster\.colocated=true shares each GPU"):
        ClusterConfig(device="cuda", colocated=True, rollout_workers=2)


# --- weights by broadcast ---------------------------------------------------------------------------


def test_two_buckets_have_room_beside_the_engines_share() -> None:
    engine = engine_memory(box(), 24 * 2**30)
    assert engine.broadcast == 2 * 256 * 2**20 + 2 * 1536 * (151_936 + 8960)
    assert problems(box(("cluster.engine.gpu_memory_utilization", 0.92))) == []
    (problem,) = problems(box(("cluster.engine.gpu_memory_utilization", 0.97)))
    assert problem.startswith(
        "the engine's share of 22.9 GiB, its CUDA context (0.5 GiB) and two buckets of new weights (1.0 GiB) are more "
    )
    cure = "cluster.engine.gpu_memory_utilization=0.92 makes it fit"
    assert advice(box(("cluster.engine.gpu_memory_utilization", 0.97))) == cure
    assert engine_memory(box(("cluster.weight_channel", "object_store")), 24 * 2**30).broadcast == 0
