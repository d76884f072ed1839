"""Expert seeding by hand: who is replaced, when nobody is, and what the learner makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.records import NO_VERSION, Question, Score, Trajectory
from agent.seeding import expert_score, inject
from agent.tickets import Ticket
from learner.advantages import group_advantages

QUESTION = Question(id="q", text="Who wrote Emma?", golden_answers=("Jane Austen",), supporting=("Emma", "Austen"))
TICKET = Ticket(claim_id=0, query=0, batch=0, order=0, seed=0)


@pytest.fixture
def expert(make_trajectory) -> Trajectory:
    """One search that finds one of two documents, and the answer."""
    sampled = make_trajectory(
        {"text": "<search>emma</search>", "query": "emma", "found": [("d1", "Emma")]},
        {"text": "<answer>Jane Austen</answer>", "answer": "Jane Austen"},
    )
    n = len(sampled.token_ids)
    return replace(sampled, expert=True, logprobs=np.zeros(n), versions=np.full(n, NO_VERSION))


def test_a_group_that_only_the_expert_solves(make_group, expert):
    group = make_group(QUESTION, TICKET, [0.0] * 5)
    seeded = inject(group, expert)
    assert seeded.rewards == (1.0, 0.0, 0.0, 0.0, 0.0), "the first of equals is replaced"
    assert [m.trajectory.expert for m in seeded.members] == [True, False, False, False, False]
    advantages = group_advantages(seeded.rewards, "std")
    assert advantages.round(2).tolist() == [1.79, -0.45, -0.45, -0.45, -0.45]
    assert not group.signal_bearing
    assert seeded.signal_bearing


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([0.5, 0.2, 0.8, 0.2], (0.5, 1.0, 0.8, 0.2)),
        ([0.5, 0.5], (1.0, 0.5)),
        ([0.9, 0.8, 0.0], (0.9, 0.8, 1.0)),
        ([0.0, 1.0], (0.0, 1.0)),
        ([1.0, 1.0], (1.0, 1.0)),
    ],
)
def test_the_lowest_reward_gives_way_unless_one_is_perfect(make_group, expert, rewards, expected):
    group = make_group(QUESTION, TICKET, rewards)
    seeded = inject(group, expert)
    assert seeded.rewards == expected
    assert (seeded is group) == (1.0 in rewards), "nothing is injected where a rollout succeeds"


def test_a_right_answer_that_cost_something_needs_no_expert(make_group, expert):
    group = make_group(QUESTION, TICKET, [0.0, 0.0])
    paid = replace(group.members[1], score=Score(reward=0.9, outcome=1.0, evidence=None, cost=0.1))
    group = replace(group, members=(group.members[0], paid))
    assert inject(group, expert) is group


def test_the_replaced_rollout_still_counts_in_the_cost(make_group, expert):
    group = make_group(QUESTION, TICKET, [0.3, 0.1, 0.2], faults=1)
    seeded = inject(group, expert)
    assert [t is group.members[1].trajectory for t in seeded.discarded] == [True]
    everyone = [*(m.trajectory for m in seeded.members), *seeded.excluded, *seeded.discarded]
    assert sum(not t.expert for t in everyone) == group.outcome().all_trajectories == 4
    assert seeded.outcome().all_tokens == group.outcome().all_tokens == 4 * 3, "the expert's tokens were not generated"
    assert seeded.oldest_version == group.oldest_version, "an expert is never stale"


def test_the_experts_reward_is_exactly_one_whatever_it_found(expert):
    assert expert_score(expert, QUESTION) == Score(reward=1.0, outcome=1.0, evidence=0.5)
    assert expert_score(expert, replace(QUESTION, evidence_match="id")).evidence == 0.0


def test_only_an_expert_is_injected(make_group, expert):
    group = make_group(QUESTION, TICKET, [0.0, 0.0])
    with pytest.raises(ValueError, match="an engine's trajectory was given as an expert's"):
        inject(group, group.members[0].trajectory)
    with pytest.raises(ValueError, match="group of q holds a trajectory of other"):
        inject(group, replace(expert, question_id="other"))
