"""A model's folder before a run: checked if it is the user's, made anew if it is the run's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import MistralConfig, Qwen2ForCausalLM

from actors.prepare import _warm_start_key, check_model, prepare, warm_started
from agent.config import AgentConfig
from agent.errors import UserError
from agent.pool.rules.epoch import Rule as Epoch
from agent.protocol import PROTOCOLS
from agent.tools.search import Search
from conf.schema import RunConfig
from conf.topology import ClusterConfig
from learner.config import AlgorithmConfig, ModelConfig, OptimizerConfig, WarmStartConfig
from learner.policy import Policy
from learner.skeleton import MARKER, qwen2_config
from tasks.config import DataConfig
from tasks.tokenizer import train

AGENT = AgentConfig(prompt="plain", chat=False, max_prompt_tokens=64, max_response_tokens=64)
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of 270 tokens with its tokenizer, and a context of 128."""
    folder = tmp_path_factory.mktemp("whole")
    train(("who wrote Emma?",), tags=PROTOCOLS["search"].tags, folder=folder, vocab_size=270)
    torch.manual_seed(0)
    config = qwen2_config({**SIZES, "intermediate_size": 32}, vocab_size=270, max_position_embeddings=128)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def test_a_whole_model_is_found(folder: Path) -> None:
    assert check_model(str(folder), "checkpoint=here", AGENT, learns=True) == folder


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json missing"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), r"tokenizer\.json can't be read"),
        (lambda folder: train(("a",), tags=[f"<t{i}>" for i in range(20)], folder=folder, vocab_size=290), "270 rows"),
    ],
)
def test_what_is_wrong_is_one_line_that_begins_with_what_was_given(
    folder: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=rf"^checkpoint=here: .*{said}") as error:
        check_model(str(folder), "checkpoint=here", AGENT, learns=True)
    assert "\n" not in str(error.value)


def test_what_the_agent_wants_of_the_model_is_checked_too(folder: Path) -> None:
    chat = AgentConfig(chat=True, max_prompt_tokens=64, max_response_tokens=64)
    with pytest.raises(UserError, match=r"^checkpoint=here: its tokenizer has no chat template, which agent\.chat"):
        check_model(str(folder), "checkpoint=here", chat, learns=True)
    longer = AgentConfig(prompt="plain", chat=False, max_prompt_tokens=64, max_response_tokens=65)
    with pytest.raises(UserError, match=r"= 129, but the context of the model in checkpoint=here is 128 tokens"):
        check_model(str(folder), "checkpoint=here", longer, learns=True)


def test_a_context_is_what_the_engine_takes(folder: Path) -> None:
    """Positions that are scaled linearly reach further than ``max_position_embeddings``; YaRN's are in it already."""
    longer = AgentConfig(prompt="plain", chat=False, max_prompt_tokens=64, max_response_tokens=65)
    file = folder / "config.json"
    settings = json.loads(file.read_text())

    def scaled(**scaling: Any) -> None:
        file.write_text(json.dumps({**settings, "rope_parameters": {"rope_theta": 10_000.0, **scaling}}))

    scaled(rope_type="linear", factor=2.0)
    assert check_model(str(folder), "checkpoint=here", longer, learns=True) == folder
    scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=128)
    with pytest.raises(
        UserError, match=r"is 128 tokens; .*YaRN reaches 512 once .* has max_position_embeddings=512 beside"
    ):
        check_model(str(folder), "checkpoint=here", longer, learns=True)


def test_an_episode_longer_than_the_attentions_window_is_refused_before_it_is_played(
    whole: Path, tmp_path: Path
) -> None:
    """An engine computes it, and only the learner doesn't: after the first batch with a long episode."""
    window = MistralConfig(**SIZES, vocab_size=270, max_position_embeddings=4096, sliding_window=128)
    window.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(whole / name, tmp_path / "model" / name)
    config = run(tmp_path)
    config = replace(config, model=replace(config.model, path=str(tmp_path / "model")))
    with pytest.raises(UserError, match=r"^agent\.max_prompt_tokens .* = 384, but .* window of 128 tokens"):
        prepare(config, tmp_path)


def test_attention_that_the_learner_lacks_is_refused_of_a_model_that_learns(folder: Path) -> None:
    """Before engines are started, which have it."""
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    sliding = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0, "layer_types": None}
    file.write_text(json.dumps({**settings, **sliding}))
    assert check_model(str(folder), "model.path=here", AGENT, learns=False) == folder
    with pytest.raises(UserError, match=r"^model\.path=here: layers of type sliding_attention are not supported"):
        check_model(str(folder), "model.path=here", AGENT, learns=True)


# --- a run's own -----------------------------------------------------------------------------------


def run(folder: Path, **sizes: int) -> RunConfig:
    return RunConfig(
        cache_dir=str(folder / "cache"),
        agent=AgentConfig(prompt="plain", chat=False, top_k=2, max_prompt_tokens=64, max_response_tokens=320),
        model=ModelConfig(architecture={**SIZES, "intermediate_size": 32, **sizes}),
        data=DataConfig(train_questions=3, eval_questions_per_hop=1, demonstrations=4),
        pool=Epoch(),
    )


def test_a_runs_own_folder_is_a_skeleton_and_nobody_may_start_from_it(tmp_path: Path) -> None:
    made = Path(prepare(run(tmp_path), tmp_path).model_path)
    assert (made / MARKER).is_file()
    assert Policy.from_folder(made, seed=0, dtype="float32").head.shape[1] == SIZES["hidden_size"]
    with pytest.raises(UserError, match=r"^model\.path=it: .*name one of its checkpoints"):
        check_model(str(made), "model.path=it", AGENT, learns=True)


@pytest.mark.slow
@pytest.mark.parametrize("left", ["half", "other sizes"])
def test_what_an_earlier_run_left_in_its_place_is_never_built_on(tmp_path: Path, left: str) -> None:
    first = Path(prepare(run(tmp_path, hidden_size=32), tmp_path).model_path)
    if left == "half":
        (first / "config.json").unlink()
        (first / MARKER).unlink()
    made = Path(prepare(run(tmp_path), tmp_path).model_path)
    assert json.loads((made / "config.json").read_text())["hidden_size"] == SIZES["hidden_size"]
    assert not [*tmp_path.glob(".model.*")], "nothing is left aside"


@pytest.mark.slow
def test_what_is_imitated_is_made_where_it_will_be_needed(tmp_path: Path) -> None:
    imitating = replace(run(tmp_path), algorithm=AlgorithmConfig(warm_start=WarmStartConfig(steps=2)))
    first = prepare(imitating, tmp_path)
    assert first.imitated is not None
    assert len(first.imitated.lengths) == imitating.data.demonstrations
    assert prepare(replace(imitating, resume="run"), tmp_path).imitated is None, "it is in the checkpoint"
    warm_started(imitating.cache, first.warm_start_key).mkdir(parents=True)
    assert prepare(imitating, tmp_path).imitated is None, "its result is in the cache"
    assert prepare(run(tmp_path), tmp_path).imitated is None, "there is no warm start"


def test_the_cache_knows_how_exactly_a_warm_start_was_counted(tmp_path: Path) -> None:
    """As it is asked for, or as the plan chooses it for a card."""

    def key(card: str = "rtx3090", **changes: Any) -> str:
        config = run(tmp_path, hidden_size=1536, intermediate_size=8960, num_hidden_layers=36)
        optimizer = OptimizerConfig(kind="adamw8bit", **changes)
        return _warm_start_key(
            replace(
                config,
                algorithm=AlgorithmConfig(optimizer=optimizer, warm_start=WarmStartConfig(steps=2)),
                cluster=ClusterConfig(device="cuda", card=card),
                model=replace(config.model, dtype="bfloat16", vocab_size=151_936),
            ),
            str(tmp_path),
        )

    assert key() == key(exact_master=True, float32_gradients=False) != key("h100")
    assert key("h100") == key(exact_master=True, float32_gradients=True)
    assert len({key(exact_master=e, float32_gradients=f) for e in (True, False) for f in (True, False)}) == 4


def test_the_cache_knows_the_models_weights_and_its_template(tmp_path: Path) -> None:
    """A model's folder may be a link that moves (``checkpoints/best``), or be trained further in its place."""
    imitating = replace(run(tmp_path), algorithm=AlgorithmConfig(warm_start=WarmStartConfig(steps=2)))
    folder = tmp_path / "model"
    folder.mkdir()

    def key(**files: str) -> str:
        for name, content in files.items():
            (folder / name.replace("_", ".")).write_text(content)
        return _warm_start_key(imitating, str(folder))

    keys = [key(config_json="{}", model_safetensors="a"), key(model_safetensors="b"), key(template_jinja="{{ x }}")]
    assert len({*keys}) == 3
    assert key(notes_txt="of no matter", model_safetensors="b") == keys[-1]


def test_the_cache_knows_what_is_told_of_the_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in the prompt, and a tool of the user's own changes without its name."""
    imitating = replace(run(tmp_path), algorithm=AlgorithmConfig(warm_start=WarmStartConfig(steps=2)))
    key = _warm_start_key(imitating, str(tmp_path))
    for what, said in (("description", "Looks things up."), ("name", "look_up")):
        with monkeypatch.context() as patch:
            patch.setattr(Search, what, said)
            assert _warm_start_key(imitating, str(tmp_path)) != key


def test_the_cache_knows_a_model_by_its_hubs_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster a run keeps the name, since each node has a snapshot of its own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    kept = tmp_path / "hub" / "models--org--name"
    snapshot = kept / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_text("weights")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    imitating = replace(run(tmp_path), algorithm=AlgorithmConfig(warm_start=WarmStartConfig(steps=2)))
    assert _warm_start_key(imitating, "org/name") == _warm_start_key(imitating, str(snapshot))
