"""Two learners in a whole run: real engines, weights from rank 0, a checkpoint that goes on with one or with two."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow

TWO = ["cluster.learners=2", "cluster.learner_threads=1", "algorithm.optimizer.shard=true"]


def test_two_learners_train_save_and_go_on(launch, small) -> None:
    run = launch("two", *small, *TWO, "algorithm.steps=3")
    assert run.code == 0, run.output
    steps = run.rows("step")
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert steps[-1]["version"] == sum(row["learner/updates"] > 0 for row in steps)
    assert all(row["rollout/mismatch"] < 1e-4 for row in steps), "the engine samples what the learners publish"
    assert (run.folder / "logs" / "learner-1.log").is_file()
    more = ("algorithm.steps=4", f"resume={run.checkpoint}")
    for name, arguments in (("two again", TWO), ("one", [])):
        again = launch(name, *small, *arguments, *more)
        assert again.code == 0, again.output
        row = again.rows("step")[-1]
        assert row["step"] == 4
        assert row["rollout/mismatch"] < 1e-4
