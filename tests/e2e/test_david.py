"""DAVID-GRPO from the command line: seeding by the world's experts, then steps with continuation, on real engines."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def run(launch):
    run = launch(
        "david",
        "experiment=david_grpo",
        "agent=search",
        "tracker=none",
        "cluster.dashboard=false",
        "cluster.learner_threads=1",
        "pool.batch_questions=4",
        "pool.group_size=4",
        "algorithm.warm_start.steps=40",
        "algorithm.warm_start.warmup_steps=5",
        "algorithm.seeding.steps=2",
        "algorithm.steps=2",
        "data.demonstrations=200",
        "data.train_questions=60",
        "data.eval_questions_per_hop=2",
        "evaluation.every=0",
        "search_limit=anneal",
        "search_limit.start=1",
        "search_limit.steps=1",
        "tracker.trajectories_per_step=-1",
    )
    assert run.code == 0, run.output
    return run


def test_the_seeding_trains_on_experts_before_the_first_step(run):
    seeding = [row for row in run.rows("event") if row["event"] == "seeding"]
    assert [row["step"] for row in seeding] == [1, 2]
    assert sum(row["learner/expert_sequences"] for row in seeding) > 0, "a barely warm policy solves nothing"
    assert all(row["rollout/trajectories"] == 16 for row in seeding)
    assert all(row["rollout/mismatch"] <= 1e-5 for row in seeding)
    first = run.rows("eval")[0]
    assert (first["step"], first["rollouts"]) == (0, 32)
    assert (run.folder / "logs" / "seeding-pool.log").is_file()


def test_continuations_are_played_and_counted(run):
    steps = run.rows("step")
    assert sum(row["continuation/attempted"] for row in steps) > 0
    for row in steps:
        assert row["rollout/trajectories"] == 16 + 4 * row["continuation/attempted"]
        assert 0 <= row["continuation/replaced"] <= row["continuation/attempted"] <= 4
        if row["learner/updates"]:
            assert row["rollout/mismatch"] <= 1e-5, "an inherited prefix is as the engine sampled it"
    last = steps[-1]
    for unit in ("groups", "trajectories", "tokens"):
        returned = sum(v for k, v in last.items() if k.startswith(f"books/{unit}/returned/"))
        assert last[f"books/{unit}/received"] == last[f"books/{unit}/accepted"] + returned
    assert last["books/trajectories/received"] == sum(row["rollout/trajectories"] for row in steps)
    assert last["books/tokens/received"] == sum(row["rollout/generated_tokens"] for row in steps)
    assert len(run.trajectories()) <= 2 * 16


def test_the_budget_of_searches_reaches_every_episode(run):
    """One search in the first batch, the agent's five in the second; an evaluation has five in any case."""
    assert [row["search/limit_mean"] for row in run.rows("step")] == [1, 5]
    first = [t["searches"] for t in run.trajectories() if t["batch"] == 0]
    assert max(first) == 1
