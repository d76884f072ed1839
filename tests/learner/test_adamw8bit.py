from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from agent.errors import UserError
from learner.adamw8bit import EightBitAdamW, joined, parted, takes
from learner.checkpoint import load_state, save_state
from learner.config import OptimizerConfig
from learner.optimizer import ClippedAdamW


def config(**changes: object) -> OptimizerConfig:
    return OptimizerConfig(**{"kind": "adamw8bit", "lr": 1e-5, "weight_decay": 0.0, "max_grad_norm": 0.0, **changes})


def parameters(dtype: torch.dtype = torch.bfloat16) -> list[nn.Parameter]:
    """A matrix that takes 8-bit moments and a norm that doesn't."""
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter((torch.rand(64, 128, generator=generator) * 0.01 + 0.02).to(dtype)),
        nn.Parameter(torch.ones(128, dtype=dtype)),
    ]


def made(params: list[nn.Parameter], seed: int = 0, **changes: object) -> ClippedAdamW:
    return ClippedAdamW(params, config(**changes), rng=np.random.default_rng(seed))


def walk(optimizer: ClippedAdamW, steps: range) -> None:
    """Gradients that depend on the step alone: a drift of the sign of each value, and noise."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in optimizer.parameters:
            drift = torch.linspace(-1, 1, p.numel()).view(p.shape)
            p.grad = (drift + 0.3 * torch.randn(p.shape, generator=generator)).to(p.dtype)
        optimizer.clip()
        optimizer.step(1.0)


def test_updates_below_the_resolution_of_bfloat16_add_up() -> None:
    """A step of 1e-5 is a twelfth of what separates two bfloat16 values at 0.02."""
    matrix, _ = params = parameters()
    before = matrix.detach().float()
    optimizer = made(params)
    for _ in range(40):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.clip()
        optimizer.step(1.0)
    moved = before - matrix.detach().float()
    assert matrix.dtype == torch.bfloat16
    assert moved.mean() == pytest.approx(40 * 1e-5, rel=0.02)  # 8,192 values: the mean's error is about 0.5 %


def test_follows_float32_adamw() -> None:
    params = parameters()
    exact = [nn.Parameter(p.detach().float()) for p in params]
    start = [p.detach().clone() for p in exact]
    ours = made(params, lr=1e-4)
    walk(ours, range(60))
    walk(ClippedAdamW(exact, OptimizerConfig(lr=1e-4, weight_decay=0.0, max_grad_norm=0.0)), range(60))
    for master, q, s in zip(ours.masters, exact, start, strict=True):
        a, b = (master.detach().float() - s).flatten(), (q.detach() - s).flatten()
        assert nn.functional.cosine_similarity(a, b, dim=0) > 0.99
        assert (a.norm() / b.norm()).item() == pytest.approx(1, abs=0.02)


def test_only_what_is_large_enough_has_8_bit_moments_and_no_master() -> None:
    matrix, norm = params = parameters()
    assert takes(matrix)
    assert not takes(norm)
    assert not takes(torch.empty(4097))
    optimizer = made(params)
    walk(optimizer, range(1))
    state = optimizer.state()
    assert [m.shape for m in state["masters"]] == [norm.shape]
    assert state["masters"][0].dtype == torch.float32
    (moments,) = state["optimizers"][1]["moments"]
    assert moments["exp_avg.codes"].dtype == moments["exp_avg_sq.codes"].dtype == torch.uint8
    assert moments["exp_avg.codes"].shape == matrix.shape
    assert len(moments["exp_avg.scale"]) == matrix.numel() // 256


def test_a_master_is_its_weight_and_the_rest_to_the_bit() -> None:
    bits = torch.randint(-(2**31), 2**31, (100_000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    halves = (bits & ~0xFFFF) | 0x8000
    values = torch.cat([bits, halves, torch.tensor([0, -(2**31)], dtype=torch.int32)]).view(torch.float32)
    values = values[values.abs() < 3e38]
    weight, rest = parted(values)
    assert (weight.dtype, rest.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(joined(weight, rest).view(torch.int32), values.view(torch.int32))
    spacing = torch.maximum(weight.float().abs(), torch.tensor(1e-37)) * 2.0**-7
    assert ((weight.float() - values).abs() <= spacing / 2).all(), "rounded to the nearest"


def test_an_exact_master_takes_the_steps_of_float32_weights(tmp_path: Path) -> None:
    """Gradients are the same numbers for both, so that the masters are, too: to the bit, also after a resume."""
    narrow, wide = parameters(), [nn.Parameter(p.detach().float()) for p in parameters()]
    ours, theirs = made(narrow, exact_master=True, lr=1e-6), made(wide, lr=1e-6)

    def both(steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for p, q in zip(ours.parameters, theirs.parameters, strict=True):
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
                q.grad = p.grad.float()
            for optimizer in (ours, theirs):
                optimizer.clip()
                optimizer.step(1.0)

    both(range(5))
    save_state(tmp_path / "s.pt", {"optimizer": ours.state()})
    narrow = [nn.Parameter(p.detach().clone()) for p in narrow]
    ours = made(narrow, seed=99, exact_master=True, lr=1e-6)
    ours.load_state(load_state(tmp_path / "s.pt")["optimizer"])
    both(range(5, 8))
    eight = ours._rates[1][0]
    assert isinstance(eight, EightBitAdamW)
    assert torch.equal(joined(narrow[0].detach(), eight.rests[narrow[0]]), wide[0].detach())
    assert torch.equal(ours.masters[1], wide[1])


def test_more_shapes_than_torch_compiles_by_itself_are_stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model has five shapes, with its warm start's betas ten variants of the function; torch stops after eight."""
    compiled = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: contextlib.nullcontext())  # as on a GPU
    params = [nn.Parameter(torch.ones(256, 16 * n, dtype=torch.bfloat16)) for n in (1, 2, 3, 4)]
    optimizer = made(params, exact_master=True)
    with torch._dynamo.config.patch(recompile_limit=2):
        for parameter in params:
            parameter.grad = torch.ones_like(parameter)
        optimizer.clip()
        optimizer.step(1.0)
    eight = optimizer._rates[0][0]
    assert isinstance(eight, EightBitAdamW)
    for parameter in params:
        master = joined(parameter.detach(), eight.rests[parameter])
        assert torch.allclose(master, torch.tensor(1 - 1e-5), rtol=0, atol=1e-7)


def test_gradients_are_added_up_in_float32_if_asked() -> None:
    sums = []
    for asked in (False, True):
        params = parameters()
        optimizer = made(params, float32_gradients=asked)
        for _ in range(300):
            (params[0] * torch.full_like(params[0], 0.01)).sum().backward()
        gradient = params[0].grad
        assert gradient is not None
        assert gradient.dtype == (torch.float32 if asked else torch.bfloat16)
        sums.append(gradient.float().mean().item() / 300)
        optimizer.clip()
        optimizer.step(1.0)
        assert params[0].dtype == torch.bfloat16
    coarse, fine = sums
    assert fine == pytest.approx(torch.tensor(0.01).bfloat16().item(), rel=1e-5)
    assert abs(coarse - fine) > 0.05 * fine, "a sum that outgrows what is added"


def test_an_optimizer_sets_the_type_of_the_gradients_anew() -> None:
    params = parameters()
    for asked, kind in ((True, torch.float32), (None, torch.bfloat16)):
        made(params, float32_gradients=asked)
        assert {p.grad_dtype for p in params} == {kind}


@pytest.mark.parametrize("exact", [False, True])
def test_resumes_exactly(tmp_path: Path, exact: bool) -> None:
    params = parameters()
    optimizer = made(params, exact_master=exact)
    walk(optimizer, range(3))
    save_state(tmp_path / "s.pt", {"optimizer": optimizer.state()})
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    walk(optimizer, range(3, 8))
    other = made(copies, seed=99, exact_master=exact)
    other.load_state(load_state(tmp_path / "s.pt")["optimizer"])
    torch.rand(7)  # what anyone else draws in between is nothing to it
    walk(other, range(3, 8))
    assert all(torch.equal(p, q) for p, q in zip(params, copies, strict=True))
    ours, theirs = (o.state()["optimizers"][1] for o in (optimizer, other))
    assert torch.equal(ours["draws"], theirs["draws"])
    for a, b in zip(ours["moments"], theirs["moments"], strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (True, True, ""),
        (False, False, ""),
        (True, False, "the checkpoint's exact masters are left out"),
        (False, True, "the checkpoint has no exact masters"),
    ],
)
def test_a_resume_says_that_masters_are_kept_otherwise(before: bool, after: bool, said: str) -> None:
    """A smaller card has no room for them: that changes what is learned, without a setting of the user's."""
    optimizer = made(parameters(), exact_master=before)
    walk(optimizer, range(1))
    other = made(parameters(), exact_master=after)
    told = other.load_state(optimizer.state())
    assert told.startswith(said)
    assert bool(told) == bool(said)
    fresh = made(parameters(), exact_master=before)  # it has taken no step: nothing was rounded yet
    assert not made(parameters(), exact_master=after).load_state(fresh.state())


def test_rounding_has_a_generator_of_its_own() -> None:
    results = []
    for seed, disturbance in ((0, 0), (0, 5), (1, 0)):
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        params = parameters()
        walk(made(params, seed=seed), range(2))
        assert torch.equal(torch.get_rng_state(), before)
        results.append(params[0].detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    with pytest.raises(ValueError, match="generator"):
        ClippedAdamW(parameters(), config())


def test_a_state_of_other_parameters_is_refused() -> None:
    optimizer = made(parameters())
    walk(optimizer, range(1))
    state = optimizer.state()["optimizers"][1]
    other = EightBitAdamW([nn.Parameter(torch.zeros(128, 64))], config(), seed=0)
    with pytest.raises(ValueError, match="other parameters"):
        other.load_state_dict(state)
    with pytest.raises(UserError, match=r"algorithm\.optimizer"):
        ClippedAdamW(parameters(), OptimizerConfig()).load_state(optimizer.state())


def test_a_state_of_the_other_kind_names_the_kind() -> None:
    """With adapters either has one part and no masters."""
    large = [nn.Parameter(torch.zeros(128, 64))]
    plain = ClippedAdamW(large, OptimizerConfig())
    eight = made(large)
    for ours, theirs, kind in ((plain, eight, "adamw8bit"), (eight, plain, "adamw")):
        with pytest.raises(UserError, match=f"resume with algorithm.optimizer.kind={kind}$"):
            ours.load_state(theirs.state())


def test_the_rounding_of_another_device_is_drawn_anew() -> None:
    optimizer = EightBitAdamW(parameters(), config(), seed=0)
    state = optimizer.state_dict()
    optimizer.load_state_dict(state | {"draws": torch.zeros(16, dtype=torch.uint8)})  # of a GPU
    assert torch.equal(optimizer.state_dict()["draws"], state["draws"])


def test_float32_weights_keep_their_precision() -> None:
    params = parameters(torch.float32)
    optimizer = made(params)
    walk(optimizer, range(2))
    assert optimizer.state()["masters"] == []
    assert (params[0].detach() != params[0].detach().bfloat16().float()).any()


def test_offload_is_for_plain_adamw() -> None:
    with pytest.raises(UserError, match=r"algorithm\.optimizer\.kind=adamw"):
        config(offload=True)
    with pytest.raises(UserError, match=r"algorithm\.optimizer\.kind=adamw9bit"):
        config(kind="adamw9bit")
