"""Failed searches never bias: what is trained on is what would have been without the groups that they struck."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import numpy as np
import pytest
from pool_cases import asked, enter, pool_of

from agent.config import AgentConfig, RewardConfig
from agent.dialogue import Dialogue
from agent.environment import Environment
from agent.errors import RetrievalError
from agent.group import Player, play_group
from agent.pool.rules.recycle import Rule
from agent.records import Completion, Finish, StopReason
from agent.rewards.scorer import Scorer
from agent.tickets import QueryState
from learner.advantages import group_advantages

K = 6
BATCHES = 12


class Half:
    """A policy that searches in half of its episodes, and is right more often where it does. By its seeds alone."""

    def __init__(self, codec):
        self._codec = codec

    async def generate(self, prompt_ids, *, max_new_tokens, stop, temperature, seed):
        await asyncio.sleep(0)
        rng = random.Random(seed)
        searched = "</result>\n" in self._codec.decode(prompt_ids)[-20:]
        if not searched and rng.random() < 0.5:
            text = f"<search>emma {seed}</search>"
        else:
            text = f"<answer>{'yes' if rng.random() < (0.7 if searched else 0.3) else 'no'}</answer>"
        ids = tuple(self._codec.encode(text))
        return Completion(token_ids=ids, logprobs=(-1.0,) * len(ids), versions=(0,) * len(ids), finish=Finish.STOP)


class Shelf:
    """Fails a share of the searches, by their queries; with ``dead`` all of them."""

    def __init__(self, passage, failing):
        self._passage, self._failing, self.dead = passage, failing, False

    async def search(self, query, k):
        await asyncio.sleep(0)
        if self.dead or random.Random(query).random() < self._failing:
            raise RetrievalError("timeout")
        return (self._passage,)


@pytest.fixture
def make_player(codec, search_protocol):
    def make(searcher):
        config = AgentConfig(temperature=0.8)
        return Player(
            dialogue=Dialogue.of(codec, config),
            config=config,
            generator=Half(codec),
            environment=Environment.of(config, searcher),
            scorer=Scorer(RewardConfig(), search_protocol),
        )

    return make


def played(player, question, ticket):
    return asyncio.run(play_group(player, question, ticket, size=K, worker="w"))


@pytest.mark.slow
def test_accepted_groups_are_those_of_an_oracle_that_never_saw_the_failed_ones(make_player, make_questions, austen):
    """One search in ten fails. The oracle plays the same draws where none does, and leaves out the groups struck."""
    questions = make_questions(200)
    pool = pool_of(questions, Rule(batch_questions=6, group_size=K, oversample=3.0, max_tool_failures=0.5), seed=3)
    player, oracle = (make_player(Shelf(austen, failing)) for failing in (0.1, 0.0))
    struck, searching = 0, Counter()
    for _ in range(BATCHES):
        wanted = []
        while not pool.ready:
            for ticket in pool.claim("w", now=0.0, limit=3):
                question = asked(pool, ticket)
                group, whole = (played(each, question, ticket) for each in (player, oracle))
                assert not whole.excluded
                if group.excluded:
                    struck += 1
                    assert {t.stop_reason for t in group.excluded} == {StopReason.RETRIEVAL_FAILED}
                elif whole.outcome().state is QueryState.SIGNAL:
                    wanted.append((ticket.order, whole.rewards))
                enter(pool, group)
        batch = pool.take(version=0)
        assert not batch.too_many_tool_failures
        found = [(a.payload.ticket.order, a.payload.rewards) for a in batch.accepted]
        assert found == sorted(wanted)[:6]
        for (_, ours), (_, theirs) in zip(found, sorted(wanted), strict=False):
            assert np.array_equal(group_advantages(ours, "std"), group_advantages(theirs, "std"))
        searching.update(m.trajectory.searches > 0 for a in batch.accepted for m in a.payload.members)
        pool.release(batch.index)
        pool.books.check()
    assert struck > 15, "one group in four"
    assert searching[True] / searching.total() == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_nothing_is_trained_on_from_the_time_of_a_dead_retrieval(make_player, make_questions, austen):
    """Half of the episodes don't search, and would be all that is left."""
    shelf = Shelf(austen, 0.0)
    pool = pool_of(make_questions(200), Rule(batch_questions=6, group_size=K, oversample=3.0), seed=4)
    player = make_player(shelf)
    trained = {}
    for number in range(12):
        shelf.dead = 4 <= number < 8
        while not pool.ready:
            for ticket in pool.claim("w", now=0.0, limit=3):
                enter(pool, played(player, asked(pool, ticket), ticket))
        batch = pool.take(version=0)
        assert batch.too_many_tool_failures is shelf.dead
        trained[number] = len(batch.accepted)
        pool.release(batch.index)
        pool.books.check()
    assert [number for number, count in trained.items() if not count] == [4, 5, 6, 7]
