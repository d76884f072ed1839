from __future__ import annotations

import pytest
import torch
from torch import nn

from learner import muon as module
from learner.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(3, 12, 8), (2, 8, 12), (1, 16, 16)])
def test_singular_values_end_near_one_and_the_vectors_stay(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    updates = torch.randn(shape)
    found = orthogonalised(updates)
    assert found.dtype == torch.float32
    u, _, vh = torch.linalg.svd(updates, full_matrices=False)
    core = u.mT @ found @ vh.mT
    values = core.diagonal(dim1=1, dim2=2)
    assert ((values > 0.5) & (values < 1.3)).all()
    assert torch.allclose(core, torch.diag_embed(values), atol=1e-4)


def test_is_torchs_own_up_to_bfloat16() -> None:
    """Ten steps of matrices of two shapes: the same path, within what torch's bfloat16 loses."""
    torch.manual_seed(1)
    start = [torch.randn(24, 16), torch.randn(16, 24), torch.randn(24, 16)]
    ours, theirs = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    mine = Muon(ours, lr=0.02, weight_decay=0.1)
    torchs = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for _ in range(10):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        mine.step()
        torchs.step()
    for begin, a, b in zip(start, ours, theirs, strict=True):
        moved = (a - begin).norm()
        assert (a - b).norm() < 0.02 * moved


def test_a_matrix_without_a_gradient_stays_and_the_state_is_kept() -> None:
    one, other = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
    before = other.detach().clone()
    muon = Muon([one, other], lr=0.1)
    one.grad = torch.randn(4, 4)
    muon.step()
    assert torch.equal(other, before)
    again = Muon([one, other], lr=0.1)
    again.load_state_dict(muon.state_dict())
    assert torch.equal(again.state[one]["momentum_buffer"], muon.state[one]["momentum_buffer"])


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.bfloat16)])
def test_what_is_no_float32_matrix_is_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="float32 matrices"):
        Muon([nn.Parameter(wrong)], lr=0.1)


def test_many_matrices_are_stepped_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together the updates of a large model are as much memory as it has, several times."""
    torch.manual_seed(0)
    start = [torch.randn(12, 8) for _ in range(5)]
    together, parts = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    sizes: list[int] = []
    whole = module.orthogonalised
    for parameters, most in ((together, 1 << 24), (parts, 200)):
        monkeypatch.setattr(module, "AT_ONCE", most)
        monkeypatch.setattr(module, "orthogonalised", lambda updates: (sizes.append(len(updates)), whole(updates))[1])
        muon, gradients = Muon(parameters, lr=0.1), torch.Generator().manual_seed(1)
        for parameter in parameters:
            parameter.grad = torch.randn(12, 8, generator=gradients)
        muon.step()
    assert sizes == [5, 2, 2, 1]
    for one, other in zip(together, parts, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
