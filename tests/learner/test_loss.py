from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from learner.config import AlgorithmConfig
from learner.loss import LossMetrics, Mismatch, loss_input, policy_loss
from learner.losses.base import loss_names


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def run(
    ratios: list[float], advantages: list[float], weights: list[float], **extra: Any
) -> tuple[float, LossMetrics, Any]:
    """Loss, metrics and the gradient by log-probability, for given ratios to an old logprob of -1."""
    config = extra.pop("config", AlgorithmConfig(loss="dapo"))
    logprobs = (tensor(*ratios).log() - 1).requires_grad_()
    gaps = extra.pop("mismatch", tensor(*[0.0] * len(ratios)))
    lengths = extra.pop("lengths", [len(ratios)])
    old, weighted = torch.full_like(logprobs, -1.0).detach(), tensor(*weights)
    row = loss_input(logprobs, old, gaps, tensor(*advantages), weighted, lengths)
    loss, metrics = policy_loss(config.build_loss(), row, logprobs, weighted, config, **extra)
    loss.backward()
    assert logprobs.grad is not None
    return loss.item(), LossMetrics.of(metrics.tolist()), logprobs.grad.tolist()


def test_on_policy_is_the_weighted_advantage() -> None:
    loss, metrics, grad = run([1, 1], [2, -1], [0.25, 0.5])
    assert loss == pytest.approx(-0.25 * 2 + 0.5 * 1)
    assert grad == pytest.approx([-0.5, 0.5])
    assert (metrics.clip_share, metrics.ratio_mean, metrics.importance_mean, metrics.kl_mean) == (0, 1, 1, 0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 1.0, -1.28, True),
        (1.5, -1.0, 1.5, False),
        (0.5, 1.0, -0.5, False),
        (0.5, -1.0, 0.8, True),
        (1.27, 1.0, -1.27, False),
        (0.81, -1.0, 0.81, False),
    ],
)
def test_clip_by_hand(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    value, metrics, grad = run([ratio], [advantage], [1.0])
    assert value == pytest.approx(loss)
    assert metrics.clipped == clipped
    assert (grad[0] == 0) == clipped


@pytest.mark.parametrize(
    ("kl", "value", "slope"),
    [("k1", 0.5, 1.0), ("k2", 0.125, 0.5), ("k3", math.exp(-0.5) - 0.5, 1 - math.exp(-0.5))],
)
def test_kl_by_hand(kl: str, value: float, slope: float) -> None:
    config = AlgorithmConfig(kl=kl, kl_coefficient=0.1)
    extra = {"config": config, "reference": tensor(-1.5, 0.0), "kl_weights": tensor(0.5, 0.0)}
    loss, metrics, grad = run([1, 1], [0, 0], [1, 0], **extra)
    assert loss == pytest.approx(0.1 * 0.5 * value)
    assert grad == pytest.approx([0.1 * 0.5 * slope, 0])
    assert metrics.kl_mean == pytest.approx(value)


def test_kl_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="reference"):
        run([1], [1], [1], config=AlgorithmConfig(kl="k2"))


def test_importance_weights_are_truncated() -> None:
    gaps = tensor(0, 2, -0.5)
    loss, metrics, _ = run([1, 1, 1], [1, 1, 1], [1, 1, 1], mismatch=gaps)
    assert loss == pytest.approx(-(1 + 2 + math.exp(-0.5)))
    assert metrics.importance_max == 2
    off = AlgorithmConfig(loss="dapo", importance_cap=0)
    assert run([1, 1, 1], [1, 1, 1], [1, 1, 1], mismatch=gaps, config=off)[0] == -3


def test_importance_scales_the_surrogate_but_not_the_kl() -> None:
    extra = {"reference": tensor(-1.5), "kl_weights": tensor(1), "mismatch": tensor(math.log(0.5))}
    loss, metrics, _ = run([1], [1], [1], config=AlgorithmConfig(kl="k2", kl_coefficient=1.0), **extra)
    assert loss == pytest.approx(-0.5 + 0.125)
    assert (metrics.importance_mean, metrics.importance_max) == pytest.approx((0.5, 0.5))


def test_an_importance_weight_of_ones_own_carries_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a weight, even where it is computed from what carries the gradient."""
    extra = {"mismatch": tensor(math.log(0.5))}
    config = AlgorithmConfig(loss="dapo")
    plain = run([1], [1], [1], config=config, **extra)
    theirs = type(config.build_loss())
    given = theirs.importance
    monkeypatch.setattr(theirs, "importance", lambda loss, row, cap: given(loss, row, cap) + row.logprobs + 1)
    assert run([1], [1], [1], config=config, **extra)[::2] == plain[::2]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("name", loss_names())
def test_a_masked_token_cannot_reach_the_gradient(bad: float, kl: str, name: str) -> None:
    """Masking after exp or square would give 0 * inf = NaN here."""
    config = AlgorithmConfig(loss=name, kl=kl)
    logprobs, weights = tensor(-1.0, bad).requires_grad_(), tensor(1, 0)
    row = loss_input(logprobs, tensor(-1, -1), logprobs.detach() + 1, tensor(1, 1), weights, [2])
    loss, sums = policy_loss(
        config.build_loss(), row, logprobs, weights, config, reference=tensor(-2, -1), kl_weights=tensor(1, 0)
    )
    loss.backward()
    metrics = LossMetrics.of(sums.tolist())
    assert torch.isfinite(loss)
    assert logprobs.grad is not None
    assert torch.isfinite(logprobs.grad).all()
    assert logprobs.grad[1] == 0
    assert math.isfinite(metrics.ratio_mean) and math.isfinite(metrics.kl_mean) and metrics.tokens == 1  # noqa: PT018


def test_metrics_of_microbatches_add_up() -> None:
    parts = [
        LossMetrics(tokens=2, clipped=1, ratio=3, importance=1, importance_max=0.5),
        LossMetrics(tokens=2, ratio=1, importance=5, importance_max=4, kl_tokens=4, kl=2),
    ]
    whole = LossMetrics.merge(parts)
    assert (whole.clip_share, whole.ratio_mean, whole.importance_mean) == (0.25, 1, 1.5)
    assert (whole.importance_max, whole.kl_mean) == (4, 0.5)
    assert LossMetrics.merge([]) == LossMetrics()


def test_engine_gap() -> None:
    def of(*columns: torch.Tensor) -> Mismatch:
        return Mismatch.of_values(Mismatch.of(*columns, [len(columns[0])]).tolist())

    gap = of(tensor(-1, -2, -3), tensor(-1.5, -2.25, float("nan")), torch.tensor([True, True, False]))
    assert (gap.mean, gap.largest) == (0.375, 0.5)
    both = gap + of(tensor(-1), tensor(-2), torch.tensor([True]))
    assert (both.tokens, both.mean, both.largest) == (3, pytest.approx(1.75 / 3), 1.0)
    assert math.isnan(Mismatch().mean)


@pytest.mark.parametrize("by", [-1, 1])
def test_a_mask_that_is_off_by_one_is_told_from_other_weights(by: int) -> None:
    rng = np.random.default_rng(0)
    learner = torch.from_numpy(-rng.exponential(size=400))
    everything = torch.ones(400, dtype=torch.bool)

    def shifted(engine: torch.Tensor) -> float:
        return Mismatch.of_values(Mismatch.of(learner, engine, everything, [150, 250]).tolist()).shifted

    assert shifted(learner.roll(by)) > 0.95
    assert shifted(learner * 1.3) < 0.3
    assert math.isnan(shifted(learner + 1e-6))
