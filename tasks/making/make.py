"""Makes expert trajectories: plays each question, from the evidence or with a teacher, and keeps what holds.

A trajectory is kept if it has found every supporting document and its answer is right; one that is made from the
evidence only if the answer stands in those documents as they are shown, unless it is yes or no, which stands nowhere.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from math import ceil
from typing import Any, Protocol, TypeVar

from agent.answers import exact_match, has_words, is_closed
from agent.config import AgentConfig
from agent.errors import RetrievalError, UserError, commonest
from agent.formats.catalogue import format_class
from agent.neutral import neutralise
from agent.prompts import PROMPTS, fill
from agent.records import Question, StopReason, Trajectory
from agent.rewards.evidence import evidence_recall, evidence_wanted
from agent.seeds import derive_seed
from agent.tools.base import Searcher
from tasks.demonstrations import Demonstration, answer_text, search_text
from tasks.experts import choose
from tasks.making.config import ExpertsConfig
from tasks.making.endpoint import Endpoint
from tasks.making.episodes import Script, Stage
from tasks.making.evidence import NotFoundError, Step, Walk
from tasks.making.made import Attempt, Expert, Made, Selection, Why
from tasks.making.teacher import PATIENCE, Teacher, path

T = TypeVar("T")
CHUNK = 64
"""Questions that are played at a time from the evidence."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """What the experts play on."""

    searcher: Searcher
    agent: AgentConfig
    there: Collection[str] | None = None
    """Those names of supporting documents that the corpus has; None if that isn't known."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """Titles of documents that are named by id."""
    fits: Callable[[Demonstration], bool] = lambda demonstration: True
    """Whether the policy could play it within its limits of tokens."""


async def make(
    questions: Sequence[Question],
    library: Library,
    config: ExpertsConfig,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    keep: Callable[[Expert], None] = lambda expert: None,
) -> Made:
    """Experts of ``questions``, which are tried in an order that ``seed`` decides. ``progress`` is told of those done,
    ``keep`` of each expert that is taken.

    One that is cancelled, as by Ctrl-C, returns what there is, with the reason in ``broken``: all episodes that have
    ended. Raises ``UserError`` for an endpoint that refuses everything.
    """
    made = Made(
        offered=len(questions),
        selection=Selection(config.count, config.search_shares),
        teacher=config.teacher.url is not None,
    )
    in_a_row = 0
    async with AsyncExitStack() as stack:
        player = await _player(stack, library, config, seed, frozenset(q.id for q in questions))
        ordered = choose(questions, seed)
        at = 0
        while at < len(ordered) and not made.selection.full:
            some = ordered[at : at + player.at_once(made.selection.wanting)]
            at += len(some)
            attempts, stopped = await _ended(map(player.attempt, some))
            for question, attempt in zip(some, attempts, strict=True):
                if attempt is None:
                    continue
                taken = len(made.experts)
                made.add(question.id, attempt)  # those behind the last one that is taken, too: they were played
                for expert in made.experts[taken:]:
                    keep(expert)
                if attempt.broken:
                    in_a_row += 1
                elif attempt.played:
                    in_a_row = 0
            if stopped:
                made.broken = "it was stopped"
                break
            progress(at, len(ordered))
            if in_a_row >= PATIENCE and not made.selection.full:
                made.broken = f"nothing but faults came of the last {in_a_row} questions: {commonest(made.faults)}"
                break
    return made


async def _ended(plays: Iterable[Coroutine[Any, Any, T]]) -> tuple[list[T | None], bool]:
    """What each of ``plays``, which go on at once, has given, and whether the caller was cancelled meanwhile: None of
    those that were still going on. If one raises, the others are ended, and it is raised."""
    tasks = [asyncio.ensure_future(play) for play in plays]
    stopped = False
    try:
        await asyncio.gather(*tasks)
    except asyncio.CancelledError:
        stopped = True
    finally:
        for task in tasks:
            task.cancel()  # nothing of those that are done
        await asyncio.gather(*tasks, return_exceptions=True)
    return [None if task.cancelled() else task.result() for task in tasks], stopped


class _Player(Protocol):
    def at_once(self, wanting: float) -> int:
        """How many questions are played at a time while ``wanting`` more experts are taken."""
        ...

    async def attempt(self, question: Question) -> Attempt:
        """Plays ``question``. One that is cancelled gives what has ended, and raises if nothing has."""
        ...


async def _player(
    stack: AsyncExitStack, library: Library, config: ExpertsConfig, seed: int, ids: Collection[str]
) -> _Player:
    """Who plays. ``ids`` are all the questions'."""
    agent, teacher = library.agent, config.teacher
    # A teacher plays in tags: it is told what the policy is told where that plays in them, but for `plain`, which says
    # nothing of them.
    own = format_class(agent.format).in_tags and agent.prompt not in PROMPTS
    stage = Stage(agent, library.searcher, prompt=agent.prompt if own else "instruct")
    if teacher.url is None:
        return FromEvidence(library, stage, config, seed)
    endpoint = await stack.enter_async_context(teacher.client())
    return FromTeacher(library, stage, config, seed, endpoint, ids)


def _refusal(question: Question, library: Library) -> Attempt | None:
    """Why a question can't be tried; None if it can."""
    if not evidence_wanted(question):
        return Attempt(refused=(Why.UNNAMED,))
    if library.there is not None and (absent := [n for n in question.supporting if n not in library.there]):
        return Attempt(refused=(Why.LACKING,), detail="; ".join(absent))
    return None


def _judge(
    question: Question, trajectory: Trajectory, library: Library, stage: Stage, queries: tuple[str, ...] = ()
) -> Expert | Why:
    """What was played as an expert, or why it is none."""
    if trajectory.stop_reason is not StopReason.ANSWERED or trajectory.answer is None:
        return Why.LIMIT if trajectory.stop_reason is StopReason.SEARCH_LIMIT else Why.UNANSWERED
    if any(turn.refused for turn in trajectory.turns):
        return Why.LIMIT
    if exact_match(trajectory.answer, question.golden_answers) < 1:
        return Why.WRONG
    if evidence_recall(trajectory, question) != 1:
        return Why.EVIDENCE
    try:
        written = stage.written(question, trajectory)
    except UserError:
        return Why.FORM
    if not library.fits(written.demonstration):
        return Why.LONG
    return Expert(written=written, searches=trajectory.searches, closed=only_closed(question), queries=queries)


@dataclass
class FromEvidence:
    """Plays what ``evidence.Walk`` has planned."""

    library: Library
    stage: Stage
    config: ExpertsConfig
    seed: int

    def at_once(self, wanting: float) -> int:
        """See ``_Player``: one that is played in vain costs next to nothing."""
        return CHUNK

    async def attempt(self, question: Question) -> Attempt:
        """One episode; with ``experts.search_shares`` also one with as few searches as can be."""
        if refusal := _refusal(question, self.library):
            return refusal
        experts: list[Expert] = []
        refused: list[Attempt] = []
        for own in (True, False):
            if own or self.config.search_shares is not None or not experts:
                try:
                    made = await self._episode(question, own)
                except NotFoundError as error:
                    made = Attempt(refused=(Why.NOT_FOUND,), detail=str(error))
                except RetrievalError as error:
                    return Attempt(faults=(str(error),))
                experts += made.experts[0] if made.experts else ()
                refused += [made] if not made.experts else []
        if not experts:
            return refused[-1]
        return Attempt(experts=(tuple(experts),))

    async def _episode(self, question: Question, own: bool) -> Attempt:
        library, agent = self.library, self.stage.agent
        walked = await Walk(
            question,
            library.searcher,
            agent.top_k,
            agent.max_passage_chars,
            guess_titles=self.config.guess_titles,
            titles=library.titles,
        ).walk(own=own)
        if len(walked.steps) > agent.max_searches:
            return Attempt(refused=(Why.SEARCHES,), detail=f"{len(walked.steps)} searches")
        answer = answer_in(walked.evidence, question)
        if answer is None:
            return Attempt(refused=(Why.NOT_THERE,), detail=question.golden_answers[0])
        trajectory = await self.stage.play(question, Script(self._turns(question, walked.steps, answer)))
        if trajectory.stop_reason.is_fault:
            return Attempt(faults=(trajectory.fault,))
        queries = tuple(str(step.by) for step in walked.steps)
        judged = _judge(question, trajectory, library, self.stage, queries)
        return Attempt(experts=((judged,),)) if isinstance(judged, Expert) else Attempt(refused=(judged,))

    def _turns(self, question: Question, steps: Sequence[Step], answer: str) -> list[str]:
        """What the expert writes: its thoughts, drawn by seed and question, its searches and its answer."""
        protocol = self.stage.protocol
        rng = random.Random(derive_seed("thoughts", self.seed, question.id))

        def said(templates: Sequence[str], action: str, **values: str) -> str:
            thought = fill(rng.choice(templates), {"question": question.text, **values}) if templates else ""
            return f"{neutralise(thought, protocol.tags)}\n{action}".strip()

        searches = [
            said(self.config.thoughts, search_text(protocol, query), query=query)
            for query in (neutralise(step.query, protocol.tags) for step in steps)
        ]
        return [*searches, said(self.config.answer_thoughts, answer_text(protocol, answer), answer=answer)]


def answer_in(evidence: Sequence[str], question: Question) -> str | None:
    """The first golden answer that stands in ``evidence``; None if none does. Where all of several are needed each may
    stand in another text, and the answer names them all. Yes and no need no evidence where nothing else is right, and
    aren't looked for otherwise: "NO" is an alias of Norway, and stands in nearly any text."""
    if question.needed:
        there = all(any(has_words(text, [answer]) for text in evidence) for answer in question.needed)
        return question.golden_answers[0] if there else None
    if only_closed(question):
        return question.golden_answers[0]
    return next(
        (
            answer
            for answer in question.golden_answers
            if not is_closed(answer) and any(has_words(text, [answer]) for text in evidence)
        ),
        None,
    )


def only_closed(question: Question) -> bool:
    """Whether yes or no is all that can be right."""
    return all(map(is_closed, question.golden_answers))


@dataclass
class FromTeacher:
    """Samples a teacher's episodes and keeps the right ones with all of the evidence, one for each list of queries."""

    library: Library
    stage: Stage
    config: ExpertsConfig
    seed: int
    endpoint: Endpoint
    ids: Collection[str] = ()
    """That the questions have."""

    def __post_init__(self) -> None:
        self._places = asyncio.Semaphore(self.config.teacher.parallel)

    def at_once(self, wanting: float) -> int:
        """See ``_Player``: as many as may be needed if all episodes are right, since the endpoint may be paid for."""
        teacher = self.config.teacher
        return ceil(min(teacher.parallel, wanting / teacher.episodes))

    async def attempt(self, question: Question) -> Attempt:
        """``experts.teacher.episodes`` episodes. Raises ``UserError`` for an endpoint that refuses everything."""
        if refusal := _refusal(question, self.library):
            return refusal
        ended, stopped = await _ended(self._play(question, n) for n in range(self.config.teacher.episodes))
        played = [trajectory for trajectory in ended if trajectory is not None]
        if stopped and not played:
            raise asyncio.CancelledError
        experts: list[tuple[Expert, ...]] = []
        refused: list[Why] = []
        paths: set[tuple[str, ...]] = set()
        free = (name for n in count(2) if (name := f"{question.id}#{n}") not in self.ids)
        name = question.id
        for trajectory in played:
            if trajectory.stop_reason.is_fault:
                continue
            judged = _judge(replace(question, id=name), trajectory, self.library, self.stage)
            if isinstance(judged, Expert) and path(trajectory) in paths:
                judged = Why.DUPLICATE
            if isinstance(judged, Expert):
                experts.append((judged,))
                paths.add(path(trajectory))
                name = next(free)
            else:
                refused.append(judged)
        faults = tuple(t.fault for t in played if t.stop_reason.is_fault)
        return Attempt(experts=tuple(experts), refused=tuple(refused), faults=faults, episodes=len(played))

    async def _play(self, question: Question, number: int) -> Trajectory:
        teacher = Teacher(self.endpoint, self.stage.protocol, self.config.teacher, self.library.agent)
        async with self._places:
            return await self.stage.play(
                question,
                teacher,
                seed=derive_seed("teacher", self.seed, question.id, number),
                temperature=self.config.teacher.temperature,
            )
