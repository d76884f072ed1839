"""What ``actors/vllm_adapter.py`` needs of the installed vLLM, and what vLLM makes of our arguments on a GPU.

The engine itself, with the attributes that it has only once it runs, is in ``test_engine.py``, and so is what can be
asked in its process. Here another one stands in for a GPU's; it answers only to who asks for the slow tests: that
changes with vLLM's version alone.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import patience
import pytest

from actors.engine_arguments import engine_arguments, engine_environment
from agent.errors import UserError
from conf.topology import EngineConfig

ROOT = Path(__file__).parents[2]
QWEN_1_5B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
ON_A_CARD = {
    "runner": "V2",
    "asynchronous": True,
    "batches": 2,
    "batched_tokens": 2048,
    "chunked_prefill": True,
    "prefix_cache": True,
    "graphs": "FULL_AND_PIECEWISE",
    "dtype": "bfloat16",
    "logprobs": "processed_logprobs",
    "sleeps": False,
    "block": 16,
    "attention": "FLASH_ATTN",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(QWEN_1_5B))
    done = patience.run(
        [sys.executable, str(Path(__file__).with_name("vllm_resolved.py")), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_every_private_thing_is_there_and_takes_what_it_is_given(answers: Any) -> None:
    assert answers["broken"] == []


@pytest.mark.slow
@pytest.mark.parametrize("card", ["sm_86", "sm_90"])
def test_on_a_gpu_the_engine_is_what_the_plan_and_the_loop_count_on(answers: Any, card: str) -> None:
    assert answers["cases"][card] == ON_A_CARD
    assert answers["cases"][f"{card} asleep"] == {**ON_A_CARD, "sleeps": True}


@pytest.mark.slow
def test_left_to_itself_vllm_would_take_another_runner_where_triton_is_missing(answers: Any) -> None:
    """If this fails, vLLM no longer chooses by what it finds, and nothing needs to be pinned."""
    assert answers["cases"]["left alone, without Triton"]["runner"] == "V1"


def test_a_step_takes_as_many_tokens_as_it_is_told() -> None:
    def batched(device: str, **settings: int) -> int:
        arguments = engine_arguments(
            "m", EngineConfig(**settings), device=device, dtype="float32", max_model_len=4096, seed=0, sleeps=False
        )
        tokens: int = arguments["max_num_batched_tokens"]
        return tokens

    assert batched("cuda", max_batched_tokens=8192) == 8192
    assert batched("cuda", max_batched_tokens=512) == 512
    assert batched("cpu", max_batched_tokens=512) == 4096, "on a CPU no prompt is cut"
    with pytest.raises(UserError, match=r"^cluster.engine.max_batched_tokens=100 must be at least .*max_num_seqs=256"):
        EngineConfig(max_batched_tokens=100)


def test_the_environment_names_what_is_relied_on() -> None:
    cuda, cpu = (engine_environment(EngineConfig(), device) for device in ("cuda", "cpu"))
    assert (cuda["VLLM_USE_V2_MODEL_RUNNER"], cpu["VLLM_USE_V2_MODEL_RUNNER"]) == ("1", "0")
    assert cpu["TORCHDYNAMO_DISABLE"] == "1", "a demo needs no compiler"
    assert "TORCHDYNAMO_DISABLE" not in cuda
    assert cuda["VLLM_USE_FLASHINFER_SAMPLER"] == cpu["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
