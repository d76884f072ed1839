"""``agent.malformed=notice`` with tags: what is said, what stays an end, and that an episode can go on from there."""

from __future__ import annotations

import pytest

from agent.continuation import cut
from agent.episode import MALFORMED_NOTICE
from agent.records import StopReason

SEARCH, ANSWER = "<search>emma author</search>", "<answer>Jane Austen</answer>"


@pytest.mark.parametrize(
    ("text", "why"),
    [("x</search>", "a closing tag without its opening tag"), ("<search> </search>", "a call with nothing in it")],
)
def test_what_is_wrong_is_said_between_result_tags(play_script, text, why):
    played = play_script([text, ANSWER], malformed="notice")
    t = played.trajectory
    assert (t.stop_reason, t.answer, t.searches) == (StopReason.ANSWERED, "Jane Austen", 0)
    shown = t.token_ids[t.turns[0].action_end : t.turns[0].observation_end].tolist()
    assert played.codec.decode(shown) == f"\n<result>\n{MALFORMED_NOTICE.format(why=why)}\n</result>\n"
    assert t.turns[0].calls == ()
    assert play_script([text]).trajectory.stop_reason is StopReason.MALFORMED


@pytest.mark.parametrize(
    ("turns", "reason"),
    [(["I don't know."], StopReason.NO_ACTION), (["x" * 3000], StopReason.TURN_TOKENS)],
)
def test_a_turn_that_closes_nothing_still_ends_the_episode(play_script, turns, reason):
    assert play_script(turns, malformed="notice").trajectory.stop_reason is reason


def test_notices_end_where_the_response_is_full(play_script):
    t = play_script(["x</search>"] * 100, malformed="notice", max_response_tokens=300).trajectory
    assert t.stop_reason is StopReason.RESPONSE_TOKENS
    assert len(t.token_ids) < 300
    assert len(t.turns) > 2


def test_a_continuation_goes_on_after_a_notice(play_script, austen, emma):
    t = play_script(["x</search>", SEARCH, "<answer>no</answer>"], [[austen]], malformed="notice").trajectory
    start = cut(t, emma)
    assert (start.turns, start.tokens) == (2, t.turns[1].observation_end)
