"""A training run by both methods from the command line: what it leaves behind, what it promises, and resuming it."""

from __future__ import annotations

import json
import os
import re

import pytest

from actors.ray_metrics import SHOWN

STEP_KEYS = {
    "step", "version", "time_s", "reward/mean", "outcome/mean", "evidence/recall", "search/mean", "groups/signal",
    "groups/too_easy", "groups/too_hard", "pool/available", "pool/consumed", "pool/recycled_share",
    "pool/recovered_too_hard", "pool/recovered_too_easy", "pool/flipped_share", "rollout/trajectories",
    "rollout/generated_tokens", "rollout/tokens_per_s", "rollout/staleness_max", "rollout/mismatch",
    "rollout/drifted_tokens", "rollout/mismatch_max",
    "learner/loss", "learner/kl", "learner/clip_share", "learner/grad_norm", "learner/tokens_per_s",
    "learner/idle_s", "weights/publish_s", "retrieval/qps", "retrieval/p99_s", "continuation/attempted",
    "continuation/replaced",
}  # fmt: skip
EVAL_KEYS = {"step", "data", "n", "em", "f1", "evidence_recall", "search/mean", "em/1-hop", "em/2-hop", "em/3-hop"}


def test_run_leaves_metrics_trajectories_logs_and_checkpoints(whole):
    steps, evals = whole.rows("step"), whole.rows("eval")
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(row.keys() >= STEP_KEYS | set(SHOWN) for row in steps), "what Ray's gauges show is in each"
    assert [row["step"] for row in evals] == [0, 4]
    assert all(row.keys() >= EVAL_KEYS and row["n"] == 24 and row["faults"] == 0 for row in evals)
    (summary,) = whole.rows("summary")
    assert summary["first_eval"]["em"] == evals[0]["em"]
    assert summary["last_eval"]["em"] == evals[-1]["em"]
    assert len(whole.trajectories()) == 4 * 6 * 4
    lengths = {
        name: (whole.folder / name).read_text().count("\n") for name in ("groups.jsonl", "eval_trajectories.jsonl")
    }
    assert lengths == {"groups.jsonl": 4 * 6, "eval_trajectories.jsonl": 2 * 24}
    spans = [json.loads(line) for line in (whole.folder / "spans.jsonl").read_text().splitlines()]
    rows = {"rollout-0", "rollout-0 engine", "rollout-0 searches"}
    assert (
        {"learner", "supervisor", *rows}
        >= {span["actor"] for span in spans}
        >= {"learner", "supervisor", *rows}
        - {
            "rollout-0 searches"  # Lucene may be too quick to be seen
        }
    )
    assert {"wait for a batch", "update", "publish", "play a group", "generate", "deliver", "evaluate", "save"} <= {
        span["what"] for span in spans
    }
    (about,) = [row for row in whole.rows("event") if row["event"] == "about"]
    assert about["data"] == "world: 60 questions to train on, 24 held out"
    (serving,) = [row for row in whole.rows("event") if row["event"] == "serving"]
    index = serving["index"]
    assert (index["name"], index["backend"], index["analyser"]) == ("world-0.jsonl", "bm25", "porter")
    assert len(index["checksum"]) == 32
    assert index["documents"] > 0
    assert {"lucene_generation", "anserini", "k1", "b"} <= index["settings"].keys()


def test_the_run_ends_with_a_report_of_all_that_it_logged(whole):
    page = (whole.folder / "report.html").read_text()
    (about,) = re.findall(r'<script type="application/json" id="about">(.*)</script>', page)
    (said,) = json.loads(about)["runs"]
    assert said["episodes"] == [4 * 6 * 4 + 2 * 24] * 2
    assert said["notices"] == []
    assert {p.name for p in (whole.folder / "logs").iterdir()} >= {"learner.log", "pool.log", "retrieval.log"}
    assert (whole.folder / ".hydra" / "config.yaml").is_file()
    assert [p.name for p in sorted((whole.folder / "checkpoints").iterdir())] == [
        "best",
        "step-000002",
        "step-000004",
    ]
    assert (whole.folder / "checkpoints" / "best").resolve() == whole.checkpoint.resolve()


def test_the_actors_are_as_important_as_other_programs(whole):
    for log in (whole.folder / "logs").glob("*.log"):
        assert re.search(rf"^\[slingshot\] \S+, niceness {os.nice(0)}, pid \d+$", log.read_text(), re.M), log.name


def test_the_console_says_first_what_is_run_and_where(whole):
    first = whole.output.splitlines()[0]
    assert first == f"run {whole.folder}: model tiny, data world, pool recycle, cluster local, seed 0"


def test_the_pool_of_the_seeding_ends_without_a_word_of_rays(whole):
    assert "(raylet)" not in whole.output


def test_engine_and_learner_agree_at_every_step(whole):
    """The alarm for stale weights, wrong masks and shifted tokens: float32, synchronous, every step."""
    trained = [row for row in whole.rows("step") if row["learner/updates"]]
    assert len(trained) >= 2
    for row in trained:
        assert row["rollout/mismatch"] <= 1e-5
        assert row["rollout/staleness_max"] == 0
    assert [row["rollout/drifted_tokens"] for row in whole.rows("step")] == [0] * 4


def test_versions_follow_the_updates(whole):
    """One for the seeding, then one for each step that trained, however many updates it took."""
    version = 1
    for row in whole.rows("step"):
        version += row["learner/updates"] > 0
        assert row["version"] == version
    assert any(row["learner/updates"] == 2 for row in whole.rows("step"))


def test_the_seeding_trains_on_experts_before_the_first_step(whole):
    (seeding,) = [row for row in whole.rows("event") if row["event"] == "seeding"]
    assert seeding["learner/expert_sequences"] > 0, "a barely warm policy solves few"
    assert seeding["rollout/trajectories"] == 4 * 4
    assert seeding["rollout/mismatch"] <= 1e-5
    first = whole.rows("eval")[0]
    assert (first["step"], first["rollouts"]) == (0, 16)
    assert (whole.folder / "logs" / "seeding-pool.log").is_file()


def test_continuations_are_played_and_counted(whole):
    steps = whole.rows("step")
    assert sum(row["continuation/attempted"] for row in steps) > 0
    for row in steps:
        assert row["rollout/trajectories"] == 6 * 4 + 4 * row["continuation/attempted"]
        assert 0 <= row["continuation/replaced"] <= row["continuation/attempted"] <= 6


def test_the_budget_of_searches_reaches_every_episode(whole):
    """One search in the first batch, the agent's five in the others; an evaluation has five in any case."""
    assert [row["search/limit_mean"] for row in whole.rows("step")] == [1, 5, 5, 5]
    assert max(t["searches"] for t in whole.trajectories() if t["batch"] == 0) == 1


def test_books_balance_at_every_step(whole):
    for row in whole.rows("step"):
        for unit in ("groups", "trajectories", "tokens"):
            returned = sum(v for k, v in row.items() if k.startswith(f"books/{unit}/returned/"))
            account = {k: row[f"books/{unit}/{k}"] for k in ("received", "accepted", "in_flight")}
            assert account["received"] == account["accepted"] + returned + account["in_flight"]
            assert account["in_flight"] == 0  # synchronous: nothing is under way between take and release
    steps = whole.rows("step")
    assert steps[-1]["books/groups/received"] == 4 * 6
    assert steps[-1]["books/trajectories/received"] == sum(row["rollout/trajectories"] for row in steps)
    assert steps[-1]["books/tokens/received"] == sum(row["rollout/generated_tokens"] for row in steps)


def test_evidence_comes_from_real_hits(whole):
    searched = [t for t in whole.trajectories() if t["searches"]]
    assert searched
    assert any(t["evidence"] > 0 for t in searched)
    assert all(t["evidence"] == 0.0 for t in whole.trajectories() if not t["searches"])


@pytest.mark.slow
def test_stopped_and_resumed_equals_one_go(whole, launch, both):
    """Stopped after step 2 and resumed: the pool, the optimizer and the draws go on as if nothing had been."""
    resumed = launch("resumed", *both, f"resume={whole.folder}/checkpoints/step-000002")
    assert resumed.code == 0, resumed.output
    assert [row["step"] for row in resumed.rows("step")] == [1, 2, 3, 4]  # the old rows are carried over
    after = {t["batch"] for t in resumed.trajectories()}
    assert after == {2, 3}
    assert _played(resumed, after) == _played(whole, after)
    for ours, theirs in zip(resumed.rows("step"), whole.rows("step"), strict=True):
        assert ours["version"] == theirs["version"]
        assert ours["pool/available"] == theirs["pool/available"]
        assert ours["learner/loss"] == pytest.approx(theirs["learner/loss"], rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_same_seed_gives_the_same_run(whole, launch, both):
    """The exact part of docs/dataflow.md: questions, and while no sampled token differs, the trajectories."""
    again = launch("again", *both, "algorithm.steps=2")
    assert again.code == 0, again.output
    first = {0, 1}
    ours, theirs = _played(again, first), _played(whole, first)
    assert [q for q, _ in ours] == [q for q, _ in theirs]
    assert ours == theirs
    for a, b in zip(again.rows("step"), whole.rows("step")[:2], strict=True):
        assert a["learner/loss"] == pytest.approx(b["learner/loss"], rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_adapters_under_8_bit_adamw_train_publish_and_resume(whole, launch, small, gap_elsewhere):
    """What the engines get is merged, what a checkpoint keeps is not: a resumed run goes on with the adapters."""
    base = ["model=tiny", f"model.path={whole.checkpoint}", "algorithm.warm_start.steps=0"]
    lean = [*small, *base, "model.lora_rank=8", "algorithm.optimizer.kind=adamw8bit", "algorithm.steps=4"]
    run = launch("lean", *lean, "checkpoints.every=2", "checkpoints.keep=0")
    assert run.code == 0, run.output
    trained = [row for row in run.rows("step") if row["learner/updates"]]
    assert trained
    assert [row["version"] for row in run.rows("step")][-1] == len(trained)
    assert all(row["rollout/mismatch"] <= 1e-5 for row in trained)
    resumed = launch("lean-resumed", *lean, f"resume={run.folder}/checkpoints/step-000002")
    assert resumed.code == 0, resumed.output
    assert _played(resumed, {2, 3}) == _played(run, {2, 3})
    assert gap_elsewhere(run.checkpoint) < 1e-5


@pytest.mark.slow
def test_checkpoint_loads_in_transformers_and_in_vllm_as_it_is(whole, gap_elsewhere):
    assert gap_elsewhere(whole.checkpoint) < 1e-5


@pytest.mark.slow
def test_an_evaluation_serves_the_checkpoint(whole, launch, small):
    """``mode=eval`` finds the run's own last evaluation again."""
    run = launch("eval", *small, "mode=eval", f"checkpoint={whole.checkpoint}")
    assert run.code == 0, run.output
    (row,) = run.rows("eval")
    last = whole.rows("eval")[-1]
    assert (row["n"], row["em"]) == (last["n"], pytest.approx(last["em"], abs=1 / 24))


@pytest.mark.slow
def test_a_question_is_asked_of_the_checkpoint(whole, launch, small):
    question = whole.trajectories()[0]["question"]
    asked = launch("ask", *small, "mode=ask", f"question='{question}'", f"checkpoint={whole.checkpoint}")
    assert asked.code == 0, asked.output
    assert "answer" in asked.output


def _played(run, batches) -> list[tuple[str, list]]:
    """Question and text of every trajectory of ``batches``, sorted: writing order is not part of the promise."""
    rows = [t for t in run.trajectories() if t["batch"] in batches]
    return sorted((f"{t['batch']} {t['question_id']}", [turn["text"] for turn in t["turns"]]) for t in rows)
