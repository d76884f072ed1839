from __future__ import annotations

import pytest
import torch

from learner.logprobs import selected_logprobs

N, D, V = 23, 8, 31


def case(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=g, dtype=dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=dtype).requires_grad_()
    sources = torch.randperm(N, generator=g)[:17]
    return hidden, weight, sources, torch.randint(V, (17,), generator=g)


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    table = torch.log_softmax(hidden[sources] @ weight.t() / temperature, -1)
    return table.gather(-1, targets[:, None]).squeeze(-1), -(table.exp() * table).sum(-1)


@pytest.mark.parametrize("chunk", [1, 5, 17, 4096])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_the_plain_computation(chunk: int, temperature: float) -> None:
    hidden, weight, sources, targets = case()
    expected, expected_entropy = plain(hidden, weight, sources, targets, temperature)
    direction = torch.linspace(-1, 1, 17)
    wanted = torch.autograd.grad(expected @ direction, (hidden, weight))
    values, entropy = selected_logprobs(
        hidden, weight, sources, targets, temperature=temperature, chunk=chunk, entropy=True
    )
    got = torch.autograd.grad(values @ direction, (hidden, weight))
    assert entropy is not None
    assert not entropy.requires_grad
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(entropy, expected_entropy, atol=1e-6, rtol=1e-6)
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() < 1e-6 * b.abs().max()


def test_gradcheck() -> None:
    hidden, weight, sources, targets = case(torch.float64)

    def f(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return selected_logprobs(h, w, sources, targets, temperature=0.7, chunk=6)[0]

    assert torch.autograd.gradcheck(f, (hidden, weight))


def test_huge_logits_do_not_overflow() -> None:
    hidden, weight, sources, targets = case()
    values, entropy = selected_logprobs(hidden * 1e4, weight, sources, targets, entropy=True)
    assert torch.isfinite(values).all()
    assert entropy is not None
    assert torch.isfinite(entropy).all()


def test_half_precision_is_summed_in_float32() -> None:
    hidden, weight, sources, targets = (x.detach() for x in case())
    half = [x.bfloat16().requires_grad_() for x in (hidden, weight)]
    values, _ = selected_logprobs(half[0], half[1], sources, targets, chunk=5)
    assert values.dtype == torch.float32
    values.sum().backward()
    assert half[1].grad is not None
    assert half[1].grad.dtype == torch.bfloat16
    expected, _ = plain(half[0].detach().float(), half[1].detach().float(), sources, targets, 1.0)
    assert (values - expected).abs().max() < 0.1


def test_no_tokens() -> None:
    hidden, weight, _, _ = case()
    none = torch.zeros(0, dtype=torch.long)
    values, entropy = selected_logprobs(hidden, weight, none, none)
    values.sum().backward()
    assert entropy is None
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wide", [False, True])
def test_the_heads_gradient_is_added_to_what_is_there(dtype: torch.dtype, wide: bool) -> None:
    hidden, weight, sources, targets = case()
    direction = torch.linspace(-1, 1, 17)
    h, w = hidden.detach().to(dtype), weight.detach().to(dtype)
    (expected,) = torch.autograd.grad(
        selected_logprobs(h, w.requires_grad_(), sources, targets, chunk=5)[0] @ direction, w
    )
    leaf = w.detach().clone().requires_grad_()
    if wide:
        leaf.grad_dtype = torch.float32
    for times in (1, 2):
        (selected_logprobs(h, leaf, sources, targets, chunk=5, into_grad=True)[0] @ direction).backward()
        assert leaf.grad is not None
        assert leaf.grad.dtype == (torch.float32 if wide else dtype)
        assert (leaf.grad - times * expected).abs().max() < (1e-6 if dtype == torch.float32 else 2e-2)
