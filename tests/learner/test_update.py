from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_writing import write_checkpoint
from learner_cases import (
    MIXED,
    SIZES,
    VOCABULARY,
    Reference,
    as_expert,
    group,
    loaded_policy,
    random_groups,
    tiny_policy,
    trajectory,
)
from torch.utils._python_dispatch import TorchDispatchMode

from agent.errors import Fault
from agent.groups import Group
from agent.records import StopReason
from learner.batch import make_batch
from learner.checkpoint import load_state, save_state
from learner.config import BFLOAT16_MISMATCH, AlgorithmConfig, OptimizerConfig
from learner.losses.base import loss_names
from learner.manifest import Files, listed
from learner.packing import PackedRow
from learner.policy import Policy
from learner.update import Updater


def updater(policy: Policy, tmp: Path, config: AlgorithmConfig, anchor: Policy | None = None, **extra: Any) -> Updater:
    return Updater(policy, config, rng=np.random.default_rng(3), fault_folder=tmp, reference=anchor, **extra)


def weights_of(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


def settings(**changes: Any) -> AlgorithmConfig:
    """A learning rate at which ratios leave the clip range within a few updates."""
    optimizer = OptimizerConfig(lr=2e-2, max_grad_norm=0.5, eps=1e-3, weight_decay=0.1)
    base = {"optimizer": optimizer, "loss": "dapo", "kl_coefficient": 0.3, "logits_chunk": 7}
    base["mismatch_limit"] = 0.0  # no engine has sampled what the cases are made of
    if changes.get("aggregation") == "constant_length":
        base["constant_length"] = 16
    return AlgorithmConfig(**{**base, **changes})


CASES = [
    *(
        {"aggregation": a, "advantage": v, "kl": k}
        for a, v, k in itertools.product(
            ["token_mean", "sequence_mean", "constant_length", "prompt_balanced"],
            ["std", "mean", "rloo"],
            ["none", "k2"],
        )
    ),
    *({"loss": loss, "old_logprobs": old} for loss, old in itertools.product(loss_names(), ["learner", "engine"])),
    {"loss": "gspo", "kl": "k3", "clip_low": 0.05, "clip_high": 0.05, "aggregation": "prompt_balanced"},
    {"loss": "gspo", "importance_cap": 1.01, "advantage": "rloo"},
    {"loss": "cispo", "kl": "k2", "clip_low": 0.1, "clip_high": 0.1},
    {"loss": "cispo", "aggregation": "constant_length"},
    *({"kl": k, "aggregation": "prompt_balanced"} for k in ("k1", "k3")),
    {"kl": "k2", "kl_zero_variance": True, "aggregation": "prompt_balanced"},
    {"kl": "k3", "kl_zero_variance": True},
    {"importance_cap": 0.0},
    {"importance_cap": 1.1},
    {"old_logprobs": "engine"},
]


@pytest.mark.one_in(9)
@pytest.mark.parametrize("changes", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_agrees_with_the_plain_float64_reference(changes: dict[str, Any], tmp_path: Path) -> None:
    """Two minibatches, the second off policy: losses, gradient norms and parameters."""
    policy, anchor = tiny_policy(0, torch.float64), tiny_policy(1, torch.float64).frozen_copy()
    config = settings(**changes, minibatch_questions=3, microbatch_tokens=25)
    reference = anchor if config.kl != "none" else None
    plain = Reference(policy, config, reference, temperature=0.8)
    groups = random_groups(4, MIXED)
    learner = updater(policy, tmp_path, config, reference, temperature=0.8)
    report = learner.update(groups, step=0, version=0)
    plain.step(groups, [[0, 1, 2], [3, 4]])
    assert report.updates == 2
    assert report.microbatches > 4
    assert report.loss == pytest.approx(np.mean(plain.losses), rel=1e-6)
    assert report.grad_norm == pytest.approx(np.mean(plain.norms), rel=1e-6)
    expected = torch.cat([p.detach().flatten() for p in plain.model.parameters()])
    assert (weights_of(policy) - expected).abs().max() < 1e-6


def test_the_second_minibatch_is_off_policy_and_clips(tmp_path: Path) -> None:
    report = updater(tiny_policy(), tmp_path, settings(epochs=4)).update(random_groups(4, MIXED), step=0, version=0)
    assert report.updates == 4
    assert report.clip_share > 0
    assert report.ratio_mean != 1


@pytest.mark.one_in(10)
@pytest.mark.parametrize(
    "changes",
    [
        *({"aggregation": a} for a in ("token_mean", "sequence_mean", "constant_length", "prompt_balanced")),
        *({"loss": loss, "epochs": 2} for loss in loss_names()),
    ],
    ids=lambda c: "-".join(map(str, c.values())),
)
def test_microbatches_packing_and_order_do_not_matter(changes: dict[str, Any], tmp_path: Path) -> None:
    groups = random_groups(4, MIXED)
    shuffled = [replace(groups[i], members=groups[i].members[::-1]) for i in (4, 2, 0, 3, 1)]
    results = []
    for chosen, tokens in ((groups, 10_000), (groups, 1), (groups, 40), (shuffled, 10_000), (shuffled, 33)):
        policy = tiny_policy(0, torch.float64)
        config = settings(**changes, microbatch_tokens=tokens)
        report = updater(policy, tmp_path, config).update(chosen, step=0, version=0)
        results.append((report.loss, report.grad_norm, weights_of(policy)))
    for loss, norm, weights in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        assert norm == pytest.approx(results[0][1], rel=1e-6)
        assert (weights - results[0][2]).abs().max() < 1e-6


def test_groups_without_signal_change_nothing_at_all(tmp_path: Path) -> None:
    groups = random_groups(4, MIXED)
    with_all, with_signal = tiny_policy(), tiny_policy()
    a = updater(with_all, tmp_path, settings()).update(groups, step=0, version=0)
    b = updater(with_signal, tmp_path, settings()).update([g for g in groups if g.signal_bearing], step=0, version=0)
    assert torch.equal(weights_of(with_all), weights_of(with_signal))
    assert (a.loss, a.grad_norm, a.action_tokens) == (b.loss, b.grad_norm, b.action_tokens)


def test_nothing_to_train_is_no_update(tmp_path: Path) -> None:
    policy = tiny_policy()
    learner = updater(policy, tmp_path, settings())
    learner.update(random_groups(4, MIXED), step=0, version=0)  # so that Adam has momentum to apply
    before = weights_of(policy)
    report = learner.update(random_groups(5, [[1, 1], [0, 0, 0]]), step=1, version=0)
    assert torch.equal(weights_of(policy), before)
    assert (report.updates, report.skipped, report.loss, report.sequences) == (0, 0, 0.0, 0)
    assert math.isnan(report.mismatch) and math.isnan(report.entropy)  # noqa: PT018
    assert learner.update([], step=2, version=0).updates == 0


def test_nothing_but_kl_is_an_update(tmp_path: Path) -> None:
    policy = tiny_policy()
    config = settings(kl="k2", kl_zero_variance=True)
    learner = updater(policy, tmp_path, config, tiny_policy(1).frozen_copy())
    report = learner.update(random_groups(5, [[1, 1], [0, 0, 0]]), step=0, version=0)
    assert report.updates == 1
    assert report.kl > 0
    assert report.loss == pytest.approx(0.3 * report.kl, rel=1e-5)


def test_sequences_without_action_tokens(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    full, other = trajectory(rng, [(3, 2)]), trajectory(rng, [(2, 0)])
    empty = replace(trajectory(rng, [(0, 4)]), stop_reason=StopReason.NO_ACTION)
    with_empty = tiny_policy(0, torch.float64)
    report = updater(with_empty, tmp_path, settings(advantage="mean", aggregation="sequence_mean")).update(
        [group("q0", [full, other, empty], [1, 0, 0.5])], step=0, version=0
    )
    without = tiny_policy(0, torch.float64)
    updater(without, tmp_path, settings(advantage="mean", aggregation="sequence_mean")).update(
        [group("q0", [full, other], [1, 0])], step=0, version=0
    )
    assert report.sequences == 2
    assert (weights_of(with_empty) - weights_of(without)).abs().max() < 1e-12


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_observation_tokens_cannot_reach_the_gradient(bad: float, tmp_path: Path) -> None:
    groups = random_groups(4, MIXED)

    def poisoned(g: Group) -> Group:
        trajectories = [m.trajectory for m in g.members]
        trajectories = [replace(t, logprobs=np.where(t.action_mask, t.logprobs, bad)) for t in trajectories]
        return group(g.question.id, trajectories, g.rewards)

    clean, dirty = tiny_policy(), tiny_policy()
    config = settings(kl="k3")
    updater(clean, tmp_path, config, tiny_policy(1).frozen_copy()).update(groups, step=0, version=0)
    learner = updater(dirty, tmp_path, config, tiny_policy(1).frozen_copy())
    report = learner.update([poisoned(g) for g in groups], step=0, version=0)
    assert report.updates == 1
    assert torch.equal(weights_of(clean), weights_of(dirty))


def test_one_update_costs_no_extra_forward_and_has_ratio_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    calls: list[int] = []
    forward = Policy.hidden

    def counted(self: Policy, row: PackedRow) -> torch.Tensor:
        calls.append(len(row.members))
        return forward(self, row)

    monkeypatch.setattr(Policy, "hidden", counted)
    report = updater(policy, tmp_path, settings()).update(random_groups(4, MIXED), step=0, version=0)
    assert len(calls) == report.microbatches == 1
    assert (report.ratio_mean, report.clip_share) == (1.0, 0.0)


def test_what_is_compared_with_the_policy_comes_from_the_rows_that_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another row rounds otherwise: in bfloat16 the ratios of a still policy would leave a narrow clip range."""
    policy, anchor = tiny_policy(), tiny_policy().frozen_copy()
    rows: dict[tuple[bool, bool], list[bytes]] = {}
    forward = Policy.hidden

    def seen(self: Policy, row: PackedRow) -> torch.Tensor:
        rows.setdefault((self is policy, torch.is_grad_enabled()), []).append(row.token_ids.tobytes())
        return forward(self, row)

    monkeypatch.setattr(Policy, "hidden", seen)
    still = OptimizerConfig(lr=1e-30, weight_decay=0.0)
    config = settings(minibatch_questions=2, epochs=2, microbatch_tokens=40, kl="k2", optimizer=still)
    report = updater(policy, tmp_path, config, anchor).update(random_groups(4, MIXED), step=0, version=0)
    before, reference, trained = (rows[key] for key in ((True, False), (False, False), (True, True)))
    assert before == reference == trained[: len(before)]
    assert len(before) < len(trained) == report.microbatches  # no sample is asked twice
    assert report.ratio_mean == 1


@pytest.mark.one_in(3)
@pytest.mark.parametrize("old_logprobs", ["learner", "engine"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_engine_gap_counts_tokens_of_the_current_version(old_logprobs: str, epochs: int, tmp_path: Path) -> None:
    policy = tiny_policy()
    config = settings(old_logprobs=old_logprobs, epochs=epochs, microbatch_tokens=20)
    groups = random_groups(4, [[1, 0], [0, 1]], version=2)
    scored = updater(policy, tmp_path, config).score(policy, make_batch(groups, "std").samples)
    errors = iter([0.0, 0.01, 0.02, 0.05])
    exact = []
    for g, values in zip(groups, (scored[:2], scored[2:]), strict=True):
        members = []
        for member, logprobs in zip(g.members, values, strict=True):
            full = member.trajectory.logprobs.copy()
            full[member.trajectory.action_mask] = logprobs + next(errors)
            members.append(replace(member, trajectory=replace(member.trajectory, logprobs=full)))
        exact.append(replace(g, members=tuple(members)))
    stale = random_groups(9, [[1, 0]], version=1)
    report = updater(policy, tmp_path, config).update([*exact, *stale], step=0, version=2)
    counts = [len(s) for s in scored]
    expected = (0.01 * counts[1] + 0.02 * counts[2] + 0.05 * counts[3]) / sum(counts)
    assert report.mismatch == pytest.approx(expected, rel=1e-3)
    assert report.mismatch_max == pytest.approx(0.05, rel=1e-3)
    assert math.isnan(updater(policy, tmp_path, config).update(stale, step=0, version=2).mismatch)


def sampled_off_by(policy: Policy, tmp: Path, error: float) -> list[Group]:
    """Groups of version 2 whose engine said ``error`` nats more of each token than ``policy`` does."""
    (only,) = random_groups(4, [[1, 0]], version=2)
    scored = updater(policy, tmp, settings()).score(policy, make_batch([only], "std").samples)
    members = []
    for member, logprobs in zip(only.members, scored, strict=True):
        full = member.trajectory.logprobs.copy()
        full[member.trajectory.action_mask] = logprobs + np.float32(error)
        members.append(replace(member, trajectory=replace(member.trajectory, logprobs=full)))
    return [replace(only, members=tuple(members))]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("error", [2e-3, -2e-3])
@pytest.mark.parametrize("old_logprobs", ["learner", "engine"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_float32_engine_with_other_weights_stops_the_run(
    error: float, old_logprobs: str, epochs: int, tmp_path: Path
) -> None:
    policy = tiny_policy()
    before = weights_of(policy)
    config = settings(mismatch_limit=1e-3, old_logprobs=old_logprobs, epochs=epochs)
    groups = sampled_off_by(policy, tmp_path, error)
    with pytest.raises(Fault, match=r"step 6: engine and learner don't hold the same weights.*mismatch_limit"):
        updater(policy, tmp_path, config).update(groups, step=5, version=2)
    assert torch.equal(weights_of(policy), before)


@pytest.mark.parametrize("old_logprobs", ["learner"])
def test_a_mismatch_of_a_later_minibatch_stops_the_run_before_the_first_update(
    old_logprobs: str, tmp_path: Path
) -> None:
    """All old log-probabilities are known before; the order of the minibatches is drawn, so both are tried."""
    for right in (0, 1):
        policy = tiny_policy()
        before = weights_of(policy)
        pair = [sampled_off_by(policy, tmp_path, 0.0 if n == right else 0.5)[0] for n in range(2)]
        groups = [replace(g, ticket=replace(g.ticket, query=n, claim_id=n)) for n, g in enumerate(pair)]
        config = settings(mismatch_limit=1e-3, old_logprobs=old_logprobs, minibatch_questions=1)
        with pytest.raises(Fault, match="This step has changed nothing"):
            updater(policy, tmp_path, config).update(groups, step=0, version=2)
        assert torch.equal(weights_of(policy), before)


def test_a_mismatch_within_the_limit_or_of_other_versions_or_in_bfloat16_trains(tmp_path: Path) -> None:
    policy = tiny_policy()
    config = settings(mismatch_limit=1e-3)
    assert updater(policy, tmp_path, config).update(sampled_off_by(policy, tmp_path, 5e-4), step=0, version=2).updates
    assert updater(policy, tmp_path, config).update(sampled_off_by(policy, tmp_path, 0.5), step=0, version=3).updates
    policy.model.to(torch.bfloat16)
    report = updater(policy, tmp_path, config).update(sampled_off_by(policy, tmp_path, 0.5), step=0, version=2)
    assert report.updates
    assert report.mismatch > BFLOAT16_MISMATCH


@pytest.mark.parametrize("old_logprobs", ["learner", "engine"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_an_expert_has_ratio_and_importance_one(old_logprobs: str, epochs: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    expert = as_expert(trajectory(rng, [(4, 2), (2, 0)]))
    groups = [group("q0", [expert, trajectory(rng, [(0, 2)])], [1, 0])]
    policy = tiny_policy()
    config = settings(old_logprobs=old_logprobs, epochs=epochs)
    report = updater(policy, tmp_path, config).update(groups, step=0, version=0)
    assert report.updates == epochs
    assert report.expert_sequences == epochs
    assert report.importance_mean == 1.0
    assert math.isnan(report.mismatch)
    if epochs == 1:
        assert report.ratio_mean == 1.0


@pytest.mark.parametrize("epochs", [1, 2])
def test_an_expert_is_trained_as_if_the_learner_had_sampled_it(epochs: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    t, other = trajectory(rng, [(4, 2), (2, 0)]), trajectory(rng, [(3, 1), (1, 0)])
    config = settings(epochs=epochs)
    written, sampled = tiny_policy(), tiny_policy()
    learner = updater(sampled, tmp_path, config)
    (own, _) = learner.score(sampled, make_batch([group("q0", [t, other], [1, 0])], "std").samples)
    logprobs = np.zeros_like(t.logprobs)
    logprobs[t.action_mask] = own
    learner.update([group("q0", [replace(t, logprobs=logprobs), other], [1, 0])], step=0, version=0)
    updater(written, tmp_path, config).update([group("q0", [as_expert(t), other], [1, 0])], step=0, version=0)
    assert not torch.equal(weights_of(written), weights_of(tiny_policy()))
    torch.testing.assert_close(weights_of(written), weights_of(sampled), rtol=0, atol=1e-6)


def poison(policy: Policy) -> None:
    with torch.no_grad():
        policy.model.model.norm.weight[0] = float("nan")


def test_a_non_finite_loss_is_skipped_and_counted(tmp_path: Path) -> None:
    policy = tiny_policy()
    learner = updater(policy, tmp_path, settings())
    groups = random_groups(4, MIXED)
    good = policy.model.model.norm.weight.detach().clone()
    poison(policy)
    before = weights_of(policy)
    report = learner.update(groups, step=0, version=0)
    assert (report.updates, report.skipped) == (0, 1)
    assert torch.equal(weights_of(policy).nan_to_num(7.0), before.nan_to_num(7.0))
    with torch.no_grad():
        policy.model.model.norm.weight.copy_(good)
    report = learner.update(groups, step=1, version=0)
    assert (report.updates, report.skipped) == (1, 0)
    assert torch.isfinite(weights_of(policy)).all()
    expected = tiny_policy()
    updater(expected, tmp_path, settings()).update(groups, step=1, version=0)
    assert torch.equal(weights_of(policy), weights_of(expected))


def test_three_in_a_row_are_a_fault_with_the_batch_in_a_file(tmp_path: Path) -> None:
    policy = tiny_policy()
    learner = updater(policy, tmp_path, settings())
    groups = random_groups(4, MIXED)
    poison(policy)
    learner.update(groups, step=0, version=0)
    learner.update(groups, step=1, version=0)
    with pytest.raises(Fault, match="non-finite-step-000003") as caught:
        learner.update(groups, step=2, version=0)
    saved = np.load(tmp_path / "non-finite-step-000003.npz")
    assert str(tmp_path / "non-finite-step-000003.npz") in str(caught.value)
    assert saved["lengths"].sum() == len(saved["token_ids"]) == len(saved["action_mask"])
    assert len(saved["advantages"]) == sum(len(g.members) for g in groups if g.signal_bearing)


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    ("kind", "offload", "dtype"),
    [
        ("adamw", False, torch.float32),
        ("adamw", True, torch.bfloat16),
        ("adamw8bit", False, torch.bfloat16),
        ("adamw8bit", False, torch.float32),
    ],
)
def test_resuming_is_bit_identical(kind: str, offload: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(kind=kind, offload=offload, lr=1e-2, schedule="cosine", warmup_steps=2)
    config = settings(minibatch_questions=2, epochs=2, optimizer=optimizer, steps=6)
    batches = [random_groups(seed, MIXED) for seed in range(6)]
    wide = {**SIZES, "hidden_size": 64, "intermediate_size": 64}  # so that 8-bit moments are used
    policy = Policy.build(wide, vocab_size=VOCABULARY, seed=0, dtype=dtype)
    learner = updater(policy, tmp_path, config)
    for step in range(3):
        learner.update(batches[step], step=step, version=step)

    def save(folder: Path) -> Files:
        policy.save(folder)
        save_state(folder / "learner.pt", learner.state())
        return listed(folder)

    path = write_checkpoint(tmp_path / "checkpoints", 3, save)
    for step in range(3, 6):
        learner.update(batches[step], step=step, version=step)

    resumed = loaded_policy(path, dtype)
    other = Updater(resumed, config, rng=np.random.default_rng(99), fault_folder=tmp_path)
    other.load_state(load_state(path / "learner.pt"))
    reports = [other.update(batches[step], step=step, version=step) for step in range(3, 6)]
    assert all(r.updates > 2 for r in reports)
    assert torch.equal(weights_of(resumed), weights_of(policy))
    ours, theirs = learner.state(), other.state()
    assert ours["rng"] == theirs["rng"]
    assert len(ours["optimizer"]["optimizers"]) == (2 if kind == "adamw8bit" else 1)
    moments = [state["optimizer"]["optimizers"][0]["state"].values() for state in (ours, theirs)]
    for a, b in zip(*moments, strict=True):
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])


def test_who_changes_betas_and_decay_on_a_resume_gets_them(tmp_path: Path) -> None:
    policy = tiny_policy(0, torch.float32)
    before = updater(policy, tmp_path, settings(optimizer=OptimizerConfig(betas=[0.9, 0.95], weight_decay=0.1)))
    before.update(random_groups(0, MIXED), step=0, version=0)
    changed = OptimizerConfig(betas=[0.8, 0.99], weight_decay=0.0, eps=1e-6)
    after = updater(policy, tmp_path, settings(optimizer=changed))
    save_state(tmp_path / "s.pt", before.state())
    after.load_state(load_state(tmp_path / "s.pt"))
    (adamw,) = after.state()["optimizer"]["optimizers"]
    (group,) = adamw["param_groups"]
    assert (tuple(group["betas"]), group["weight_decay"], group["eps"]) == ((0.8, 0.99), 0.0, 1e-6)
    assert adamw["state"][0]["step"] == 1


def test_bfloat16_weights_learn_from_float32_masters(tmp_path: Path) -> None:
    """Updates of 1e-5 are below bfloat16's resolution; the masters add them up until they show."""
    policy = tiny_policy(0, torch.bfloat16)
    optimizer = OptimizerConfig(lr=1e-5, weight_decay=0.0)
    learner = updater(policy, tmp_path, settings(optimizer=optimizer))
    master = learner.optimizer.masters[0].detach().clone()
    before = weights_of(policy)
    groups = random_groups(4, MIXED[:1])
    for step in range(3):
        learner.update(groups, step=step, version=0)
    assert (learner.optimizer.masters[0] - master).abs().max() > 2e-5
    assert policy.head.dtype == torch.bfloat16
    moved = int((weights_of(policy) != before).sum())
    for step in range(3, 30):
        learner.update(groups, step=step, version=0)
    assert int((weights_of(policy) != before).sum()) > 2 * max(moved, 1)
    twin = updater(tiny_policy(0, torch.bfloat16), tmp_path, settings(optimizer=optimizer))
    save_state(tmp_path / "s.pt", learner.state())
    twin.load_state(load_state(tmp_path / "s.pt"))
    assert torch.equal(twin.optimizer.masters[0], learner.optimizer.masters[0])


def test_a_reference_on_the_host_changes_nothing(tmp_path: Path) -> None:
    results = []
    for where in ("device", "cpu"):
        policy, anchor = tiny_policy(), tiny_policy(1).frozen_copy(host=where == "cpu")
        report = updater(policy, tmp_path, settings(kl="k2", reference=where), anchor).update(
            random_groups(4, MIXED), step=0, version=0
        )
        assert report.kl > 0
        results.append(weights_of(policy))
    assert torch.equal(*results)


def test_reference_is_needed_for_kl(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reference"):
        updater(tiny_policy(), tmp_path, settings(kl="k2"))


def test_learning_raises_the_probability_of_what_was_rewarded(tmp_path: Path) -> None:
    policy = tiny_policy()
    groups = random_groups(4, [[1, 0, 0, 0]])
    learner = updater(policy, tmp_path, settings(optimizer=OptimizerConfig(lr=1e-2)))
    samples = make_batch(groups, "std").samples
    before = [float(x.sum()) for x in learner.score(policy, samples)]
    for step in range(5):
        learner.update(groups, step=step, version=0)
    after = [float(x.sum()) for x in learner.score(policy, samples)]
    assert after[0] > before[0] + 1
    assert sum(after[1:]) < sum(before[1:])


# --- beginnings in common --------------------------------------------------------------------------


def with_one_prompt(groups: list[Group], length: int) -> list[Group]:
    """The same groups, the trajectories of each with one prompt of this many tokens."""
    rng = np.random.default_rng(9)
    out = []
    for g in groups:
        prompt = rng.integers(0, VOCABULARY, length, dtype=np.int32)
        members = [replace(m, trajectory=replace(m.trajectory, prompt_ids=prompt)) for m in g.members]
        out.append(replace(g, members=tuple(members)))
    return out


@pytest.mark.parametrize("changes", [{}, {"kl": "k2", "minibatch_questions": 3, "epochs": 2}], ids=["one", "several"])
def test_a_prompt_computed_once_for_its_group_gives_what_the_plain_reference_does(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    policy, anchor = tiny_policy(0, torch.float64), tiny_policy(1, torch.float64).frozen_copy()
    config = settings(**changes, microbatch_tokens=100)
    reference = anchor if config.kl != "none" else None
    plain = Reference(policy, config, reference, temperature=0.8)
    groups = with_one_prompt(random_groups(4, MIXED), 24)
    learner = updater(policy, tmp_path, config, reference, temperature=0.8)
    report = learner.update(groups, step=0, version=0)
    if not changes:
        plain.step(groups, [[0, 1, 2, 3, 4]])
        expected = torch.cat([p.detach().flatten() for p in plain.model.parameters()])
        assert report.loss == pytest.approx(np.mean(plain.losses), rel=1e-6)
        assert report.grad_norm == pytest.approx(np.mean(plain.norms), rel=1e-6)
        assert (weights_of(policy) - expected).abs().max() < 1e-6
    assert report.shared_tokens > 0.3 * report.tokens
    assert report.microbatches > report.updates


def test_what_is_shared_changes_nothing_in_any_microbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = with_one_prompt(random_groups(4, MIXED), 24)
    results = []
    for tokens, shortest in ((10_000, 16), (60, 16), (1, 16), (10_000, 1000)):
        monkeypatch.setattr("learner.packing.SHORTEST_SHARED", shortest)
        policy = tiny_policy(0, torch.float64)
        config = settings(epochs=2, kl="k3", microbatch_tokens=tokens)
        anchor = tiny_policy(1, torch.float64).frozen_copy()
        report = updater(policy, tmp_path, config, anchor).update(groups, step=0, version=0)
        results.append((report.loss, report.grad_norm, report.entropy, report.tokens, weights_of(policy)))
    for *figures, weights in results[1:]:
        assert figures == pytest.approx(results[0][:-1], rel=1e-6)
        assert (weights - results[0][-1]).abs().max() < 1e-6


# --- what a GPU would be waited for ----------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"kl": "k3", "loss": "gspo"}], ids=["plain", "kl"])
def test_no_microbatch_is_waited_for(changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a tensor's value waits for its device; an update does so as often, however many microbatches it has."""
    waits: list[str] = []
    reading = torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            waits.extend([str(func)] * (func.overloadpacket in reading))
            return func(*args, **(kwargs or {}))

    for name in ("tolist", "cpu", "numpy"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, name=name, plain=plain: (waits.append(name), plain(self, *a))[1]
        )
    counts = []
    for tokens in (10_000, 40, 1):
        config = settings(microbatch_tokens=tokens, **changes)
        learner = updater(tiny_policy(), tmp_path, config, tiny_policy(1).frozen_copy())
        monkeypatch.setattr(learner, "score", lambda policy, samples, rows: [np.zeros(s.actions) for s in samples])
        waits.clear()
        with Watch():
            report = learner.update(random_groups(4, MIXED[:1]), step=0, version=0)
        counts.append((report.microbatches, len(waits)))
    assert [m for m, _ in counts] == sorted({m for m, _ in counts}), "more microbatches each time"
    assert len({w for _, w in counts}) == 1
