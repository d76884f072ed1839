"""What vLLM's finished outputs say, in our records. Needs no vllm."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from agent.errors import GenerationError
from agent.records import Completion, Finish


def completed(output: Any) -> Completion:
    """The whole of it. Raises ``GenerationError`` where vLLM's record and its tokens don't match."""
    ids = tuple(output.token_ids)
    return Completion(
        token_ids=ids,
        logprobs=tuple(_sampled_logprobs(output.logprobs, len(ids))),
        versions=tuple(_versions(output.weight_versions, len(ids))),
        finish=Finish(output.finish_reason),
    )


def scored(output: Any, token: int) -> float:
    """The log-probability of ``token`` at the first position: it comes after the sampled one, which it may also be."""
    of = dict(zip(output.logprobs.token_ids, output.logprobs.logprobs, strict=True))
    if token not in of:
        raise GenerationError(f"vLLM returned no log-probability for token {token}")
    return float(of[token])


def _sampled_logprobs(logprobs: Any, n: int) -> list[float]:
    """The sampled token's log-probability at each of ``n`` positions, from vLLM's flat record."""
    if len(logprobs) != n:
        raise GenerationError(f"vLLM returned {len(logprobs)} log-probabilities for {n} tokens")
    # The sampled token comes first at each position; with logprobs=0 it is the only one.
    return [float(logprobs.logprobs[start]) for start in logprobs.start_indices]


def _versions(spans: Any, n: int) -> Iterator[int]:
    for span in spans or ():
        yield from itertools.repeat(int(span.version), span.end - span.start)
