"""Why a batch has no sound trajectory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from actors.reports import Unsound
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
    return TakenBatch(index=0, accepted=(), states=Counter(), returned=Counter(), played=played, kept=0)


def broken(*faults: tuple[StopReason, str]) -> Group:
    return Group(question=QUESTION, ticket=TICKET, members=(), excluded=tuple(trajectory(*f) for f in faults))


ENGINE = (StopReason.GENERATION_FAILED, "head size 16")
SEARCH = (StopReason.RETRIEVAL_FAILED, "timeout")


def test_one_sound_trajectory_is_enough() -> None:
    score = Score(reward=0.0, outcome=0.0, evidence=None)
    member = ScoredTrajectory(trajectory=trajectory(StopReason.NO_ACTION), score=score)
    sound = Group(question=QUESTION, ticket=TICKET, members=(member,))
    assert Unsound.of(batch(broken(ENGINE, ENGINE), sound)) is None


@pytest.mark.parametrize(
    ("groups", "why", "lasting", "struck"),
    [
        ([broken(ENGINE, ENGINE), broken(ENGINE)], "generation_failed: head size 16", True, False),
        ([broken(SEARCH), broken(SEARCH)], "retrieval_failed: timeout", False, True),
        ([broken(SEARCH, ENGINE), broken(ENGINE)], "generation_failed: head size 16 (2 of 3)", False, True),
        ([], "nothing was played", False, False),
    ],
)
def test_the_commonest_fault_is_named(groups: list[Group], why: str, lasting: bool, struck: bool) -> None:
    assert Unsound.of(batch(*groups)) == Unsound(why=why, lasting=lasting, struck=struck)


def test_a_batch_that_lost_too_many_to_failed_searches_is_unsound_whatever_is_left() -> None:
    score = Score(reward=1.0, outcome=1.0, evidence=None)
    sound = ScoredTrajectory(trajectory=trajectory(StopReason.NO_ACTION), score=score)
    left = Group(question=QUESTION, ticket=TICKET, members=(sound,), excluded=broken(SEARCH).excluded)
    assert Unsound.of(batch(left)) is None
    assert Unsound.of(replace(batch(left), struck=True)) == Unsound(
        why="retrieval_failed: timeout", lasting=False, struck=True
    )
