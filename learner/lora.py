"""LoRA (arXiv 2106.09685), merged in every forward pass: what is trained is the weight that the engine will hold.

Frameworks usually compute ``W x + B (A x)``. The engine gets ``W + B A`` rounded to bfloat16, and while the change is
small that rounding swallows most of it: the engine would go on sampling from nearly the old policy, and the learner
would correct for another. Here the learner rounds as well, and lets the gradient pass: one policy on both sides. It
costs an r-rank product per matrix and pass, and backward works out the gradient of a whole matrix at a time, as full
training does; the memory of all gradients and moments is saved all the same. vLLM needs nothing new.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

SCALE = 2.0
"""Of the product B A; the usual alpha = 2 r."""


class LowRank(nn.Linear):
    """A linear layer of weight ``W + 2 B A``: W (out, in) stays as it is, A (r, in) and B (out, r) are float32."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter

    def __init__(self, base: nn.Linear, rank: int) -> None:
        """Takes over the tensors of ``base``."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        wide, device = torch.promote_types(base.weight.dtype, torch.float32), base.weight.device
        self.lora_a = nn.Parameter(torch.zeros(rank, base.in_features, dtype=wide, device=device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, dtype=wide, device=device))

    def merged(self) -> Tensor:
        """(out, in) in the type of W."""
        return (self.weight + SCALE * (self.lora_b @ self.lora_a)).to(self.weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.merged(), self.bias)


def adapt(model: PreTrainedModel, rank: int, seed: int) -> None:
    """Makes every linear layer but the LM head a ``LowRank``, and everything else stand still."""
    model.requires_grad_(False)
    for parent in list(model.base_model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(parent, name, LowRank(layer, rank))
    begin(model, seed)


def layers(model: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """The adapted layers with their names."""
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LowRank))


@torch.no_grad()
def begin(model: nn.Module, seed: int) -> None:
    """Adapters that change nothing yet: B zero, A drawn from ``seed``."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    for _, layer in layers(model):
        bound = 1 / math.sqrt(layer.in_features)
        layer.lora_a.copy_(torch.empty(layer.lora_a.shape).uniform_(-bound, bound, generator=generator))
        layer.lora_b.zero_()


@torch.no_grad()
def fold(model: nn.Module, seed: int) -> None:
    """Moves what the adapters have learnt into the weights, as they are published, and begins anew."""
    for _, layer in layers(model):
        layer.weight.copy_(layer.merged())
    begin(model, seed)


@torch.no_grad()
def unwrap(model: nn.Module) -> None:
    """Makes the adapted layers plain ones again, of the merged weights."""
    for name, layer in list(layers(model)):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight, plain.bias = nn.Parameter(layer.merged()), layer.bias
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, plain)


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state of the plain model, under its own names and without what adapters add; tied tensors are one object."""
    state = model.state_dict(keep_vars=True)
    for name, _ in layers(model):
        del state[f"{name}.lora_a"], state[f"{name}.lora_b"]
    return state


@torch.no_grad()
def merged_weights(model: nn.Module, plain: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of ``plain`` weights of ``model``, with its adapters merged.

    A merged one is made when it comes, and is nobody's: all of them together take as much of the device as the model.
    """
    adapted = {f"{name}.weight": layer for name, layer in layers(model)}
    for name, tensor in plain.items():
        yield name, adapted[name].merged() if name in adapted else tensor


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """What the merged weights don't tell: W, A and B of each adapted layer. Live tensors, not copies."""
    return {
        f"{name}.{part}": getattr(layer, part).detach()
        for name, layer in layers(model)
        for part in ("weight", "lora_a", "lora_b")
    }


@torch.no_grad()
def load_adapter_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Takes over what ``adapter_state`` gave. Raises ``ValueError`` when it is that of another model or rank."""
    own = adapter_state(model)
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in state.items()}:
        raise ValueError("the adapters are those of another model or rank")
    for name, tensor in own.items():
        tensor.copy_(state[name])
