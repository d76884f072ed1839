"""Log-probabilities of chosen tokens without all the logits of a row existing at once.

Liger-Kernel has such a function too (``LigerFusedLinearGRPOLoss``), and was weighed, on paper. It is the loss itself,
worked out chunk by chunk together with its gradients, which spares making the logits again in backward. But then every
term is fixed before backward begins: a KL term, an importance weight from the learner's own probabilities, the entropy
and the gap to the engine would be options of Liger's or nothing, and its batches are padded rectangles. (Its newer
building block of plain log-probabilities recomputes in backward as this one does.) The rest of Liger are Triton
kernels, which a CPU doesn't run, so the tested path wouldn't be the one that trains. For Qwen2.5-1.5B, where a fifth of
the tokens are actions, making them again is 1 % of a step's arithmetic. Ours stays: short, any loss, any device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _SelectedLogprobs(torch.autograd.Function):
    """Logits live for one chunk of tokens, or slice of the vocabulary, at a time; backward makes them again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        sources: Tensor,
        targets: Tensor,
        temperature: float,
        chunk: int,
        entropy: bool,
        into_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = hidden.new_empty(len(sources), dtype=wide)
        normaliser = torch.empty_like(logprobs)
        entropies = hidden.new_empty(len(sources) if entropy else 0, dtype=wide)
        for start in range(0, len(sources), chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden[sources[part]], weight, temperature)
            top = logits.amax(-1, keepdim=True)
            logits.sub_(top)
            chosen = logits.gather(-1, targets[part, None]).squeeze(-1)
            if entropy:
                odds = logits.exp()
                total = odds.sum(-1)
                entropies[part] = total.log() - torch.linalg.vecdot(odds, logits) / total
            else:
                total = logits.exp_().sum(-1)
            logprobs[part] = chosen - total.log()
            normaliser[part] = total.log() + top.squeeze(-1)
        ctx.save_for_backward(hidden, weight, sources, targets, normaliser)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.leaf = weight if into_grad and weight.is_leaf else None
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Slice by slice of the vocabulary, all tokens at once: each slice's gradient is one product, written once."""
        hidden, weight, sources, targets, normaliser = ctx.saved_tensors
        grad = grads[0] / ctx.temperature
        chosen = hidden[sources]
        d_chosen = torch.zeros_like(chosen, dtype=grad.dtype) if ctx.needs_input_grad[0] else None
        d_weight = _gradient_of(weight, ctx.leaf) if ctx.needs_input_grad[1] else None
        # As many values at a time as a chunk of tokens has logits.
        size = max(1, ctx.chunk * len(weight) // max(ctx.chunk, len(sources)))
        for start in range(0, len(weight), size):
            rows = weight[start : start + size]
            d_logits = _logits(chosen, rows, ctx.temperature)
            d_logits.sub_(normaliser[:, None]).exp_().mul_(-grad[:, None])
            here = (targets >= start) & (targets < start + len(rows))
            at = (targets - start).clamp(0, len(rows) - 1)
            d_logits.scatter_add_(-1, at[:, None], torch.where(here, grad, 0.0)[:, None])
            d_logits = d_logits.to(hidden.dtype)
            if d_chosen is not None:
                d_chosen += d_logits @ rows
            if d_weight is not None and d_weight.dtype == d_logits.dtype:
                d_weight[start : start + size].addmm_(d_logits.t(), chosen)
            elif d_weight is not None:
                d_weight[start : start + size] += d_logits.t() @ chosen
        d_hidden = None
        if d_chosen is not None:
            d_hidden = torch.zeros_like(hidden)
            d_hidden[sources] = d_chosen.to(hidden.dtype)  # the sources differ: no sum is needed
        return (d_hidden, None if ctx.leaf is not None else d_weight, *[None] * 6)


def _gradient_of(weight: Tensor, leaf: Tensor | None) -> Tensor:
    """Where the head's gradient is added up: in that of ``leaf``, or in one that autograd then gets."""
    if leaf is None:
        return torch.zeros_like(weight)
    if leaf.grad is None:
        leaf.grad = torch.zeros_like(leaf, dtype=leaf.grad_dtype or leaf.dtype)
    return leaf.grad


def _logits(chosen: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """(tokens, len(weight)) logits at the sampling temperature, float32 or wider, free to be overwritten."""
    logits = chosen @ weight.t()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits.div_(temperature)


def selected_logprobs(
    hidden: Tensor,
    weight: Tensor,
    sources: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 4096,
    entropy: bool = False,
    into_grad: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden[sources] @ weight.T / temperature)[targets], chunk by chunk.

    ``hidden`` is (N, d), ``weight`` the (V, d) LM head, ``sources`` (A,) *distinct* rows of ``hidden``,
    ``targets`` (A,) token ids. Returns (A,) log-probabilities in float32 (float64 for float64
    inputs), and with ``entropy`` the (A,) entropies of the distributions in nats, which carry no
    gradient. Peak memory is about three arrays of ``chunk`` x V floats forward, two backward. With ``into_grad``
    backward writes the gradient of a leaf ``weight`` into ``weight.grad`` once, past autograd and its copies.
    """
    values, entropies = _SelectedLogprobs.apply(
        hidden, weight, sources, targets, temperature, chunk, entropy, into_grad
    )
    return values, entropies if entropy else None
