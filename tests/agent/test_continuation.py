"""Evidence-guided continuation by hand: where it cuts, what it keeps, whom it replaces, what it costs."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from pool_cases import enter, pool_of

from agent.config import AgentConfig, RewardConfig
from agent.continuation import accept, cut, play_with_continuation
from agent.dialogue import Dialogue
from agent.environment import Environment
from agent.episode import Prefix
from agent.errors import GenerationError, RetrievalError
from agent.group import Player, play_group
from agent.pool.rules.epoch import Rule as Epoch
from agent.records import NO_VERSION, Completion, Finish, Passage, Question, Score, ScoredTrajectory, StopReason
from agent.rewards.scorer import Scorer
from agent.seeds import derive_seed
from agent.strategies import STRATEGIES
from agent.tickets import QueryState, Ticket
from agent.tools.search import LIMIT_NOTICE

TICKET = Ticket(claim_id=3, query=0, batch=1, order=2, seed=99)
QUESTION = Question(id="q", text="Who?", golden_answers=("right",), supporting=("A", "B"))
BROKEN = "<search>broken</search>"


def search(query: str) -> str:
    return f"<search>{query}</search>"


def answer(text: str) -> str:
    return f"<answer>{text}</answer>"


class Script:
    """Writes the turns of each episode, told by the turn's seed: ``first[k]`` and the continuations' ``more[k]``.

    The turns of a continuation are those after the cut, which are ``kept`` turns in.
    """

    def __init__(self, codec, first, more=(), kept=0):
        self._codec = codec
        self._turns = {
            derive_seed(derive_seed(TICKET.seed, k), t): text
            for k, turns in enumerate(first)
            for t, text in enumerate(turns)
        } | {
            derive_seed(derive_seed(TICKET.seed, "continuation", k), kept + t): text
            for k, turns in enumerate(more)
            for t, text in enumerate(turns)
        }
        self.prompts = []

    async def generate(self, prompt_ids, *, max_new_tokens, stop, temperature, seed):
        self.prompts.append(list(prompt_ids))
        await asyncio.sleep(0)
        text = self._turns[seed]
        if text == "":
            raise GenerationError("the engine is gone")
        ids = tuple(self._codec.encode(text))
        logprobs = tuple(-0.001 * (seed % 997 + i) for i in range(len(ids)))
        return Completion(token_ids=ids, logprobs=logprobs, versions=(4,) * len(ids), finish=Finish.STOP)


class Shelf:
    """A query finds a document for each of its letters."""

    async def search(self, query, k):
        await asyncio.sleep(0)
        if query == "broken":
            raise RetrievalError("timeout")
        return tuple(Passage(id=letter.lower(), title=letter.upper(), text="text") for letter in query)


@pytest.fixture
def play(codec, search_protocol):
    def run(first, more=(), *, kept=0, question=QUESTION, strategy=play_with_continuation, reward=None, **changed):
        config = AgentConfig(**changed)
        script = Script(codec, first, more, kept)
        player = Player(
            dialogue=Dialogue.of(codec, config),
            config=config,
            generator=script,
            environment=Environment.of(config, Shelf()),
            scorer=Scorer(reward or RewardConfig(evidence_weight=0.5), search_protocol),
        )
        group = asyncio.run(strategy(player, question, TICKET, size=len(first), worker="w"))
        return group, script

    return run


FIRST = [
    [search("x"), answer("wrong")],  # 0
    [search("a"), search("xa"), answer("wrong")],  # 0.25, the best; the second search brings nothing new
    ["So " + search("a"), answer("wrong")],  # 0.25
    [answer("wrong")],  # 0
]
MORE = [
    [search("b"), answer("wrong")],  # 0.5
    [search("b"), answer("right")],  # 1
    [BROKEN],
    [search("xb"), answer("right")],  # 1
]


def tokens(codec, *texts: str) -> int:
    return sum(len(codec.encode(text)) for text in texts)


# --- the whole of it -------------------------------------------------------------------------------


def test_the_best_continuation_of_the_best_replaces_the_worst(play, codec):
    group, script = play(FIRST, MORE, kept=1)
    plain, _ = play(FIRST, strategy=play_group)
    assert plain.rewards == (0.0, 0.25, 0.25, 0.0)
    assert group.rewards == (1.0, 0.25, 0.25, 0.0), "ties go to the lowest index: of the best, the worst, the new"
    new, best = group.members[0].trajectory, group.members[1].trajectory
    assert [t.text for t in new.turns] == [search("a"), search("b"), answer("right")]
    assert (new.searches, new.answer, new.stop_reason) == (2, "right", StopReason.ANSWERED)

    end = best.turns[0].observation_end
    assert new.inherited == end
    for name in ("token_ids", "action_mask", "logprobs", "versions"):
        np.testing.assert_array_equal(getattr(new, name)[:end], getattr(best, name)[:end])
    np.testing.assert_array_equal(new.prompt_ids, best.prompt_ids)
    assert new.turns[0] == best.turns[0]
    prefix = [*best.prompt_ids.tolist(), *best.token_ids[:end].tolist()]
    assert script.prompts.count(prefix) == 1 + 4, "the best itself and each continuation go on from these very ids"
    assert new.action_mask[: best.turns[0].action_end].all(), "the shared prefix is trained too"

    assert group.before_continuation is QueryState.SIGNAL
    assert [t.stop_reason for t in group.excluded] == [StopReason.RETRIEVAL_FAILED]
    assert [t.answer for t in group.discarded] == ["wrong", "wrong", "right"]
    generated = tokens(codec, *MORE[0], *MORE[1], *MORE[2], *MORE[3])
    assert group.extra == {
        "attempted": 1,
        "replaced": 1,
        "extra_tokens": generated,
        "extra_rollouts": 4,
        "gain": 0.75,
    }
    assert (group.outcome().all_trajectories, plain.outcome().all_trajectories) == (8, 4)
    assert group.outcome().all_tokens == plain.outcome().all_tokens + generated
    assert group.oldest_version == 4
    assert group.finished_s >= group.started_s > 0


def test_what_is_not_better_is_discarded(play):
    worse = [[answer("wrong")]] * 4
    group, _ = play(FIRST, worse, kept=1)
    assert group.rewards == (0.0, 0.25, 0.25, 0.0)
    assert len(group.discarded) == 4
    assert group.extra["replaced"] == 0
    assert "gain" not in group.extra
    assert group.before_continuation is QueryState.SIGNAL
    assert group.outcome().all_trajectories == 8


def test_nothing_found_cuts_at_the_prompt_and_the_best_may_be_the_worst(play):
    first = [[answer("wrong")], [search("x"), answer("wrong")]]
    group, _ = play(first, [[search("ab"), answer("wrong")], [search("a"), answer("wrong")]])
    assert group.rewards == (0.5, 0.0)
    assert group.members[0].trajectory.inherited == 0
    assert group.before_continuation is QueryState.TOO_HARD
    assert group.state is QueryState.SIGNAL
    assert (group.extra["replaced"], group.extra["gain"]) == (1, 0.5)


@pytest.mark.parametrize(
    ("first", "question", "reward"),
    [
        ([[search("ab"), answer("right")], [answer("wrong")]], QUESTION, None),
        ([[answer("wrong")]] * 2, replace(QUESTION, supporting=()), None),
        ([[answer("wrong")]] * 2, replace(QUESTION, supporting=(" ", "\n")), None),
        ([[BROKEN]] * 2, QUESTION, None),
        ([[answer("wrong")], [""]], QUESTION, None),
        ([[BROKEN], [answer("wrong")], [answer("wrong")]], QUESTION, None),
        ([[search("ab"), answer("right")], [answer("wrong")]], QUESTION, RewardConfig(search_cost=0.1)),
    ],
    ids=[
        "perfect",
        "no metadata",
        "titles of nothing",
        "none viable",
        "one viable",
        "goes back",
        "perfect but for its cost",
    ],
)
def test_when_nothing_is_continued(play, first, question, reward):
    group, script = play(first, question=question, reward=reward)
    assert (group.extra, group.before_continuation, group.discarded) == ({}, None, ())
    assert len(script.prompts) == sum(map(len, first))


def test_a_group_that_was_cut_short_is_not_continued(play, monkeypatch):
    monkeypatch.setattr(f"{__name__}.TICKET", replace(TICKET, pilot=2, cut_hard=True))
    group, script = play([[answer("wrong")]] * 4)
    assert group.cut_short
    assert (group.extra, len(script.prompts)) == ({}, 2)


@pytest.mark.parametrize("wanted", [2, 3])
def test_a_group_with_fewer_viable_rollouts_than_the_pool_takes_is_not_continued(play, monkeypatch, wanted):
    monkeypatch.setattr(f"{__name__}.TICKET", replace(TICKET, min_viable=wanted))
    group, script = play([[answer("wrong")], [""], [answer("no")]], [[answer("wrong")]] * 3)
    assert len(group.members) == 2
    assert (bool(group.extra), len(script.prompts)) == ((True, 6) if wanted == 2 else (False, 3))


def test_faulted_continuations_are_counted_and_are_no_data(play, codec):
    group, _ = play([[answer("wrong")], [answer("no")]], [[""], [search("a"), BROKEN]])
    assert group.rewards == (0.0, 0.0)
    assert [t.stop_reason for t in group.excluded] == [StopReason.GENERATION_FAILED, StopReason.RETRIEVAL_FAILED]
    assert group.discarded == ()
    assert group.extra == {
        "attempted": 1,
        "replaced": 0,
        "extra_tokens": tokens(codec, search("a"), BROKEN),
        "extra_rollouts": 2,
    }


def test_a_continuation_has_the_searches_that_its_prefix_left(play, codec):
    first = [[search("a"), search("x"), answer("wrong")], [answer("wrong")]]
    more = [[search("b"), search("x"), answer("right")], [search("x"), answer("right")]]
    group, _ = play(first, more, kept=1, max_searches=2)
    new = group.members[1].trajectory
    assert [t.refused for t in new.turns] == [False, False, True, False]
    assert new.searches == 2
    assert LIMIT_NOTICE in codec.decode(new.token_ids.tolist())


def test_a_continuation_is_not_continued(play):
    group, script = play([[answer("wrong")]] * 2, [[search("a"), answer("wrong")]] * 2)
    assert group.rewards == (0.25, 0.0)
    assert len(script.prompts) == 2 + 2 * 2


def test_the_strategies_have_names():
    assert dict(STRATEGIES) == {"plain": play_group, "continuation": play_with_continuation}


def test_the_pools_books_balance_with_what_was_discarded(play):
    group, _ = play(FIRST, MORE, kept=1)
    pool = pool_of([QUESTION], Epoch(batch_questions=1, group_size=4), seed=0)
    (ticket,) = pool.claim("w", now=0.0)
    (failed,) = group.excluded
    group = replace(group, ticket=ticket, excluded=(replace(failed, stop_reason=StopReason.GENERATION_FAILED),))
    assert enter(pool, group)
    pool.take(version=4)
    books = pool.books
    assert books.trajectories.received == group.outcome().all_trajectories == 8
    assert books.trajectories.returned == {"generation_failed": 1, "discarded": 3}
    assert books.trajectories.accepted == 4
    assert books.tokens.received == group.outcome().all_tokens
    assert books.tokens.accepted == group.outcome().tokens
    assert books.tokens.in_flight == books.trajectories.in_flight == 0


def test_a_search_that_fails_in_a_continuation_gives_the_group_back(play):
    """Those of the continuations that searched less would be left, and the best of them stand for all."""
    group, _ = play(FIRST, MORE, kept=1)
    pool = pool_of([QUESTION], Epoch(batch_questions=1, group_size=4), seed=0)
    (ticket,) = pool.claim("w", now=0.0)
    assert [t.stop_reason for t in group.excluded] == [StopReason.RETRIEVAL_FAILED]
    enter(pool, replace(group, ticket=ticket))
    assert dict(pool.books.groups.returned) == {"with_tool_failure": 1}
    assert pool.books.trajectories.accepted == 0


# --- where it cuts ---------------------------------------------------------------------------------


def found(*titles: str, **more) -> dict:
    return {"text": search("s"), "query": "s", "found": [(t, t) for t in titles], **more}


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        ([found("A"), found("B"), "end"], 2),
        ([found("A"), found("A"), "end"], 1),
        ([found("x"), found("x", "b"), found("B"), "end"], 2),
        ([found("A", "B"), found("x"), "end"], 1),
        ([found("A"), found("x"), found("A", "B")], 3),
        ([found("x"), found("y"), "end"], 0),
        ([found("A", "A"), found("x"), found(refused=True), "end"], 1),
        (["end"], 0),
    ],
)
def test_the_cut_is_where_the_evidence_was_complete(make_trajectory, turns, kept):
    start = cut(make_trajectory(*turns), QUESTION)
    assert start.turns == kept
    assert start.tokens == 2 * kept


def test_the_cut_goes_by_what_evidence_is_matched_by(make_trajectory):
    trajectory = make_trajectory({**found(), "found": [("A", "x")]}, {**found(), "found": [("y", "B")]}, "end")
    assert cut(trajectory, replace(QUESTION, evidence_match="id")).turns == 1
    assert cut(trajectory, QUESTION).turns == 2


@pytest.mark.parametrize(("turns", "message"), [(3, "a cut after 3 of 2"), (-1, "a cut after -1"), (2, "not all of")])
def test_a_cut_is_after_an_answered_search(make_trajectory, turns, message):
    with pytest.raises(ValueError, match=message):
        Prefix(trajectory=make_trajectory(found("A"), "end"), turns=turns)


# --- whom it replaces ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "continuations", "expected", "gain"),
    [
        ([0.5, 0.2, 0.2], [0.6, 0.9], [0.5, 0.9, 0.2], 0.4),
        ([0.5, 0.2], [0.5, 0.1], [0.5, 0.2], None),
        ([0.5, 0.2], [], [0.5, 0.2], None),
        ([0.0, 0.0], [0.0, 0.25, 0.25], [0.25, 0.0], 0.25),
        ([0.5], [1.0], [1.0], 0.5),
    ],
)
def test_at_most_one_is_accepted_and_only_a_better_one(make_group, members, continuations, expected, gain):
    def scored(reward: float) -> ScoredTrajectory:
        score = Score(reward=reward, outcome=reward, evidence=None)
        return ScoredTrajectory(trajectory=make_group.trajectory(QUESTION, 0), score=score)

    offered = [scored(r) for r in continuations]
    kept, measured = accept(tuple(map(scored, members)), offered)
    assert [m.score.reward for m in kept] == expected
    assert measured == (None if gain is None else pytest.approx(gain))
    new = [m for m in kept if m in offered]
    assert new == ([] if gain is None else [max(offered, key=lambda c: c.score.reward)])


def test_only_sampled_tokens_have_versions(play):
    group, _ = play(FIRST, MORE, kept=1)
    new = group.members[0].trajectory
    assert set(new.versions[new.action_mask]) == {4}
    assert set(new.versions[~new.action_mask]) == {NO_VERSION}
