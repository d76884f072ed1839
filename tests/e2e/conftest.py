"""Whole runs of launch.py in processes of their own, with real engines, shared by the tests that read them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from patience import finished, run
from small_run import SMALL_RUN

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "faults"))  # for damage.py: importlib mode adds no folder by itself
SMALL = [*SMALL_RUN, "reward.evidence_weight=0.5", "evaluation.every=0", "tracker.trajectories_per_step=-1"]
BOTH_METHODS = [
    "experiment=david_grpo",
    "agent=search",
    "pool=recycle",
    *SMALL,
    "algorithm.minibatch_questions=3",
    "algorithm.seeding.steps=1",
    "algorithm.steps=4",
    "search_limit=anneal",
    "search_limit.start=1",
    "search_limit.steps=1",
    "checkpoints.every=2",
    "checkpoints.keep=0",
]
"""DAVID-GRPO with query recycling: seeding, then steps with continuations, two updates each, and a growing limit."""


@dataclass(frozen=True)
class Run:
    """A finished run and its folder."""

    folder: Path
    code: int
    output: str

    def rows(self, kind: str) -> list[dict]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if row["kind"] == kind]

    def trajectories(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "trajectories.jsonl").read_text().splitlines()]

    @property
    def checkpoint(self) -> Path:
        return sorted((self.folder / "checkpoints").glob("step-*"))[-1]


def output_of(folder: Path) -> Path:
    """Where the output of the run in ``folder`` is collected."""
    return folder.with_name(f"{folder.name}.output")


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """What all runs of the session share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def start(cache) -> Callable[..., subprocess.Popen]:
    """Starts launch.py in a folder with one cache for the whole session; the caller waits for it."""

    def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "launch.py"), *arguments, f"hydra.run.dir={folder}", f"cache_dir={cache}"]
        with output_of(folder).open("w") as output:
            return subprocess.Popen(
                command,
                cwd=folder.parent,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env=_environment() | environment,
            )

    return start


@pytest.fixture(scope="session")
def launch(start, tmp_path_factory) -> Callable[..., Run]:
    """Runs launch.py to its end and returns what it left."""

    def launch(name: str, *arguments: str) -> Run:
        folder = tmp_path_factory.mktemp("runs") / name
        process = start(folder, *arguments)
        with output_of(folder).open() as file:
            output = finished(process, file)
        return Run(folder, process.returncode, output)

    return launch


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Overrides of a small run of the built-in world."""
    return SMALL


@pytest.fixture(scope="session")
def both() -> list[str]:
    """Overrides of the run that all tests of the session read."""
    return BOTH_METHODS


@pytest.fixture(scope="session")
def whole(launch, both) -> Run:
    """Four steps in one go."""
    run = launch("whole", *both)
    assert run.code == 0, run.output
    return run


LOAD = """
import sys, json
from transformers import AutoModelForCausalLM, AutoTokenizer
import torch
path = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
ids = tokenizer.encode("Question: what is the capital?\\n")
theirs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
from vllm import LLM, SamplingParams
llm = LLM(path, dtype="float32", enforce_eager=True, max_model_len=128, distributed_executor_backend="uni")
out = llm.generate([{"prompt_token_ids": ids}], SamplingParams(max_tokens=1, temperature=0, logprobs=1))
(token,) = out[0].outputs[0].token_ids
gap = abs(out[0].outputs[0].logprobs[0][token].logprob - theirs[token].item())
print("RESULT", json.dumps({"gap": gap, "same": token == theirs.argmax().item()}))
"""
"""Greedy next token by transformers and by vLLM, from a folder and nothing else."""


@pytest.fixture(scope="session")
def gap_elsewhere() -> Callable[[Path], float]:
    """Loads a folder as it is in transformers and in vLLM, in a process with nothing of this project imported.

    Returns by how many nats they differ in the next token, infinity if they choose another.
    """

    def gap(folder: Path) -> float:
        env = _environment() | {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", LOAD, str(folder)]
        done = run(command, env=env)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.split("RESULT", 1)[1].splitlines()[0])
        return float(result["gap"]) if result["same"] else math.inf

    return gap


def _environment() -> dict[str, str]:
    quiet = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    return {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "RAY_", "OMP_"))} | quiet
