"""What is left open until the model is at hand."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

import launch
from actors import settled
from actors.settled import settle
from agent.config import LONGEST_RESPONSE, AgentConfig
from agent.errors import UserError
from agent.pool.rules.epoch import Rule as Epoch
from conf.schema import RunConfig
from tests.settings import composed
from tracking.console import Console


def longest(folder: Path, description: object, response: int = 0, prompt: int = 1024, mode: str = "train") -> int:
    (folder / "config.json").write_text(json.dumps(description))
    agent = AgentConfig(max_prompt_tokens=prompt, max_response_tokens=response)
    config = RunConfig(agent=agent, pool=Epoch())
    config.mode = mode
    assert settle(config, str(folder), "model.path=it", nullcontext) == str(folder)
    return config.agent.max_response_tokens


def test_a_response_fits_the_models_context(tmp_path: Path) -> None:
    assert longest(tmp_path, {"max_position_embeddings": 2048}) == 1024
    assert longest(tmp_path, {"max_position_embeddings": 32768}) == 8192
    assert longest(tmp_path, {}) == 8192
    linear = {"type": "linear", "factor": 2.0}
    assert longest(tmp_path, {"max_position_embeddings": 2048, "rope_scaling": linear}) == 3072
    assert longest(tmp_path, {"max_position_embeddings": 2048}, response=512) == 512, "what is set stays"


def test_a_model_of_the_hub_that_our_settings_describe_is_planned_without_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(*_: object) -> Path:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(settled, "config_file", asked)
    for mode in ("plan", "train", "doctor", "eval"):
        config = composed("model=qwen1.5b", "cluster=4x3090")
        config.mode, path = mode, str(config.model.path)
        assert settle(config, path, f"model.path={path}", nullcontext) == path
    config.model.architecture, config.mode = None, "plan"
    with pytest.raises(AssertionError, match="the hub was asked"):
        settle(config, path, f"model.path={path}", nullcontext)


def test_a_context_without_room_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^agent\.max_prompt_tokens=1024 fills the context of the model in model\.path"
    ):
        longest(tmp_path, {"max_position_embeddings": 1024})
    with pytest.raises(UserError, match=r"^model\.path=it: config\.json can't be read"):
        longest(tmp_path, [])
    for factor in (float("inf"), float("nan")):
        with pytest.raises(UserError, match=r"^model\.path=it: config\.json scales positions \(RoPE\) by factor="):
            longest(tmp_path, {"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": factor}})


def test_a_response_fits_the_window_of_a_model_that_learns(tmp_path: Path) -> None:
    """The learner computes no window, an engine does; a Qwen2 has the field and doesn't use it unless it says so."""
    mistral = {"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 32768}
    assert longest(tmp_path, mistral) == 3072
    assert longest(tmp_path, mistral, mode="eval") == 8192
    assert longest(tmp_path, {**mistral, "max_position_embeddings": 2048}) == 1024
    assert longest(tmp_path, {**mistral, "model_type": "qwen2", "use_sliding_window": False}) == 8192
    with pytest.raises(
        UserError, match=r"^agent\.max_prompt_tokens=4096 fills the window of attention of the model in"
    ):
        longest(tmp_path, mistral, prompt=4096)


def test_a_model_that_the_learner_lacks_is_refused_before_it_is_planned(tmp_path: Path) -> None:
    kinds = {"max_position_embeddings": 32768, "layer_types": ["full_attention", "sliding_attention"]}
    assert longest(tmp_path, kinds, mode="eval") == 8192
    for mode in ("plan", "train", "doctor"):
        for response in (0, 512):
            with pytest.raises(UserError, match=r"^model\.path=it: layers of type sliding_attention are not supported"):
                longest(tmp_path, kinds, response, mode=mode)


def test_a_response_that_is_given_and_leaves_the_context_is_refused_before_it_is_planned(tmp_path: Path) -> None:
    short = {"model_type": "llama", "max_position_embeddings": 2048}
    for mode in ("plan", "train"):
        assert longest(tmp_path, short, response=1024, mode=mode) == 1024
        with pytest.raises(UserError, match=r"= 2049, but the context of the model in model\.path=it is 2048 tokens"):
            longest(tmp_path, short, response=1025, mode=mode)


def test_a_response_that_is_given_and_leaves_the_window_is_refused_before_it_is_planned(tmp_path: Path) -> None:
    mistral = {"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 32768}
    assert longest(tmp_path, mistral, response=3072, mode="plan") == 3072
    assert longest(tmp_path, mistral, response=3073, mode="eval") == 3073
    with pytest.raises(
        UserError, match=r"= 4097, but the attention of the model in model\.path=it sees a window of 40"
    ):
        longest(tmp_path, mistral, response=3073, mode="plan")


def test_a_response_that_is_left_open_has_room_beside_a_model_from_scratch() -> None:
    config = composed("agent.max_response_tokens=0")
    launch._settle(config, Console())
    assert config.agent.max_response_tokens == LONGEST_RESPONSE
