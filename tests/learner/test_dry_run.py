from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import MIXED, SIZES, VOCABULARY, random_groups

from agent.errors import Fault, UserError
from learner.config import AlgorithmConfig, OptimizerConfig, SeedingConfig, WarmStartConfig
from learner.dry_run import due, try_largest, worst_batch
from learner.memory import knobs, named_knobs
from learner.packing import PackedRow
from learner.policy import Policy
from learner.update import Updater


def policy_of(dtype: torch.dtype = torch.float32, rank: int = 0) -> Policy:
    return Policy.build(
        {**SIZES, "hidden_size": 64, "intermediate_size": 64},
        vocab_size=VOCABULARY,
        seed=0,
        dtype=dtype,
        lora_rank=rank,
    )


@pytest.mark.parametrize(
    ("dtype", "rank", "changes"),
    [
        (torch.float32, 0, {}),
        (torch.bfloat16, 0, {"optimizer": OptimizerConfig(kind="adamw8bit", lr=1e-2)}),
        (torch.bfloat16, 0, {"optimizer": OptimizerConfig(offload=True, lr=1e-2), "kl": "k2", "reference": "cpu"}),
        (torch.bfloat16, 0, {"optimizer": OptimizerConfig(lr=1e-2, float32_gradients=True)}),
        (torch.bfloat16, 2, {"optimizer": OptimizerConfig(lr=1e-2), "epochs": 2, "minibatch_questions": 1}),
    ],
)
def test_nothing_changes(dtype: torch.dtype, rank: int, changes: dict[str, Any]) -> None:
    policy, untouched = policy_of(dtype, rank), policy_of(dtype, rank)
    torch.manual_seed(5)
    generator = torch.get_rng_state()
    config = AlgorithmConfig(microbatch_tokens=50, **changes)
    before = [p.data_ptr() for p in policy.model.parameters()]
    report = try_largest(policy, config, longest=20)
    assert report.tokens == 50
    assert torch.equal(torch.get_rng_state(), generator)
    assert [p.data_ptr() for p in policy.model.parameters()] == before
    pairs = zip(policy.model.named_parameters(), untouched.model.parameters(), strict=True)
    for (name, p), q in pairs:
        assert torch.equal(p, q), name
        assert p.grad is None
        assert p.requires_grad == q.requires_grad
        assert p.grad_dtype == q.grad_dtype


def test_it_is_the_worst_that_can_come(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[PackedRow] = []
    norms = []
    policy, hidden, apply = policy_of(), Policy.hidden, Updater.apply

    def seen(self: Policy, row: PackedRow) -> torch.Tensor:
        rows.append(row)
        return hidden(self, row)

    def applied(self: Updater, *arguments: Any) -> float | None:
        norms.append(apply(self, *arguments))
        return norms[-1]

    monkeypatch.setattr(Policy, "hidden", seen)
    monkeypatch.setattr(Updater, "apply", applied)
    try_largest(policy, AlgorithmConfig(microbatch_tokens=50), longest=20)
    first, *worst = rows
    assert len(first.token_ids) <= 8
    assert [row.lengths.tolist() for row in worst] == [[20, 20, 10]] * 2, "the second row meets the first's gradients"
    assert [row.selected.tolist() for row in worst] == [[19, 19, 9]] * 2
    assert len(norms) == 2
    assert all(norms), "both updates were taken: the second had the optimizer's states beside it"


@pytest.mark.parametrize(
    ("config", "copies"),
    [
        (AlgorithmConfig(), 0),
        (AlgorithmConfig(kl="k3"), 1),
        (AlgorithmConfig(seeding=SeedingConfig(steps=2, kl="k3")), 1),
        (AlgorithmConfig(seeding=SeedingConfig(steps=0, kl="k3")), 0),
    ],
)
def test_a_reference_is_tried_too_if_any_part_of_the_run_has_one(
    config: AlgorithmConfig, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, copy = [], Policy.frozen_copy

    def copied(self: Policy, *, host: bool = False) -> Policy:
        made.append(host)
        return copy(self, host=host)

    monkeypatch.setattr(Policy, "frozen_copy", copied)
    try_largest(policy_of(), replace(config, microbatch_tokens=50), longest=20)
    assert len(made) == copies


@pytest.mark.parametrize(("room", "longest"), [(50, 20), (20, 50), (41, 20), (40, 20)])
def test_rows_are_as_full_as_they_get(room: int, longest: int) -> None:
    samples = worst_batch(room, longest, VOCABULARY).samples
    lengths = [len(s.token_ids) for s in samples]
    assert max(lengths) == longest
    assert 0 <= 2 * max(room, longest) - sum(lengths) <= 2


def test_when_it_is_due() -> None:
    assert due(AlgorithmConfig(), "cuda")
    assert not due(AlgorithmConfig(), "cpu")
    assert due(AlgorithmConfig(dry_run="always"), "cpu")
    assert not due(AlgorithmConfig(dry_run="never"), "cuda")
    with pytest.raises(UserError, match=r"algorithm\.dry_run"):
        AlgorithmConfig(dry_run="sometimes")
    with pytest.raises(UserError, match=r"algorithm\.reference"):
        AlgorithmConfig(reference="disk")


FULL = "CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total capacity of 23.69 GiB of which 1 GiB is free."


def full(*_: Any, **__: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError(FULL)


def test_out_of_memory_names_the_knobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of()
    config = AlgorithmConfig(microbatch_tokens=50)
    updater = Updater(policy, config, rng=np.random.default_rng(0), fault_folder=tmp_path)
    monkeypatch.setattr(Policy, "hidden", full)
    with pytest.raises(UserError, match=r"dry run.*50 tokens.*2\.32 GiB.*algorithm\.microbatch_tokens=25 ") as caught:
        try_largest(policy, config, longest=20)
    assert "\n" not in str(caught.value)
    with pytest.raises(Fault, match=r"step 3.*2\.32 GiB.*algorithm\.optimizer\.kind=adamw8bit"):
        updater.update(random_groups(4, MIXED), step=2, version=0)


def test_out_of_memory_in_a_warm_start_with_muon_says_what_that_takes() -> None:
    config = AlgorithmConfig(warm_start=WarmStartConfig(steps=1, muon_lr=0.03))
    with (
        pytest.raises(UserError, match=r"in the warm start.*; the cheapest first: algorithm\.warm_start\.muon_lr=0 \("),
        named_knobs("the warm start", config, longest=20, lora=False, error=UserError),
    ):
        full()
    with (
        pytest.raises(UserError, match=r"in step 1.*; the cheapest first: algorithm\.logits_chunk"),
        named_knobs("step 1", config, longest=20, lora=False, error=UserError),
    ):
        full()


def names(config: AlgorithmConfig, **facts: Any) -> list[str]:
    return [k.split("=")[0].split(" ")[0] for k in knobs(config, **{"longest": 100, "lora": False, **facts})]


def test_knobs_are_those_that_are_left_the_cheapest_first() -> None:
    config = AlgorithmConfig(gradient_checkpointing="none", kl="k2")
    assert names(config) == [
        "algorithm.logits_chunk",
        "algorithm.microbatch_tokens",
        "algorithm.gradient_checkpointing",
        "algorithm.reference",
        "algorithm.optimizer.kind",
        "algorithm.optimizer.kind",
        "model.lora_rank",
        "agent.max_response_tokens",
    ]
    saving = replace(
        config,
        gradient_checkpointing="layers",
        kl="none",
        logits_chunk=256,
        optimizer=OptimizerConfig(kind="adamw8bit"),
    )
    assert names(saving, longest=saving.microbatch_tokens, lora=True) == ["agent.max_response_tokens"]
    assert (
        "algorithm.optimizer.kind=adamw with algorithm.optimizer.offload=true"
        in knobs(config, longest=1, lora=False)[5]
    )
    assert names(replace(saving, optimizer=OptimizerConfig(offload=True)), longest=10**6) == [
        "model.lora_rank",
        "agent.max_response_tokens",
    ]
    assert knobs(AlgorithmConfig(microbatch_tokens=150), longest=100, lora=False)[1].startswith(
        "algorithm.microbatch_tokens=100 "
    )
