"""The limits of searches of training episodes, by hand, and their way through pool, ticket and episode."""

from __future__ import annotations

import asyncio
import io
import json

import numpy as np
import pytest
from pool_cases import asked, enter, pool_of

from agent.config import AgentConfig, RewardConfig, SearchLimitConfig
from agent.continuation import play_with_continuation
from agent.dialogue import Dialogue
from agent.environment import Environment
from agent.errors import UserError
from agent.group import Player, play_group
from agent.groups import Group
from agent.pool.history import NEVER, QueryHistory
from agent.pool.rules.base import rule_class
from agent.pool.search_limits import SearchLimits
from agent.records import Completion, Finish, Passage, Question, Score, ScoredTrajectory, StopReason
from agent.rewards.scorer import Scorer
from agent.tickets import Ticket
from agent.tools.search import LIMIT_NOTICE


def limits(config: SearchLimitConfig, ceiling: int, batches, history=None) -> list[int | None]:
    rule = SearchLimits(config, ceiling)
    return [rule.limit(history or QueryHistory(1, np.ones_like), 0, batch) for batch in batches]


# --- the rules -------------------------------------------------------------------------------------


def test_fixed_leaves_it_to_the_agent():
    assert limits(SearchLimitConfig(), 7, [0, 50]) == [None, None]


def test_anneal_up_and_down():
    # 2 + 4 b / 8: 2, 2.5, 3, 3.5, 4, …, 6; a half is rounded up.
    up = SearchLimitConfig(rule="anneal", start=2, end=6, steps=8)
    assert limits(up, 6, [0, 1, 2, 3, 4, 7, 8, 9, 1000]) == [2, 3, 3, 4, 4, 6, 6, 6, 6]
    # 5 - 4 b / 3: 5, 3.67, 2.33, 1.
    down = SearchLimitConfig(rule="anneal", start=5, end=1, steps=3)
    assert limits(down, 5, [0, 1, 2, 3, 4]) == [5, 4, 2, 1, 1]
    assert limits(SearchLimitConfig(rule="anneal", start=1, steps=2), 9, [0, 1, 2]) == [1, 5, 9], "null is the agent's"


def test_adaptive_follows_what_the_query_needed():
    history = QueryHistory(2, np.ones_like)
    config = SearchLimitConfig(rule="adaptive", fewest=2, most=6, spare=1, widen=2)

    def limit() -> int | None:
        return limits(config, 8, [0], history)[0]

    assert limit() == 6, "never drawn"
    history.observe_searches(0, (), 4)
    assert limit() == 6, "never solved"
    history.observe_searches(0, (3, 1, 2), 4)
    assert limit() == 3, "three of four are right, with 2 searches in the middle, and one to spare"
    history.observe_searches(0, (1,), 4)
    assert limit() == 3, "one of four is neither solved nor a miss"
    history.observe_searches(0, (), 4)
    assert limit() == 5, "a miss"
    history.observe_searches(0, (), 4)
    assert limit() == 6, "two misses would be 7"
    history.observe_searches(0, (0, 0, 0, 0), 4)
    assert limit() == 2, "solved without a search: 1, but never below the fewest"
    history.observe_searches(0, (3, 1), 4)
    assert limit() == 4, "half of them are right: the upper median"
    assert history.needed.tolist() == [3, NEVER]
    assert history.misses.tolist() == [0, 0]


def test_counters_do_not_wrap_around():
    history = QueryHistory(1, np.ones_like)
    for _ in range(300):
        history.observe_searches(0, (), 2)
    assert history.misses[0] == 255
    history.observe_searches(0, (1000, 1000), 2)
    assert history.needed[0] == NEVER - 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "aneal"}, r"search_limit\.rule=aneal is not known; did you mean 'anneal'\?"),
        ({"rule": "anneal", "start": 0}, r"search_limit\.start=0 must lie in \[1, 254\]"),
        ({"rule": "anneal", "end": 6}, r"search_limit\.end=6 must lie in \[1, agent\.max_searches=5\]"),
        ({"rule": "adaptive", "most": 9}, r"search_limit\.most=9 must lie in"),
        ({"rule": "adaptive", "fewest": 4, "most": 3}, r"search_limit\.fewest=4 is above search_limit\.most=3"),
        ({"steps": 0}, r"search_limit\.steps=0 must be at least 1"),
        ({"spare": -1}, r"search_limit\.spare=-1 must lie in \[0, 254\]"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        SearchLimits(SearchLimitConfig(**settings), 5)


# --- through the pool ------------------------------------------------------------------------------


@pytest.fixture
def played(make_trajectory):
    """A group of rollouts given as (searches, outcome)."""

    def make(question: Question, ticket: Ticket, *rollouts: tuple[int, float]) -> Group:
        members = []
        for searches, outcome in rollouts:
            turns = [{"text": "s", "query": f"query {i}"} for i in range(searches)]
            trajectory = make_trajectory(*turns, {"text": "a", "answer": "x"}, question_id=question.id)
            score = Score(reward=outcome, outcome=outcome, evidence=None)
            members.append(ScoredTrajectory(trajectory=trajectory, score=score))
        return Group(question=question, ticket=ticket, members=tuple(members))

    return make


def adaptive_pool(questions, **settings):
    rule = rule_class("recycle")(**{"batch_questions": 2, "group_size": 2, "when_dry": "reset", **settings})
    limits = SearchLimits(SearchLimitConfig(rule="adaptive", most=4), 5)
    return pool_of(questions, rule, seed=0, limits=limits)


def test_a_ticket_carries_what_the_querys_last_draw_says(make_questions, played):
    pool = adaptive_pool(make_questions(2))
    first = pool.claim("w", now=0.0, limit=2)
    assert [t.max_searches for t in first] == [4, 4]
    solved, missed = first
    enter(pool, played(asked(pool, solved), solved, (2, 1.0), (2, 1.0)))
    enter(pool, played(asked(pool, missed), missed, (1, 0.0), (4, 0.0)))
    pool.release(pool.take(version=0).index)
    second = {t.query: t.max_searches for t in pool.claim("w", now=0.0, limit=2)}
    assert second == {solved.query: 3, missed.query: 4}


def test_without_a_budget_the_limit_is_the_agents(make_questions):
    pool = pool_of(make_questions(2), rule_class("epoch")(batch_questions=2, group_size=2), seed=0)
    assert [t.max_searches for t in pool.claim("w", now=0.0, limit=2)] == [None, None]


def test_a_draw_that_is_made_again_after_a_resume_has_the_same_limit(make_questions, played):
    """The query of an open batch is decided in an older one meanwhile: its new limit is for its next draw."""
    questions = make_questions(2)
    pool = adaptive_pool(questions, batch_questions=1, max_staleness=1)
    first, second = pool.claim("w", now=0.0, limit=2)
    enter(pool, played(questions[first.query], first, (1, 1.0), (1, 1.0)))
    pool.release(pool.take(version=0).index)
    (third,) = pool.claim("w", now=0.0, limit=1)
    assert (third.query, third.max_searches) == (first.query, 2)
    state = pool.state()
    arrays = io.BytesIO()
    np.savez(arrays, **{k: v for k, v in state.items() if isinstance(v, np.ndarray)})
    arrays.seek(0)
    rest = json.loads(json.dumps({k: v for k, v in state.items() if not isinstance(v, np.ndarray)}))

    resumed = adaptive_pool(questions, batch_questions=1, max_staleness=1)
    with np.load(arrays) as loaded:
        resumed.load_state({**rest, **loaded})
    again = resumed.claim("w", now=0.0, limit=2)
    assert [(t.query, t.max_searches, t.seed) for t in again] == [
        (t.query, t.max_searches, t.seed) for t in (second, third)
    ]
    assert resumed.history.needed.tolist() == pool.history.needed.tolist()


# --- through the episode ---------------------------------------------------------------------------

AUSTEN = Passage(id="d1", title="Emma (novel)", text="Emma is a novel by Jane Austen.")
QUESTION = Question(id="q", text="Who?", golden_answers=("right",), supporting=("Emma (novel)", "Persuasion"))


class Searches:
    """A policy that searches for ever, and a shelf that has one book."""

    def __init__(self, codec):
        self._codec = codec

    async def generate(self, prompt_ids, *, max_new_tokens, stop, temperature, seed):
        ids = tuple(self._codec.encode("<search>emma</search>"))
        return Completion(token_ids=ids, logprobs=(-1.0,) * len(ids), versions=(0,) * len(ids), finish=Finish.STOP)

    async def search(self, query, k):
        return (AUSTEN,)


@pytest.mark.parametrize(("limit", "searches"), [(None, 3), (1, 1), (2, 2)])
def test_the_notice_comes_at_the_tickets_limit(codec, search_protocol, limit, searches):
    config = AgentConfig(max_searches=3)
    policy = Searches(codec)
    scorer = Scorer(RewardConfig(evidence_weight=0.5), search_protocol)
    player = Player(
        dialogue=Dialogue.of(codec, config),
        config=config,
        generator=policy,
        environment=Environment.of(config, policy),
        scorer=scorer,
    )
    ticket = Ticket(claim_id=0, query=0, batch=0, order=0, seed=1, max_searches=limit)
    plain = asyncio.run(play_group(player, QUESTION, ticket, size=2, worker="w"))
    continued = asyncio.run(play_with_continuation(player, QUESTION, ticket, size=2, worker="w"))
    assert continued.extra["attempted"] == 1
    everyone = [m.trajectory for g in (plain, continued) for m in g.members] + list(continued.discarded)
    assert len(everyone) == 6, "of them two continuations, which inherit one search"
    for trajectory in everyone:
        assert (trajectory.searches, trajectory.stop_reason) == (searches, StopReason.SEARCH_LIMIT)
        assert codec.decode(trajectory.token_ids).count(LIMIT_NOTICE) == 1


def test_right_rollouts_count_whatever_they_earned(played, emma):
    ticket = Ticket(claim_id=0, query=0, batch=0, order=0, seed=0)
    group = played(emma, ticket, (3, 1.0), (1, 0.0), (2, 0.5))
    assert group.outcome().solved_searches == (3, 2)
