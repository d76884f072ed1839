"""Every record refuses to be made wrong."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from agent.groups import Group
from agent.records import (
    NO_VERSION,
    SEARCH,
    Call,
    Completion,
    Finish,
    Question,
    Score,
    ScoredTrajectory,
    StopReason,
    Trajectory,
    Turn,
)
from agent.tickets import Outcome, QueryState, Spent, Ticket


def turn(a: int, b: int, c: int, **more) -> Turn:
    return Turn(action_start=a, action_end=b, observation_end=c, text="", **more)


def search(query: str, **more) -> tuple[Call, ...]:
    return (Call(tool=SEARCH, argument=query, **more),)


def trajectory(**changed) -> Trajectory:
    """Two action tokens, one observation token, one action token."""
    fields = {
        "question_id": "q",
        "prompt_ids": [5, 6],
        "token_ids": [1, 2, 3, 4],
        "action_mask": [True, True, False, True],
        "logprobs": [-0.1, -0.2, 0.0, -0.4],
        "versions": [3, 4, NO_VERSION, 4],
        "turns": (turn(0, 2, 3, calls=search("x", document_ids=("d",), titles=("t",))), turn(3, 4, 4, answer="a")),
        "stop_reason": StopReason.ANSWERED,
        **changed,
    }
    return Trajectory(**fields)


def test_a_sound_trajectory():
    t = trajectory()
    assert t.answer == "a"
    assert t.searches == 1
    assert t.action_tokens == 3
    assert t.oldest_version == 3
    assert [a.dtype for a in (t.prompt_ids, t.token_ids, t.action_mask, t.logprobs, t.versions)] == [
        np.int32,
        np.int32,
        np.bool_,
        np.float32,
        np.int32,
    ]


def test_a_trajectory_can_not_be_changed():
    given = np.array([1, 2, 3, 4], dtype=np.int32)
    t = trajectory(token_ids=given)
    given[0] = 99
    assert t.token_ids[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        t.logprobs[0] = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        t.fault = "x"


def test_a_trajectory_survives_pickling():
    again = pickle.loads(pickle.dumps(trajectory()))
    np.testing.assert_array_equal(again.token_ids, [1, 2, 3, 4])
    assert again.turns == trajectory().turns
    assert again.stop_reason is StopReason.ANSWERED


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"token_ids": [1, 2, 3]}, "3 tokens, mask 4, log-probabilities 4, versions 4"),
        ({"action_mask": [True, True, False]}, "4 tokens, mask 3"),
        ({"logprobs": [0.0]}, "log-probabilities 1"),
        ({"versions": [1] * 5}, "versions 5"),
        ({"prompt_ids": []}, "empty prompt"),
        ({"token_ids": [[1, 2, 3, 4]]}, "one dimension"),
        ({"versions": [3, 4, 4, 4]}, "versions must be >= 0 exactly where the mask is true"),
        ({"versions": [3, NO_VERSION, NO_VERSION, 4]}, "versions must be >= 0 exactly where the mask is true"),
        ({"turns": (turn(0, 2, 3),)}, "the turns cover 3 of 4 tokens"),
        ({"turns": ()}, "the turns cover 0 of 4 tokens"),
        ({"turns": (turn(0, 2, 3), turn(3, 4, 5))}, "the turns cover 5 of 4 tokens"),
        ({"turns": (turn(1, 2, 3), turn(3, 4, 4))}, "a turn starts at 1, not 0"),
        ({"turns": (turn(0, 2, 2), turn(3, 4, 4))}, "a turn starts at 3, not 2"),
        ({"turns": (turn(0, 3, 3), turn(3, 4, 4))}, "an action token is masked"),
        ({"turns": (turn(0, 1, 3), turn(3, 4, 4))}, "an observation token is not masked"),
    ],
)
def test_a_wrong_trajectory(changed, message):
    with pytest.raises(ValueError, match=message):
        trajectory(**changed)


def expert(**changed) -> Trajectory:
    return trajectory(**{"expert": True, "logprobs": [0.0] * 4, "versions": [NO_VERSION] * 4, **changed})


def test_an_experts_trajectory_has_no_version():
    t = expert()
    assert (t.action_tokens, t.oldest_version, t.searches, t.answer) == (3, NO_VERSION, 1, "a")
    scored = ScoredTrajectory(trajectory=t, score=Score(reward=1.0, outcome=1.0, evidence=None))
    assert scored.trajectory.expert


@pytest.mark.parametrize("changed", [{"versions": [3, 4, NO_VERSION, 4]}, {"logprobs": [-0.1, 0.0, 0.0, 0.0]}])
def test_an_expert_that_was_sampled_is_none(changed):
    with pytest.raises(ValueError, match="an expert has neither versions nor log-probabilities"):
        expert(**changed)


def test_a_trajectory_without_versions_is_no_expert_by_itself():
    with pytest.raises(ValueError, match="versions must be >= 0 exactly where the mask is true"):
        expert(expert=False)


def test_a_trajectory_without_a_response():
    t = trajectory(
        token_ids=[],
        action_mask=[],
        logprobs=[],
        versions=[],
        turns=(),
        stop_reason=StopReason.GENERATION_FAILED,
        fault="x",
    )
    assert (t.answer, t.searches, t.action_tokens, t.oldest_version) == (None, 0, 0, NO_VERSION)


def test_searches_are_those_that_the_environment_answered():
    def searches(*turns):
        n = turns[-1].observation_end
        mask = np.zeros(n, dtype=bool)
        for t in turns:
            mask[t.action_start : t.action_end] = True
        made = trajectory(
            token_ids=[1] * n,
            action_mask=mask,
            logprobs=[0.0] * n,
            versions=np.where(mask, 0, NO_VERSION),
            turns=turns,
        )
        return made.searches

    assert searches(turn(0, 1, 2, calls=search("a")), turn(2, 3, 4, calls=search("b")), turn(4, 5, 5)) == 2
    assert searches(turn(0, 1, 2, calls=search("a")), turn(2, 3, 3, calls=search("cut off"))) == 1
    assert (
        searches(turn(0, 1, 2, calls=search("a")), turn(2, 3, 4, calls=search("no more", refused=True)), turn(4, 5, 5))
        == 1
    )


@pytest.mark.parametrize("spans", [(-1, 0, 0), (2, 1, 3), (0, 2, 1)])
def test_turn_spans_in_order(spans):
    with pytest.raises(ValueError, match="turn spans out of order"):
        turn(*spans)


def test_a_call_has_a_title_for_each_document():
    with pytest.raises(ValueError, match="one title per document id"):
        search("q", document_ids=("a", "b"), titles=("A",))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"id": ""}, "needs an id"),
        ({"text": " \n"}, "question q: the text is empty"),
        ({"golden_answers": ()}, "at least one non-empty golden answer"),
        ({"golden_answers": ("yes", " ")}, "at least one non-empty golden answer"),
    ],
)
def test_a_wrong_question(changed, message):
    with pytest.raises(ValueError, match=message):
        Question(**{"id": "q", "text": "?", "golden_answers": ("yes",), **changed})


@pytest.mark.parametrize(
    ("logprobs", "versions", "message"),
    [
        ((-1.0,), (0, 0), "completion of 2 tokens with 1 log-probabilities and 2 versions"),
        ((-1.0, -1.0), (0,), "completion of 2 tokens with 2 log-probabilities and 1 versions"),
        ((-1.0, -1.0), (0, NO_VERSION), "every sampled token needs the policy version"),
    ],
)
def test_a_wrong_completion(logprobs, versions, message):
    with pytest.raises(ValueError, match=message):
        Completion(token_ids=(1, 2), logprobs=logprobs, versions=versions, finish=Finish.STOP)


def scored(reward: float, outcome: float = 0.0, **changed) -> ScoredTrajectory:
    score = Score(reward=reward, outcome=outcome, evidence=None)
    return ScoredTrajectory(trajectory=trajectory(**changed), score=score)


TICKET = Ticket(claim_id=0, query=0, batch=0, order=0, seed=0)
Q = Question(id="q", text="?", golden_answers=("a",))
FAULTED = {"stop_reason": StopReason.RETRIEVAL_FAILED, "fault": "timeout"}


def group(*members, excluded=()) -> Group:
    return Group(question=Q, ticket=TICKET, members=members, excluded=excluded)


def test_a_faulted_trajectory_has_no_score():
    with pytest.raises(ValueError, match="a faulted trajectory has no score: timeout"):
        scored(1.0, **FAULTED)


def test_a_group_is_of_one_question():
    with pytest.raises(ValueError, match="group of q holds a trajectory of other"):
        group(scored(1.0), scored(1.0, question_id="other"))
    with pytest.raises(ValueError, match="group of q holds a trajectory of other"):
        group(scored(1.0), excluded=(trajectory(question_id="other", **FAULTED),))


def test_only_faults_are_excluded():
    with pytest.raises(ValueError, match="only faulted trajectories are excluded"):
        group(scored(1.0), excluded=(trajectory(),))


@pytest.mark.parametrize(
    ("members", "state"),
    [
        ([(0.0, 0.0), (1.0, 1.0)], QueryState.SIGNAL),
        ([(1.0, 1.0), (1.0, 1.0)], QueryState.TOO_EASY),
        ([(0.0, 0.0), (0.0, 0.0)], QueryState.TOO_HARD),
        ([(0.5, 0.0), (0.5, 1.0)], QueryState.TOO_EASY),
        ([(0.5, 0.0), (0.5, 0.0)], QueryState.TOO_HARD),
        ([(0.1 + 0.2, 0.0), (0.3, 0.0)], QueryState.SIGNAL),
        ([(0.3, 0.0)], QueryState.TOO_HARD),
        ([], QueryState.TOO_HARD),
    ],
)
def test_what_a_group_says_of_its_query(members, state):
    made = group(*(scored(r, o) for r, o in members))
    assert made.state is state
    assert made.signal_bearing == (state is QueryState.SIGNAL)
    assert made.rewards == tuple(r for r, _ in members)


def test_what_a_gate_takes_has_not_succeeded():
    """All knew the answer and didn't search: the reward is 0, and so is what the pool learns of the query."""
    gated = dataclasses.replace(scored(0.0, 1.0), score=Score(reward=0.0, outcome=1.0, evidence=0.0, gate="no_search"))
    told = group(gated, gated).outcome()
    assert (told.state, told.successes, told.solved_searches) == (QueryState.TOO_HARD, 0, ())
    one = group(gated, scored(1.0, 1.0)).outcome()
    assert (one.state, one.successes, len(one.solved_searches)) == (QueryState.SIGNAL, 1, 1)


def test_a_group_counts_the_excluded_tokens_and_ages_by_its_members():
    young = scored(1.0, versions=[7, 8, NO_VERSION, 8])
    old_fault = trajectory(versions=[1, 1, NO_VERSION, 1], **FAULTED)
    made = group(young, scored(0.0), excluded=(old_fault,))
    assert made.oldest_version == 3
    assert made.outcome().all_tokens == 9
    assert group(excluded=(old_fault,)).oldest_version == NO_VERSION


# --- what a trajectory cost ------------------------------------------------------------------------


def test_inherited_tokens_were_generated_once():
    assert trajectory().generated_tokens == 3
    assert trajectory(inherited=3).generated_tokens == 1
    assert trajectory(inherited=4).generated_tokens == 0
    assert trajectory(inherited=3).action_tokens == 3, "all of them are trained"
    assert expert().generated_tokens == 0


@pytest.mark.parametrize("inherited", [-1, 1, 2, 5])
def test_what_is_inherited_ends_with_a_turn(inherited):
    with pytest.raises(ValueError, match="inherited tokens end in mid-turn"):
        trajectory(inherited=inherited)


def test_discarded_trajectories_count_in_a_groups_cost(make_group, emma):
    ticket = Ticket(claim_id=0, query=0, batch=0, order=0, seed=0)
    group = make_group(emma, ticket, [1.0, 0.0], faults=1)
    more = dataclasses.replace(group, discarded=(make_group.trajectory(emma, 5),))
    assert (group.outcome().all_trajectories, group.outcome().all_tokens, group.outcome().tokens) == (3, 9, 6)
    assert (more.outcome().all_trajectories, more.outcome().all_tokens, more.outcome().tokens) == (4, 12, 6)
    assert more.oldest_version == 0, "what is not trained can't be stale"
    with pytest.raises(ValueError, match="a faulted trajectory is excluded, not discarded"):
        dataclasses.replace(group, discarded=group.excluded)


@pytest.mark.parametrize(
    ("reward", "cost", "perfect"), [(1.0, 0.0, True), (0.9, 0.1, True), (0.0, 1.0, True), (0.9, 0.0, False)]
)
def test_a_perfect_score_is_one_before_its_cost(reward, cost, perfect):
    assert Score(reward=reward, outcome=1.0, evidence=None, cost=cost).perfect == perfect


@pytest.mark.parametrize("cost", [0.1 * i for i in range(11)])
def test_a_perfect_score_is_told_exactly(cost):
    assert Score(reward=1.0 - cost, outcome=1.0, evidence=None, cost=cost).perfect
    assert not Score(reward=max(0.0, 0.999 - cost), outcome=1.0, evidence=None, cost=min(cost, 0.999)).perfect


# --- what the pool is told -------------------------------------------------------------------------


def test_an_outcome_has_the_facts_of_its_group(make_group, emma):
    group = make_group(emma, TICKET, [1.0, 0.0, 1.0], versions=[4, 3, 5], faults=2)
    discarded = make_group.trajectory(emma, 1)
    told = dataclasses.replace(group, discarded=(discarded,), before_continuation=QueryState.TOO_HARD).outcome()
    assert (told.ticket, told.state, told.rolled_out) == (TICKET, QueryState.SIGNAL, QueryState.TOO_HARD)
    assert (told.size, told.successes, told.solved_searches) == (3, 2, (0, 0))
    assert (told.tokens, told.all_tokens, told.oldest_version) == (9, 18, 3)
    assert told.set_aside == {"generation_failed": Spent(2, 6), "discarded": Spent(1, 3)}


def test_an_outcome_of_faults_alone_has_no_trajectory(make_group, emma):
    told = make_group(emma, TICKET, [], faults=2).outcome()
    assert (told.state, told.size, told.successes, told.tokens) == (QueryState.TOO_HARD, 0, 0, 0)
    assert told.oldest_version == NO_VERSION


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"successes": 3}, "query 0: 3 successes of 2 trajectories"),
        ({"successes": -1}, "query 0: -1 successes of 2 trajectories"),
        ({"tokens": -1}, "query 0: a negative count"),
        ({"set_aside": {"discarded": Spent(-1, 0)}}, "query 0: a negative count"),
        ({"state": QueryState.UNSEEN}, "query 0: unseen is no state of a group"),
        ({"rolled_out": QueryState.CONSUMED}, "query 0: consumed is no state of a group"),
        ({"state": QueryState.TOO_EASY}, "query 0: 1 successes of 2 are not too_easy"),
        ({"successes": 2}, "query 0: 2 successes of 2 are not signal"),
    ],
)
def test_an_outcome_contradicts_nothing(changed, message):
    right = {
        "ticket": TICKET,
        "state": QueryState.SIGNAL,
        "rolled_out": QueryState.SIGNAL,
        "size": 2,
        "successes": 1,
        "tokens": 6,
    }
    Outcome(**right)
    with pytest.raises(ValueError, match=message):
        Outcome(**right | changed)
