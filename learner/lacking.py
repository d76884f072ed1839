"""What a model's configuration says that the learner can't compute. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.config import AgentConfig
from agent.errors import UserError
from learner.context import scaling_of, window_of

RESCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier_scale")
"""Fields of models whose logits are not simply head(hidden): Gemma, Cohere, Granite."""
LENGTH_DEPENDENT = ("longrope", "dynamic")
"""Kinds of positions that transformers computes by the largest of a batch: Phi's long contexts."""


def lacking(config: Mapping[str, Any]) -> str | None:
    """Why a model of this ``config.json`` can't be computed on packed rows; None if nothing in it says so.

    As transformers has read it, it says more than the file, which may leave its family's defaults out.
    """
    for field in RESCALED_LOGITS:
        if config.get(field) not in (None, 1.0):
            return f"{field} is not supported; its logits are rescaled after the head"
    kinds = config.get("layer_types")
    other = {str(kind) for kind in kinds} - {"full_attention"} if isinstance(kinds, list) else set()
    if other:
        return f"layers of type {', '.join(sorted(other))} are not supported on packed rows"
    if (kind := scaling_of(config)[0]) in LENGTH_DEPENDENT:
        return f"rope_type {kind} is not supported; it computes by the longest of a row"
    return None


def check_learnable(config: Mapping[str, Any], given: str, agent: AgentConfig) -> None:
    """Raises ``UserError`` if the learner lacks what the model computes, or the longest episode leaves its attention's
    window; ``given`` is how it was named (``model.path=…``)."""
    if (why := lacking(config)) is not None:
        raise UserError(f"{given}: {why}")
    window, longest = window_of(config), agent.longest_episode
    if window is not None and longest > window:
        raise UserError(
            f"agent.max_prompt_tokens + agent.max_response_tokens = {longest}, but the attention of the model in "
            f"{given} sees a window of {window} tokens, and the learner needs all of an episode in it; lower one of "
            "them, or take a model without sliding-window attention"
        )
