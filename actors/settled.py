"""What a configuration leaves open until the model is at hand: the folder of a GGUF file, the longest response."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from agent.config import LONGEST_RESPONSE, AgentConfig
from agent.errors import UserError
from agent.readable import json_of
from conf.schema import INFERENCE, RunConfig
from learner.context import check_context, check_positions, configuration, context_of, window_of
from learner.gguf import unpacked
from learner.hub import config_file, is_hub_name
from learner.lacking import check_learnable, lacking
from tasks.rows import named

Phase = Callable[[str], AbstractContextManager[object]]


def settle(config: RunConfig, path: str, given: str, phase: Phase) -> str:
    """The model ``path`` as a folder or a hub's name, with the agent's limits in ``config`` made to fit it.

    ``given`` is how it was named (``model.path=…``), for messages; what takes long is a ``phase``. Raises
    ``UserError`` when nothing can be read from it, or the mode is not one of ``INFERENCE`` and the learner can't train
    such a model, or not with the longest episode, or the model's context has no room for that.
    """
    path, agent, learns = unpacked(path, given, config.cache, phase), config.agent, config.mode not in INFERENCE
    # A hub's model that our own settings describe is one that can be trained, and planned without a network.
    known = agent.max_response_tokens > 0 and config.model.architecture is not None and is_hub_name(path)
    if known or (agent.max_response_tokens and not learns):
        return path
    with phase("reading the model's configuration"):  # of a hub's model it is fetched
        model = _read(path, given, learns)
    if not agent.max_response_tokens:
        agent.max_response_tokens = _response(model, agent, given, learns)
    if learns:
        check_context(model, given, agent)
        check_learnable(model, given, agent)
    return path


def _read(path: str, given: str, learns: bool) -> dict[str, Any]:
    """The model's ``config.json``; as transformers reads it where it ``learns`` and that may say otherwise.

    Raises ``UserError`` where it can't be read, or ``learns`` and the learner lacks what it says.
    """
    file = config_file(path, given)
    try:
        read = json_of(file.read_text(encoding="utf-8"))
        if not isinstance(read, dict):
            raise TypeError(f"{named(read)} and no object")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{given}: {file.name} can't be read ({error}); download it again") from error
    check_positions(read, given)
    if learns and (why := lacking(read)) is not None:
        raise UserError(f"{given}: {why}")
    # Whether the family uses this field is known to transformers, which takes a second to load.
    return configuration(str(file.parent), given) if learns and read.get("sliding_window") else read


def _response(model: Mapping[str, Any], agent: AgentConfig, given: str, learns: bool) -> int:
    """The longest response that the model's context leaves, and, where it learns, the window of its attention."""
    room, what, prompt = context_of(model), "context", agent.max_prompt_tokens
    window = window_of(model) if learns else None
    if window is not None and (room is None or window < room):
        room, what = window, "window of attention"
    if room is None:
        return LONGEST_RESPONSE
    if room <= prompt:
        raise UserError(
            f"agent.max_prompt_tokens={prompt} fills the {what} of the model in {given}, which is {room} tokens; "
            "lower it"
        )
    return min(LONGEST_RESPONSE, room - prompt)
