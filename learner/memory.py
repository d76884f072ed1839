"""What to do when the learner's card is full, in the order of what it costs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from learner.config import AlgorithmConfig

MUON = "algorithm.warm_start.muon_lr=0 (AdamW's states in place of Muon's, which are in float32)"


def knobs(config: AlgorithmConfig, *, longest: int, lora: bool) -> list[str]:
    """Settings that would take less memory than these, each with its price, the cheapest first.

    ``longest`` is the longest sequence in tokens: no row can be shorter. ``lora`` tells whether low-rank adapters are
    all that is trained already.
    """
    out = []
    if config.logits_chunk > 256:
        out.append(f"algorithm.logits_chunk={config.logits_chunk // 2} (costs next to nothing)")
    if config.microbatch_tokens > longest:
        smaller = max(longest, config.microbatch_tokens // 2)
        out.append(f"algorithm.microbatch_tokens={smaller} (the same work in smaller pieces)")
    if config.gradient_checkpointing != "layers":
        out.append("algorithm.gradient_checkpointing=layers (a third more work)")
    if config.optimizer.float32_gradients:
        out.append("algorithm.optimizer.float32_gradients=false (coarser sums)")
    if config.optimizer.exact_master:
        out.append("algorithm.optimizer.exact_master=false (rounds by chance)")
    if config.kl != "none" and config.reference == "device":
        out.append("algorithm.reference=cpu (its weights cross the bus once a step)")
    if not config.optimizer.offload and not lora:
        if config.optimizer.kind == "adamw":
            out.append("algorithm.optimizer.kind=adamw8bit (coarser moments)")
        out.append("algorithm.optimizer.kind=adamw with algorithm.optimizer.offload=true (exact, seconds per step)")
    if not lora:
        out.append("model.lora_rank=32 (trains low-rank changes only, wants a higher learning rate)")
    out.append("agent.max_response_tokens (shorter episodes)")
    return out


@contextmanager
def named_knobs(
    where: str, config: AlgorithmConfig, *, longest: int, lora: bool, error: type[Exception]
) -> Iterator[None]:
    """Turns an out-of-memory in ``where`` into an ``error`` of one line that names what would take less."""
    try:
        yield
    except torch.OutOfMemoryError as full:
        first = [MUON] if "warm start" in where and config.warm_start.muon_lr else []
        wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(full))
        raise error(
            f"learner: out of GPU memory in {where}"
            + (f", when it asked for {wanted[1]} more" if wanted else "")
            + "; the cheapest first: "
            + ", ".join([*first, *knobs(config, longest=longest, lora=lora)])
        ) from full
