from __future__ import annotations

import numpy as np
import pytest
import torch
from learner_cases import SIZES, VOCABULARY, tiny_policy

from agent.errors import Fault, UserError
from learner.config import OptimizerConfig, WarmStartConfig
from learner.optimizer import ClippedAdamW
from learner.policy import Policy
from learner.warm_start import Demonstration, warm_start


def demonstrations(count: int) -> list[Demonstration]:
    """The action repeats the prompt's two tokens."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(count):
        prompt = rng.integers(1, VOCABULARY, 2)
        ids = np.concatenate([prompt, [0], prompt]).astype(np.int32)
        out.append(Demonstration(token_ids=ids, action_mask=np.array([False, False, False, True, True])))
    return out


def config(**changes: float) -> WarmStartConfig:
    return WarmStartConfig(
        **{"steps": 40, "batch_size": 8, "lr": 1e-2, "warmup_steps": 5, "context_weight": 0.2, **changes}
    )  # type: ignore[arg-type]


def test_loss_of_the_first_step_is_actions_plus_a_share_of_everything() -> None:
    policy, data = tiny_policy(), demonstrations(8)
    policy.model.set_attn_implementation("sdpa")
    ids = torch.tensor(np.stack([d.token_ids for d in data])).long()
    table = torch.log_softmax(policy.model(input_ids=ids).logits[:, :-1], -1)
    nll = -table.gather(-1, ids[:, 1:, None]).squeeze(-1)
    nll = nll.detach()
    expected = nll[:, 2:].mean() + 0.2 * nll.mean()
    policy = tiny_policy()
    (loss,) = warm_start(policy, data, config(steps=1), rng=np.random.default_rng(0), microbatch_tokens=11)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    (loss,) = warm_start(tiny_policy(), data, config(steps=1, context_weight=0), rng=np.random.default_rng(0))
    assert loss == pytest.approx(float(nll[:, 2:].mean()), rel=1e-5)


def test_it_learns_and_reports_and_repeats() -> None:
    seen: list[tuple[int, float]] = []
    policy, twin = tiny_policy(), tiny_policy()
    losses = warm_start(
        policy, demonstrations(8), config(), rng=np.random.default_rng(0), progress=lambda s, x: seen.append((s, x))
    )
    assert seen == list(enumerate(losses))
    assert losses[-1] < 0.6 * losses[0]
    assert warm_start(twin, demonstrations(8), config(), rng=np.random.default_rng(0)) == losses
    assert torch.equal(policy.head, twin.head)


def test_muon_learns_too() -> None:
    policy = tiny_policy()
    assert all(
        "layers" in n for n, p in policy.model.named_parameters() if any(p is m for m in policy.hidden_matrices())
    )
    losses = warm_start(policy, demonstrations(8), config(muon_lr=0.03), rng=np.random.default_rng(0))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
def test_8_bit_adamw_on_bfloat16_weights_learns_as_float32_does() -> None:
    sizes = {**SIZES, "hidden_size": 64, "intermediate_size": 64}  # large enough for 8-bit moments
    losses = []
    for kind, dtype in (("adamw", torch.float32), ("adamw8bit", torch.bfloat16)):
        policy = Policy.build(sizes, vocab_size=VOCABULARY, seed=0, dtype=dtype)
        optimizer, rng = OptimizerConfig(kind=kind), np.random.default_rng(0)
        losses.append(
            warm_start(
                policy, demonstrations(16), config(lr=5e-3, steps=60, batch_size=16), rng=rng, optimizer=optimizer
            )
        )
    exact, coarse = losses
    assert exact[-1] < 0.1 * exact[0]
    assert coarse[-1] == pytest.approx(exact[-1], rel=0.25)


def test_gradients_are_added_up_as_the_optimizer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 if asked; else in the weights' type, whatever an optimizer before this one had."""
    policy, seen, clip = tiny_policy(0, torch.bfloat16), [], ClippedAdamW.clip

    def clipped(self: ClippedAdamW) -> float:
        seen.append({p.grad.dtype for p in self.parameters if p.grad is not None})
        return clip(self)

    monkeypatch.setattr(ClippedAdamW, "clip", clipped)
    for asked in (True, None):
        optimizer = OptimizerConfig(float32_gradients=asked)
        rng = np.random.default_rng(0)
        warm_start(policy, demonstrations(8), config(steps=1), rng=rng, optimizer=optimizer)
    assert seen == [{torch.float32}, {torch.bfloat16}]


def test_microbatches_do_not_matter() -> None:
    runs = []
    for tokens in (10_000, 12):
        policy, rng = tiny_policy(0, torch.float64), np.random.default_rng(0)
        runs.append(warm_start(policy, demonstrations(8), config(steps=4), rng=rng, microbatch_tokens=tokens))
    assert runs[0] == pytest.approx(runs[1], rel=1e-6)


def test_no_steps_no_change() -> None:
    policy = tiny_policy()
    assert warm_start(policy, [], config(steps=0), rng=np.random.default_rng(0)) == []
    assert torch.equal(policy.head, tiny_policy().head)


def test_what_cannot_be_learnt_from() -> None:
    with pytest.raises(UserError, match="no demonstrations"):
        warm_start(tiny_policy(), [], config(), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="action token"):
        Demonstration(token_ids=np.array([1, 2], np.int32), action_mask=np.array([False, False]))
    with pytest.raises(ValueError, match="mask of 1"):
        Demonstration(token_ids=np.array([1, 2], np.int32), action_mask=np.array([True]))


def test_a_non_finite_loss_is_a_fault() -> None:
    policy = tiny_policy()
    with torch.no_grad():
        policy.head[3, 0] = float("nan")
    with pytest.raises(Fault, match="step 1 has loss"):
        warm_start(policy, demonstrations(4), config(), rng=np.random.default_rng(0))
