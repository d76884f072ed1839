"""The whole box on GPUs, through Ray and launch.py, with the tiny model: each layout and each thing only a GPU has.

A layout that wants more cards than there are is skipped. None of these has been run yet: there was no GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from patience import run
from ray_nodes import Nodes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

ROOT = Path(__file__).parents[2]
CARDS = torch.cuda.device_count()
GIB = torch.cuda.get_device_properties(0).total_memory / 2**30 if CARDS else 0.0
TINY = [
    "model=tiny",
    "model.dtype=bfloat16",
    f"cluster.gpu_memory_gib={min(24.0, GIB / 0.985):.2f}",
    "tracker=none",
    "cluster.dashboard=false",
    "cluster.engine.max_num_seqs=64",
    "cluster.engine.gpu_memory_utilization=0.3",
    "algorithm.optimizer.kind=adamw8bit",
    "algorithm.microbatch_tokens=4096",
    "algorithm.warm_start.steps=60",
    "data.train_questions=60",
    "data.eval_questions_per_hop=8",
    "pool.batch_questions=6",
    "pool.group_size=4",
    "evaluation.every=0",
]
ONE = ["cluster=1x24gb", *TINY]
TWO = ["cluster=2x24gb", *TINY]
BFLOAT16 = 0.05
"""Nats, the mean gap above which an alarm fires."""
two_cards = pytest.mark.skipif(CARDS < 2, reason="needs two GPUs")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def launch(tmp_path: Path, cache: Path) -> Callable[..., Path]:
    """Runs launch.py to its good end; its folder."""

    def launch(name: str, *arguments: str, **environment: str) -> Path:
        folder = tmp_path / name
        env = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "RAY_", "OMP_"))} | environment
        command = [sys.executable, str(ROOT / "launch.py"), *arguments]
        command += [f"output_dir={folder}", f"cache_dir={cache}"]
        done: subprocess.CompletedProcess[str] = run(command, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return folder

    return launch


def steps(folder: Path) -> list[dict]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == "step"]


def healthy(folder: Path, count: int) -> list[dict]:
    """The steps of a run of ``count``: all there, trained, and engine and learner of one mind.

    Of rollouts that overlap with the learner a whole batch may be of the version before: there is nothing to compare.
    """
    rows = steps(folder)
    assert [row["step"] for row in rows] == [*range(1, count + 1)]
    assert all(row["learner/updates"] >= 1 for row in rows)
    assert rows[0]["rollout/mismatch"] is not None
    assert all(row["rollout/mismatch"] is None or row["rollout/mismatch"] < BFLOAT16 for row in rows)
    return rows


def test_learner_and_engine_take_turns_on_one_card_and_go_on_after_a_stop(launch: Callable[..., Path]) -> None:
    """Sleep mode: memory moves, and comes back as it was."""
    folder = launch("one", *ONE, "algorithm.steps=3", "checkpoints.every=1")
    healthy(folder, 3)
    again = launch("again", *ONE, "algorithm.steps=5", f"resume={folder}", "resume_allow_changes=true")
    assert [row["step"] for row in steps(again)] == [4, 5]
    assert all(row["rollout/mismatch"] < BFLOAT16 for row in steps(again))


def test_adapters_on_one_card(launch: Callable[..., Path]) -> None:
    rows = healthy(launch("lora", *ONE, "model.lora_rank=8", "algorithm.steps=3"), 3)
    assert rows[-1]["version"] >= 1, "merged and published"


@two_cards
def test_weights_are_broadcast_and_change_in_mid_episode(launch: Callable[..., Path]) -> None:
    folder = launch("two", *TWO, "algorithm.steps=5", "pool.max_staleness=1", "cluster.in_flight_updates=true")
    rows = healthy(folder, 5)
    assert all(row["rollout/staleness_max"] <= 1 for row in rows)
    assert "object store" not in (folder / "metrics.jsonl").read_text(), "NCCL was not given up"


@two_cards
def test_merged_adapters_are_broadcast_whole(launch: Callable[..., Path]) -> None:
    """The merge runs on the streams that pack, the update on the learner's own; the receiver checks the digest."""
    folder = launch("merged", *TWO, "model.lora_rank=8", "algorithm.steps=3")
    healthy(folder, 3)
    assert "object store" not in (folder / "metrics.jsonl").read_text(), "NCCL was not given up"


@pytest.mark.skipif(CARDS < 4, reason="needs four GPUs")
@pytest.mark.parametrize("layout", ["4x3090", "4x3090-2learners", "4x3090-shared"])
def test_four_cards(launch: Callable[..., Path], layout: str) -> None:
    rows = healthy(launch(layout, f"cluster={layout}", *TINY, "algorithm.steps=3"), 3)
    assert rows[-1]["version"] >= 1, "learnt and published"


def test_two_cards_in_the_shares_of_one(launch: Callable[..., Path]) -> None:
    """The actors of ``cluster=2x24gb`` on one card that Ray takes for two; weights go through the object store.

    One engine alone: vLLM counts as its own what a second one takes of the card while it starts.
    """
    if CARDS != 1:
        pytest.skip("with several cards they have one each")
    node = Nodes("--num-gpus=2", CUDA_VISIBLE_DEVICES="0,0")
    try:
        joined = [f"cluster.address={node.address}", "cluster.weight_channel=object_store"]
        # Nor can it bear that a neighbour gives memory back meanwhile.
        quiet = ["algorithm.dry_run=never", "algorithm.steps=3"]
        rows = healthy(launch("shares", *TWO, *joined, *quiet, **node.access), 3)
        assert rows[-1]["version"] >= 1, "learnt and published"
    finally:
        node.end()


def test_the_doctor_finds_what_there_is(launch: Callable[..., Path]) -> None:
    found = json.loads((launch("doctor", "mode=doctor", *ONE) / "doctor.json").read_text())
    assert found["failed"] == []
    assert set(found["ratios"]) == {"learner", "prefill", "decode", "publication"}
    assert found["learner"]["gap"]["mean"] < BFLOAT16
    assert all(row["peak_gib"] <= row["planned_gib"] + 1.0 for row in found["learner"]["rows"])
    assert found["engine"]["sleep_s"] > 0
