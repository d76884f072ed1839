"""What a layer keeps for its backward pass, and what it computes again there: chosen by what the memory allows.

    layers   each layer's input is kept, all else computed again (transformers' own checkpointing)
    mlp      attention keeps what it needs; the feed-forward part keeps its input. Of the last ``whole`` layers it
             keeps its two projections, so that no matrix product is computed again; backward is with them when
             most is kept, and leaves them before it makes others again
    none     all is kept

What a matrix product of the feed-forward part costs again is most of a layer's forward pass; attention's is cheap to
keep. In all of them a norm keeps its input and one number per token, where transformers' keeps two float32 copies.

A module changes its class in place: names, parameters, copies and adapters stay what they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3MLP, Qwen3RMSNorm

NORMS = (LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)
MLPS = (LlamaMLP, Qwen2MLP, Qwen3MLP)
LAYERS = (LlamaDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)


class _Norm(torch.autograd.Function):
    """``weight * (x / rms(x))``, with the operations of transformers' modules, and so their values to the bit.

    Backward takes the steps that autograd takes through them, in its order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.to(torch.float32)
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        (grad,) = grads
        wide = x.to(torch.float32)
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (grad * (wide * scale).to(x.dtype)).sum(dim=tuple(range(grad.dim() - 1)))
        d_normed = (grad * weight).to(torch.float32)
        d_scale = (d_normed * wide).sum(-1, keepdim=True)
        d_variance = -0.5 * d_scale * scale.pow(3)
        # autograd's 2 * wide, to the bit and without another array: in float32 ``wide`` is the saved input itself.
        d_wide = d_normed.mul_(scale).add_((d_variance / wide.shape[-1] * 2) * wide)
        return d_wide.to(x.dtype), d_weight, None


class _LeanNorm(nn.Module):
    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)


class _Postponed(_LeanNorm):
    """A norm that the feed-forward part after it does, so that it can do it again."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states

    def now(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states)


class _LeanMLP(nn.Module):
    """The norm and the feed-forward part behind it, computed again in backward."""

    norm: tuple[_Postponed]
    """In a tuple: it is the layer's, and no module of this one."""
    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    act_fn: nn.Module
    whole: bool
    """Keep the two projections."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self._narrowed(*self._widened(x))
        if self.whole:
            return _again(self._narrowed, *self._widened(x))
        return _again(lambda x: self._narrowed(*self._widened(x)), x)

    def _widened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm[0].now(x)
        return self.gate_proj(normed), self.up_proj(normed)

    def _narrowed(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(gate) * up)


def keep_less(model: PreTrainedModel, what: str, whole: int = 0) -> None:
    """Makes ``model`` keep less, as the title says; the result of no pass changes.

    Layers of another kind than Qwen2's, Qwen3's and Llama's are left as they are, and checkpointed whole.
    """
    for module in model.modules():
        if type(module) in NORMS:
            _become(module, _LeanNorm)
    layers = [layer for layer in model.modules() if type(layer) in LAYERS and type(layer.mlp) in MLPS]
    if what == "mlp" and layers:
        for number, layer in enumerate(layers):
            norm, mlp = layer.post_attention_layernorm, layer.mlp
            _become(norm, _Postponed)
            _become(mlp, _LeanMLP)
            mlp.__dict__["norm"], mlp.__dict__["whole"] = (norm,), number >= len(layers) - whole
    elif what != "none":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()  # transformers checkpoints in training mode only


def _become(module: Any, how: type[nn.Module]) -> None:
    """Gives ``module`` the forward pass of ``how``."""
    module.__class__ = type(f"{how.__name__}{type(module).__name__}", (how, type(module)), {})


def _again(function: Any, *arguments: Tensor) -> Tensor:
    out: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return out
