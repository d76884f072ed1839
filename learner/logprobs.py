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
    """Logits live for one chunk of tokens at a time; backward makes them again from the hidden states."""

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
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = hidden.new_empty(len(sources), dtype=wide)
        normaliser = torch.empty_like(logprobs)
        entropies = hidden.new_empty(len(sources) if entropy else 0, dtype=wide)
        for start in range(0, len(sources), chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden, weight, sources[part], temperature)
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
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, sources, targets, normaliser = ctx.saved_tensors
        grad = grads[0] / ctx.temperature
        d_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        # Summed over the chunks in float32, whatever the weight's type.
        d_weight = torch.zeros_like(weight, dtype=grad.dtype) if ctx.needs_input_grad[1] else None
        for start in range(0, len(sources), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            d_logits = _logits(hidden, weight, sources[part], ctx.temperature)
            d_logits.sub_(normaliser[part, None]).exp_().mul_(-grad[part, None])
            d_logits.scatter_add_(-1, targets[part, None], grad[part, None])
            d_logits = d_logits.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[sources[part]] = d_logits @ weight  # the sources differ: no sum is needed
            if d_weight is not None and d_weight.dtype == d_logits.dtype:
                d_weight.addmm_(d_logits.t(), hidden[sources[part]])
            elif d_weight is not None:
                d_weight += d_logits.t() @ hidden[sources[part]]
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """(len(rows), V) logits at the sampling temperature, float32 or wider, free to be overwritten."""
    logits = hidden[rows] @ weight.t()
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
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden[sources] @ weight.T / temperature)[targets], chunk by chunk.

    ``hidden`` is (N, d), ``weight`` the (V, d) LM head, ``sources`` (A,) *distinct* rows of ``hidden``,
    ``targets`` (A,) token ids. Returns (A,) log-probabilities in float32 (float64 for float64
    inputs), and with ``entropy`` the (A,) entropies of the distributions in nats, which carry no
    gradient. Peak memory is about three arrays of ``chunk`` x V floats, forward or backward.
    """
    values, entropies = _SelectedLogprobs.apply(hidden, weight, sources, targets, temperature, chunk, entropy)
    return values, entropies if entropy else None
