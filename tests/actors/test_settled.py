"""What is left open until the model is at hand."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from actors.settled import settle
from agent.config import AgentConfig
from agent.errors import UserError
from agent.pool.rules.epoch import Rule as Epoch
from conf.schema import RunConfig


def longest(folder: Path, description: object, response: int = 0, prompt: int = 1024) -> int:
    (folder / "config.json").write_text(json.dumps(description))
    agent = AgentConfig(max_prompt_tokens=prompt, max_response_tokens=response)
    config = RunConfig(agent=agent, pool=Epoch())
    assert settle(config, str(folder), "model.path=it", nullcontext) == str(folder)
    return config.agent.max_response_tokens


def test_a_response_fits_the_models_context(tmp_path: Path) -> None:
    assert longest(tmp_path, {"max_position_embeddings": 2048}) == 1024
    assert longest(tmp_path, {"max_position_embeddings": 32768}) == 8192
    assert longest(tmp_path, {}) == 8192
    linear = {"type": "linear", "factor": 2.0}
    assert longest(tmp_path, {"max_position_embeddings": 2048, "rope_scaling": linear}) == 3072
    assert longest(tmp_path, {"max_position_embeddings": 2048}, response=8192) == 8192, "what is set stays"


def test_a_context_without_room_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^agent\.max_prompt_tokens=1024 fills the context of the model in model\.path"
    ):
        longest(tmp_path, {"max_position_embeddings": 1024})
    with pytest.raises(UserError, match=r"^model\.path=it: config\.json can't be read"):
        longest(tmp_path, [])
