"""The worst step that can come, played before the first one: out of memory in the first minute or never."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from agent.errors import UserError
from learner.batch import Batch, Sample
from learner.config import AlgorithmConfig
from learner.memory import named_knobs
from learner.policy import Policy
from learner.ranks import ALONE, Ranks
from learner.update import Updater

NOBODYS = 1
"""The policy's version, for tokens that are labelled 0: no engine sampled them, and there is nothing to compare."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """What the worst step took."""

    tokens: int
    """In its largest microbatch."""
    seconds: float
    peak_bytes: int
    """Most that torch had allocated on the GPU; 0 on a CPU."""


def due(config: AlgorithmConfig, device: str) -> bool:
    """Whether a run with these settings makes a dry run."""
    return config.dry_run == "always" or (config.dry_run == "cuda" and device == "cuda")


def try_largest(
    policy: Policy, config: AlgorithmConfig, *, longest: int, temperature: float = 1.0, ranks: Ranks = ALONE
) -> DryRun:
    """Two updates of an optimizer (and a KL reference) of its own, which then go, and so does all that they changed.

    The first update is small and makes the optimizer's states. In the second, two rows are as full as the settings
    allow, with a sequence of ``longest`` tokens in each and all tokens trained: the backward pass of the second row
    meets weights, states, gradients and the reference, as the worst real one will.

    Afterwards the parameters are, bit for bit, what they were, and so are torch's generators. Takes as much host memory
    as the trained parameters have.

    Raises ``UserError`` with what would take less memory, when the GPU hasn't enough.
    """
    started = time.perf_counter()
    # One update, whatever the run's minibatches are: those make updates smaller. With a reference if any part has one.
    kl = config.seeding.kl if config.needs_reference and config.kl == "none" else config.kl
    config = replace(config, epochs=1, minibatch_questions=0, kl=kl)
    vocabulary, on_gpu = policy.head.shape[0], policy.device.type == "cuda"
    worst = worst_batch(config.microbatch_tokens, longest, vocabulary, rows=2 * ranks.world)
    tokens = sum(len(s.token_ids) for s in worst.samples) // (2 * ranks.world)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(policy.device)
    explained = named_knobs(
        f"the dry run of its largest microbatch ({tokens} tokens)",
        config,
        longest=longest,
        lora=policy.adapted,
        error=UserError,
    )
    with _unchanged(policy), tempfile.TemporaryDirectory() as folder, explained:
        updater = Updater(
            policy,
            config,
            rng=np.random.default_rng(0),
            fault_folder=Path(folder),
            temperature=temperature,
            reference=policy.reference_for(config),
            ranks=ranks,
        )
        updater.run(worst_batch(4, 4, vocabulary), step=0, version=NOBODYS)
        updater.run(worst, step=0, version=NOBODYS)
    peak = torch.cuda.max_memory_allocated(policy.device) if on_gpu else 0
    if on_gpu:
        del updater
        torch.cuda.empty_cache()
    return DryRun(tokens=tokens, seconds=time.perf_counter() - started, peak_bytes=peak)


def worst_batch(room: int, longest: int, vocabulary: int, *, rows: int = 2) -> Batch:
    """Samples for ``rows`` rows: sequences of ``longest`` tokens, and what is left of ``room`` in a shorter one."""
    room = max(room, longest)
    lengths = [longest] * (room // longest) + [room % longest] * (room % longest > 1)
    return Batch(
        samples=tuple(_sample(n, (1.0, -0.5)[row % 2], vocabulary) for row in range(rows) for n in lengths), questions=1
    )


def _sample(length: int, advantage: float, vocabulary: int) -> Sample:
    return Sample(
        question=0,
        token_ids=(np.arange(length) * 7919 % vocabulary).astype(np.int32),
        action_mask=np.arange(length) > 0,
        engine_logprobs=np.full(length - 1, -np.log(vocabulary)),
        versions=np.zeros(length - 1, np.int32),
        advantage=advantage,
        signal=True,
    )


@contextmanager
def _unchanged(policy: Policy) -> Iterator[None]:
    """Puts parameters, gradients with their types, and generators back to what they are now."""
    before = [(p, p.detach().to("cpu", copy=True), p.grad_dtype) for p in policy.parameters()]
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, values, kind in before:
                    parameter.grad = None
                    parameter.grad_dtype = kind
                    parameter.copy_(values)
