"""What a configuration leaves open until the model is at hand: the folder of a GGUF file, the longest response."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from agent.config import LONGEST_RESPONSE, AgentConfig
from agent.errors import UserError
from agent.readable import json_of
from conf.schema import RunConfig
from learner.context import context_of
from learner.gguf import unpacked
from learner.hub import config_file

Phase = Callable[[str], AbstractContextManager[object]]


def settle(config: RunConfig, path: str, given: str, phase: Phase) -> str:
    """The model ``path`` as a folder or a hub's name, with the agent's limits in ``config`` made to fit it.

    ``given`` is how it was named (``model.path=…``), for messages; what takes long is a ``phase``. Raises
    ``UserError`` when nothing can be read from it.
    """
    path = unpacked(path, given, config.cache, phase)
    if not config.agent.max_response_tokens:
        with phase("reading the model's configuration"):  # of a hub's model it is fetched
            config.agent.max_response_tokens = _response(config.agent, path, given)
    return path


def _response(agent: AgentConfig, path: str, given: str) -> int:
    """The longest response that the model's context leaves."""
    file = config_file(path, given)
    try:
        context = context_of(json_of(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{given}: {file.name} can't be read ({error}); download it again") from error
    if context is None:
        return LONGEST_RESPONSE
    if context <= agent.max_prompt_tokens:
        raise UserError(
            f"agent.max_prompt_tokens={agent.max_prompt_tokens} fills the context of the model in {given}, which is "
            f"{context} tokens; lower it"
        )
    return min(LONGEST_RESPONSE, context - agent.max_prompt_tokens)
