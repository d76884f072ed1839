"""How long a text a model takes, by its ``config.json``. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config import AgentConfig
from agent.errors import UserError, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

STRETCHED = ("linear", "dynamic")
"""Kinds of positions (``rope_type``) of which ``max_position_embeddings`` is the context before they were scaled."""


def configuration(path: str, given: str) -> dict[str, Any]:
    """``config.json`` of a folder or a hub's name, as transformers reads it: with what its family takes for granted.

    Raises ``UserError`` that starts with ``given`` when it is no model's, and as ``check_positions``.
    """
    read: dict[str, Any] = as_transformers_reads(path, given).to_dict()
    check_positions(read, given)
    return read


def as_transformers_reads(path: str | Path, given: str) -> PreTrainedConfig:
    """The configuration of a folder or a hub's name. Raises ``UserError`` that starts with ``given`` for no model's."""
    from transformers import AutoConfig

    try:
        read: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # what a wrong field raises depends on the field and on the family
        raise UserError(f"{given}: no model's configuration can be loaded from it ({shortened(error)})") from error
    return read


def check_positions(config: Mapping[str, Any], given: str) -> None:
    """Raises ``UserError`` that starts with ``given`` for a context or a scaling of positions that no model has."""
    most, factor = _whole(config.get("max_position_embeddings")), _positions(config).get("factor")
    if most is not None and most < 1:
        raise UserError(f"{given}: config.json says max_position_embeddings={most}, a context of no token; mend it")
    if factor is not None and not (isinstance(factor, int | float) and 0 < factor < math.inf):
        raise UserError(
            f"{given}: config.json scales positions (RoPE) by factor={factor!r}, which is no number above 0; mend it"
        )


def context_of(config: Mapping[str, Any]) -> int | None:
    """The longest sequence, in tokens, as the engine counts; None where the configuration doesn't say.

    ``max_position_embeddings`` is that already, but for positions in ``STRETCHED``: then ``factor`` times as many fit.
    """
    most, (kind, factor) = _whole(config.get("max_position_embeddings")), scaling_of(config)
    return int(most * factor) if most is not None and kind in STRETCHED else most


def could_be(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """What YaRN's ``factor`` makes of the context, where ``max_position_embeddings`` doesn't have it yet; and the
    context before, ``original_max_position_embeddings``. Both in tokens.

    A model card that says how to switch YaRN on leaves that field as it was (Qwen2.5's), and the engine goes by it.
    """
    (kind, factor), most = scaling_of(config), _whole(config.get("max_position_embeddings"))
    original = _whole(_positions(config).get("original_max_position_embeddings")) or most
    if kind != "yarn" or most is None or original is None or int(original * factor) <= most:
        return None
    return int(original * factor), original


def window_of(config: Mapping[str, Any]) -> int | None:
    """How many tokens a layer of sliding-window attention sees; None where no layer is one.

    ``config`` is as transformers has read it: some families have the field and don't use it.
    """
    kinds = config.get("layer_types")
    return None if kinds and "sliding_attention" not in kinds else _whole(config.get("sliding_window"))


def _positions(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the configuration says of its positions (RoPE): as transformers writes it today, or as before."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    return found if isinstance(found, Mapping) else {}


def scaling_of(config: Mapping[str, Any]) -> tuple[str, float]:
    """The kind of the model's positions (``rope_type``), and the factor by which they are scaled."""
    found = _positions(config)
    factor = found.get("factor")
    kind = str(found.get("rope_type") or found.get("type") or "default")
    return kind, float(factor) if isinstance(factor, int | float) else 1.0


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def check_context(model: Mapping[str, Any], given: str, agent: AgentConfig) -> None:
    """Raises ``UserError`` if the model of that configuration can't take the longest episode."""
    context, longest = context_of(model), agent.longest_episode
    if context is not None and longest > context:
        more = ""
        if (scaled := could_be(model)) is not None:
            reach, original = scaled
            more = (
                f". Its YaRN reaches {reach} once its config.json has max_position_embeddings={reach} beside "
                f"original_max_position_embeddings={original}"
            )
        raise UserError(
            f"agent.max_prompt_tokens + agent.max_response_tokens = {longest}, but the context of the model in "
            f"{given} is {context} tokens; lower one of them{more}"
        )
