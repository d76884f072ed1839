"""trajectories.jsonl: which trajectories, in which order, and what a line says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.pool.batches import TakenBatch
from agent.tickets import QueryState
from tracking.trajectories import TrajectoryLog


@pytest.fixture
def batch(make: Any) -> TakenBatch:
    """Groups 2 and 0 of three are accepted; two members each."""
    groups = [
        make.group(
            order, [(0.0, 0.0, None), (1.0, 1.0, 0.5)], [make.trajectory(f"q{order}", searches=n) for n in (0, 1)]
        )
        for order in (2, 1, 0)
    ]
    return make.batch(groups, {2: QueryState.UNSEEN, 0: QueryState.UNSEEN}, {"unselected": 1})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def of(rows: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [(row["question_id"], row["reward"]) for row in rows]


ORDER = [("q0", 0.0), ("q0", 1.0), ("q2", 0.0), ("q2", 1.0), ("q1", 0.0), ("q1", 1.0)]


@pytest.mark.parametrize(("per_step", "count"), [(-1, 6), (0, 0), (1, 1), (2, 2), (5, 5), (100, 6)])
def test_accepted_groups_come_first_each_whole_up_to_the_limit(
    tmp_path: Path, batch: TakenBatch, per_step: int, count: int
) -> None:
    log = TrajectoryLog(path=tmp_path / "trajectories.jsonl", per_step=per_step)
    log.write(batch, 7)
    rows = lines(log.path)
    assert of(rows) == ORDER[:count]
    assert [row["accepted"] for row in rows] == [True, True, True, True, False, False][:count]


def test_the_limit_is_per_batch(tmp_path: Path, batch: TakenBatch) -> None:
    log = TrajectoryLog(path=tmp_path / "trajectories.jsonl", per_step=3)
    log.write(batch, 7)
    log.write(batch, 8)
    assert [(row["version"], row["question_id"]) for row in lines(log.path)] == [
        *((7, "q0"), (7, "q0"), (7, "q2")),
        *((8, "q0"), (8, "q0"), (8, "q2")),
    ]


def test_a_line_says_what_decided_the_trajectorys_fate(tmp_path: Path, batch: TakenBatch) -> None:
    log = TrajectoryLog(path=tmp_path / "trajectories.jsonl", per_step=-1)
    log.write(batch, 7)
    call = {"tool": "search", "argument": "x", "titles": ["Emma"]}
    assert lines(log.path)[1] == {
        "batch": 3,
        "version": 7,
        "question_id": "q0",
        "question": "question 0?",
        "golden_answers": ["yes", "yeah"],
        "state": "signal",
        "accepted": True,
        "reward": 1.0,
        "outcome": 1.0,
        "evidence": 0.5,
        "gate": None,
        "stop_reason": "answered",
        "answer": "yes",
        "searches": 1,
        "action_tokens": 4,
        "turns": [
            {"text": "<search>x</search>", "query": "x", "titles": ["Emma"], "calls": [call]},
            {"text": "a", "query": None, "titles": [], "calls": []},
        ],
        "worker": "w0",
    }
