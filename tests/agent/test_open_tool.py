"""The open tool by hand: which document is meant, where it is read on from, and what it can't open."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agent.config import AgentConfig
from agent.environment import Environment
from agent.errors import RetrievalError
from agent.records import Call, Passage, Question, Repeat, StopReason, Turn
from agent.tools.base import Request, Situation
from agent.tools.open import END_NOTICE, LIMIT, LIMIT_NOTICE, UNKNOWN_NOTICE

TOP_K = 2
BOOKS = {"Emma": 5, "1984": 3, "": 2}
QUESTION = Question(id="q", text="Who?", golden_answers=("x",))


class Shelf:
    """Documents of several passages; the two without a title are parts of one file."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.passages = [
            Passage(id=f"{title or 'file'}#{n}", title=title, text=f"part {n}")
            for title, parts in BOOKS.items()
            for n in range(parts)
        ]

    async def search(self, query: str, k: int) -> tuple[Passage, ...]:
        return tuple(next(p for p in self.passages if p.id == f"{name}#0") for name in query.split())

    async def following(self, document_id: str, k: int) -> tuple[Passage, ...]:
        assert k <= TOP_K, "a server refuses more than a search may ask for"
        self.asked.append(document_id)
        if document_id.startswith("1984"):
            raise RetrievalError("the index is gone")
        name, _, number = document_id.partition("#")
        rest = [p for p in self.passages if p.id.startswith(f"{name}#") and int(p.id.partition("#")[2]) > int(number)]
        return tuple(rest[:k])


def shown(*documents: str, tool: str = "search", **more) -> Turn:
    titles = tuple("" if d.startswith("file") else d.partition("#")[0] for d in documents)
    call = Call(tool=tool, argument="x", document_ids=documents, titles=titles, **more)
    return Turn(action_start=0, action_end=1, observation_end=2, text="", calls=(call,))


def both(one: Turn, other: Turn) -> Turn:
    """A turn with the calls of both."""
    return replace(one, calls=(*one.calls, *other.calls))


def read_on(document: str, *turns: Turn):
    shelf = Shelf()
    environment = Environment.of(AgentConfig(tools=["search", "open"], top_k=TOP_K), shelf)
    request = Request(tool="open", arguments={"document": document})
    response = asyncio.run(environment.respond([request], Situation(turns=turns, max_searches=1)))
    (result,) = response.results
    return [p.id for p in result.passages] or result.notice or response.stop, shelf.asked


@pytest.mark.parametrize(
    ("document", "turns", "after", "found"),
    [
        ("Emma", [shown("1984#0", "Emma#0")], "Emma#0", ["Emma#1", "Emma#2"]),
        (' "emma" ', [shown("Emma#0")], "Emma#0", ["Emma#1", "Emma#2"]),
        ("2", [shown("1984#0", "Emma#0")], "Emma#0", ["Emma#1", "Emma#2"]),
        ("1", [shown("Emma#0"), shown("file#0")], "file#0", ["file#1"]),
        # It reads on from the last passage that was shown, wherever that was.
        ("Emma", [shown("Emma#0"), shown("Emma#1", "Emma#2", tool="open")], "Emma#2", ["Emma#3", "Emma#4"]),
        ("1", [shown("Emma#2"), shown("Emma#0")], "Emma#0", ["Emma#1", "Emma#2"]),
        ("Emma", [shown("Emma#4")], "Emma#4", END_NOTICE),
        # A document without a title goes by its passages' ids, wherever it was read on.
        ("1", [shown("file#0"), shown("file#1", tool="open")], "file#1", END_NOTICE),
        # A number is that of the last block of results, and not of one that was withheld.
        ("1", [shown("Emma#0"), shown("file#0", repeat=Repeat.EVIDENCE)], "Emma#0", ["Emma#1", "Emma#2"]),
        ("1", [both(shown("file#0"), shown("Emma#0"))], "Emma#0", ["Emma#1", "Emma#2"]),
    ],
)
def test_a_document_is_read_on_from_what_was_shown_of_it(document, turns, after, found):
    assert read_on(document, *turns) == (found, [after])


def test_a_title_goes_before_a_number():
    assert read_on("1984", shown("1984#0"))[0] is StopReason.RETRIEVAL_FAILED


@pytest.mark.parametrize(
    ("document", "turns"),
    [
        ("Emma", []),
        ("Persuasion", [shown("Emma#0")]),
        ("Emma#0", [shown("1984#0")]),
        ("0", [shown("Emma#0")]),
        ("2", [shown("Emma#0")]),
        ("1" * 5000, [shown("Emma#0")]),
        ("-1", [shown("Emma#0")]),
        ("", [shown("file#0")]),
        ("\u00b2", [shown("Emma#0")]),
    ],
)
def test_what_no_search_has_shown_cannot_be_opened(document, turns):
    assert read_on(document, *turns) == (UNKNOWN_NOTICE, [])


def test_two_calls_of_one_document_in_a_turn_read_on_one_after_the_other():
    environment = Environment.of(AgentConfig(tools=["search", "open"], top_k=TOP_K, max_parallel=3), Shelf())
    requests = [Request(tool="open", arguments={"document": name}) for name in ("Emma", "1", "file")]
    turns = [shown("file#0"), shown("Emma#0")]
    response = asyncio.run(environment.respond(requests, Situation(turns=turns, max_searches=1)))
    found = [[p.id for p in result.passages] or result.notice for result in response.results]
    assert found == [["Emma#1", "Emma#2"], ["Emma#3", "Emma#4"], UNKNOWN_NOTICE]


def test_openings_have_a_limit_of_their_own_and_are_no_searches():
    turns = [shown("Emma#0"), *[shown("Emma#1", tool="open")] * LIMIT]
    assert read_on("Emma", *turns) == (LIMIT_NOTICE, [])
    assert sum(turn.searches for turn in turns) == 1


def test_an_episode_opens_what_it_found(play_script):
    played = play_script(
        ["<search>Emma</search>", "<open>Emma</open>", "<open>Austen</open>", "<answer>x</answer>"],
        library=Shelf(),
        tools=["search", "open"],
        top_k=1,
    )
    t = played.trajectory
    assert (t.stop_reason, t.searches) == (StopReason.ANSWERED, 1)
    assert [turn.document_ids for turn in t.turns] == [("Emma#0",), ("Emma#1",), (), ()]
    assert '<result>\nResult 1: "Emma"\npart 1\n</result>' in played.text
    assert UNKNOWN_NOTICE in played.text
    prompt = played.codec.decode(t.prompt_ids)
    assert "<open> document </open>: Reads on in a document" in prompt
    assert "<open>" not in played.codec.decode(
        played.dialogue.observation_ids([Passage(id="d", title="", text="<open>")])
    )


def test_search_r1s_results_stand_between_its_own_tags(play_script):
    played = play_script(
        ["<search>Emma</search>", "<answer>x</answer>"], library=Shelf(), protocol="search_r1", top_k=1
    )
    assert '\n<information>\nDoc 1: "Emma"\npart 0\n</information>\n' in played.text
    prompt = played.codec.decode(played.trajectory.prompt_ids)
    assert "between <information> and </information>" in prompt
    assert "<result>" not in prompt + played.text


def test_without_the_tool_its_tags_are_text(play_script):
    t = play_script(["<open>Emma</open>"], library=Shelf()).trajectory
    assert (t.stop_reason, t.turns[0].calls) == (StopReason.NO_ACTION, ())
