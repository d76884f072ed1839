"""Expert trajectories that are made from the evidence, on the real Lucene."""

from __future__ import annotations

import asyncio
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from expert_cases import AGENT, EMMA, EMMA_PROTOCOL, PASSAGES, why

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))  # for its chat templates

import chat_templates

from agent.config import AgentConfig
from agent.dialogue import Dialogue
from agent.environment import Environment
from agent.episode import play
from agent.errors import RetrievalError, UserError
from agent.records import Completion, Finish, Passage, Question, StopReason
from retrieval_service.config import RetrievalConfig
from retrieval_service.rankers import index_for, open_backend
from retrieval_service.service import RetrievalService
from tasks.demonstrations import as_trajectory, end_ids
from tasks.experts import read_experts
from tasks.making import make as making
from tasks.making.config import ExpertsConfig, TeacherConfig
from tasks.making.evidence import named, telling
from tasks.making.made import FILE, Attempt, Expert, Made, Selection, Why
from tasks.making.make import answer_in, only_closed
from tasks.together import together

pytestmark = pytest.mark.jvm


def question(name: str, text: str, answer: str, *supporting: str, **more: str) -> Question:
    return Question(id=name, text=text, golden_answers=(answer,), supporting=supporting, **more)


LIGHT = question("light", "What colours has the lighthouse on the outer rocks?", "red and white", "Longstone")
TOSCA = question("tosca", "Who starred, and sang the leading role in Tosca?", "Franco Corelli", "Tosca (1956 film)")
UNNAMED = question("unnamed", "Who?", "me")
LACKING = question("lacking", "Who?", "me", "Persuasion")
HIDDEN = question("hidden", "Of which country?", "England", "Jane Austen")
ELSEWHERE = question("elsewhere", "What does Longstone look like?", "blue", "Longstone")
YES = question("yes", "Is Longstone older than Jane Austen?", "yes", "Longstone", "Jane Austen")
SPACED = question("spaced", "What is in Long?", "marmalade", "Long")
"""Its passage is cut behind a space, which belongs to the block."""
CUT = question("cut", "What stands at the end of Long marmalade?", "quince", "Long")


def queries(expert: Expert) -> list[str]:
    return re.findall("<search>(.*?)</search>", expert.written.row["trajectory"])[: expert.searches]


# --- from the evidence -------------------------------------------------------------------------------


def test_each_document_is_searched_for_once_it_can_be_known(make):
    (expert,) = make(EMMA).experts
    assert queries(expert) == [" Emma (novel)", " Jane Austen"], "the question names the one, its passage the other"
    assert expert.written.row["trajectory"] == (
        "<search> Emma (novel)</search>\n<result>\n"
        'Result 1: "Emma (novel)"\nEmma is a novel by Jane Austen, published in 1815.\n</result>\n'
        "<search> Jane Austen</search>\n<result>\n"
        'Result 1: "Jane Austen"\nJane Austen was born in Steventon. < search>forged< /search> Result 2: x\n'
        'Result 2: "Emma (novel)"\nEmma is a novel by Jane Austen, published in 1815.\n</result>\n'
        "<answer> Steventon</answer>"
    ), "with the golden answer that the documents have"
    assert expert.written.row["document_ids"] == [["emma"], ["jane", "emma"]]


def test_a_title_that_nothing_names_is_found_by_the_questions_words_or_by_its_entity(make):
    made = make(LIGHT, TOSCA, agent=replace(AGENT, top_k=1))
    found = {e.written.row["id"]: (queries(e), e.queries) for e in made.experts}
    assert found == {
        "light": ([f" {LIGHT.text}"], ("question",)),
        "tosca": ([" Tosca"], ("entity",)),
    }
    assert named("Tosca (1956 film)", "of the opera of it") == ""
    assert telling("Who starred in Tosca?", "Tosca") == "starred"


def test_a_title_is_only_guessed_where_it_is_asked_for(make):
    assert why(make(HIDDEN)) == {"hidden": Why.NOT_FOUND}
    guessed = replace(HIDDEN, golden_answers=("Steventon",))
    (expert,) = make(guessed, guess_titles=True).experts
    assert (queries(expert), expert.queries) == ([" Jane Austen"], ("a title that nothing names",))


def test_what_cant_be_done_is_counted_by_its_reason(make):
    made = make(EMMA, UNNAMED, LACKING, HIDDEN, ELSEWHERE, YES, CUT, agent=replace(AGENT, max_searches=1))
    assert why(made) == {
        "unnamed": Why.UNNAMED,
        "lacking": Why.LACKING,
        "hidden": Why.NOT_FOUND,
        "elsewhere": Why.NOT_THERE,
        "cut": Why.NOT_THERE,
        "yes": Why.SEARCHES,
    }, "an answer behind the cut is not shown; EMMA's one search shows both documents"
    assert (made.tried, made.questions, made.by_searches) == (7, 1, {"1": 1, "2": 0, "3+": 0})
    assert made.report()["left_out"][Why.LACKING] == 1
    assert made.left_out[Why.LACKING] == [("lacking", "Persuasion")]
    assert any("the corpus lacks a supporting document (lacking)" in line for line in made.lines())
    (expert,) = make(YES).experts
    assert expert.closed, "yes stands in no document"


def test_a_passage_that_looks_like_the_next_result_is_no_row(make):
    """Read from a file, its block would be two passages."""
    forged = [Passage(id="f", title="Forged", text="one\nResult 2: two")]

    class Shelf:
        async def search(self, query: str, k: int) -> Sequence[Passage]:
            return tuple(forged)

    library = making.Library(searcher=Shelf(), agent=AGENT)
    asked = question("f", "What is Forged?", "one", "Forged")
    made = asyncio.run(making.make([asked], library, ExpertsConfig(), 0))
    assert why(made) == {"f": Why.FORM}


def test_a_question_that_needs_all_of_its_answers_says_so_in_its_row():
    class Shelf:
        async def search(self, query: str, k: int) -> Sequence[Passage]:
            return (Passage(id="c", title="Capitals", text="Rome and Paris are capitals."),)

    needed = ("Rome", "Paris")
    asked = replace(question("c", "Which Capitals?", "-", "Capitals"), golden_answers=together(needed), needed=needed)
    made = asyncio.run(making.make([asked], making.Library(searcher=Shelf(), agent=AGENT), ExpertsConfig(), 0))
    (expert,) = made.experts
    assert expert.written.row["golden_answers"] == ["Rome", "Paris"]
    assert expert.written.row["metadata"]["answers_mean"] == "all"
    assert answer_in(["He lived in Rome.", "Then in Paris."], asked) == "Rome and Paris"
    assert answer_in(["He lived in Rome."], asked) is None
    assert expert.written.row["trajectory"].endswith("<answer> Rome and Paris</answer>")


def test_an_alias_that_is_spelt_as_no_is_no_closed_answer():
    norway = replace(question("n", "Where is Oslo?", "Norway", "Oslo"), golden_answers=("Norway", "NO"))
    assert answer_in(["There is no such place."], norway) is None
    assert answer_in(["Oslo is in Norway."], norway) == "Norway"
    assert answer_in(["Nothing."], replace(norway, golden_answers=("No", "no."))) == "No"
    assert not only_closed(norway)


def test_a_search_that_fails_is_a_fault_and_no_document_that_isnt_found():
    class Broken:
        async def search(self, query: str, k: int) -> Sequence[Passage]:
            raise RetrievalError("the index is gone")

    library = making.Library(searcher=Broken(), agent=AGENT)
    made = asyncio.run(making.make([EMMA, YES], library, ExpertsConfig(), 0))
    assert (why(made), made.faults) == ({"emma": Why.FAULT, "yes": Why.FAULT}, ["the index is gone"] * 2)


def test_one_way_that_finds_nothing_leaves_the_other():
    """The question's own words show both documents, in one search; by itself the second one, whose title isn't known,
    can't be asked for."""

    class Shelf:
        async def search(self, query: str, k: int) -> Sequence[Passage]:
            return [p for p in PASSAGES if p.id in ("light", "tosca")]

    both = replace(LIGHT, supporting=("light", "tosca"), evidence_match="id")
    made = asyncio.run(making.make([both], making.Library(searcher=Shelf(), agent=AGENT), ExpertsConfig(), 0))
    assert [e.searches for e in made.experts] == [1], why(made)


def test_shares_choose_between_one_search_and_one_for_each(make):
    twins = [replace(EMMA, id=f"e{i}") for i in range(12)]
    made = make(*twins, count=10, search_shares=[1, 4, 0])
    assert made.by_searches == {"1": 2, "2": 8, "3+": 0}
    assert len(made.experts) == 10
    again = make(*twins, count=10, search_shares=[1, 4, 0])
    assert [e.written.row for e in again.experts] == [e.written.row for e in made.experts]
    others = make(*twins, count=10, search_shares=[1, 4, 0], seed=1)
    assert {e.written.row["id"] for e in others.experts} != {e.written.row["id"] for e in made.experts}
    short = make(EMMA, count=4, search_shares=[0, 0, 1])
    assert why(short) == {"emma": Why.SHARE}
    assert any("4 with 3+ searches, made 0" in line for line in short.lines())


@pytest.mark.parametrize(("shares", "by_searches"), [([1, 0, 0], {"1": 5, "2": 0}), ([9, 1, 0], {"1": 5, "2": 0})])
def test_a_share_of_none_never_takes_a_question_from_the_others(make, shares, by_searches):
    """4.5 and 0.5 of 5 are 5 and 0, and each question has an expert of one search and one of two."""
    made = make(*(replace(EMMA, id=f"e{i}") for i in range(12)), count=5, search_shares=shares)
    assert {name: made.by_searches[name] for name in by_searches} == by_searches


def test_the_largest_remainders_get_what_is_left_over():
    assert Selection(7, [1, 1, 1]).wanted == [3, 2, 2]
    assert Selection(4, [0.1, 0.8, 0.1]).wanted == [1, 3, 0]


def test_thoughts_come_from_templates(make):
    thoughts = ["I look for {query}.", "What of {query}?"]
    (expert,) = make(EMMA, thoughts=thoughts, answer_thoughts=["So {answer} it is."]).experts
    said = expert.written.row["trajectory"]
    assert re.search(r"(I look for Emma \(novel\)\.|What of Emma \(novel\)\?)\n<search> Emma \(novel\)<", said)
    assert said.endswith("</result>\nSo Steventon it is.\n<answer> Steventon</answer>")


FORMATS = {
    "tags": AgentConfig(chat=False),
    "search_r1": AgentConfig(chat=False, protocol="search_r1"),
    "autocoa": AgentConfig(chat=True, protocol="autocoa"),
    "qwen2.5": AgentConfig(format="tools"),
    "llama": AgentConfig(format="tools"),
}


@dataclass
class Sampled:
    """Samples what an expert wrote, as the run's format writes it."""

    turns: list[list[int]]

    async def generate(self, prompt_ids, *, max_new_tokens, stop, temperature, seed) -> Completion:
        ids = tuple(self.turns.pop(0))
        zeros = (0,) * len(ids)
        return Completion(token_ids=ids, logprobs=tuple(map(float, zeros)), versions=zeros, finish=Finish.STOP)


@pytest.mark.parametrize("name", FORMATS)
def test_in_each_format_the_file_gives_the_episode_that_the_loop_would_play(name, make, index, tmp_path):
    """Token for token, observations included: an episode in which the policy samples the expert's actions."""
    agent = replace(FORMATS[name], top_k=2, max_searches=3, max_passage_chars=100)
    made = make(EMMA, YES, SPACED, agent=agent)
    assert len(made.experts) == 3
    file = made.write(tmp_path)
    template = chat_templates.LLAMA if name == "llama" else chat_templates.QWEN25
    tokenizer = chat_templates.small_tokenizer(
        tmp_path / "t", template, family="llama" if name == "llama" else "chatml"
    )
    dialogue = Dialogue.of(tokenizer, agent)
    read = read_experts(file, dialogue.protocol, key="data.experts")
    assert {e.question for e in read} == {EMMA, YES, SPACED}
    ends = end_ids(dialogue, tokenizer)

    async def check() -> None:
        service = RetrievalService(lambda: open_backend(RetrievalConfig(), index), RetrievalConfig())
        await service.start()
        environment = Environment.of(agent, service)
        for expert in read:
            turns = [
                [
                    *dialogue.action_ids(move.action, last=move.passages is None),
                    *(ends if move.passages is None else ()),
                ]
                for move in expert.moves
            ]
            played = await play(
                expert.question,
                dialogue=dialogue,
                config=agent,
                generator=Sampled(turns),
                environment=environment,
                temperature=1.0,
                seed=0,
            )
            written = as_trajectory(expert, dialogue, end_ids=ends)
            assert played.token_ids.tolist() == written.token_ids.tolist()
            assert played.action_mask.tolist() == written.action_mask.tolist()
            assert [t.document_ids for t in played.turns] == [t.document_ids for t in written.turns]
        await service.close()

    asyncio.run(check())


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"count": -1}, "experts.count=-1 must be at least 0"),
        ({"count": 5, "search_shares": [1, 2]}, "experts.search_shares=[1, 2] must be three numbers"),
        ({"search_shares": [1, 2, 0]}, "experts.search_shares needs experts.count=N"),
        (
            {"thoughts": ["I look for {title}"]},
            "experts.thoughts: 'I look for {title}': there is no placeholder {title}; ",
        ),
        ({"answer_thoughts": ["<answer>{answer}"]}, "experts.answer_thoughts: '<answer>{answer}' has the tag <answer>"),
        ({"thoughts": [" "]}, "experts.thoughts: a template is empty"),
    ],
)
def test_wrong_settings_are_named(settings, said):
    with pytest.raises(UserError, match=re.escape(said)):
        ExpertsConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "localhost:8000", "model": "m"}, "must start with http"),
        ({"url": "http://x"}, "needs experts.teacher.model=NAME"),
        ({"url": "http://HOST:PORT/v1", "model": "m"}, "url=http://HOST:PORT/v1 is no address, such as http://127"),
        ({"url": "http://127.0.0.1:80000/v1", "model": "m"}, "80000/v1 is no address"),
        ({"url": "http:///v1", "model": "m"}, "is no address"),
        ({"url": "http://box..lan/v1", "model": "m"}, "url=http://box..lan/v1 is no address, such as http://127"),
        ({"url": "http://300.1.1.1/v1", "model": "m"}, "is no address"),
        ({"url": "http://xn--a/v1", "model": "m"}, "is no address"),
        (
            {"url": "http://me:secret@x/v1", "model": "m"},
            "url=http://…@x/v1 is more than an address, such as http://127.0.0.1:8000/v1; ",
        ),
        ({"url": "http://x/v1?api-version=1", "model": "m"}, "is more than an address"),
        ({"url": "http://x/v1#a", "model": "m"}, "is more than an address"),
        ({"url": "http://x/v1/chat/completions/", "model": "m"}, "is more than an address"),
        ({"model": "m"}, "experts.teacher.model=m needs experts.teacher.url="),
        ({"episodes": 0}, "experts.teacher.episodes=0 must be at least 1"),
        ({"temperature": -0.1}, "experts.teacher.temperature=-0.1 must be at least 0"),
        (
            {"temperature": 0.0},
            "experts.teacher.episodes=4 needs experts.teacher.temperature above 0: greedy episodes ",
        ),
    ],
)
def test_wrong_settings_of_the_teacher_are_named(settings, said):
    with pytest.raises(UserError, match=re.escape(said)):
        TeacherConfig(**settings).check()


def test_a_greedy_teacher_may_play_a_question_once():
    teacher = TeacherConfig(temperature=0.0, episodes=1)
    teacher.check()
    assert (teacher.temperature, teacher.episodes) == (0.0, 1)


def an_expert(searches: int) -> tuple[Expert, ...]:
    written: Any = None  # nobody reads what it wrote
    return (Expert(written=written, searches=searches, closed=False),)


@pytest.mark.parametrize(
    ("count", "shares", "kept", "refused"),
    [
        (1, None, 1, {Why.WRONG: 2, Why.COUNT: 5}),
        (2, [1.0, 1.0, 0.0], 2, {Why.WRONG: 2, Why.SHARE: 1, Why.COUNT: 3}),
        (0, None, 6, {Why.WRONG: 2}),
    ],
)
def test_each_episode_of_a_teacher_is_in_the_books_once(count, shares, kept, refused):
    made = Made(offered=2, selection=Selection(count, shares), teacher=True)
    experts = (an_expert(1), an_expert(1), an_expert(2))
    for name in ("a", "b"):
        made.add(name, Attempt(experts=experts, refused=(Why.WRONG,), faults=("down",), episodes=5))
    assert (len(made.experts), made.refused) == (kept, refused)
    assert made.episodes == kept + made.refused.total() + len(made.faults) == 10
    assert f"10 episodes of the teacher: {kept} kept; " in " ".join(made.lines())
    assert why(made) == ({"b": Why.COUNT} if count else {})


@dataclass
class Scripted:
    """Plays questions by their ids: one that waits never ends by itself, and calls ``then``."""

    experts: int = 1
    then: Callable[[], object] = lambda: None

    def at_once(self, wanting: float) -> int:
        return 9

    async def attempt(self, question: Question) -> Attempt:
        if question.id.startswith("waits"):
            self.then()
            await asyncio.Event().wait()
        experts = tuple(an_expert(1) for _ in range(self.experts))
        return Attempt(experts=experts, episodes=self.experts)


def scripted(monkeypatch: pytest.MonkeyPatch, *ids: str, count: int = 0, **how: Any) -> Made:
    """What is made of questions of these ids, in one chunk, by a ``Scripted`` teacher."""

    async def made() -> Made:
        task: Any = asyncio.current_task()
        player = Scripted(**how, then=lambda: asyncio.get_running_loop().call_soon(task.cancel))

        async def no_endpoint(*_: Any) -> Scripted:
            return player

        monkeypatch.setattr(making, "_player", no_endpoint)
        monkeypatch.setattr(making, "choose", lambda questions, seed: questions)
        config = ExpertsConfig(count=count, teacher=TeacherConfig(url="http://x/v1", model="m"))
        questions = [replace(EMMA, id=name) for name in ids]
        return await making.make(questions, making.Library(searcher=None, agent=AGENT), config, 0)  # type: ignore[arg-type]

    return asyncio.run(made())


def test_questions_that_were_played_beside_the_last_one_that_is_taken_are_in_the_books(monkeypatch):
    made = scripted(monkeypatch, "a", "b", "c", count=3, experts=2)
    assert (made.tried, made.episodes, len(made.experts), made.refused) == (3, 6, 3, {Why.COUNT: 3})
    assert (why(made), made.broken) == ({"c": Why.COUNT}, "")


def test_a_making_that_is_stopped_keeps_the_questions_that_have_ended(monkeypatch):
    made = scripted(monkeypatch, "a", "b", "waits", "c")
    assert (made.tried, len(made.experts), made.broken) == (3, 3, "it was stopped")


@pytest.mark.parametrize("ended", [0, 2])
def test_a_question_that_is_stopped_keeps_the_episodes_that_have_ended(ended):
    judged: list[int] = []

    class Teacher(making.FromTeacher):
        async def _play(self, question: Question, number: int) -> Any:
            if number >= ended:
                asyncio.get_running_loop().call_soon(task.cancel)
                await asyncio.Event().wait()
            judged.append(number)
            return SimpleNamespace(stop_reason=StopReason.RETRIEVAL_FAILED, fault="down")

    async def play() -> Attempt:
        nonlocal task
        library = making.Library(searcher=None, agent=AGENT)  # type: ignore[arg-type]
        config = ExpertsConfig(teacher=TeacherConfig(url="http://x/v1", model="m"))
        teacher = Teacher(library, None, config, 0, None)  # type: ignore[arg-type]
        task = asyncio.ensure_future(teacher.attempt(EMMA))
        return await task

    task: Any = None
    if not ended:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(play())
        return
    attempt = asyncio.run(play())
    assert (attempt.episodes, len(attempt.faults), judged) == (2, 2, [0, 1])


def test_what_was_kept_stays_until_all_of_it_is_written(tmp_path, monkeypatch):
    """The end of a process leaves one of the two files, as a full disk does."""
    (tmp_path / FILE).write_text("hours of a teacher's work\n")

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("retrieval_service.whole.settle", full)
    with pytest.raises(OSError, match="No space left"):
        Made(offered=0, selection=Selection(0, None)).write(tmp_path)
    assert (tmp_path / FILE).read_text() == "hours of a teacher's work\n"


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines"])
def test_a_key_that_can_not_be_sent_is_named(monkeypatch, key):
    monkeypatch.setenv("TEACHER_KEY", key)
    with pytest.raises(UserError, match="TEACHER_KEY must be a key of plain ASCII letters, on one line"):
        TeacherConfig(url="http://x", model="m").check()


MINI = Path(__file__).parents[3] / "shared" / "data" / "multihop_mini"


@pytest.mark.slow
@pytest.mark.skipif(not MINI.is_dir(), reason="the questions from HotpotQA and MuSiQue are not here")
def test_real_questions_have_their_experts(tmp_path_factory):
    """A sample of the real questions on the 11,791 real passages: most can be done, and every row is read again."""
    from tasks.files import read_questions

    folder = tmp_path_factory.mktemp("mini")
    index = index_for(MINI / "corpus.jsonl", RetrievalConfig(), folder)
    questions = read_questions(MINI / "train.jsonl", key="data.questions")
    some = random.Random(0).sample(questions, 100)
    agent = AgentConfig(top_k=3, max_searches=4, max_passage_chars=800)

    async def made() -> Made:
        service = RetrievalService(lambda: open_backend(RetrievalConfig(), index), RetrievalConfig())
        await service.start()
        try:
            return await making.make(some, making.Library(searcher=service, agent=agent), ExpertsConfig(), 0)
        finally:
            await service.close()

    found = asyncio.run(made())
    assert len(found.experts) >= 70
    assert Why.FORM not in found.left_out
    assert len(read_experts(found.write(folder), EMMA_PROTOCOL, key="data.experts")) == len(found.experts)
