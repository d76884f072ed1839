"""Models that can't be used, from the command line: a folder that isn't whole, and one that no engine can play."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def broken(whole, tmp_path):
    """A checkpoint that has lost its weights."""
    folder = shutil.copytree(whole.checkpoint, tmp_path / "broken")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("asked", ["mode=eval checkpoint={}", "model=tiny model.path={}"])
def test_a_folder_without_weights_is_refused_before_anything_starts(launch, small, broken, asked):
    run = launch("refused", *small, *asked.format(broken).split())
    assert run.code == 2, run.output
    *before, refusal = run.output.splitlines()
    assert refusal == (
        f"slingshot: {asked.split()[-1].format(broken)}: model.safetensors is missing (or "
        "model.safetensors.index.json and what it names); download the weights again"
    )
    assert len(before) <= 1, "what the run is"
    assert not (run.folder / "logs").exists(), "no actor has been started"


@pytest.mark.slow
def test_a_broken_model_is_refused_before_anything_is_fetched_for_it(launch, broken):
    """Any model but the tiny one has HotpotQA and Wikipedia, which no network brings here."""
    run = launch("refused", f"model.path={broken}", "agent.max_prompt_tokens=64", "tracker=none")
    assert run.code == 2, run.output
    assert run.output.splitlines()[-1].startswith(f"slingshot: model.path={broken}: model.safetensors is missing")
    assert "to be fetched" not in run.output


@pytest.fixture(scope="module")
def unplayable(whole, tmp_path_factory):
    """A whole model whose heads are so small that vLLM starts with it on a CPU, and breaks with the first request."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = shutil.copytree(whole.checkpoint, tmp_path_factory.mktemp("unplayable") / "model")
    config = AutoConfig.from_pretrained(folder, hidden_size=64, num_attention_heads=4, num_key_value_heads=4)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_run_in_which_everything_fails_ends_with_the_cause(launch, small, unplayable):
    run = launch(
        "unplayable",
        *small,
        "model=tiny",
        f"model.path={unplayable}",
        "algorithm.warm_start.steps=0",
        "algorithm.steps=2",
    )
    assert run.code == 1, run.output
    last = run.output.splitlines()[-1]
    assert last.startswith("slingshot: fault: none of 24 questions could be evaluated: generation_failed: ")
    assert "head_dim=16" in last
    assert run.rows("eval") == run.rows("step") == run.rows("summary") == []
    assert not (run.folder / "checkpoints").exists()
    assert {path.name for path in (run.folder / "logs").glob("rollout-*")} == {"rollout-0.log"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["mode=eval"], "none of 24 questions could be evaluated: generation_failed: "),
        (["mode=ask", "question=who is it?"], "the episode ended in a fault: generation_failed: "),
        (
            ["mode=calibrate", "data.dev_questions_per_hop=4", "exit.risk=0.5", "exit.fit_share=0"],
            "none of 12 questions",
        ),
    ],
)
def test_what_scores_nothing_is_a_fault_in_every_mode(launch, small, unplayable, asked, said):
    run = launch("unplayable", *small, *asked, f"checkpoint={unplayable}")
    assert run.code == 1, run.output
    assert f"slingshot: fault: {said}" in run.output.splitlines()[-1]
    assert "head_dim=16" in run.output.splitlines()[-1]
