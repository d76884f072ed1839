"""Which model a command line means, and what comes with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import launch
from actors.plan.architecture import architecture
from agent.errors import UserError
from conf.schema import RunConfig

PRESETS = sorted(file.stem for file in (Path(launch.__file__).parent / "conf" / "model").glob("*.yaml"))


def asked(*arguments: str) -> RunConfig:
    (config,) = launch.check_overrides(["mode=plan", *arguments]).configs
    return config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of which the plan needs no more than this."""
    made = tmp_path / "my-model"
    made.mkdir()
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    description = {"model_type": "llama", "vocab_size": 300, "tie_word_embeddings": True, **sizes}
    (made / "config.json").write_text(json.dumps(description))
    return made


def test_a_path_alone_is_a_model(folder: Path) -> None:
    """None of the tiny model's settings come with it."""
    config = asked(f"model.path={folder}")
    assert (config.model.name, config.model.dtype) == ("my-model", "float32")
    assert architecture(config.model).parameters == 300 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    other = asked("model=qwen0.5b")
    assert (replace(config.agent, max_response_tokens=8192), config.algorithm) == (other.agent, other.algorithm)
    assert config.agent.max_response_tokens == 0, "what its context leaves"
    warm = config.algorithm.warm_start
    assert (warm.steps, warm.batch_size, warm.lr, warm.warmup_steps, warm.context_weight) == (0, 8, 5e-5, 5, 0.0)
    tiny = asked("model=tiny").algorithm.warm_start
    assert (tiny.batch_size, tiny.context_weight) == (64, 0.2), "it is made from scratch"


def test_a_path_beside_a_choice_takes_the_choices_settings(folder: Path) -> None:
    config = asked("model=smollm2-135m", f"model.path={folder}")
    assert config.model.name == "smollm2-135m"
    assert config.agent.max_searches == 4


def test_no_model_at_all() -> None:
    with pytest.raises(UserError, match=r"^model: nothing says which; give model\.path=FOLDER"):
        asked("model=folder")


@pytest.mark.one_in(15)
@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("tiny", "folder")])
def test_numbers_are_kept_as_the_machine_computes(name: str) -> None:
    assert asked(f"model={name}").model.dtype == "float32"
    assert asked(f"model={name}", "cluster=1x24gb").model.dtype == "bfloat16"
    assert asked(f"model={name}", "model.dtype=bfloat16").model.dtype == "bfloat16"
