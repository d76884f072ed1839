"""Several calls in one turn: how they are written, what they are shown, how they count."""

from __future__ import annotations

import asyncio

import pytest

from agent.config import AgentConfig, RewardConfig
from agent.continuation import cut
from agent.dialogue import Dialogue
from agent.environment import Environment
from agent.episode import Prefix, play
from agent.errors import RetrievalError
from agent.records import Finish, Passage, Question, StopReason
from agent.rewards.costs import redundant_searches
from agent.rewards.gates import GATES
from agent.rewards.scorer import Scorer
from agent.tools.search import LIMIT_NOTICE

THREE = "<search>a\n\n b \nab</search>"
ANSWER = "<answer>x</answer>"
QUESTION = Question(id="q", text="Who?", golden_answers=("x",), supporting=("A", "B"))


class Shelf:
    """A query finds a document for each of its letters."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    async def search(self, query: str, k: int) -> tuple[Passage, ...]:
        self.queries.append(query)
        if query == "broken":
            raise RetrievalError("timeout")
        return tuple(Passage(id=letter, title=letter.upper(), text="text") for letter in query)


def test_each_line_is_a_query_and_gets_a_result_block_in_its_order(play_script):
    played = play_script([THREE, ANSWER], library=Shelf(), max_parallel=3)
    t = played.trajectory
    assert [call.argument for call in t.turns[0].calls] == ["a", "b", "ab"]
    assert [call.document_ids for call in t.turns[0].calls] == [("a",), ("b",), ("a", "b")]
    assert t.turns[0].document_ids == ("a", "b", "a", "b")
    assert (t.searches, t.stop_reason) == (3, StopReason.ANSWERED)
    shown = played.codec.decode(t.token_ids[t.turns[0].action_end : t.turns[0].observation_end].tolist())
    one, both = '1: "A"\ntext', 'Result 1: "A"\ntext\nResult 2: "B"\ntext'
    assert shown == "".join(
        f"\n<result>\n{block}\n</result>\n" for block in (f"Result {one}", 'Result 1: "B"\ntext', both)
    )
    assert "up to 3 queries at once" in played.codec.decode(t.prompt_ids)


def test_with_one_call_a_turn_the_lines_are_one_query(play_script):
    played = play_script([THREE, ANSWER], [[]])
    assert played.library.queries == ["a\n\n b \nab"]
    assert "at once" not in played.codec.decode(played.trajectory.prompt_ids)


def test_more_calls_than_allowed_are_malformed(play_script):
    t = play_script([THREE], library=Shelf(), max_parallel=2).trajectory
    assert (t.stop_reason, t.searches) == (StopReason.MALFORMED, 0)


def test_the_limit_falls_within_a_turn(play_script):
    played = play_script([THREE, "<search>c</search>"], library=Shelf(), max_parallel=3, max_searches=2)
    t = played.trajectory
    assert played.library.queries == ["a", "b"]
    assert [call.refused for call in t.turns[0].calls] == [False, False, True]
    assert (t.searches, t.stop_reason) == (2, StopReason.SEARCH_LIMIT)
    assert played.text.count(LIMIT_NOTICE) == 1


def test_a_fault_of_one_query_excludes_the_episode(play_script):
    t = play_script(["<search>a\nbroken</search>"], library=Shelf(), max_parallel=2).trajectory
    assert (t.stop_reason, t.fault, t.turns[0].document_ids) == (StopReason.RETRIEVAL_FAILED, "timeout", ())


def test_no_room_for_one_result_is_no_room_for_any(play_script):
    whole = play_script([THREE, ANSWER], library=Shelf(), max_parallel=3).trajectory.turns[0].observation_end
    t = play_script([THREE, ANSWER], library=Shelf(), max_parallel=3, max_response_tokens=whole).trajectory
    assert (t.stop_reason, t.turns[0].document_ids, t.searches) == (StopReason.RESPONSE_TOKENS, (), 0)


def test_rewards_count_every_query(play_script, search_protocol):
    t = play_script(["<search>a\nA!\nb</search>", ANSWER], library=Shelf(), max_parallel=3).trajectory
    assert GATES["duplicate_query"](t, search_protocol)
    assert redundant_searches(t) == 1
    scorer = Scorer(RewardConfig(evidence_weight=0.5, search_cost=0.1), search_protocol)
    (member,) = asyncio.run(scorer.score(QUESTION, [t])).members
    score = member.score
    assert (score.evidence, score.cost) == (1.0, pytest.approx(0.3))


def test_a_continuation_goes_on_after_a_turn_that_met_the_limit(play_script, make_engine, codec):
    config = AgentConfig(max_parallel=3, max_searches=2)
    first = play_script([THREE, ANSWER], library=Shelf(), max_parallel=3, max_searches=2, codec=codec).trajectory
    start = cut(first, QUESTION)
    assert start.turns == 1
    dialogue = Dialogue.of(codec, config)
    t = asyncio.run(
        play(
            QUESTION,
            dialogue=dialogue,
            config=config,
            generator=make_engine(codec, ["<search>c</search>"], dialogue.stop),
            environment=Environment.of(config, Shelf()),
            temperature=1.0,
            seed=0,
            start=Prefix(trajectory=first, turns=1),
        )
    )
    assert (t.searches, t.stop_reason) == (2, StopReason.SEARCH_LIMIT)


def test_lines_without_text_are_no_calls(make_dialogue, codec):
    dialogue = make_dialogue(codec, max_parallel=2)
    assert [r.text for r in dialogue.parse("<search>\na\n\n\u200b\n</search>", Finish.STOP).requests] == ["a"]
    assert dialogue.parse("<search>\n \n</search>", Finish.STOP).malformed
