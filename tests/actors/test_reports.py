"""Why nothing of a batch can be trained on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from actors.reports import Untrainable
from agent.groups import Group
from agent.pool.batches import Played, TakenBatch
from agent.records import Question, Score, ScoredTrajectory, StopReason, Trajectory, Turn
from agent.tickets import Ticket

QUESTION = Question(id="q", text="who?", golden_answers=("she",))
TICKET = Ticket(claim_id=0, query=0, batch=0, order=0, seed=0)


def trajectory(stop: StopReason, fault: str = "") -> Trajectory:
    played: dict[str, Any] = {"token_ids": [1], "action_mask": [True], "logprobs": [-1.0], "versions": [0]}
    turns = (Turn(action_start=0, action_end=1, observation_end=1, text="a"),)
    return Trajectory(question_id="q", prompt_ids=[0], turns=turns, stop_reason=stop, fault=fault, **played)  # type: ignore[arg-type]


def batch(*groups: Group) -> TakenBatch[Group]:
    played = tuple(Played(outcome=group.outcome(), payload=group) for group in groups)
    return TakenBatch(index=0, accepted=(), states=Counter(), returned=Counter(), played=played, kept=frozenset())


def broken(*faults: tuple[StopReason, str]) -> Group:
    return Group(question=QUESTION, ticket=TICKET, members=(), excluded=tuple(trajectory(*f) for f in faults))


ENGINE = (StopReason.GENERATION_FAILED, "head size 16")
SEARCH = (StopReason.RETRIEVAL_FAILED, "timeout")
JUDGE = (StopReason.REWARD_FAILED, "no judge")


def test_one_sound_trajectory_is_enough() -> None:
    score = Score(reward=0.0, outcome=0.0, evidence=None)
    member = ScoredTrajectory(trajectory=trajectory(StopReason.NO_ACTION), score=score)
    viable = Group(question=QUESTION, ticket=TICKET, members=(member,))
    assert Untrainable.of(batch(broken(ENGINE, ENGINE), viable)) is None


@pytest.mark.parametrize(
    ("groups", "why", "lasting", "tools_failed"),
    [
        ([broken(ENGINE, ENGINE), broken(ENGINE)], "generation_failed: head size 16", True, False),
        ([broken(SEARCH), broken(SEARCH)], "retrieval_failed: timeout", False, True),
        ([broken(SEARCH, ENGINE), broken(ENGINE)], "generation_failed: head size 16 (2 of 3)", False, True),
        ([], "nothing was played", False, False),
    ],
)
def test_the_commonest_fault_is_named(groups: list[Group], why: str, lasting: bool, tools_failed: bool) -> None:
    assert Untrainable.of(batch(*groups)) == Untrainable(why=why, lasting=lasting, tools_failed=tools_failed)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (SEARCH, Untrainable(why="retrieval_failed: timeout", lasting=False, tools_failed=True)),
        (JUDGE, Untrainable(why="reward_failed: no judge", lasting=True)),
    ],
)
def test_a_batch_that_lost_too_many_to_failed_searches_or_rewards_is_unsound_whatever_is_left(
    fault: tuple[StopReason, str], said: Untrainable
) -> None:
    score = Score(reward=1.0, outcome=1.0, evidence=None)
    viable = ScoredTrajectory(trajectory=trajectory(StopReason.NO_ACTION), score=score)
    left = Group(question=QUESTION, ticket=TICKET, members=(viable,), excluded=broken(fault).excluded)
    assert Untrainable.of(batch(left)) is None
    assert Untrainable.of(replace(batch(left), too_many_tool_failures=True)) == said
