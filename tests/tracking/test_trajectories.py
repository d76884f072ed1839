"""trajectories.jsonl: which trajectories, in which order, and what a line says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.inference.evaluation import eval_row
from agent.inference.infer import Inferred
from agent.pool.batches import TakenBatch
from agent.records import Question, StopReason, Trajectory, Turn
from agent.tickets import QueryState
from tracking.metrics import keep_lines
from tracking.spans import Spans
from tracking.trajectories import EVALUATIONS, GROUPS, TRAJECTORIES, EvaluationLog, Texts, TrajectoryLog

TEXTS = Texts(lambda ids: "".join(f"t{i} " for i in ids))


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
    log = TrajectoryLog(folder=tmp_path, per_step=per_step)
    log.write(batch, 7, TEXTS)
    rows = lines(tmp_path / TRAJECTORIES)
    assert of(rows) == ORDER[:count]
    assert [row["accepted"] for row in rows] == [True, True, True, True, False, False][:count]


def test_the_limit_is_per_batch(tmp_path: Path, batch: TakenBatch) -> None:
    log = TrajectoryLog(folder=tmp_path, per_step=3)
    log.write(batch, 7, TEXTS)
    log.write(batch, 8, TEXTS)
    assert [(row["version"], row["question_id"]) for row in lines(tmp_path / TRAJECTORIES)] == [
        *((7, "q0"), (7, "q0"), (7, "q2")),
        *((8, "q0"), (8, "q0"), (8, "q2")),
    ]


def test_a_line_says_what_decided_the_trajectorys_fate(tmp_path: Path, batch: TakenBatch) -> None:
    log = TrajectoryLog(folder=tmp_path, per_step=-1)
    log.write(batch, 7, TEXTS)
    call = {"tool": "search", "argument": "x", "titles": ["Emma"], "ids": ["d1"], "supporting": []}
    search = {"text": "<search>x</search>", "observation": "t1 ", "query": "x", "titles": ["Emma"], "found": []}
    answer = {"text": "a", "observation": "", "query": None, "titles": [], "found": [], "calls": []}
    tokens = {"tokens": ["t1 ", "t1 "], "logprobs": [-0.5, -0.5], "versions": [[5, 2]]}
    assert lines(tmp_path / TRAJECTORIES)[1] == {
        "batch": 3,
        "order": 0,
        "member": 1,
        "version": 7,
        "question_id": "q0",
        "question": "question 0?",
        "golden_answers": ["yes", "yeah"],
        "supporting": [],
        "kind": "",
        "state": "signal",
        "accepted": True,
        "reward": 1.0,
        "outcome": 1.0,
        "evidence": 0.5,
        "gate": None,
        "cost": 0.0,
        "stop_reason": "answered",
        "fault": "",
        "answer": "yes",
        "searches": 1,
        "action_tokens": 4,
        "inherited_turns": 0,
        "turns": [{**search, "calls": [call], **tokens}, {**answer, **tokens}],
        "worker": "w0",
    }


def test_an_episode_that_a_fault_ended_is_there_and_has_no_score(tmp_path: Path, make: Any) -> None:
    broken = make.trajectory("q0", stop=StopReason.RETRIEVAL_FAILED, answer=None)
    one = make.group(0, [(1.0, 1.0, None)], [make.trajectory("q0")], excluded=[broken])
    TrajectoryLog(folder=tmp_path, per_step=-1).write(make.batch([one], {}, {}), 7, TEXTS)
    scored, excluded = lines(tmp_path / TRAJECTORIES)
    assert (scored["member"], scored["reward"], scored["fault"]) == (0, 1.0, "")
    assert (excluded["member"], excluded["reward"], excluded["fault"]) == (1, None, "it broke")


def test_every_group_has_a_line_whatever_the_limit_of_episodes_is(tmp_path: Path, batch: TakenBatch) -> None:
    TrajectoryLog(folder=tmp_path, per_step=0, advantage="mean").write(batch, 7, TEXTS)
    rows = lines(tmp_path / GROUPS)
    assert [(row["question_id"], row["accepted"], row["before"]) for row in rows] == [
        ("q0", True, "unseen"),
        ("q2", True, "unseen"),
        ("q1", False, None),
    ]
    assert (rows[0]["rewards"], rows[0]["advantages"], rows[0]["searches"]) == ([0.0, 1.0], [-0.5, 0.5], [0, 1])
    assert lines(tmp_path / TRAJECTORIES) == []


def test_a_kept_group_is_neither_accepted_nor_refused_until_the_next_batch(tmp_path: Path, make: Any) -> None:
    groups = [make.group(n, [(0.0, 0.0, None), (1.0, 1.0, None)], [make.trajectory(f"q{n}")] * 2) for n in range(3)]
    of_three = make.batch(groups, {0: QueryState.UNSEEN}, {"unselected": 1}, kept=[1])
    TrajectoryLog(folder=tmp_path, per_step=-1).write(of_three, 7, TEXTS)
    assert [row["accepted"] for row in lines(tmp_path / GROUPS)] == [True, None, False]
    assert [row["accepted"] for row in lines(tmp_path / TRAJECTORIES)] == [True, True, None, None, False, False]


def test_a_line_of_training_says_what_is_known_of_its_question(tmp_path: Path, make: Any) -> None:
    question = Question(id="q0", text="who?", golden_answers=("yes",), supporting=("emma",), kind="2-hop")
    one = replace(make.group(0, [(1.0, 1.0, None)], [make.trajectory("q0")]), question=question)
    TrajectoryLog(folder=tmp_path, per_step=-1).write(make.batch([one], {}, {}), 7, TEXTS)
    told = {"question_id": "q0", "question": "who?", "golden_answers": ["yes"], "supporting": ["emma"], "kind": "2-hop"}
    for name in (TRAJECTORIES, GROUPS):
        (row,) = lines(tmp_path / name)
        assert {key: row.get(key) for key in told} == told


def test_supporting_documents_are_marked_and_found_once(tmp_path: Path, make: Any) -> None:
    """Two searches find the same supporting document: the first one finds it."""
    question = Question(id="q0", text="who?", golden_answers=("yes",), supporting=("emma",), kind="2-hop")
    inferred = Inferred(trajectory=make.trajectory("q0", searches=2))
    log = EvaluationLog(path=tmp_path / EVALUATIONS)
    log.write(4, [(question, inferred, eval_row(question, inferred))], TEXTS)
    (row,) = lines(log.path)
    assert (row["step"], row["question_id"], row["kind"], row["em"], row["evidence"]) == (4, "q0", "2-hop", 1.0, 1.0)
    assert [turn["found"] for turn in row["turns"]] == [["emma"], [], []]
    assert [call["supporting"] for turn in row["turns"] for call in turn["calls"]] == [[0], [0]]
    assert "tokens" not in row["turns"][0]


def test_a_fault_of_an_evaluation_has_no_exact_match(tmp_path: Path, make: Any) -> None:
    question = Question(id="q0", text="who?", golden_answers=("yes",))
    inferred = Inferred(trajectory=make.trajectory("q0", stop=StopReason.GENERATION_FAILED, answer=None))
    log = EvaluationLog(path=tmp_path / EVALUATIONS)
    log.write(4, [(question, inferred, eval_row(question, inferred))], TEXTS)
    (row,) = lines(log.path)
    assert (row["em"], row["f1"], row["fault"]) == (None, None, "it broke")


def test_a_turn_without_a_token_is_none_of_a_continuation(tmp_path: Path) -> None:
    """A model behind an endpoint may say nothing."""
    question = Question(id="q", text="Who?", golden_answers=("x",))
    nothing = Turn(action_start=0, action_end=0, observation_end=0, text="")
    empty: Any = np.zeros(0)
    inferred = Inferred(
        trajectory=Trajectory(
            question_id="q",
            prompt_ids=np.ones(1, np.int32),
            token_ids=empty,
            action_mask=empty,
            logprobs=empty,
            versions=empty,
            turns=(nothing,),
            stop_reason=StopReason.NO_ACTION,
        )
    )
    log = EvaluationLog(path=tmp_path / EVALUATIONS)
    log.write(0, [(question, inferred, eval_row(question, inferred))], TEXTS)
    assert lines(log.path)[0]["inherited_turns"] == 0


def test_what_comes_after_a_checkpoint_is_forgotten_a_line_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / GROUPS
    path.write_text('{"batch": 0}\n{"batch": 2}\n{"batch": 1, "text": "\\u2028"}\n{"bat')
    keep_lines(path, lambda row: row["batch"] < 2)
    assert path.read_text() == '{"batch": 0}\n{"batch": 1, "text": "\\u2028"}\n'


def test_a_line_that_a_killed_worker_left_torn_costs_itself_alone(tmp_path: Path, make: Any) -> None:
    """Of the logs that several processes write one after the other."""
    (tmp_path / TRAJECTORIES).write_text('{"batch": 0, "mem')
    one = make.group(0, [(1.0, 1.0, None)], [make.trajectory("q0")])
    log = TrajectoryLog(folder=tmp_path, per_step=-1)
    for _ in range(2):
        log.write(make.batch([one], {}, {}), 0, Texts(lambda ids: "x" * len(ids)))
    torn, *whole = (tmp_path / TRAJECTORIES).read_text().splitlines()
    assert torn == '{"batch": 0, "mem'
    assert [json.loads(line)["question_id"] for line in whole] == ["q0"] * 2
    (tmp_path / "spans.jsonl").write_text('{"actor": "roll')
    spans = Spans(path=tmp_path / "spans.jsonl", actor="learner")
    with spans.span("update"):
        pass
    assert json.loads((tmp_path / "spans.jsonl").read_text().splitlines()[1])["what"] == "update"
