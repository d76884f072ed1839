"""What a configuration leaves open until the model is at hand: the folder of a GGUF file, the longest response."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from agent.config import LONGEST_RESPONSE
from agent.errors import UserError
from agent.readable import json_of
from conf.schema import INFERENCE, RunConfig
from learner.context import configuration, context_of, window_of
from learner.gguf import unpacked
from learner.hub import config_file
from learner.lacking import lacking

Phase = Callable[[str], AbstractContextManager[object]]


def settle(config: RunConfig, path: str, given: str, phase: Phase) -> str:
    """The model ``path`` as a folder or a hub's name, with the agent's limits in ``config`` made to fit it.

    ``given`` is how it was named (``model.path=…``), for messages; what takes long is a ``phase``. Raises
    ``UserError`` when nothing can be read from it, or the configuration that is read is of a model that the learner
    can't train and the mode is not one of ``INFERENCE``.
    """
    path = unpacked(path, given, config.cache, phase)
    if not config.agent.max_response_tokens:
        with phase("reading the model's configuration"):  # of a hub's model it is fetched
            config.agent.max_response_tokens = _response(config, path, given)
    return path


def _response(config: RunConfig, path: str, given: str) -> int:
    """The longest response that the model's context leaves, and, where it learns, the window of its attention."""
    file = config_file(path, given)
    try:
        read = json_of(file.read_text(encoding="utf-8"))
        room, what = context_of(read), "context"
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{given}: {file.name} can't be read ({error}); download it again") from error
    if config.mode not in INFERENCE:
        if (why := lacking(read)) is not None:
            raise UserError(f"{given}: {why}")
        # Whether the family uses its field is known to transformers, which takes a second to load.
        window = window_of(configuration(str(file.parent), given)) if read.get("sliding_window") else None
        if window is not None and (room is None or window < room):
            room, what = window, "window of attention"
    prompt = config.agent.max_prompt_tokens
    if room is None:
        return LONGEST_RESPONSE
    if room <= prompt:
        raise UserError(
            f"agent.max_prompt_tokens={prompt} fills the {what} of the model in {given}, which is {room} tokens; "
            "lower it"
        )
    return min(LONGEST_RESPONSE, room - prompt)
