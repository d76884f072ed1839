from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from learner.config import OptimizerConfig
from learner.optimizer import ClippedAdamW, schedule_factor


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1, 1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
    ],
)
def test_schedule(schedule: str, expected: list[float]) -> None:
    assert [schedule_factor(schedule, s, 8, 4) for s in range(8)] == pytest.approx(expected)


def test_schedule_without_warm_up_and_past_the_end() -> None:
    assert schedule_factor("linear", 0, 4, 0) == 1
    assert schedule_factor("cosine", 9, 4, 0) == 0
    with pytest.raises(ValueError, match="stairs"):
        schedule_factor("stairs", 0, 4, 0)


def test_clip_reports_the_norm_before_clipping() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = ClippedAdamW([parameter], OptimizerConfig(lr=0.1, max_grad_norm=1.0))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert optimizer.clip() == pytest.approx(5)
    assert parameter.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-4)
    parameter.grad = torch.tensor([3.0, 4.0])
    ClippedAdamW([parameter], OptimizerConfig(lr=0.1, max_grad_norm=0.0)).clip()
    assert parameter.grad.tolist() == [3, 4]


def test_drop_leaves_parameters_and_moments() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = ClippedAdamW([parameter], OptimizerConfig(lr=0.1))
    parameter.grad = torch.ones(2)
    optimizer.clip()
    optimizer.drop()
    assert parameter.tolist() == [1, 1]
    assert parameter.grad is None
    assert not optimizer.state()["optimizers"][0]["state"]


def test_state_of_other_parameters_is_refused() -> None:
    half = ClippedAdamW([nn.Parameter(torch.ones(2, dtype=torch.bfloat16))], OptimizerConfig())
    full = ClippedAdamW([nn.Parameter(torch.ones(2))], OptimizerConfig())
    with pytest.raises(ValueError, match="masters"):
        full.load_state(half.state())


def test_muon_takes_the_matrices_and_adamw_the_rest() -> None:
    matrix, bias = nn.Parameter(torch.eye(3)), nn.Parameter(torch.zeros(3))
    optimizer = ClippedAdamW([matrix, bias], OptimizerConfig(lr=0.1, weight_decay=0.0), matrices=[matrix], muon_lr=0.5)
    before = matrix.detach().clone()
    matrix.grad, bias.grad = torch.diag(torch.tensor([1.0, 1e-3, 1e-6])), torch.ones(3)
    optimizer.clip()
    optimizer.step(0.5)
    assert bias.tolist() == pytest.approx([-0.05] * 3, rel=1e-4)
    moved = before - matrix.detach()
    assert moved[0, 0] == pytest.approx(0.25, rel=0.5)  # an orthogonal step: its size isn't the gradient's
    assert [len(saved["state"]) for saved in optimizer.state()["optimizers"]] == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offloaded_states_give_the_same_parameters(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradients = (torch.randn(3, 8, 8, generator=generator).to(dtype) for _ in range(2))
    results = []
    for offload in (False, True):
        parameter = nn.Parameter(start[0].clone())
        optimizer = ClippedAdamW([parameter], OptimizerConfig(lr=1e-2, offload=offload))
        for gradient in gradients:
            parameter.grad = gradient.clone()
            norm = optimizer.clip()
            assert (parameter.grad is None) == (offload or dtype == torch.bfloat16), "a copy would be memory"
            optimizer.step(1.0)
        master = optimizer.masters[0]
        assert (master is parameter) == (not offload and dtype == torch.float32)
        assert master.device.type == "cpu"
        results.append((parameter.detach(), master.detach(), norm))
    (a, b), (m, n), norms = zip(*results, strict=True)
    assert torch.equal(a, b)
    assert torch.equal(m, n)
    assert norms[0] == norms[1] > 1


def test_a_norm_of_bfloat16_gradients_is_summed_in_float32() -> None:
    parameters = [nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16)), nn.Parameter(torch.zeros(1))]
    optimizer = ClippedAdamW(parameters, OptimizerConfig(max_grad_norm=0.0))
    parameters[0].grad = torch.ones(1000, dtype=torch.bfloat16)
    parameters[1].grad = torch.ones(1)
    assert optimizer.clip() == pytest.approx(math.sqrt(1001), rel=1e-6)
