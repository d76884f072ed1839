"""What a layer keeps for its backward pass, and what it computes again there: chosen by what the memory allows.

    layers   each layer's input is kept, all else computed again (transformers' own checkpointing)
    mlp      attention keeps what it needs; the feed-forward part keeps its input. In the last ``whole`` layers that
             part also keeps its two wide projections, so that no matrix product is computed again there. Backward
             begins with these layers, and has freed what they keep before it computes anything of the others again
    none     all is kept

The matrix products of the feed-forward part are most of a layer's forward pass; what attention needs is cheap to keep.
In all of them a norm keeps its input and one number per token, where transformers' keeps two float32 copies.

A module changes its class in place: names, parameters, copies and adapters stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from socket import gethostname
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3MLP, Qwen3RMSNorm

from agent.errors import UserError
from learner.attention import Layout, packed_attention

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


class _LeanLayer(nn.Module):
    """A layer in parts, so that what isn't attention can be computed again, and compiled.

    The last projection is in no part: a compiled one is computed again as a whole, and its product isn't needed then.
    """

    self_attn: Any
    mlp: Any
    input_layernorm: _LeanNorm
    post_attention_layernorm: _LeanNorm
    again: str
    """What of the feed-forward part backward computes again: ``nothing``, the ``product``, or its ``input`` on."""
    backend: str
    """That of torch.compile for the parts; "" runs them as they are."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        layout: Layout | None = None,
        **more: Any,
    ) -> Tensor:
        if layout is None:  # no packed row: transformers' own pass, which ours is compared with
            out: Tensor = super().forward(hidden_states, position_embeddings=position_embeddings, **more)
            return out
        assert position_embeddings is not None
        query, key, value = self._run(_queried, hidden_states, *position_embeddings)
        seen, _ = packed_attention(
            self.self_attn, query, key, value, None, layout=layout, scaling=self.self_attn.scaling
        )
        # Of no part, since the result of attention is a view, now of this tensor and then of that: compiled code is
        # for one of them.
        seen = self.self_attn.o_proj(seen.reshape(*hidden_states.shape[:-1], -1))
        if self.again == "nothing" or not torch.is_grad_enabled():
            return self._narrowed(*self._run(_joined_and_fed, hidden_states, seen))
        x = hidden_states + seen
        if self.again == "product":
            return _again(lambda x, *wide: self._narrowed(x, self._run(_product, *wide)), x, *self._run(_widened, x))
        return _again(lambda x: self._narrowed(x, self._run(_fed, x)), x)

    def _run(self, part: Callable[..., Any], *tensors: Tensor) -> Any:
        return (_compiled(part, self.backend) if self.backend else part)(self, *tensors)

    def _narrowed(self, x: Tensor, product: Tensor) -> Tensor:
        out: Tensor = x + self.mlp.down_proj(product)
        return out


def _queried(layer: _LeanLayer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(1, heads, N, D) queries, keys and values of the (1, N, d) input."""
    attention, normed = layer.self_attn, layer.input_layernorm(x)
    query, key, value = (
        project(normed).view(*x.shape[:-1], -1, attention.head_dim)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):  # Qwen3
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
    return query, key, value.transpose(1, 2)


def _widened(layer: _LeanLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    normed = layer.post_attention_layernorm(x)
    return layer.mlp.gate_proj(normed), layer.mlp.up_proj(normed)


def _product(layer: _LeanLayer, gate: Tensor, up: Tensor) -> Tensor:
    out: Tensor = layer.mlp.act_fn(gate) * up
    return out


def _fed(layer: _LeanLayer, x: Tensor) -> Tensor:
    return _product(layer, *_widened(layer, x))


def _joined_and_fed(layer: _LeanLayer, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    x = x + seen
    return x, _fed(layer, x)


@cache
def _compiled(part: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """``part`` for rows of any length. One compilation serves all layers: their weights are arguments of it."""
    return torch.compile(part, fullgraph=True, dynamic=True, backend=backend)


@cache
def check_compiles(backend: str, device: torch.device) -> None:
    """Raises ``UserError`` if what compiles for ``device`` fails here: now, and not at the first step."""
    try:
        torch.compile(lambda x: x + 1, fullgraph=True, backend=backend)(torch.ones(8, device=device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch's own, and whatever a compiler's caller raises
        raise UserError(
            f"algorithm.compile=true: nothing can be compiled on {gethostname()}, where the learner is: "
            f"{_first_error(error)}; mend the compiler or name another (CXX=COMPILER, on a GPU CC=COMPILER), or leave "
            "it out"
        ) from error


def _first_error(error: Exception) -> str:
    """The first line of what a compiler has printed that says an error; else of what was raised."""
    inner = getattr(error, "inner_exception", error)
    printed = getattr(inner, "output", None)
    text = printed if isinstance(printed, str) else str(inner)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(inner).__name__]
    return next((line for line in lines if "error" in line.lower()), lines[0])


def keep_less(model: PreTrainedModel, what: str, whole: int = 0, backend: str = "") -> None:
    """Makes ``model`` keep less, as the title says; the result of no pass changes.

    Layers of another kind than Qwen2's, Qwen3's and Llama's are left as they are, and checkpointed whole. With a
    ``backend`` of torch.compile the parts of a layer beside attention are compiled; ``UserError`` if there is none of
    these kinds, or nothing can be compiled here.
    """
    for module in model.modules():
        if type(module) in NORMS:
            _become(module, _LeanNorm)
    layers: list[Any] = [layer for layer in model.modules() if type(layer) in LAYERS and type(layer.mlp) in MLPS]
    if backend and not layers:
        raise UserError(
            f"algorithm.compile=true: no layer of {type(model).__name__} is of a kind that is compiled here (Qwen2's, "
            "Qwen3's, Llama's); leave it out"
        )
    if backend:
        check_compiles(backend, layers[0].input_layernorm.weight.device)
    for number, layer in enumerate(layers):
        _become(layer, _LeanLayer)
        again = "product" if number >= len(layers) - whole else "input"
        layer.__dict__.update(again=again if what == "mlp" else "nothing", backend=backend)
    if what != "none" and not (what == "mlp" and layers):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()  # transformers checkpoints in training mode only


def _become(module: Any, how: type[nn.Module]) -> None:
    """Gives ``module`` the forward pass of ``how``."""
    kind = type(module)
    if (how, kind) not in _KINDS:
        _KINDS[how, kind] = type(f"{how.__name__}{kind.__name__}", (how, kind), {})
    module.__class__ = _KINDS[how, kind]


_KINDS: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}
"""One class for all modules of a kind: what is compiled is compiled for a class."""


def _again(function: Any, *arguments: Tensor) -> Tensor:
    out: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return out
