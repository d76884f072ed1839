"""The worked example of a reward: a judge behind an OpenAI-compatible endpoint, here a server of the test's own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from posted import posted

from agent.config import RewardConfig
from agent.errors import UserError
from agent.records import StopReason
from agent.rewards.scorer import Scored, Scorer

EXAMPLES = Path(__file__).parents[2] / "examples"
DOWN = (503, "try later")


@dataclass
class Endpoint:
    """Replies with what it is given in turn: a text, or a code and a body; the last one from then on."""

    replies: list[str | tuple[int, str]] = field(default_factory=list)
    asked: list[dict] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    port: int = 0


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    state = Endpoint()

    def answer(path: str, key: str, body: dict) -> tuple[int, str]:
        state.asked.append({"path": path, **body})
        state.keys.append(key)
        reply = state.replies.pop(0) if len(state.replies) > 1 else state.replies[0]
        choices = {"choices": [{"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}]}
        return reply if isinstance(reply, tuple) else (200, json.dumps(choices))

    with posted(answer) as state.port:
        yield state


@pytest.fixture
def judged(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, search_protocol, emma, make_trajectory
) -> Callable[..., Scored]:
    """Scores answers (None: there is none) with the example, which doesn't pause between its tries."""
    monkeypatch.setenv("JUDGE_URL", f"http://127.0.0.1:{endpoint.port}/v1/")
    monkeypatch.setenv("JUDGE_MODEL", "a-judge")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "judge_reward", raising=False)

    def score(*answers: str | None, port: int | None = None) -> Scored:
        import judge_reward

        changed = {"pause_s": 0.0} | ({} if port is None else {"url": f"http://127.0.0.1:{port}/v1"})
        monkeypatch.setattr(judge_reward, "judge", replace(judge_reward.judge, **changed))
        scorer = Scorer(RewardConfig(outcome="judge_reward:judge"), search_protocol)
        trajectories = [make_trajectory({"text": "t", "answer": a}) for a in answers]
        return asyncio.run(scorer.score(emma, trajectories))

    return score


def test_yes_is_one_and_no_is_zero(endpoint, judged):
    endpoint.replies = ["Yes, it does."]
    (member,) = judged("Miss Austen").members
    assert member.score.reward == 1.0
    (asked,) = endpoint.asked
    assert (asked["path"], asked["model"], endpoint.keys) == ("/v1/chat/completions", "a-judge", ["Bearer secret"])
    assert all(part in asked["messages"][0]["content"] for part in ("Who wrote Emma?", "Jane Austen", "Miss Austen"))
    endpoint.replies = ["**No**"]
    assert judged("Brontë").members[0].score.reward == 0.0


def test_a_judge_may_think_before_it_says_so(endpoint, judged):
    endpoint.replies = ["<think>\nNo, or is it?\n</think>\n\nYes."]
    assert judged("Jane").members[0].score.outcome == 1.0


def test_one_client_asks_for_all_answers(endpoint, judged, monkeypatch):
    import httpx

    made, make = [], httpx.AsyncClient.__init__
    monkeypatch.setattr(httpx.AsyncClient, "__init__", lambda self, **how: (made.append(self), make(self, **how))[1])
    endpoint.replies = ["yes"]
    assert [m.score.outcome for m in judged("Jane", "Austen", "J. A.").members] == [1.0] * 3
    assert len(made) == 1, "a client takes longer to make than many an answer to judge"


def test_no_answer_is_wrong_without_being_judged(endpoint, judged):
    assert judged(None).members[0].score.outcome == 0.0
    assert not endpoint.asked


@pytest.mark.parametrize("trouble", [DOWN, (429, ""), (500, "")])
def test_trouble_that_passes_is_waited_for(endpoint, judged, trouble):
    endpoint.replies = [trouble, trouble, "yes"]
    assert judged("Jane").members[0].score.outcome == 1.0
    assert len(endpoint.asked) == 3


@pytest.mark.parametrize(
    ("reply", "asked", "why"),
    [
        (DOWN, 3, "HTTP 503"),
        ((401, "who are you?"), 1, "401"),
        ("Perhaps.", 1, "the judge said neither yes nor no but 'Perhaps.'"),
        ("yesterday", 1, "neither yes nor no"),
        ((200, "not json"), 1, "no chat completion: 'not json'"),
        ((200, '{"choices": []}'), 1, "no chat completion"),
    ],
)
def test_a_judge_that_cant_tell_is_a_fault_and_no_zero(endpoint, judged, reply, asked, why):
    endpoint.replies = [reply]
    scored = judged("Jane")
    assert not scored.members
    (lost,) = scored.excluded
    assert lost.stop_reason is StopReason.REWARD_FAILED
    assert why in lost.fault
    assert len(endpoint.asked) == asked


def test_a_judge_that_isnt_there_is_a_fault(judged):
    (lost,) = judged("Jane", port=9).excluded  # nothing listens on the port "discard"
    assert lost.stop_reason is StopReason.REWARD_FAILED
    assert "ConnectError" in lost.fault


def test_one_failure_leaves_the_others_their_scores(endpoint, judged):
    endpoint.replies = ["yes", "maybe", "no"]
    scored = judged("a", "b", "c")
    assert (len(scored.members), len(scored.excluded)) == (2, 1)


def test_where_the_judge_is_has_to_be_said_before_the_start(monkeypatch, search_protocol):
    monkeypatch.delenv("JUDGE_URL", raising=False)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "judge_reward", raising=False)
    with pytest.raises(UserError, match=r"^reward\.outcome=judge_reward:judge: the environment has no JUDGE_URL; set"):
        Scorer(RewardConfig(outcome="judge_reward:judge"), search_protocol)
