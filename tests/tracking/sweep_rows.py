"""Rows of runs that are small enough to work out by hand."""

from __future__ import annotations

from typing import Any


def step(
    number: int,
    *,
    rollouts: int = 40,
    tokens: int = 400,
    mix: tuple[int, int, int] = (4, 3, 3),
    accepted: int | None = None,
    recycled: float | None = 0.0,
    recovered: tuple[int, int] = (0, 0),
    flipped: float = 0.0,
) -> dict[str, Any]:
    """A step's row; ``mix`` counts the groups with signal, too hard, too easy; ``recovered`` from hard, from easy."""
    return {
        "kind": "step",
        "step": number,
        "rollout/trajectories": rollouts,
        "rollout/generated_tokens": tokens,
        "groups/signal": mix[0],
        "groups/too_hard": mix[1],
        "groups/too_easy": mix[2],
        "groups/accepted": mix[0] if accepted is None else accepted,
        "pool/recycled_share": recycled,
        "pool/recovered_too_hard": recovered[0],
        "pool/recovered_too_easy": recovered[1],
        "pool/flipped_share": flipped,
    }


def evaluation(number: int, em: float, rollouts: int, tokens: int, **kinds: float) -> dict[str, Any]:
    return {
        "kind": "eval",
        "step": number,
        "em": em,
        "rollouts": rollouts,
        "generated_tokens": tokens,
        "search/mean": 1.5 + number,
        "action_tokens/mean": 10.0 + number,
        "probe_tokens/mean": 0.5,
        "evidence_recall": 0.25,
        **{f"em/{name}": value for name, value in kinds.items()},
    }


RUN = [
    evaluation(0, 0.2, 0, 0, **{"1-hop": 0.4, "2-hop": 0.0}),
    step(1, mix=(4, 4, 2), recycled=0.0),
    step(2, mix=(6, 2, 2), recycled=0.5, recovered=(2, 1)),
    evaluation(2, 0.6, 80, 800, **{"1-hop": 0.8, "2-hop": 0.4}),
    step(3, mix=(2, 4, 4), recycled=0.5),
    step(4, mix=(8, 1, 1), recycled=0.25, recovered=(2, 0), flipped=0.125, tokens=600),
    evaluation(4, 0.5, 160, 1800, **{"1-hop": 0.9, "2-hop": 0.1}),
    {"kind": "summary", "step": 4},
]
"""Four steps of ten groups each and three evaluations."""
