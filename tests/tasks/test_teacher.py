"""Expert trajectories by a teacher behind a real HTTP server."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from expert_cases import AGENT, EMMA, EMMA_PROTOCOL, why
from posted import posted

from agent.errors import Fault, UserError
from agent.protocol import PROTOCOLS
from agent.records import Finish
from tasks.experts import read_experts
from tasks.making import config as settings
from tasks.making.config import TeacherConfig
from tasks.making.endpoint import Endpoint, EndpointError
from tasks.making.made import FILE, Kept, Why
from tasks.making.teacher import turn

pytestmark = pytest.mark.jvm

Reply = str | tuple[int, str] | tuple[str, str]
DOWN = (503, "try later")


@dataclass
class School:
    """A server whose teacher plays the scripts in turn: one for each conversation, one reply for each request.

    A reply is a text, a text with its finish reason, or a code and a body.
    """

    scripts: list[list[Reply]] = field(default_factory=list)
    asked: list[dict] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    port: int = 0

    def reply(self, body: dict) -> tuple[int, str]:
        messages = body["messages"]
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
        assert all(m["content"].strip() for m in messages)
        self.asked.append(body)
        if len(messages) == 1 and len(self.scripts[0]) == 0:
            self.scripts.pop(0)
        said = self.scripts[0].pop(0)
        if isinstance(said, tuple) and isinstance(said[0], int):
            return said
        text, finish = said if isinstance(said, tuple) else (said, "stop")
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return 200, json.dumps({"choices": [choice]})


@pytest.fixture
def school(monkeypatch: pytest.MonkeyPatch) -> Iterator[School]:
    state = School()

    def answer(path: str, key: str, body: dict) -> tuple[int, str]:
        assert path == "/v1/chat/completions"
        state.keys.append(key)
        return state.reply(body)

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # for other machines: nobody answers there
    monkeypatch.setenv("TEACHER_KEY", "secret")
    monkeypatch.setattr(settings, "Endpoint", functools.partial(Endpoint, pause_s=0.0))
    with posted(answer) as state.port:
        yield state


def teacher(port: int, *, parallel: int = 1, **settings) -> TeacherConfig:
    return TeacherConfig(url=f"http://127.0.0.1:{port}/v1/", model="a-teacher", parallel=parallel, **settings)


RIGHT: list[Reply] = ["I look. <search>Emma (novel)", "<search> Jane Austen </search>", "So <answer>Steventon"]


def test_right_episodes_with_all_evidence_are_kept_once(make, school, tmp_path):
    school.scripts = [
        [*RIGHT],
        ["<search>emma  novel", "Again. <search>jane austen", "<answer>Steventon"],
        ["<search>Emma (novel)", "<answer>Hampshire"],
        ["<search>Longstone", "<answer>Steventon"],
        [DOWN, DOWN],
        [DOWN, "<search>Jane Austen born", "<answer>Steventon</answer> I think."],
        ["I know it.", "never asked"],
    ]
    made = make(EMMA, teacher=teacher(school.port, episodes=7, tries=2))
    assert [e.written.row["id"] for e in made.experts] == ["emma", "emma#2"]
    assert made.refused == {Why.DUPLICATE: 1, Why.WRONG: 1, Why.EVIDENCE: 1, Why.UNANSWERED: 1}
    assert len(made.faults) == 1
    assert "HTTP 503" in made.faults[0]
    assert any("7 episodes of the teacher: 2 kept" in line and "1 faults" in line for line in made.lines())
    first, second, third = school.asked[:3]
    assert (first["model"], first["stop"], first["temperature"]) == ("a-teacher", ["</search>", "</answer>"], 0.7)
    assert first["top_p"] == 1.0
    assert first["max_tokens"] == AGENT.max_new_tokens_first
    assert second["max_tokens"] == AGENT.max_new_tokens
    assert set(school.keys) == {"Bearer secret"}
    assert len({asked["seed"] for asked in (first, second, third)}) == 3
    assert EMMA.text in first["messages"][0]["content"]
    assert second["messages"][1]["content"] == "I look. <search>Emma (novel)</search>"
    assert second["messages"][2]["content"].startswith('<result>\nResult 1: "Emma (novel)"\nEmma is a novel')
    read = read_experts(made.write(tmp_path), EMMA_PROTOCOL, key="data.experts")
    assert [move.action for move in read[0].moves] == [
        "I look. <search>Emma (novel)</search>",
        "<search> Jane Austen </search>",
        "So <answer>Steventon</answer>",
    ]
    assert "secret" not in (tmp_path / "experts_report.json").read_text()


def test_what_the_policy_couldnt_have_done_is_not_kept(make, school):
    school.scripts = [
        ["<search>a", "<search>b", "<search>Emma (novel)", "<search>Jane Austen", "<answer>Steventon"],
        [("I think and think", "length")],
    ]
    made = make(EMMA, teacher=teacher(school.port, episodes=2))
    assert made.refused == {Why.LIMIT: 1, Why.UNANSWERED: 1}
    assert why(made)["emma"] in made.refused


@pytest.mark.parametrize("code", [401, 404])
def test_an_endpoint_that_refuses_everything_is_the_users_mistake(make, school, code):
    school.scripts = [[(code, "no")] * 9]
    with pytest.raises(UserError, match=rf"experts\.teacher\.url=.* HTTP {code} .*TEACHER_KEY"):
        make(EMMA, teacher=teacher(school.port))
    assert len(school.asked) < 4, "it isn't asked for every episode"


@pytest.mark.parametrize("code", [400, 422])
def test_an_endpoint_that_takes_no_setting_of_ours_is_the_users_mistake(make, school, code):
    message = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )
    school.scripts = [[(code, json.dumps({"error": {"message": message, "param": "max_tokens"}}))] * 9]
    said = rf"experts\.teacher\.model=a-teacher: .* HTTP {code} .*{message}.*; temperature, .*: name a model that takes"
    with pytest.raises(UserError, match=said):
        make(EMMA, teacher=teacher(school.port))
    assert len(school.asked) < 4, "it isn't asked for every episode"


@pytest.mark.parametrize("code", [400, 422])
def test_a_text_that_isnt_taken_is_a_fault(make, school, code):
    school.scripts = [[(code, json.dumps({"error": {"message": "flagged"}}))], [*RIGHT]]
    made = make(EMMA, teacher=teacher(school.port, episodes=2))
    assert (len(made.experts), len(made.faults)) == (1, 1), "it says nothing of the others"
    assert "flagged" in made.faults[0]


def test_a_teacher_is_told_what_the_policy_is_told(make, school, tmp_path):
    (tmp_path / "own.txt").write_text("{tools}\nNow: {question}")
    for agent, begins in (
        (replace(AGENT, prompt=str(tmp_path / "own.txt")), "<search> query </search>: Searches"),
        (replace(AGENT, prompt="plain"), "Answer the question below."),
        (replace(AGENT, prompt=str(tmp_path / "own.txt"), format="tools"), "Answer the question below."),
    ):
        school.scripts, school.asked = [[*RIGHT]], []
        assert len(make(EMMA, agent=agent, teacher=teacher(school.port, episodes=1)).experts) == 1
        assert school.asked[0]["messages"][0]["content"].startswith(begins)


def test_an_endpoint_that_is_gone_ends_the_making_and_is_no_wrong_answer(make, monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "Endpoint", functools.partial(Endpoint, pause_s=0.0))
    twins = [replace(EMMA, id=f"e{i}") for i in range(30)]
    made = make(*twins, teacher=teacher(9, episodes=2, tries=2))  # nothing listens on the port "discard"
    assert (made.tried, made.episodes, len(made.faults)) == (20, 40, 40), "a question counts once"
    assert not made.refused
    assert set(why(made).values()) == {Why.FAULT}
    assert "ConnectError" in made.broken
    unnamed = [replace(EMMA, id=f"u{i}", supporting=()) for i in range(30)]
    made = make(*twins, *unnamed, teacher=teacher(9, episodes=2, tries=2))
    assert made.episodes == 40, "a question that can't be tried tells nothing of the endpoint"
    from actors.experts import write

    with pytest.raises(Fault, match="ended early: nothing but faults came of the last 20 questions"):
        write(made, tmp_path)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("no json", "no chat completion: 'no json'"),
        ('{"choices": []}', "no chat completion"),
        ('{"choices": [{"message": {"content": null}}]}', "the reply has no text"),
        ('{"choices": [{"message": {"content": null}, "finish_reason": "tool_calls"}]}', "the reply has no text"),
        (
            '{"choices": [{"message": {"content": null, "tool_calls": [1]}, "finish_reason": "stop"}]}',
            "the reply has no text",
        ),
        ('{"choices": [{"message": {"content": [{"type": "text"}]}, "finish_reason": "stop"}]}', "no chat completion"),
        ('{"choices": [{"message": {"content": ["x"]}, "finish_reason": "stop"}]}', "the reply is no chat completion"),
        ('{"choices": [{"message": {"content": "\\ud83d <search>x"}}]}', "half a surrogate pair"),
        ('{"choices": [{"message": {"content": "<answer>Jane Aus"}}]}', "no finish_reason: it was cut"),
        (
            '{"choices": [{"message": {"content": "<search>Em"}, "finish_reason": null}]}',
            "no finish_reason: it was cut",
        ),
        ("[" * 100_000, "no chat completion"),
        ('{"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}', "'content_filter'"),
    ],
)
def test_a_reply_that_is_none_is_a_fault(make, school, body, said):
    school.scripts = [[(200, body)]]
    made = make(EMMA, teacher=teacher(school.port, episodes=1))
    assert said in made.faults[0]
    assert not made.refused


@pytest.mark.parametrize("count", ["12a", None, [], -3, 1e999, {"total": 3}])
def test_a_count_of_tokens_that_is_no_number_is_none_and_no_fault(monkeypatch, count):
    choice = {"message": {"content": "x"}, "finish_reason": "stop"}
    reply = asked_of(monkeypatch, {"choices": [choice], "usage": {"completion_tokens": count}})
    assert (reply.text, reply.tokens) == ("x", 0)


@pytest.mark.parametrize(
    "trouble",
    [
        {"error": {"code": 503, "message": "overloaded"}},
        {"error": {"code": "503"}},
        {"choices": [{"message": {"content": "I lo"}, "error": {"code": 502}, "finish_reason": "error"}]},
        {"choices": [{"message": {"content": "I lo"}, "finish_reason": "error"}]},
    ],
)
def test_an_error_inside_http_200_is_waited_for_as_the_same_code_is(monkeypatch, trouble):
    good = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
    assert asked_of(monkeypatch, trouble, good).text == "hello"


def test_an_endpoint_may_be_waited_for_as_long_as_one_likes(monkeypatch):
    good = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
    assert asked_of(monkeypatch, *[{"error": {"code": 503}}] * 1100, good, tries=1101).text == "hello"


def test_an_error_inside_http_200_that_wont_pass_is_told_with_its_code(monkeypatch):
    with pytest.raises(EndpointError, match="HTTP 200 OK with the error 401: 'no such key'") as caught:
        asked_of(monkeypatch, {"error": {"code": 401, "message": "no such key"}})
    assert caught.value.code == 401


def test_as_many_requests_are_open_as_are_asked_and_none_waits_against_its_time_out():
    async def ask() -> None:
        async with Endpoint("http://x/v1", "m", timeout_s=7.0) as endpoint:
            assert endpoint._client.timeout.pool is None
            assert endpoint._client.timeout.read == 7.0
            assert endpoint._client._transport._pool._max_connections > 10_000

    asyncio.run(ask())


def test_a_reply_in_parts_is_its_text(monkeypatch):
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm. <search>no</search>"}]},
        {"type": "text", "text": "I look. "},
        {"type": "text", "text": "<search>Emma (novel)</search>"},
    ]
    for content, text in ((parts, "I look. <search>Emma (novel)</search>"), (parts[:1], "")):
        choice = {"message": {"content": content}, "finish_reason": "stop"}
        assert asked_of(monkeypatch, {"choices": [choice]}).text == text


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_thoughts_that_never_end_are_a_turn_without_text(make, school, finish):
    """A server with a parser of thoughts has none of them in the content."""
    choice = {"message": {"content": None, "reasoning_content": "Hm. Hm."}, "finish_reason": finish}
    school.scripts = [[(200, json.dumps({"choices": [choice]}))]]
    made = make(EMMA, teacher=teacher(school.port, episodes=1))
    assert (made.faults, made.refused) == ([], {Why.UNANSWERED: 1})


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ({"stop_reason": None}, 0),
        ({"stop_reason": 151645}, 0),
        ({"stop_reason": "</search>"}, 1),
        ({"stop_reason": "stop"}, 1),
    ],
)
def test_a_tag_that_the_model_left_open_stays_open_where_the_endpoint_tells(make, school, told, kept):
    choice = {"message": {"content": "I look. <search>Emma (novel)"}, "finish_reason": "stop", **told}
    school.scripts = [[(200, json.dumps({"choices": [choice]})), "<search>Jane Austen", "<answer>Steventon"]]
    made = make(EMMA, teacher=teacher(school.port, episodes=1))
    assert (len(made.experts), made.faults) == (kept, [])


def test_a_request_that_is_refused_after_others_were_answered_is_a_fault(make, school):
    """Some hosts refuse a flagged text with 403; what was made before stays."""
    school.scripts = [[*RIGHT], [(403, "flagged")], [*RIGHT]]
    made = make(EMMA, replace(EMMA, id="b"), replace(EMMA, id="c"), teacher=teacher(school.port, episodes=1))
    assert (len(made.experts), len(made.faults), made.broken) == (2, 1, "")
    assert "HTTP 403" in made.faults[0]


def test_a_making_that_is_stopped_keeps_what_there_is(make, school):
    def stop(done: int, total: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    school.scripts = [[*RIGHT], [*RIGHT]]
    made = make(EMMA, replace(EMMA, id="b"), teacher=teacher(school.port, episodes=1), told={"progress": stop})
    assert (len(made.experts), made.broken) == (1, "it was stopped")


def test_what_a_teacher_has_earned_is_on_disk_before_more_is_asked(make, school, tmp_path, monkeypatch):
    """Whatever ends the process then: it is paid for."""
    (tmp_path / FILE).touch()
    there, reply = [], School.reply

    def counted(state: School, body: dict) -> tuple[int, str]:
        if len(body["messages"]) == 1:
            there.append((tmp_path / FILE).read_text().count('"id": '))
        return reply(state, body)

    monkeypatch.setattr(School, "reply", counted)
    school.scripts = [[*RIGHT] for _ in range(3)]
    questions = [replace(EMMA, id=name) for name in "abc"]
    made = make(*questions, teacher=teacher(school.port, episodes=1), told={"keep": Kept(tmp_path)})
    assert there == [0, 1, 2]
    kept = (tmp_path / FILE).read_text()
    assert made.write(tmp_path).read_text() == kept
    with pytest.raises(UserError, match=r"experts\.jsonl: is there already, of another making, and would be replaced"):
        Kept(tmp_path)
    assert (tmp_path / FILE).read_text() == kept


@pytest.mark.parametrize(
    ("count", "episodes", "replies", "played"),
    [
        (1, 1, RIGHT, 1),
        (2, 4, RIGHT, 8),  # of a question one is taken, since all have its queries: another question is asked
        (1, 2, ["I know it."], 12),
    ],
)
def test_no_more_is_asked_of_a_teacher_than_is_wanted(make, school, monkeypatch, count, episodes, replies, played):
    """However many episodes may be under way."""

    def by_its_place(body: dict) -> tuple[int, str]:
        return School(scripts=[[replies[len(body["messages"]) // 2]]]).reply(body)

    monkeypatch.setattr(school, "reply", by_its_place)
    questions = [replace(EMMA, id=name) for name in "abcdef"]
    made = make(*questions, count=count, teacher=teacher(school.port, parallel=8, episodes=episodes))
    assert (made.episodes, len(made.experts)) == (played, count if replies == RIGHT else 0)


def test_ids_of_a_questions_other_episodes_are_nobody_elses(make, school):
    again: list[Reply] = ["<search>Emma novel", "Again. <search>Jane Austen born", "<answer>Steventon"]
    school.scripts = [[*RIGHT], [*again], [*RIGHT], [*again]]
    made = make(EMMA, replace(EMMA, id="emma#2"), teacher=teacher(school.port, episodes=2))
    assert len({e.written.row["id"] for e in made.experts}) == len(made.experts) == 4


def asked_of(monkeypatch, *bodies: Any, tries: int = 3) -> Any:
    """What a client makes of an endpoint that answers HTTP 200 with each of ``bodies`` in turn, or with a response."""
    import httpx

    replies = [b if isinstance(b, httpx.Response) else httpx.Response(200, content=json.dumps(b)) for b in bodies]

    async def post(self, url, json):
        return replies.pop(0)

    async def ask() -> Any:
        async with Endpoint("http://x/v1", "m", pause_s=0.0, tries=tries) as endpoint:
            return await endpoint.chat([])

    monkeypatch.setattr(httpx.AsyncClient, "post", post)
    return asyncio.run(ask())


def test_where_an_endpoint_sends_on_to_is_told(monkeypatch):
    import httpx

    moved = httpx.Response(308, headers={"Location": "https://x/v1/chat/completions?key=secret"})
    with pytest.raises(EndpointError, match=r"HTTP 308 .* \(it sends on to https://x/v1/chat/completions\)$"):
        asked_of(monkeypatch, moved)


def test_a_refusal_is_read_whatever_character_set_it_says_that_it_has(monkeypatch):
    import httpx

    page = httpx.Response(400, headers={"Content-Type": "text/html; charset=utf-16"}, content=b"<p>no.</p>")
    with pytest.raises(EndpointError, match=r"HTTP 400 Bad Request: '<p>no.</p>'$"):
        asked_of(monkeypatch, page)


def test_a_wait_that_the_endpoint_asks_for_is_kept(monkeypatch):
    import httpx

    replies = [httpx.Response(429, headers={"Retry-After": "7"}), httpx.Response(502)]
    good = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async def post(self, url, json):
        return replies.pop(0) if replies else httpx.Response(200, json=good)

    async def ask() -> str:
        async with Endpoint("http://x/v1", "m", pause_s=2.0) as endpoint:
            return (await endpoint.chat([])).text

    # In that module alone: a server of another test may sleep meanwhile, too.
    monkeypatch.setattr("tasks.making.endpoint.asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(httpx.AsyncClient, "post", post)
    assert asyncio.run(ask()) == "hello"
    assert waited == [7.0, 4.0]


STOP = ("</search>", "</answer>")


@pytest.mark.parametrize(
    ("said", "finish", "turned"),
    [
        ("<search>a", Finish.STOP, "<search>a</search>"),
        ("so <answer>b", Finish.STOP, "so <answer>b</answer>"),
        ("<search>a</search><result>mine</result><answer>b</answer>", Finish.STOP, "<search>a</search>"),
        ("<search>a", Finish.LENGTH, "<search>a"),
        (" I don't know. ", Finish.STOP, "I don't know."),
    ],
)
def test_a_reply_is_one_turn(said, finish, turned):
    assert turn(said, EMMA_PROTOCOL, STOP, finish) == turned


@pytest.mark.parametrize(
    ("stopped_by", "turned"), [("</search>", "<search>a</search>"), ("</answer>", "<search>a"), ("", "<search>a")]
)
def test_only_the_tag_that_ended_a_reply_is_added(stopped_by, turned):
    assert turn("<search>a", EMMA_PROTOCOL, STOP, Finish.STOP, stopped_by) == turned


@pytest.mark.parametrize(
    ("said", "finish", "turned"),
    [
        (r"So it is \boxed{the {x}}. I am sure.", Finish.STOP, r"So it is \boxed{the {x}}"),
        (r"$\boxed{a}$", Finish.STOP, r"$\boxed{a}"),
        (r"It may be \boxed{a}. <begin_search>b", Finish.STOP, r"It may be \boxed{a}. <begin_search>b</end_search>"),
        (r"So \boxed{a}. And", Finish.LENGTH, r"So \boxed{a}. And"),
    ],
)
def test_a_braced_answer_ends_a_reply(said, finish, turned):
    """What a model writes behind it, a full stop say, is in no episode's form."""
    protocol = PROTOCOLS["autocoa"]
    assert turn(said, protocol, protocol.stop, finish) == turned
