"""The learner on CUDA. A process that may take 24 GiB of a larger card stands for a 24 GiB card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agent.errors import UserError
from learner.batch import Batch, Sample
from learner.config import AlgorithmConfig, OptimizerConfig
from learner.dry_run import try_largest, worst_batch
from learner.lora import layers
from learner.optimizer import ClippedAdamW
from learner.packing import PackedRow, pack_rows
from learner.policy import Policy
from learner.update import Updater

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

GIB = 2**30
CARD, LEARNER = 24 * GIB, 20 * GIB
PROMPT, RESPONSE = 1024, 8192

QWEN_1_5B = {
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
}
SMALL = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
}


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """What one test leaves in the allocator must not count in the next."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def cap(size: int) -> None:
    """Lets this process allocate ``size`` bytes at most."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / total))


def small(dtype: torch.dtype = torch.bfloat16, device: str = "cuda", **options: Any) -> Policy:
    sizes = {**SMALL, **options.pop("sizes", {})}
    return Policy.build(sizes, vocab_size=8192, seed=0, dtype=dtype, device=device, **options)


def row_of(*lengths: int) -> PackedRow:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 8192, n).astype(np.int32) for n in lengths]
    (row,) = pack_rows(ids, [np.arange(n) > 0 for n in lengths], sum(lengths))
    return row


def batch_of(seed: int, questions: int, vocabulary: int) -> Batch:
    """Five long-tailed episodes per question: prompts and passages are not trained, about a sixth is."""
    rng = np.random.default_rng(seed)
    samples = []
    for question in range(questions):
        for k in range(5):
            length = int(min(PROMPT + RESPONSE, 400 + rng.lognormal(7.6, 0.6)))
            mask = (np.arange(length) % 600 < 100) & (np.arange(length) >= 300)
            mask[-8:] = True
            actions = int(mask.sum())
            samples.append(
                Sample(
                    question=question,
                    token_ids=rng.integers(0, vocabulary, length).astype(np.int32),
                    action_mask=mask,
                    engine_logprobs=np.full(actions, -np.log(vocabulary)),
                    versions=np.zeros(actions, np.int32),
                    advantage=1.79 if k == 0 else -0.45,
                    signal=True,
                )
            )
    return Batch(samples=tuple(samples), questions=questions)


def test_five_steps_of_a_1_5b_policy_on_a_24_gib_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cap(CARD)
    policy = Policy.build(
        QWEN_1_5B, vocab_size=151_936, seed=0, dtype=torch.bfloat16, device="cuda", gradient_checkpointing="layers"
    )
    config = AlgorithmConfig(optimizer=OptimizerConfig(kind="adamw8bit", lr=1e-5), aggregation="prompt_balanced")
    dry_run = try_largest(policy, config, longest=PROMPT + RESPONSE)
    assert dry_run.tokens == config.microbatch_tokens
    assert 0 < dry_run.peak_bytes <= LEARNER
    updater = Updater(policy, config, rng=np.random.default_rng(0), fault_folder=tmp_path)
    before = policy.model.model.layers[0].mlp.up_proj.weight.detach().cpu()  # on the card it would be in the peak
    torch.cuda.reset_peak_memory_stats()
    reports = [updater.run(batch_of(step, 12, 151_936), step=step, version=0) for step in range(5)]
    peak = torch.cuda.max_memory_allocated()
    with capsys.disabled():
        speed = sum(r.tokens for r in reports[1:]) / sum(r.seconds for r in reports[1:])
        print(
            f"\n{torch.cuda.get_device_name()}: 1.5B, dry run {dry_run.peak_bytes / GIB:.2f} GiB in "
            f"{dry_run.seconds:.1f} s, 5 steps {peak / GIB:.2f} GiB, {speed:,.0f} tok/s"
        )
    assert all(r.updates == 1 and np.isfinite([r.loss, r.grad_norm]).all() for r in reports)
    assert peak <= dry_run.peak_bytes, "the dry run has to be the worst that can come"
    moved = policy.model.model.layers[0].mlp.up_proj.weight.detach().cpu() != before
    assert 0 < moved.float().mean() < 1


def test_bfloat16_logprobs_are_close_to_float32(capsys: pytest.CaptureFixture[str]) -> None:
    half = small(sizes={"initializer_range": 0.05})
    full = small(torch.float32, sizes={"initializer_range": 0.05})
    with torch.no_grad():
        for p, q in zip(full.model.parameters(), half.model.parameters(), strict=True):
            p.copy_(q)
        row = row_of(2000, 700, 300)
        gap = (half.logprobs(row).values - full.logprobs(row).values).abs()
    with capsys.disabled():
        quantiles = ", ".join(f"{q:g}: {gap.quantile(q).item():.4f}" for q in (0.5, 0.9, 0.99))
        print(f"\nbfloat16 against float32: mean {gap.mean().item():.4f}, max {gap.max().item():.4f}, {quantiles}")
    assert gap.mean() < 0.02
    assert gap.quantile(0.99) < 0.1


def test_packed_and_checkpointed_on_cuda_is_the_cpu(tmp_path: Path) -> None:
    """float32: no flash kernel, the same arithmetic as the tests on a CPU."""
    lengths = (40, 25, 25, 9)
    results = []
    for device in ("cpu", "cuda"):
        policy = small(torch.float32, device, gradient_checkpointing="layers")
        values = policy.logprobs(row_of(*lengths), chunk=16).values
        values.sum().backward()
        results.append((values.detach().cpu(), [p.grad.cpu() for p in policy.parameters() if p.grad is not None]))
    (cpu, cpu_gradients), (cuda, cuda_gradients) = results
    torch.testing.assert_close(cuda, cpu, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(cuda_gradients, cpu_gradients, strict=True):
        assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max().clamp(min=1e-3)


def test_out_of_memory_names_the_knobs_and_leaves_the_card_usable() -> None:
    policy = small()
    cap(torch.cuda.memory_allocated() + 256 * 2**20)
    config = AlgorithmConfig(microbatch_tokens=262_144, gradient_checkpointing="none")
    with pytest.raises(UserError, match=r"dry run.*algorithm\.microbatch_tokens=131072"):
        try_largest(policy, config, longest=2048)
    cap(CARD)
    torch.cuda.empty_cache()
    assert try_largest(policy, AlgorithmConfig(microbatch_tokens=4096), longest=2048).peak_bytes > 0


def test_a_dry_run_changes_nothing() -> None:
    policy, untouched = small(), small()
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    config = AlgorithmConfig(
        microbatch_tokens=4096, kl="k2", reference="cpu", optimizer=OptimizerConfig(kind="adamw8bit", lr=1e-3)
    )
    try_largest(policy, config, longest=1024)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(policy.model.parameters(), untouched.model.parameters(), strict=True))


def test_a_reference_on_the_host_costs_the_card_nothing_but_while_it_is_asked() -> None:
    policy, row = small(), row_of(500, 200)
    on_device, on_host = policy.frozen_copy(), policy.frozen_copy(host=True)
    assert on_host.device.type == "cpu"
    expected = on_device.logprobs(row).values
    held = torch.cuda.memory_allocated()
    with on_host.lent_to(policy.device):
        assert on_host.device.type == "cuda"
        assert torch.equal(on_host.logprobs(row).values, expected)
        assert torch.cuda.memory_allocated() > held
    assert on_host.device.type == "cpu"
    assert all(p.is_pinned() for p in on_host.model.parameters())
    assert torch.cuda.memory_allocated() <= held + 2**20


@pytest.mark.parametrize("asked", [Policy.published, Policy.weights, lambda policy: [*map(len, policy.current())]])
def test_all_that_is_merged_is_never_on_the_card_together(asked: Callable[[Policy], Any]) -> None:
    """It takes as much as the model, and a colocated engine is awake while a run is saved."""
    policy = small(lora_rank=8)
    asked(policy)  # once for the workspace of the matrix products
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    kept = asked(policy)
    assert torch.cuda.max_memory_allocated() - held < sum(layer.weight.nbytes for _, layer in layers(policy.model))
    assert len(kept) > 0


def test_compiled_8_bit_steps_resume_exactly_and_follow_float32() -> None:
    def parameter(values: torch.Tensor, dtype: torch.dtype) -> nn.Parameter:
        return nn.Parameter(values.to("cuda", dtype))

    def walk(optimizer: ClippedAdamW, steps: range) -> None:
        for step in steps:
            noise = torch.randn(256, 256, generator=torch.Generator().manual_seed(step)).cuda()
            drift = torch.linspace(-1, 1, 256, device="cuda")
            for p in optimizer.parameters:
                p.grad = (drift + 0.3 * noise).to(p.dtype)
            optimizer.clip()
            optimizer.step(1.0)

    start = (torch.rand(256, 256, generator=torch.Generator().manual_seed(0)) * 0.01 + 0.02).bfloat16()
    eight = OptimizerConfig(kind="adamw8bit", lr=1e-4, weight_decay=0.0, max_grad_norm=0.0)
    ours, exact = parameter(start, torch.bfloat16), parameter(start, torch.float32)
    optimizer = ClippedAdamW([ours], eight, rng=np.random.default_rng(0))
    generator = torch.cuda.get_rng_state()
    walk(optimizer, range(20))
    assert torch.equal(torch.cuda.get_rng_state(), generator)
    (state,) = optimizer.state()["optimizers"]
    saved = {
        "masters": [],
        "optimizers": [
            {
                "draws": state["draws"].clone(),
                "moments": [{k: v.clone() for k, v in m.items()} for m in state["moments"]],
            }
        ],
    }
    twin = parameter(ours.detach().cpu(), torch.bfloat16)
    walk(optimizer, range(20, 60))
    other = ClippedAdamW([twin], eight, rng=np.random.default_rng(9))
    other.load_state(saved)
    walk(other, range(20, 60))
    assert torch.equal(ours, twin)
    walk(ClippedAdamW([exact], OptimizerConfig(lr=1e-4, weight_decay=0.0, max_grad_norm=0.0)), range(60))
    a, b = (p.detach().float().cpu().flatten() - start.float().flatten() for p in (ours, exact))
    assert nn.functional.cosine_similarity(a, b, dim=0) > 0.99
    assert (a.norm() / b.norm()).item() == pytest.approx(1, abs=0.02)


def test_offloaded_states_take_no_room_on_the_card(tmp_path: Path) -> None:
    held, results = [], []
    for offload in (False, True):
        policy = small()
        updater = Updater(
            policy,
            AlgorithmConfig(optimizer=OptimizerConfig(lr=1e-4, offload=offload)),
            rng=np.random.default_rng(0),
            fault_folder=tmp_path,
        )
        updater.run(worst_batch(512, 512, 8192), step=0, version=0)
        assert {m.device.type for m in updater.optimizer.masters} == {"cpu" if offload else "cuda"}
        held.append(torch.cuda.memory_allocated())
        results.append(torch.cat([p.detach().flatten() for p in policy.parameters()]).float().cpu())
        del policy, updater
        torch.cuda.empty_cache()
    count = len(results[0])
    assert held[0] - held[1] > 11 * count  # 12 bytes a parameter
    # Adam's first step is the sign of the gradient, and bfloat16 rounds what comes of it.
    assert ((results[0] - results[1]).abs() <= 2 * 1e-4 + 2**-7 * results[0].abs()).all()
