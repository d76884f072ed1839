"""How sure the policy is of an answer, by the log-probabilities of its tokens: what an early exit goes by.

To add one, put a function into the table; its name is then a valid ``exit.confidence``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def _product(logprobs: Sequence[float]) -> float:
    return math.exp(sum(logprobs))


CONFIDENCES: dict[str, Callable[[Sequence[float]], float]] = {
    "decision": _product,
    "product": _product,
    "mean": lambda logprobs: math.exp(sum(logprobs) / len(logprobs)),
}
"""From the log-probabilities of a probe's tokens, the closing tag's included, to a confidence in [0, 1].

The product is the chance that the policy would write exactly this answer, once it answers: a threshold on it
is a threshold on a probability. It falls with the answer's length; the geometric mean doesn't, and is for
answers that are long in themselves. The decision is the product times the chance that the policy opens an answer
at this point, which says whether it considers itself done. A policy that thinks before it answers never opens an
answer right after an observation: take the product there.
"""
